"""The process of one job: `python -m bfr.runtime.serve.jobs.process DESCRIPTOR`. It ends with the job.

It decodes and encodes, and asks the server's workers for the faces. A file that ends its decoder ends this process
alone, and what it holds goes with it.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import BfrError, InvalidImage, RestorationFailed
from bfr.runtime.faces.detect import open_detector
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.images.headers import header_size
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.run import run_job
from bfr.runtime.jobs.sources import Item
from bfr.runtime.restore.batch import Finished, Restored
from bfr.runtime.restore.inputs import Given
from bfr.runtime.restore.loop import OnStep
from bfr.runtime.restore.pipeline import FaceRestorer
from bfr.runtime.restore.plan import make_plan
from bfr.runtime.restore.precision import choose_precision
from bfr.runtime.restore.restorer import DEFAULT_SEED
from bfr.runtime.serve.logs import log_as_json
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.sizes import ALIGNED_PIXELS, LimitedRestorer, check_size
from bfr.runtime.serve.systems import offered_presets
from bfr.runtime.serve.workers.wire import Line, unpack_results

TICK = 0.5  # seconds between two reports of progress


@dataclass(frozen=True, slots=True)
class Workers:
    """What reports say of the server's workers, in the place of a device."""

    name: str = "remote"
    versions: Mapping[str, str] = field(default_factory=dict)


class RemoteRestorer:
    """A `FaceRestorer` whose networks run in the server's workers."""

    device = Workers()

    def __init__(self, line: Line, options: ServeOptions, *, bundle: str, preset: str, batch: int) -> None:
        """batch: faces that the workers restore at once, all together."""
        self.bundle = Bundle.open(options.folders[bundle])
        self.sampler = offered_presets(self.bundle, options.presets)[preset]
        self.precision = choose_precision(self.bundle, options.precision, backend=options.backend)  # a worker tried it
        self.plan = make_plan(self.bundle, self.sampler)
        self.size, self.batch = self.bundle.manifest.image_size, batch
        self.fixed: dict[str, NDArray[Any]] = {}
        self._line = line

    def run(
        self,
        images: Sequence[NDArray[Any]],
        *,
        seed: int = DEFAULT_SEED,
        keys: Sequence[int | None] | None = None,
        on_step: OnStep | None = None,
        inputs: Mapping[str, Given] | None = None,
    ) -> list[Restored]:
        """As of `Restorer`; without `inputs`. on_step: its second argument is None."""
        del inputs
        if not images:
            return []
        self._line.send({"seed": seed, "keys": list(keys or [None] * len(images))}, images)
        while True:
            answer, arrays = self._line.receive()
            if "refused" in answer:
                raise RestorationFailed(answer["refused"])
            results = unpack_results(answer["results"], arrays) if "results" in answer else None
            if on_step:
                steps = self.plan.steps
                on_step(steps if results else min(steps - 1, int(steps * answer["share"])), None)
            if results is not None:
                return results

    def launch(self, images: Sequence[NDArray[Any]], **options: Any) -> Finished:
        """As of `Restorer`. The workers are asked for one batch of a job at a time."""
        return Finished(self.run(images, **options))


class Told:
    """Sends the progress of a job to the server every TICK seconds. Raises InvalidImage past the limit of frames."""

    def __init__(self, line: Line, frames: int) -> None:
        """frames: of a video, at most; a call is a frame."""
        self._line, self._left, self._last = line, frames + 1, time.monotonic()
        self._most = frames

    def __call__(self, done: float, _name: str) -> None:
        """Note the share that is done, 0 to 1."""
        self._left -= 1
        if self._left < 0:
            raise InvalidImage(f"the video has more than {self._most} frames, the limit here: send it in parts")
        if time.monotonic() - self._last >= TICK:
            self._last = time.monotonic()
            self._line.send({"share": min(1.0, done)})


def check_input(path: Path, upscale: int, options: ServeOptions, *, video: bool, aligned: bool = False) -> int:
    """The frames that a job may have, by the pixels of their results. Raises InvalidImage past a limit."""
    if aligned:
        check_size(header_size(path), 1, min(options.max_pixels, ALIGNED_PIXELS), "the aligned face")
    if not video:
        check_size(header_size(path), upscale, options.max_pixels)
        return options.job_frames
    from bfr.runtime.video.read import VideoReader  # raises MissingDependency

    with VideoReader(path, max_pixels=options.max_pixels) as reader:
        info = reader.info
    check_size((info.width, info.height), upscale, options.max_pixels, "the video")
    most = min(options.job_frames, options.job_pixels // (info.width * info.height * upscale**2))
    if info.frames is not None and info.frames > most:
        raise InvalidImage(
            f"the video has {info.frames} frames of {info.width} x {info.height} pixels: {most} of that size are the "
            "limit here. Send it in parts, or smaller"
        )
    return most


def restore(line: Line, setup: dict[str, Any]) -> dict[str, Any]:
    """Do a job; what its status says in the end. Raises BfrError."""
    options, asked = ServeOptions(**setup["options"]), setup["request"]
    photo = PhotoOptions(**{**asked["photo"], "detector": options.detector})
    folder = Path(setup["folder"])
    item = Item(folder / f"input{asked['suffix']}", "result")
    frames = check_input(
        folder / f"input{asked['suffix']}", photo.upscale, options, video=item.is_video, aligned=asked["aligned"]
    )
    remote: FaceRestorer = RemoteRestorer(
        line, options, bundle=asked["bundle"], preset=asked["preset"], batch=setup["batch"]
    )
    worker = (
        remote
        if asked["aligned"]
        else LimitedRestorer(remote, photo, detector=open_detector(options.detector), most=options.max_faces)
    )
    written = JobOptions(out=folder / "out", seed=asked["seed"], max_pixels=options.max_pixels)
    told = Told(line, frames if item.is_video else sys.maxsize)
    [entry] = run_job(worker, [item], written, progress=told).entries
    return {
        "state": "failed" if entry.status == "failed" else "done",
        "share": 1.0,
        "error": entry.error,
        "result": entry.output,
        "faces": entry.faces,
        "frames": entry.frames,
    }


def main() -> None:
    """Do the job that the line tells of."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server decides, and closes the line
    os.umask(0o077)
    log_as_json()
    line = Line(socket.socket(fileno=int(sys.argv[1])))
    setup, _ = line.receive()
    try:
        line.send({"ended": restore(line, setup)})
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # the server has ended, or the job was deleted
    except BfrError as error:
        line.send({"ended": {"state": "failed", "error": str(error)}})


if __name__ == "__main__":
    main()
