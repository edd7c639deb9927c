"""Times backends that take turns: whatever else the machine does meets all of them alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bfr.benchmarks.speed.contender import Contender
from bfr.benchmarks.speed.results import Timing
from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import RestorationFailed
from bfr.runtime.restore.restorer import Restorer

Progress = Callable[[str], None]


@dataclass(slots=True)
class Run:
    """One backend at one batch size: its first call, the timed ones in their order, the images (B, H, W, 3) it made."""

    name: str
    first: Timing
    samples: list[Timing]
    images: Float32


def measure(
    bundle: Bundle,
    sampler: Preset,
    contenders: Sequence[Contender],
    batch: int,
    *,
    repeats: int,
    warmup: int,
    progress: Progress = lambda _: None,
) -> list[Run]:
    """Time every backend on the same images, taking turns, so that the machine's noise meets all of them alike.

    Each repeat begins with the next backend: none of them always follows the same neighbour's heat. warmup: untimed
    calls of each, the first included; at least `first_calls` of a backend that records a graph.
    """
    images = synthetic_faces(batch, bundle.manifest.image_size)
    restorers = {c.name: c.restorer(bundle, sampler, batch) for c in contenders}
    runs: dict[str, Run] = {}
    try:
        for contender in contenders:
            progress(f"{contender.name}, batch {batch}: warming up")
            first, restored = time_batch(contender, restorers[contender.name], images)
            runs[contender.name] = Run(contender.name, first, [], restored)
            for _ in range(max(warmup, contender.first_calls) - 1):
                time_batch(contender, restorers[contender.name], images)
        for repeat in range(repeats):
            progress(f"batch {batch}: repeat {repeat + 1} of {repeats}")
            turn = repeat % len(contenders)
            for contender in (*contenders[turn:], *contenders[:turn]):
                sample, restored = time_batch(contender, restorers[contender.name], images)
                runs[contender.name].samples.append(sample)
                runs[contender.name].images = restored
    finally:
        for restorer in restorers.values():
            restorer.close()
    return list(runs.values())


def time_batch(contender: Contender, restorer: Restorer, images: list[Float32]) -> tuple[Timing, Float32]:
    """Restore one batch: its times, and (B, H, W, 3) float32 in [0, 1]."""
    begin = time.perf_counter()
    restored = restorer.run(images)
    seconds = time.perf_counter() - begin
    failed = next((result.error for result in restored if result.pixels is None), None)
    if failed:
        raise RestorationFailed(f"{contender.name}: {failed}. Times of wrong results are worthless; see `bfr verify`")
    stages = {stage: share * len(images) for stage, share in restored[0].seconds.items()}
    return Timing(seconds, stages), np.stack([result.pixels for result in restored if result.pixels is not None])


def synthetic_faces(batch: int, size: int) -> list[Float32]:
    """(H, W, 3) float32 in [0, 1], the same in every run."""
    from bfr.export.verify.walk import smooth_image

    return [np.ascontiguousarray(smooth_image((3, size, size), i).transpose(1, 2, 0)) for i in range(batch)]
