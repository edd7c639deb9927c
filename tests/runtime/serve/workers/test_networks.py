"""What a worker process does, in this one: the networks, and the messages that it is given."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from live import until
from numpy.typing import NDArray

from bfr.runtime.errors import DeviceLost, DeviceOutOfMemory, InvalidOption, RestorationFailed
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.chains import Chains
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Group
from bfr.runtime.serve.workers import process
from bfr.runtime.serve.workers.process import Calls, Networks
from bfr.runtime.serve.workers.wire import Line, pack, pack_results, unpack_results

OPTIONS = ServeOptions(presets=("fast",), batch=2, threads=1, backend="onnxruntime-cpu", precision="fp32")
CALL = {"call": 1, "group": ["mini", "fast", 3], "keys": [None], "alone": False}


def faces(count: int) -> list[NDArray[Any]]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), np.uint8))


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks(OPTIONS)


def test_faces_are_restored_as_by_a_restorer(networks: Networks) -> None:
    images, shares = faces(3), list[float]()
    results = networks.launch(Group("mini", "fast", 3), images, [None] * 3, shares.append).finish()
    with Restorer.open(preset="fast", threads=1, backend="onnxruntime-cpu", precision="fp32") as restorer:
        expected = restorer.restore(images, seed=3)
    for one, other in zip(results, expected, strict=True):
        assert one.pixels is not None
        assert np.array_equal(one.pixels, other)
    assert shares[-1] == 1.0
    assert networks.facts["backend"] == "onnxruntime-cpu"
    assert networks.facts["calls"] == 2
    assert networks.memory() is None


def test_a_call_ends_after_the_step_in_which_it_is_stopped(networks: Networks) -> None:
    class Stop(Exception):
        pass

    def stop(_share: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        networks.launch(Group("mini", "fast", 3), faces(1), [None], stop)
    [result] = networks.launch(Group("mini", "fast", 3), faces(1), [None]).finish()  # the next call is not harmed
    assert result.pixels is not None


@pytest.mark.parametrize("error", [DeviceLost("an illegal address"), MemoryError()])
def test_a_lost_device_is_said_and_ends_the_process(
    networks: Networks, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P37: only a new process can go on; the server puts the faces back."""

    class Ended(Exception):
        pass

    def fail(*_args: Any, **_more: Any) -> None:
        raise error

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(networks, "launch", fail)
    monkeypatch.setattr(process.os, "_exit", end)
    ours, theirs = (Line(one) for one in socket.socketpair())
    calls = Calls(networks, ours)
    calls.waiting.put((CALL, faces(1)))
    with pytest.raises(Ended, match=str(process.LOST)):
        calls.step()
    told, _ = theirs.receive()
    assert set(told) == {"lost"}
    assert "address" in told["lost"] or "memory" in told["lost"]


def test_a_call_that_is_stopped_before_it_begins_costs_nothing(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "launch", lambda *_args: pytest.fail("it was computed"))
    ours, theirs = (Line(one) for one in socket.socketpair())
    calls = Calls(networks, ours)
    calls.stopped |= {1, 2}
    calls.waiting.put((CALL, faces(1)))
    calls.step()
    answer, pixels = theirs.receive()
    assert (answer["abandoned"], pixels, calls.stopped) == (True, [], {2})


def test_a_warm_up_that_is_not_finite_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = [Restored(None, {}, "fp32", "the result holds NaN or Inf in float32")]
    monkeypatch.setattr(Restorer, "run", lambda *_args, **_more: nothing)
    with pytest.raises(RestorationFailed, match="warm-up"):
        Networks(OPTIONS)


def test_bundles_that_the_device_cannot_hold_together_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[Chains] = []

    def reserve(self: Chains, batch: int) -> None:
        reserved.append(self)
        if len(reserved) == 2:
            raise DeviceOutOfMemory("batch 2 needs 2,000,000 bytes on the device, 1,000 are free")

    monkeypatch.setattr(Chains, "reserve", reserve)
    folder = next(iter(OPTIONS.folders.values()))
    options = ServeOptions(**{**OPTIONS.model_dump(), "bundles": (f"first={folder}", f"second={folder}")})
    with pytest.raises(DeviceOutOfMemory, match="free"):
        Networks(options)


def test_bundles_are_named() -> None:
    folder = next(iter(OPTIONS.folders.values()))
    assert list(ServeOptions(bundles=(f"a={folder}", "b=/bundles/b")).folders) == ["a", "b"]
    assert list(ServeOptions(bundle=folder, bundles=("b=/bundles/b",)).folders) == [folder.name, "b"]
    assert list(ServeOptions(bundle=Path("/bundles/my bundle")).folders) == ["my-bundle"]
    assert list(ServeOptions(bundle=Path("hf://someone/difface@v1")).folders) == ["difface"]
    for wrong in ("a", "=/x", "a/b=/x", "a="):
        with pytest.raises(InvalidOption, match="NAME=FOLDER"):
            _ = ServeOptions(bundles=(wrong,)).folders
    with pytest.raises(InvalidOption, match="two bundles"):
        _ = ServeOptions(bundles=("a=/x", "a=/y")).folders


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_messages_arrive_as_they_were_sent(kind: Any) -> None:
    ours, theirs = socket.socketpair()
    images: Sequence[Any] = [
        np.arange(2 * 3 * 3, dtype=kind).reshape(2, 3, 3),
        np.zeros((0, 3), kind),
        np.arange(300, dtype=kind).reshape(10, 10, 3)[::2],
    ]
    with ours, theirs:
        sending = threading.Thread(target=Line(ours).send, args=({"text": "ä", "number": 1.5}, images))
        sending.start()
        content, arrays = Line(theirs).receive()
        sending.join()
        assert content == {"text": "ä", "number": 1.5}
        assert all(one.dtype == kind and np.array_equal(one, other) for one, other in zip(arrays, images, strict=True))
        ours.sendall(pack({})[0])
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            Line(theirs).receive()


def test_results_arrive_as_they_were_sent() -> None:
    results = [
        Restored(np.full((2, 2, 3), 7, np.uint8), {"network": 0.5}, "fp16"),
        Restored(None, {}, "fp32", "the result holds NaN"),
        Restored(np.full((1, 1, 3), 70, np.uint16), {}, "fp32"),
    ]
    found = unpack_results(*pack_results(results))
    for one, other in zip(found, results, strict=True):
        assert (one.seconds, one.precision, one.error) == (other.seconds, other.precision, other.error)
        assert np.array_equal(one.pixels, other.pixels) if one.pixels is not None else other.pixels is None


@pytest.mark.parametrize("early", [True, False])
def test_a_server_that_ends_while_its_worker_starts(monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    server, line = socket.socketpair()

    def start(*_: Any) -> Networks:
        server.close()
        return SimpleNamespace(on_cpu=False, facts={})  # type: ignore[return-value]

    if early:
        server.close()
    else:
        server.sendall(b"".join(pack({"options": {}, "index": 0})))
    monkeypatch.setattr(process, "Networks", start)
    monkeypatch.setattr(process, "line_to_server", lambda: Line(line))
    process.main()


@pytest.mark.server
def test_a_process_that_hangs_ends_with_its_server(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(
        "from bfr.runtime.serve.workers.wire import line_to_server\n"
        "import time\nline_to_server().send({})\ntime.sleep(1e6)\n"
    )
    begin = "from bfr.runtime.serve.workers.worker import Child; child = Child('hangs')\n"
    begin += "child._socket.recv(1)\nprint(child.process.pid, flush=True)\nchild._socket.recv(1000)\ninput()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", begin], stdin=pipe, stdout=pipe, env=environment) as server:  # noqa: S603
        assert server.stdout is not None
        child = Path("/proc", server.stdout.readline().decode().strip())
        assert b"hangs" in (child / "cmdline").read_bytes()
        server.kill()
    until(lambda: not child.exists() or not (child / "cmdline").read_bytes())  # a zombie has no command line
