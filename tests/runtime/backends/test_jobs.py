"""Folders of photographs and videos on the GPU made of NumPy: it always has the next batch before the host waits."""

from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from films import encode
from launches import launches
from PIL import Image as Pillow

from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.jobs.ledger import LEDGER
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import REPORT
from bfr.runtime.jobs.run import run_job
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.restore.batch import Finished
from bfr.runtime.restore.pipeline import Pipeline
from bfr.runtime.restore.restorer import Restorer

pytestmark = pytest.mark.engines
BATCH, PHOTOGRAPHS, FRAMES = 2, 5, 8
FACE = (230, 30, 30)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs are read before the networks ask for them: however busy the machine, the order is the same."""
    feed = Pipeline._feed

    def and_wait(self: Any) -> None:
        feed(self)
        futures.wait([task.prepared for task in self._tasks if task.prepared])

    monkeypatch.setattr(Pipeline, "_feed", and_wait)


def frame(number: int, faces: int = 1) -> Any:
    """(64, 160, 3) uint8: a gradient, and squares that the detector takes for faces."""
    pixels = np.zeros((64, 160, 3), np.uint8)
    pixels[..., 1] = np.linspace(40, 200 - number, 160).astype(np.uint8)
    for i in range(faces):
        pixels[16:48, 8 + number + 48 * i : 40 + number + 48 * i] = FACE
    return pixels


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """The first has three faces, one has none."""
    (tmp_path / "in").mkdir()
    for number in range(PHOTOGRAPHS):
        faces = {0: 3, 3: 0}.get(number, 1)
        Pillow.fromarray(frame(number, faces)).save(tmp_path / "in" / f"{number}.png")
    return tmp_path / "in"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    av = pytest.importorskip("av")
    (tmp_path / "in").mkdir()
    with av.open(str(tmp_path / "in" / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", 25, {"crf": "6"}, width=160, height=64)
        stream.pix_fmt = "yuv420p"
        encode(output, stream, (frame(2 * number) for number in range(FRAMES)))
    return tmp_path / "in"


def run(restorer: Restorer, folder: Path, out: Path, fakes: Any, told: list[float] | None = None) -> dict[str, bytes]:
    """The files that a run over a folder writes."""
    photo = PhotoRestorer(restorer, PhotoOptions(restore_sharp=True), detector=fakes.Squares())
    report = run_job(
        photo,
        find_images([folder], videos=True, out=out),
        JobOptions(out=out, crf=0),  # lossless: with AVX-512, x264's other choices vary between two runs
        progress=lambda done, _: told.append(done) if told is not None else None,
    )
    assert not [entry.error for entry in report.entries if entry.error]
    skipped = (LEDGER, REPORT)
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name not in skipped}


@pytest.mark.parametrize("kind", ["photographs", "video"])
@pytest.mark.parametrize("eager", [False, True])
def test_a_batch_is_launched_before_the_previous_one_is_waited_for(
    kind: str,
    eager: bool,
    built: Bundle,
    tensorrt: Any,
    gpus: Any,
    tmp_path: Path,
    fakes: Any,
    patient: None,
    request: pytest.FixtureRequest,
) -> None:
    folder = request.getfixturevalue(kind)
    with Restorer(built, CpuDevice(1), built.preset("reference"), batch=BATCH) as cpu:
        wanted = run(cpu, folder, tmp_path / "cpu", fakes)
    told: list[float] = []
    with Restorer.open(built.folder, backend=tensorrt.name, precision="fp32", preset="reference", batch=BATCH) as gpu:
        gpu.warm_up()
        gpus[0].eager = eager
        gpus[0].log.clear()
        found = run(gpu, folder, tmp_path / "gpu", fakes, told)
        seen = launches(gpu, gpus[0].log)
    assert found == wanted
    batches = {"photographs": 3, "video": FRAMES // BATCH}[kind]
    assert seen == "LL" + "WL" * (batches - 2) + "WW"
    assert told == sorted(told)
    assert told[-1] == len(wanted) == {"photographs": PHOTOGRAPHS, "video": 1}[kind]


def test_a_caller_ends_the_run_and_the_next_one_is_not_harmed(
    built: Bundle, tensorrt: Any, gpus: Any, tmp_path: Path, fakes: Any, photographs: Path
) -> None:
    """What was under way is left: its result must not pass for that of a later batch."""

    class Cancelled(Exception):
        pass

    def stop(_done: float, _name: str) -> None:
        raise Cancelled

    with Restorer.open(built.folder, backend=tensorrt.name, precision="fp32", preset="reference", batch=BATCH) as gpu:
        wanted = run(gpu, photographs, tmp_path / "whole", fakes)
        for _ in range(3):
            photo = PhotoRestorer(gpu, PhotoOptions(restore_sharp=True), detector=fakes.Squares())
            with pytest.raises(Cancelled):
                run_job(photo, find_images([photographs]), JobOptions(out=tmp_path / "ended"), progress=stop)
        assert run(gpu, photographs, tmp_path / "again", fakes) == wanted


def test_memory_that_runs_out_while_a_batch_is_under_way(
    built: Bundle, tensorrt: Any, gpus: Any, tmp_path: Path, fakes: Any, photographs: Path, patient: None
) -> None:
    """The batch before is finished first, and its result kept; the batch that found no memory runs in halves."""
    with Restorer.open(built.folder, backend=tensorrt.name, precision="fp32", preset="reference", batch=BATCH) as gpu:
        wanted = run(gpu, photographs, tmp_path / "whole", fakes)
        launch: Callable[..., Any] = Restorer.launch
        failed: list[bool] = []

        def fails_once(self: Restorer, *arguments: Any, **options: Any) -> Any:
            if self.chains.flights and not self.chains.flights[-1].done and not failed:
                failed.append(True)
                gpus[0].fail["cudaGraphLaunch"] = "cudaErrorMemoryAllocation"
            pending = launch(self, *arguments, **options)
            if len(failed) == 1:
                failed.append(isinstance(pending, Finished))
            return pending

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Restorer, "launch", fails_once)
            assert run(gpu, photographs, tmp_path / "again", fakes) == wanted
        assert failed == [True, True]
        assert gpu.batch == BATCH // 2


def test_what_fails_while_it_is_launched_leaves_the_result_before_it(
    built: Bundle, tensorrt: Any, gpus: Any, fakes: Any
) -> None:
    faces = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(3)]
    with Restorer.open(built.folder, backend=tensorrt.name, precision="fp32", preset="reference") as gpu:
        wanted = gpu.restore(faces)
        first = gpu.launch(faces[:1])
        gpus[0].fail["cudaStreamWaitEvent"] = "cudaErrorInvalidValue"
        with pytest.raises(RuntimeError, match="InvalidValue"):
            gpu.launch(faces[1:2])
        later = [gpu.launch([face]) for face in faces[1:]]
        found = [first.finish(), *(pending.finish() for pending in later)]
        pairs = zip(found, wanted, strict=True)
        assert all(one.pixels is not None and np.array_equal(one.pixels, face) for [one], face in pairs)
        with pytest.raises(ValueError, match="at most 1"):
            gpu.launch(faces[:2])
        assert gpu.launch([]).finish() == []
        with pytest.raises(RuntimeError, match="fetched before"):
            first.finish()
