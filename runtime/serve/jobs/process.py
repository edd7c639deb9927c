"""The process of one job: `python -m bfr.runtime.serve.jobs.process DESCRIPTOR`. It ends with the job.

It decodes and encodes; the server's workers restore the faces. A file that crashes its decoder ends this process alone,
and the system frees what it held.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Unpack

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import BfrError, InvalidImage, RestorationFailed
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.images.headers import header_size
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.run import run_job
from bfr.runtime.jobs.sources import Item
from bfr.runtime.restore.batch import Finished, Restored
from bfr.runtime.restore.pipeline import FaceRestorer, LaunchOptions
from bfr.runtime.restore.plan import make_plan
from bfr.runtime.restore.precision import choose_precision
from bfr.runtime.restore.restorer import DEFAULT_SEED
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.sizes import ALIGNED_PIXELS, LimitedRestorer, check_size
from bfr.runtime.serve.systems import offered_presets
from bfr.runtime.serve.workers.wire import Line, line_to_server, unpack_results

TICK = 0.5  # seconds between two reports of progress


@dataclass(frozen=True, slots=True)
class Workers:
    """Stands for the server's workers in reports, instead of a device."""

    name: str = "remote"
    versions: Mapping[str, str] = field(default_factory=dict)


class RemoteRestorer:
    """A `FaceRestorer` whose networks run in the server's workers."""

    device = Workers()

    def __init__(self, line: Line, options: ServeOptions, *, bundle: str, preset: str, batch: int) -> None:
        """Open the bundle for its settings; no network is loaded.

        Args:
            line: The connection to the server.
            options: The server's options.
            bundle: Name of one of its bundles.
            preset: Name of one of its presets.
            batch: Faces that all workers together restore at once.
        """
        self.bundle = Bundle.open(options.folders[bundle])
        self.sampler = offered_presets(self.bundle, options.presets)[preset]
        self.precision = choose_precision(self.bundle, options.precision, backend=options.backend)  # a worker tried it
        self.plan = make_plan(self.bundle, self.sampler)
        self.size, self.batch = self.bundle.manifest.image_size, batch
        self.fixed: dict[str, NDArray[Any]] = {}
        self._line = line

    def run(self, images: Sequence[NDArray[Any]], **options: Unpack[LaunchOptions]) -> list[Restored]:
        """Restore aligned faces, see `Restorer.run`; without `inputs`. The second argument of `on_step` is None."""
        if not images:
            return []
        keys, on_step = options.get("keys") or [None] * len(images), options.get("on_step")
        self._line.send({"seed": options.get("seed", DEFAULT_SEED), "keys": list(keys)}, images)
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

    def launch(self, images: Sequence[NDArray[Any]], **options: Unpack[LaunchOptions]) -> Finished:
        """Restore aligned faces as `run` does, and return when they are restored: one batch of a job at a time."""
        return Finished(self.run(images, **options))


class Reporter:
    """Sends the progress of a job to the server every TICK seconds. Raises InvalidImage past the limit of frames."""

    def __init__(self, line: Line, frames: int) -> None:
        """Start to count frames: most calls, which are one a frame and one for the item itself."""
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
    """Check the size of a job's input before its frames are decoded.

    Args:
        path: The file that was sent.
        upscale: Width and height of the result in relation to those of the input.
        options: The limits.
        video: Whether it is a video.
        aligned: Whether it is an aligned face.

    Returns:
        The frames that the job may have, by the pixels of their results.

    Raises:
        InvalidImage: It is past a limit.
        MissingDependency: The extra for videos is not installed.
    """
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
    """Do a job.

    Args:
        line: The connection to the server, whose workers restore the faces.
        setup: The options, the request, the folder and the batch, see `JobRunner`.

    Returns:
        The fields of the job's `Status` at the end.

    Raises:
        BfrError: The job failed.
        EOFError, OSError: The server has ended.
    """
    options, asked = ServeOptions(**setup["options"]), setup["request"]
    photo = PhotoOptions(**asked["photo"])
    folder = Path(setup["folder"])
    source = folder / f"input{asked['suffix']}"
    item = Item(source, "result")
    frames = check_input(source, photo.upscale, options, video=item.is_video, aligned=asked["aligned"])
    remote: FaceRestorer = RemoteRestorer(
        line, options, bundle=asked["bundle"], preset=asked["preset"], batch=setup["batch"]
    )
    worker = remote if asked["aligned"] else LimitedRestorer(remote, photo, most=options.max_faces)
    chosen = {name: asked[name] for name in ("seed", "key_frames")}
    written = JobOptions(out=folder / "out", max_pixels=options.max_pixels, **chosen)
    reporter = Reporter(line, frames if item.is_video else sys.maxsize)
    [entry] = run_job(worker, [item], written, progress=reporter).entries
    return {
        "state": "failed" if entry.status == "failed" else "done",
        "share": 1.0,
        "error": entry.error,
        "result": entry.output,
        "faces": entry.faces,
        "warped": entry.warped,
        "frames": entry.frames,
    }


def main() -> None:
    """Do the job that the server sends over the socket whose descriptor is the first argument."""
    os.umask(0o077)
    line = line_to_server()
    setup, _ = line.receive()
    line.send({"share": 0.0})  # from here on its end is the job's fault
    try:
        line.send({"ended": restore(line, setup)})
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # the server has ended, or the job was deleted
    except BfrError as error:
        line.send({"ended": {"state": "failed", "error": str(error)}})


if __name__ == "__main__":
    main()
