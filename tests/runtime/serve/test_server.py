"""A real server under load, faults and nonsense. One is shared by most tests, and by the processes that run them."""

import asyncio
import gc
import http.client
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import numpy as np
import pytest
import uvicorn
from filelock import FileLock
from live import face, restore, until
from once import WAIT, run_folder
from onnx import TensorProto, helper, save

from bfr.benchmarks.end_to_end.server_process import COMMAND, ServerProcess
from bfr.export.onnx.wrap import wrap
from bfr.runtime.bundle.bundle import default_bundle
from bfr.runtime.errors import InvalidOption
from bfr.runtime.images.decode import decode_image
from bfr.runtime.images.encode import encode_image
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.keys import Keys
from bfr.runtime.serve.options import ListenOptions, ServeOptions
from bfr.runtime.serve.server import ACCEPTED, _listen, _Server, allow_files

pytestmark = pytest.mark.server

PHOTOGRAPH = Path(__file__).parents[3] / "docs" / "images" / "photograph.jpg"
FLAGS = ("--preset", "fast", "--preset", "reference", "--queue", "8", "--batch", "4", "--body-seconds", "2")
KEY = "k" * 24
PINNED = ("--backend", "onnxruntime-cpu", "--precision", "fp32")
MINI = default_bundle()
SLOW: dict[str, Any] = {"mode": "aligned", "preset": "reference"}  # 100 steps: seconds a face


class Shared(ServerProcess):
    """A server that another test process may have started."""

    def __init__(self, home: Path, url: str) -> None:
        self.home, self.url = home, url


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server of this module's tests, whichever of the test processes they are in."""
    folder = run_folder(tmp_path_factory) / "server"
    folder.mkdir(exist_ok=True)
    state, lock = folder / "state.json", FileLock(folder / "lock", timeout=WAIT)
    own = None
    with lock:
        known = json.loads(state.read_text()) if state.exists() else {"users": 0}
        if not known["users"]:
            home = folder / f"home-{os.getpid()}"
            home.mkdir()
            own = ServerProcess(home, *FLAGS, *PINNED, "--jobs", str(home / "jobs"))
            known = {"users": 0, "home": str(home), "url": own.url, "pid": own.process.pid}
        state.write_text(json.dumps({**known, "users": known["users"] + 1}))
    yield own or Shared(Path(known["home"]), known["url"])
    with lock:
        users = json.loads(state.read_text())["users"] - 1
        state.write_text(json.dumps({**known, "users": users}))
        if not users:
            os.kill(known["pid"], signal.SIGTERM)
    if own:  # its starter waits, so that nothing is left behind
        own.process.wait(WAIT)


@pytest.fixture
def server(running: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Without any other request."""
    with FileLock(run_folder(tmp_path_factory) / "server" / "test", timeout=WAIT):
        until(lambda: running.metric("bfr_requests_in_flight") == 0)
        yield running


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def connected(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def head_of(query: str, length: int) -> bytes:
    """The begin of a request with a PNG."""
    head = f"POST /restore{query} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode()


def send(server: ServerProcess, image: bytes) -> socket.socket:
    """The connection of a request for a hundred steps, whose answer is not waited for."""
    line = connected(server)
    line.sendall(head_of(f"?{urlencode(SLOW)}", len(image)) + image)
    return line


def submit(server: ServerProcess, image: bytes, headers: dict[str, str] | None = None, **query: Any) -> str:
    """The address of a job for an aligned face."""
    given, sent = {"mode": "aligned", **query}, {"Content-Type": "image/png", **(headers or {})}
    answer = httpx2.post(f"{server.url}/jobs", params=given, content=image, headers=sent, timeout=60)
    assert answer.status_code == 202
    return str(server.url + answer.headers["location"])


def ended(where: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """What is said of a job when it is done or failed."""
    found: dict[str, Any] = {}

    def done() -> bool:
        found.update(httpx2.get(where, headers=headers, timeout=60).json())
        return found["state"] in ("done", "failed")

    until(done, 120)
    return found


@contextmanager
def alone(folder: Path, *flags: str, **environment: str) -> Iterator[ServerProcess]:
    """A server of one test, which must end well."""
    server = ServerProcess(folder, *flags, *PINNED, **environment)
    try:
        yield server
    finally:
        assert server.stop() == 0


class TestServing:
    def test_portraits_and_photographs_at_once_are_what_they_are_alone(self, server: ServerProcess) -> None:
        photograph = PHOTOGRAPH.read_bytes()
        alone = httpx2.post(
            f"{server.url}/restore", content=photograph, headers={"Content-Type": "image/jpeg"}, timeout=120
        )
        assert alone.status_code == 200
        assert int(alone.headers["x-bfr-faces"]) >= 1

        def send_photograph() -> Any:
            files = {"image": ("photograph.jpg", photograph, "image/jpeg")}
            return httpx2.post(f"{server.url}/restore", files=files, timeout=120)

        answers = at_once(
            [send_photograph, *(lambda k=k: restore(server.url, face(k), mode="aligned") for k in range(4))]
        )
        assert [answer.status_code for answer in answers] == [200] * 5
        assert answers[0].content == alone.content
        with Restorer.open(preset="fast", backend="onnxruntime-cpu", precision="fp32", threads=1) as restorer:
            for k, answer in enumerate(answers[1:]):
                [expected] = restorer.restore([decode_image(face(k)).pixels])
                assert np.array_equal(decode_image(answer.content).pixels, expected)

    def test_metrics_add_up(self, server: ServerProcess) -> None:
        """Every face that was restored is in exactly one batch, those of jobs too."""
        restore(server.url, face(1), mode="aligned")
        assert server.metric("bfr_batch_size_sum") == server.metric("bfr_faces_total", result="restored")
        assert server.metric("bfr_queue_seconds_count") == server.metric("bfr_faces_total")
        assert server.metric("bfr_requests_total", route="/restore", code="200") == server.metric(
            "bfr_images_total", result="restored"
        ) + server.metric("bfr_images_total", result="no face")
        assert server.metric("bfr_ready") == 1
        assert server.metric("bfr_workers") == 1  # requests and jobs share it
        assert server.metric("bfr_worker_busy_seconds_total") > 0
        assert server.metric("bfr_body_bytes") == server.metric("bfr_faces_in_flight") == 0

    def test_past_the_queue_it_says_so_and_clients_that_leave_free_their_places(self, server: ServerProcess) -> None:
        gone, restored = server.metric("bfr_requests_total", code="499"), server.metric("bfr_faces_total")
        lines = [send(server, face(k)) for k in range(8)]
        until(lambda: server.metric("bfr_requests_in_flight") == 8)
        refused = restore(server.url, face(9), mode="aligned")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "8 requests" in refused.json()["detail"]
        for line in lines:
            line.close()
        until(lambda: server.metric("bfr_requests_in_flight") == 0)
        assert server.metric("bfr_requests_total", code="499") == gone + 8
        assert restore(server.url, face(9), mode="aligned").status_code == 200
        assert server.metric("bfr_faces_total") == restored + 1  # theirs are not worked on any more

    def test_a_job_is_done_and_deleted(self, server: ServerProcess) -> None:
        where = submit(server, face(3), seed=5)
        found = ended(where)
        assert (found["state"], found["faces"], found["error"]) == ("done", 1, None)
        result = httpx2.get(server.url + found["result"], timeout=60)
        direct = restore(server.url, face(3), mode="aligned", seed=5)
        assert np.array_equal(decode_image(result.content).pixels, decode_image(direct.content).pixels)
        assert httpx2.delete(where, timeout=60).status_code == 204
        assert httpx2.get(where, timeout=60).status_code == 404

    def test_every_line_of_the_log_is_json_with_the_request_id(self, server: ServerProcess) -> None:
        restore(server.url, face(1), mode="aligned", headers={"X-Request-Id": "find-me-in-the-log"})
        found: list[dict[str, Any]] = []

        def written() -> bool:  # after the answer was sent
            found[:] = [line for line in server.log if line.get("request_id") == "find-me-in-the-log"]
            return bool(found)

        until(written)
        [line] = found
        assert (line["route"], line["status"], line["faces"]) == ("/restore", 200, 1)
        assert line["seconds"] > 0


class TestNonsense:
    def test_a_hundred_megabytes_are_refused_by_their_length_and_as_they_come(self, server: ServerProcess) -> None:
        answer = httpx2.post(
            f"{server.url}/restore", content=b"x" * 100_000_000, headers={"Content-Type": "image/png"}, timeout=60
        )
        assert answer.status_code == 413

        def endless() -> Iterator[bytes]:
            for _ in range(1000):
                yield b"x" * 100_000

        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        connection.request("POST", "/restore", endless(), {"Content-Type": "image/png"}, encode_chunked=True)
        assert connection.getresponse().status in (408, 413)  # on a busy machine it takes longer than --body-seconds
        assert server.ready()

    def test_a_slow_body_is_given_up(self, server: ServerProcess) -> None:
        with connected(server) as line:
            line.sendall(head_of("", 1000) + b"abc")
            assert b"408" in line.recv(64)

    @pytest.mark.parametrize(
        "raw",
        [
            b"POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
            b"POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
            b"\x00\xff\x16\x03\x01" * 20,
            b"GET /jobs/..%2f..%2fetc%2fpasswd/result HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET //etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /restore HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\nContent-Length: 0\r\n\r\n",
            b"POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\n",
            b"POST /restore HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 30_000,
        ],
    )
    def test_broken_requests_get_a_4xx_or_nothing(self, server: ServerProcess, raw: bytes) -> None:
        answer = b""
        with connected(server) as line, suppress(BrokenPipeError, ConnectionResetError):
            line.sendall(raw)
            line.shutdown(socket.SHUT_WR)
            answer = line.recv(64)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer
        assert server.ready()

    def test_no_route_gives_a_5xx_whatever_it_is_sent(self, server: ServerProcess) -> None:
        """Schemathesis against the server's own description: answers as described, and none is a server error."""
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        bounds = ["--max-examples", "12", "--phases", "examples,coverage,fuzzing", "--seed", "1", "--workers", "1"]
        bounds += ["--suppress-health-check", "filter_too_much,too_slow"]  # they are about making examples
        run = subprocess.run(  # noqa: S603
            [*command, "--checks", checks, *bounds, "--request-timeout", "60", "--no-color", "--continue-on-failure"],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert run.returncode == 0, run.stdout[-6000:]
        assert server.ready()


def test_a_killed_worker_costs_no_answer_and_sigterm_under_load_loses_no_request(tmp_path: Path) -> None:
    flags = ("--preset", "fast", "--batch", "2", "--no-jobs", "--drain", "300", "--timeout", "300")
    server = ServerProcess(tmp_path, *flags, *PINNED)
    with ThreadPoolExecutor(8) as pool:
        try:

            def ask(k: int) -> Any:
                return pool.submit(restore, server.url, face(k), mode="aligned", timeout=300)

            [worker] = server.workers()
            os.kill(worker, signal.SIGSTOP)  # what it is given stays in flight
            accepted = [ask(0)]
            until(lambda: server.metric("bfr_faces_in_flight") == 1)
            accepted.append(ask(1))
            until(lambda: server.metric("bfr_faces_waiting") == 1)  # the worker has the first one
            os.kill(worker, signal.SIGKILL)
            assert [future.result().status_code for future in accepted] == [200, 200]
            server.wait_ready()

            [worker] = server.workers()
            os.kill(worker, signal.SIGSTOP)
            accepted += [ask(k) for k in range(6)]
            until(lambda: server.metric("bfr_requests_in_flight") == 6)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: not server.ready())
            refused = restore(server.url, face(9), mode="aligned")
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert refused.headers["connection"] == "close"
            os.kill(worker, signal.SIGCONT)
            assert {future.result().status_code for future in accepted} == {200}
            assert server.process.wait(60) == 0
            assert "all requests were answered" in [line["message"] for line in server.log]
            answered = [line for line in server.log if line.get("route") == "/restore"]
            assert sum(line["status"] == 200 for line in answered) == len(accepted)
            assert [line["reason"] for line in answered if line["status"] != 200] == ["draining"]
            assert list(server.processes()) == []
        finally:
            server.kill()


def test_past_the_drain_limit_the_answer_is_503_and_the_connection_closes(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which the server inherits: under nohup it ignores SIGHUP
    server = ServerProcess(tmp_path, *FLAGS, *PINNED, "--no-jobs", "--drain", "0.5")
    signal.signal(signal.SIGHUP, before)
    try:
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)  # restores nothing
        with ThreadPoolExecutor(4) as pool:
            accepted = [pool.submit(restore, server.url, face(k), mode="aligned", seed=k) for k in range(4)]
            until(lambda: server.metric("bfr_requests_in_flight") == 4)
            server.process.send_signal(signal.SIGHUP)  # as SIGTERM
            answers = [future.result() for future in accepted]
        assert {answer.status_code for answer in answers} == {503}
        for answer in answers:
            assert answer.headers["connection"] == "close"
            assert answer.headers["content-type"] == "application/problem+json"
        assert server.process.wait(60) == 1
        assert list(server.processes()) == []
    finally:
        server.kill()


@pytest.mark.parametrize("done", [True, False])
async def test_slow_clients_have_what_is_left_of_the_drain_limit(monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    """An answer is complete for the server when the system has it, and its client may still read."""
    waits: list[int] = []
    ready = asyncio.Event()

    class Engine:
        backend, faces = "none", 0

        async def start(self, front: Front) -> None:
            front.state = "ready"
            ready.set()

        async def failed(self) -> None:
            await asyncio.Event().wait()

        async def stop(self) -> None:
            gc.unfreeze()

    async def shutdown(http: uvicorn.Server, sockets: Any = None) -> None:
        waits.append(http.config.timeout_graceful_shutdown or 0)

    monkeypatch.setattr(uvicorn.Server, "shutdown", shutdown)
    engine: Any = Engine()
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = _Server(ServeOptions(), ListenOptions(drain=1000), Keys(), bound, engine)
        serving = asyncio.create_task(server.run())
        await ready.wait()
        with nullcontext() if done else server.front.answering():
            server._signalled()
            if not done:
                server._signalled()
            assert await serving == (0 if done else 1)
    assert [one._backlog for one in server.http.servers] == [ACCEPTED]  # those of one moment pass the limit
    assert (waits[0] > 500) == done
    assert server.http.force_exit == (not done)


def test_one_socket_listens_and_nothing_is_left_on_a_disk(tmp_path: Path) -> None:
    """P33: the one that was asked for; and only the folder of jobs, its owner's alone, holds what was sent."""
    temporary, before = tmp_path / "temporary", set(Path("/dev/shm").iterdir())  # noqa: S108
    temporary.mkdir()
    flags = *FLAGS, "--jobs", str(tmp_path / "jobs")
    headers = {"Authorization": f"Bearer {KEY}"}
    with alone(tmp_path, *flags, BFR_API_KEY=KEY, TMPDIR=str(temporary)) as server:
        assert listening({pid for pid, _ in server.processes()}) == [("127.0.0.1", int(server.url.rpartition(":")[2]))]
        assert restore(server.url, face(1), mode="aligned").status_code == 401
        pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
        form = {"image": ("a.png", encode_image(pixels, ".png"))}  # more than forms are often kept in memory for
        answer = httpx2.post(f"{server.url}/restore?mode=aligned", files=form, headers=headers, timeout=120)
        assert answer.status_code == 200
        where = submit(server, face(3), headers)
        assert ended(where, headers)["state"] == "done"
        for path in (tmp_path / "jobs", *(tmp_path / "jobs").rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert httpx2.delete(where, headers=headers).status_code == 204
        assert [path for path in (tmp_path / "jobs").rglob("*") if path.is_file()] == []
        for pid, _ in server.processes():
            if pid != server.process.pid:
                assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    assert [path for path in temporary.rglob("*") if path.name != ".ses"] == []  # that is ONNX Runtime's own
    assert {path for path in set(Path("/dev/shm").iterdir()) - before if "bfr" in path.name} == set()  # noqa: S108
    assert KEY not in server.errors() + (tmp_path / "stdout.txt").read_text()


def listening(pids: set[int]) -> list[tuple[str, int]]:
    """The TCP addresses that some processes listen on, IPv4 and IPv6."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(str(link.readlink()))
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[k] for k in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in inodes:
                address, port = local.split(":")
                host = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if name == "tcp" else address
                found.append((host, int(port, 16)))
    return found


def test_uploads_past_the_budget_are_refused_and_memory_stays_below_it(tmp_path: Path) -> None:
    """P34: twenty uploads that are not finished, four of which the budget holds."""
    length = 10_000_000
    flags = ("--preset", "fast", "--upload-bytes", str(4 * length), "--body-seconds", "20", "--no-jobs")
    lines = []
    with alone(tmp_path, *flags) as server:
        for _ in range(20):
            lines.append(connected(server))
            with suppress(BrokenPipeError, ConnectionResetError):
                lines[-1].sendall(head_of("", length) + bytes(length - 1))
        assert server.metric("bfr_body_bytes") <= 4 * length
        assert server.metric("bfr_requests_total", code="503", reason="overload") >= 15
        assert restore(server.url, face(1), mode="aligned").status_code in (200, 503)
        for line in lines:
            line.close()
        until(lambda: server.metric("bfr_body_bytes") == 0)
        assert restore(server.url, face(1), mode="aligned").status_code == 200


def test_two_bundles_in_one_server(tmp_path: Path) -> None:
    bundles = "--bundle", f"first={MINI}", "--bundle", f"second={MINI}"
    with alone(tmp_path, *bundles, "--preset", "fast", "--no-jobs") as server:
        info = httpx2.get(f"{server.url}/info").json()
        assert (list(info["bundles"]), info["default_bundle"]) == (["first", "second"], "first")
        answers = [restore(server.url, face(1), mode="aligned", bundle=name) for name in ("first", "second")]
        assert answers[0].content == answers[1].content
        wrong = restore(server.url, face(1), bundle="third")
        assert wrong.status_code == 422
        assert "first, second" in wrong.json()["detail"]


@pytest.mark.slow
def test_a_warm_up_that_fails_is_never_ready(tmp_path: Path) -> None:
    """A network that divides by its input: NaN for the grey image of the warm-up, finite for all photographs."""
    shape: list[str | int | None] = ["n", 3, 16, 16]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    nodes = [helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Div", ["square", "x"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "nan.onnx")
    wrap(tmp_path / "nan.onnx", tmp_path / "bundle")
    server = ServerProcess(tmp_path, str(tmp_path / "bundle"), *PINNED, "--no-jobs", wait=False)
    try:
        ready = False
        while server.process.poll() is None:
            ready = ready or server.ready()
            time.sleep(0.2)
        assert not ready
        assert server.process.returncode == 1
        assert "the warm-up of nan failed" in server.errors()
    finally:
        server.kill()


def test_a_server_may_open_as_many_files_as_it_takes_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        for count, expected in ((300, 300), (100, 300)):
            allow_files(count)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (expected, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_can_be_no_host_name_is_said() -> None:
    with pytest.raises(InvalidOption, match="--host"):
        _listen("a" * 70, 0)


def test_an_address_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        command = [*COMMAND, "--no-jobs", "--port", str(other.getsockname()[1])]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert run.returncode == 2
    assert "--port" in run.stderr


@pytest.mark.slow
def test_a_job_survives_a_restart(tmp_path: Path) -> None:
    flags = *FLAGS, "--jobs", str(tmp_path / "jobs")
    server = ServerProcess(tmp_path, *flags, *PINNED)
    os.kill(server.workers()[0], signal.SIGSTOP)  # none of them is done
    paths = [submit(server, face(k)).removeprefix(server.url) for k in range(3)]
    server.kill()
    (tmp_path / "again").mkdir()
    with alone(tmp_path / "again", *flags) as again:
        assert [ended(again.url + path)["state"] for path in paths] == ["done"] * 3
