"""The clients, on real sockets: what they send, what they try again and how long, and that both are the same."""

import asyncio
import inspect
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_server import SECONDS, FakeServer, Fault, fake_server
from PIL import Image as Pillow

from bfr.runtime.client import AsyncClient, Client, clients, transport
from bfr.runtime.client import calls as client_calls
from bfr.runtime.client.types import Job
from bfr.runtime.errors import (
    InputNotFound,
    InvalidImage,
    InvalidOption,
    MissingDependency,
    RequestRefused,
    ServerError,
    ServerUnavailable,
    WriteFailed,
)

KEY = "a-key-of-some-length"
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


class Waiting:
    """An AsyncClient that is called as a Client is."""

    def __init__(self, url: str, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncClient(url, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self.runner.run(getattr(self.client, name)(*args, **options))

    def __enter__(self) -> "Waiting":
        self.runner.run(self.client.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self.runner.run(self.client.__aexit__(*error))
        self.runner.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture(params=[Client, Waiting], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []

    def make(url: str | None = None, **options: Any) -> Any:
        opened.append(request.param(url or server.url, **options).__enter__())
        return opened[-1]

    yield make
    for client in opened:
        client.__exit__(None, None, None)


def png() -> bytes:
    stream = BytesIO()
    Pillow.fromarray(PIXELS).save(stream, "PNG")
    return stream.getvalue()


def test_both_clients_have_the_same_methods() -> None:
    def signatures(kind: type) -> dict[str, str]:
        functions = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
        found = {name: str(inspect.signature(f)) for name, f in functions.items() if not name.startswith("_")}
        return {name: signature.replace("AsyncIterator", "Iterator") for name, signature in found.items()}

    assert signatures(Client) == signatures(AsyncClient)


def test_an_image_is_restored(connect: Any, server: FakeServer, tmp_path: Path) -> None:
    server.failed, server.faces = 1, 2
    path = tmp_path / "a.png"
    path.write_bytes(png())
    options = {"seed": 3, "preset": "fast", "upscale": 2, "keep_colour": True}
    result, *others = [connect().restore(image, **options) for image in (PIXELS, png(), path)]
    assert {other.data for other in others} == {result.data}
    assert (result.media_type, result.faces, result.failed) == ("image/png", 2, 1)
    assert (result.seed, result.preset, result.bundle) == (3, "fast", server.info()["bundle"])
    assert result.seconds == SECONDS
    assert result.pixels.shape == (48, 64, 3)
    assert re.fullmatch("[0-9a-f]{32}", result.request_id)
    for sent in server.posts():
        assert sent.query == {"seed": "3", "preset": "fast", "upscale": "2", "keep_colour": "true"}
        assert sent.headers["content-type"] == "image/png"
        assert np.array_equal(np.asarray(Pillow.open(BytesIO(sent.body))), PIXELS)


@pytest.mark.parametrize(
    ("file_format", "kind"), [("BMP", "bmp"), ("TIFF", "tiff"), ("WEBP", "webp"), ("JPEG", "jpeg")]
)
def test_types_are_those_of_the_bytes(connect: Any, server: FakeServer, file_format: str, kind: str) -> None:
    stream = BytesIO()
    Pillow.fromarray(PIXELS).save(stream, file_format)
    result = connect().restore(stream.getvalue(), format=".webp")
    assert server.posts()[0].headers["content-type"] == f"image/{kind}"
    assert server.posts()[0].headers["accept"] == result.media_type == "image/webp"


@pytest.mark.parametrize(
    ("image", "options", "error", "said"),
    [
        (png(), {"format": ".gif"}, InvalidOption, "choose"),
        (png(), {"speed": 3}, InvalidOption, "choose"),
        (PIXELS[..., :2], {}, InvalidImage, "shape"),
        (PIXELS * 2.0, {}, InvalidImage, "scale"),
        (Path("nowhere.png"), {}, InputNotFound, "nowhere"),
    ],
)
def test_a_wrong_image_or_option_is_refused_before_it_is_sent(
    connect: Any, server: FakeServer, image: Any, options: Any, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        connect().restore(image, **options)
    assert not server.seen


def test_a_busy_server_is_left_alone_for_as_long_as_it_says(connect: Any, server: FakeServer) -> None:
    client = connect()
    server.faults = [Fault(503, retry_after="0.4"), Fault(503, retry_after="0.1")]
    assert client.restore(png()).faces == 1
    first, second, third = (sent.at for sent in server.posts())
    assert second - first >= 0.4
    assert third - second >= 0.1


NOW = datetime(2026, 2, 28, 23, 59, 55, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("0.4", 0.4),
        ("0", 0.0),
        ("-5", 0.0),
        (format_datetime(NOW + timedelta(seconds=12), usegmt=True), 12.0),
        (format_datetime(NOW - timedelta(seconds=12), usegmt=True), 0.0),
        ("3600", client_calls.LONGEST_PAUSE),
    ],
)
def test_a_pause_is_as_long_as_the_server_says_and_at_most_a_tenth_longer(said: str, seconds: float) -> None:
    pause = client_calls.retry_after({"retry-after": said, "date": format_datetime(NOW, usegmt=True)})
    assert pause is not None
    assert seconds <= pause <= 1.1 * seconds


@pytest.mark.parametrize("fault", [Fault(502), Fault(503), Fault(504), Fault(503, retry_after="soon"), Fault(0)])
def test_restoring_is_tried_again(connect: Any, server: FakeServer, fault: Fault) -> None:
    server.faults = [fault]
    assert connect().restore(png()).faces == 1
    assert len(server.posts()) == 2


@pytest.mark.parametrize("status", [400, 401, 406, 408, 413, 415, 422, 500])
def test_what_is_refused_or_fails_is_not_tried_again(connect: Any, server: FakeServer, status: int) -> None:
    server.faults = [Fault(status, "send something else")]
    with pytest.raises(ServerError, match="send something else") as refused:
        connect().restore(png())
    assert len(server.posts()) == 1
    assert isinstance(refused.value, RequestRefused) == (status != 500)
    assert not isinstance(refused.value, ServerUnavailable)
    if isinstance(refused.value, RequestRefused):
        assert (refused.value.status, refused.value.exit_code) == (status, 2)


def test_no_more_attempts_are_made_than_retries_allow(connect: Any, server: FakeServer) -> None:
    server.faults = [Fault(503, "64 wait", "0")] * 9
    with pytest.raises(ServerUnavailable, match="64 wait"):
        connect(retries=2).restore(png())
    assert len(server.posts()) == 3


def test_the_timeout_bounds_pauses_and_answers(connect: Any, server: FakeServer) -> None:
    client = connect(timeout=0.6)
    server.faults = [Fault(503, "64 wait", "20")]
    with pytest.raises(ServerUnavailable):
        client.restore(png())
    assert len(server.posts()) == 1  # there is no use in waiting
    server.delay = 5.0
    with pytest.raises(ServerUnavailable):
        client.restore(png())


def test_an_address_where_nobody_listens_is_said(connect: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    client = connect(url, retries=2)
    with pytest.raises(ServerUnavailable, match="address"):
        client.info()
    assert not client.ready()


@pytest.mark.parametrize("answer", [["html"], {}, {"presets": [], "default_preset": None}])
def test_a_server_of_another_kind(connect: Any, server: FakeServer, answer: Any) -> None:
    server.instead["/info"] = answer
    with pytest.raises(ServerError, match="does not answer as"):
        connect().info()


def test_the_api_key_is_sent_and_a_missing_one_is_named(connect: Any, server: FakeServer) -> None:
    server.key = KEY
    with pytest.raises(RequestRefused, match="--api-key-file"):
        connect().restore(png())
    assert connect(api_key=KEY).restore(png()).faces == 1
    assert connect().info()["api_key"] is True
    with pytest.raises(InvalidOption, match="key"):
        connect(api_key="two\nlines")


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://a", "http://", "http://user:secret@a", "http://a/?b=c"),
        *("http://a:99999", "http://a:-5", "http://a:0", "http://:80", "http://[::1", None),
        *("http://256.1.1.1", "http://\u2603.example", "http://\x7f"),  # which the library alone refuses
    ],
)
def test_what_is_no_address_is_refused(url: Any) -> None:
    pytest.importorskip("httpx2")
    with pytest.raises(InvalidOption, match="address"):
        Client(url)


def test_an_address_may_have_capitals_and_be_no_text() -> None:
    assert client_calls.address("Http://a:80/B/") == "http://a:80/B"
    url: Any = pytest.importorskip("httpx2").URL("http://[::1]:8000/a/")
    assert client_calls.address(url) == "http://[::1]:8000/a"


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_certificates_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None) -> None:
    pytest.importorskip("httpx2")
    if text:
        (tmp_path / "ca.pem").write_text(text)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    transport._certificates.cache_clear()
    with pytest.raises(InvalidOption, match="SSL_CERT_FILE"):
        Client("https://example.org")


def test_an_option_that_is_none_is_not_sent(connect: Any, server: FakeServer) -> None:
    connect().restore(png(), preset=None, seed=3, format=None)
    (sent,) = server.posts("/restore")
    assert (sent.query, sent.headers["accept"]) == ({"seed": "3"}, "*/*")


def test_an_async_client_outlives_its_event_loop(server: FakeServer) -> None:
    client = AsyncClient(server.url)
    for _ in range(2):
        assert asyncio.run(client.info())["presets"]
    asyncio.run(client.close())


def test_a_forked_process_is_told_to_make_its_own(server: FakeServer) -> None:
    with Client(server.url) as client:
        client.info()
        client._process -= 1  # as a child sees it; what it has not is the thread that would answer
        with pytest.raises(InvalidOption, match="after the fork"):
            client.info()
        client.close()
        client._process += 1
        client.info()


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}])
def test_a_timeout_and_retries_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        Client("http://localhost", **options)


def test_without_httpx2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingDependency, match="client"):
        Client("http://localhost")


def test_ready_says_whether_the_server_is(connect: Any, server: FakeServer) -> None:
    client = connect()
    assert client.ready()
    server.ready = False
    assert not client.ready()


@contextmanager
def only_answer(status: int) -> Iterator[str]:
    """A server that answers one request, with a status alone."""
    with socket.create_server(("127.0.0.1", 0)) as bound, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            line, _ = bound.accept()
            with line:
                line.recv(10_000)
                line.sendall(f"HTTP/1.1 {status} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        answered = pool.submit(answer)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        answered.result()


def film(folder: Path, data: bytes = b"moving pictures") -> Path:
    path = folder / "film.mp4"
    path.write_bytes(data)
    return path


def test_a_job_from_its_file_to_its_result(connect: Any, server: FakeServer, tmp_path: Path) -> None:
    client, told = connect(), []
    job = client.submit(str(film(tmp_path)), seed=2, faces="largest")  # a path or text
    (sent,) = server.posts("/jobs")
    assert (sent.body, sent.headers["content-type"]) == (b"moving pictures", "video/mp4")
    assert sent.headers["content-length"] == "15"
    assert sent.query == {"seed": "2", "faces": "largest"}
    assert (job.state, client.job(job.id).state) == ("queued", "running")
    ended = client.wait(job.id, progress=lambda job: told.append(job.share))
    assert (ended.state, ended.faces, ended.frames) == ("done", 6, 3)
    assert told == [0.5, 1.0]
    client.download(job.id, str(tmp_path / "out" / "film.mp4"))
    assert (tmp_path / "out" / "film.mp4").read_bytes() == b"serutcip gnivom"
    client.delete(job.id)
    assert server.deleted == [job.id]
    with pytest.raises(RequestRefused, match="no job") as gone:
        client.job(job.id)
    assert gone.value.status == 404


def test_a_job_that_failed_is_told(connect: Any, tmp_path: Path) -> None:
    client = connect()
    job = client.wait(client.submit(film(tmp_path, b"broken")).id)
    assert (job.state, job.error) == ("failed", "the video is damaged: copy it again")


def test_waiting_for_a_job_ends_at_its_timeout(connect: Any, server: FakeServer, tmp_path: Path) -> None:
    client = connect()
    name = client.submit(film(tmp_path)).id
    with pytest.raises(ServerUnavailable, match="running"):
        client.wait(name, timeout=0)


def test_a_job_that_waits_for_another_server_says_so(connect: Any, server: FakeServer, tmp_path: Path) -> None:
    client = connect()
    name = client.submit(film(tmp_path), preset="fast").id
    server.presets = {"best": 20}
    job = client.job(name)
    assert job.state == "queued"
    assert job.error is not None
    assert "does not offer bundle 'mini' with preset 'fast'" in job.error
    with pytest.raises(ServerUnavailable, match=r"queued after 0 s: .*Delete it"):
        client.wait(name, timeout=0)
    server.presets = {"fast": 1}
    assert client.wait(name).state == "done"


@pytest.mark.parametrize(("fault", "posts"), [(Fault(503, retry_after="0.05"), 2), (Fault(502), 1), (Fault(0), 1)])
def test_a_job_is_sent_once(connect: Any, server: FakeServer, tmp_path: Path, fault: Fault, posts: int) -> None:
    server.faults = [fault]
    client = connect()
    with nullcontext() if posts == 2 else pytest.raises(ServerUnavailable):
        client.submit(film(tmp_path))
    assert len(server.posts("/jobs")) == posts


def test_a_file_that_is_no_job_is_refused_before_it_is_sent(connect: Any, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    for name, error, said in (
        ("notes.txt", InvalidOption, "named"),
        ("nowhere.mp4", InputNotFound, "nowhere"),
        ("folder.mp4", InputNotFound, "cannot be read"),
    ):
        with pytest.raises(error, match=said):
            connect().submit(tmp_path / name)
    assert not server.seen


@pytest.mark.parametrize("data", [b"longer than it was", b"short", None])
def test_a_file_that_changes_while_it_is_sent(
    connect: Any, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None
) -> None:
    path, headers = film(tmp_path), clients.file_headers

    def changed(path: Path) -> dict[str, str]:
        found = headers(path)
        path.write_bytes(data) if data else path.unlink()
        return found

    monkeypatch.setattr(clients, "file_headers", changed)
    with pytest.raises(InputNotFound, match="changed while" if data else "cannot be read"):
        connect().submit(path)


RUNNING, DONE = Job("a", "running", 0.5, ""), Job("a", "done", 1.0, "")
GONE = ServerUnavailable("nobody listens")


def waiting(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Any], pauses: list[float], **options: Any) -> Job:
    """What `wait` returns where each look is answered by `answer`, and where pauses are only noted."""

    async def job(_name: str) -> Job:
        found = answer()
        if isinstance(found, Exception):
            raise found
        return found

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    client = AsyncClient("http://localhost", **options)
    monkeypatch.setattr(client, "job", job)
    monkeypatch.setattr(clients, "asyncio", SimpleNamespace(sleep=sleep))
    return asyncio.run(client.wait("a"))


def test_a_job_of_many_hours_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks are two seconds apart at most, however many there were."""
    pauses: list[float] = []
    assert waiting(monkeypatch, lambda: DONE if len(pauses) == 10_800 else RUNNING, pauses) is DONE
    assert max(pauses) == 2.0


@pytest.mark.parametrize(
    ("answers", "timeout", "left"),
    [
        ([RUNNING, GONE, GONE, GONE, DONE], 1e6, 0),
        ([RUNNING, GONE, GONE, GONE, DONE], 1e-9, 3),  # it is given up
        ([GONE, DONE], 1e6, 1),  # it was never there
    ],
)
def test_a_job_outlives_a_restart_of_its_server(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], timeout: float, left: int
) -> None:
    answers = [*answers]
    with pytest.raises(ServerUnavailable, match="nobody listens") if left else nullcontext():
        assert waiting(monkeypatch, lambda: answers.pop(0), [], timeout=timeout) is DONE
    assert len(answers) == left


def test_a_download_is_whole_or_not_there(connect: Any, server: FakeServer, tmp_path: Path) -> None:
    client = connect(retries=0)
    target = tmp_path / "out" / "film.mp4"
    with pytest.raises(RequestRefused):
        client.download("f" * 32, target)
    assert not target.parent.exists()
    job = client.submit(film(tmp_path))
    client.wait(job.id)
    server.cut = True
    with pytest.raises(ServerUnavailable):
        client.download(job.id, target)
    assert list(target.parent.iterdir()) == []
    server.cut = False
    (tmp_path / "file").touch()
    with pytest.raises(WriteFailed):
        client.download(job.id, tmp_path / "file" / "film.mp4")


GUIDE = Path(__file__).parents[3] / "docs" / "client.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("status", [201, 204])
def test_a_download_without_a_file_is_no_success(connect: Any, server: FakeServer, tmp_path: Path, status: int) -> None:
    with only_answer(status) as url, pytest.raises(ServerError, match=str(status)):
        connect(url).download("f" * 32, tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []


def test_closing_ends_the_calls_of_other_threads(server: FakeServer) -> None:
    server.delay = 1000
    client = Client(server.url)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.restore, png())
        while not server.front.visits:
            time.sleep(0.01)
        client.close()
        with pytest.raises(ServerUnavailable, match="was closed"):
            waiting.result()
    with pytest.raises(InvalidOption, match="is closed"):
        client.info()


def test_a_call_of_another_thread_while_the_client_closes_does_not_hang(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, found = Client(server.url), []
    with ThreadPoolExecutor(1) as pool:

        async def close() -> None:
            late = asyncio.wrap_future(pool.submit(client.info))
            found.extend(await asyncio.gather(late, return_exceptions=True))

        monkeypatch.setattr(client._client, "close", close)
        client.close()
    assert [type(one) for one in found] == [InvalidOption]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_guide(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("album").mkdir()
    for path in ("photograph.jpg", "album/a.jpg", "album/b.jpg"):
        Pillow.fromarray(PIXELS).save(path)
    film(tmp_path)
    example = EXAMPLES[number].replace("http://localhost:8000", server.url)
    exec(compile(example, f"{GUIDE.name}, example {number}", "exec"), {})  # noqa: S102
    expected = ["1 0.31 (48, 64, 3)\n", "0%\n50%\n100%\n", "1\n1\n"]
    assert capsys.readouterr().out == expected[number]
    assert Path("restored.jpg").exists() == (number == 0)
    assert Path("restored.mp4").exists() == (number == 1)


class TestProxies:
    """A server on this machine is asked without; for another one the proxy is named."""

    DEAD = "http://127.0.0.1:1"

    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)

    @pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
    @pytest.mark.parametrize("proxy", [DEAD, "socks5://127.0.0.1:1", "nonsense://x"])
    def test_the_loopback_needs_none(
        self, server: FakeServer, monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str
    ) -> None:
        monkeypatch.setenv(variable, proxy)
        for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
            with Client(url, retries=0) as client:
                assert client.ready()

    @pytest.mark.parametrize(
        "url", ["http://127.3.2.1:80", "http://[::1]:80", "http://localhost", "http://a.localhost"]
    )
    def test_what_the_loopback_is(self, url: str) -> None:
        assert client_calls.is_loopback(url)
        assert not client_calls.is_loopback(
            url.replace("127.3", "12.3").replace("::1", "::2").replace("localhost", "x")
        )

    @pytest.mark.parametrize(("variable", "name"), [("http_proxy", "http_proxy"), ("ALL_PROXY", "all_proxy")])
    def test_another_one_is_named(self, monkeypatch: pytest.MonkeyPatch, variable: str, name: str) -> None:
        monkeypatch.setenv(variable, "http://me:secret@127.0.0.1:1")
        with (
            Client("http://server.invalid", retries=0) as client,
            pytest.raises(ServerUnavailable, match=rf"through the proxy http://.*127\.0\.0\.1:1 of {name}") as caught,
        ):
            client.info()
        assert "secret" not in str(caught.value)

    def test_an_answer_of_the_proxy_names_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", self.DEAD)
        error = client_calls.refusal(client_calls.route("http://server.invalid"), client_calls.Answer(502, {}, b""))
        assert isinstance(error, ServerUnavailable)
        assert f"through the proxy {self.DEAD}" in str(error)

    def test_no_proxy_is_heeded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", self.DEAD)
        monkeypatch.setenv("no_proxy", "server.invalid")
        assert client_calls.route("http://server.invalid") == "http://server.invalid"

    def test_one_that_cannot_be_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "nonsense://proxy")
        with pytest.raises(InvalidOption, match=r"nonsense://proxy of http_proxy.* fix or unset the proxy"):
            Client("http://server.invalid")


class TestStrangersAnswers:
    """What a server that is none of ours, or none of yours, may do to a client."""

    @pytest.mark.parametrize(
        ("url", "warned"),
        [
            ("http://example.org:8000", True),
            ("http://192.168.1.7", True),
            ("https://example.org", False),
            ("http://localhost:8000", False),
            ("http://127.0.0.9", False),
            ("http://[::1]:8000", False),
        ],
    )
    def test_a_key_in_the_clear_is_said(self, url: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
        for key in (KEY, None):
            caplog.clear()
            Client(url, api_key=key).close()
            assert ("without encryption" in caplog.text) == (warned and key is not None)
            assert KEY not in caplog.text

    @pytest.mark.parametrize("call", ["info", "restore", "download"])
    def test_an_answer_has_an_end(
        self, connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        client, (source, out) = connect(), (tmp_path / "in.png", tmp_path / "out.png")
        source.write_bytes(png())
        name = client.submit(source).id
        client.wait(name)
        ask = {
            "info": client.info,
            "restore": lambda: client.restore(PIXELS),
            "download": lambda: client.download(name, out),
        }[call]
        ask()
        out.unlink(missing_ok=True)
        for limit in ("ANSWER_BYTES", "IMAGE_BYTES", "FILE_BYTES"):
            monkeypatch.setattr(f"bfr.runtime.client.transport.{limit}", 10)
        with pytest.raises(ServerError, match="more than 10 bytes"):
            ask()
        assert not out.exists()

    @pytest.mark.parametrize(
        "change",
        [{"faces": "<b>"}, {"faces": -1}, {"share": float("nan")}, {"share": 7}, {"state": "sold"}, {"id": None}],
    )
    def test_a_job_is_a_job(self, change: dict[str, Any]) -> None:
        good: dict[str, Any] = {"id": "1", "state": "done", "share": 1.0, "created": "now", "faces": 2, "new": "field"}
        assert client_calls.job_of(client_calls.Answer(200, {}, json.dumps(good).encode())).faces == 2
        with pytest.raises(ValueError, match="Job"):
            client_calls.job_of(client_calls.Answer(200, {}, json.dumps(good | change).encode()))

    def test_an_answer_of_great_depth_is_none(self) -> None:
        answer = client_calls.Answer(500, {}, b"[" * 100_000)
        with pytest.raises(ValueError, match="deep"):
            client_calls.object_of(answer)
        assert "status 500" in str(client_calls.refusal("http://server", answer))

    @pytest.mark.parametrize("faces", ["-1", "many", "9" * 30, ""])
    def test_faces_are_a_number(self, faces: str) -> None:
        headers = {"x-bfr-seconds": "a=1", "content-type": "image/png", "x-bfr-seed": "1", "x-bfr-preset": "p"}
        with pytest.raises(ValueError, match="number of faces"):
            client_calls.result_of(client_calls.Answer(200, headers | {"x-bfr-faces": faces, "x-bfr-bundle": "b"}, b""))
