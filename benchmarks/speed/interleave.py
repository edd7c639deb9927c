"""Times backends that take turns: whatever else the machine does meets all of them alike."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bfr.benchmarks.speed.apart import Lost
from bfr.benchmarks.speed.contender import Contender
from bfr.benchmarks.speed.results import Run, Timing
from bfr.runtime.backends.device import Float32
from bfr.runtime.errors import RestorationFailed
from bfr.runtime.restore.restorer import Restorer

Progress = Callable[[str], None]


class Race:
    """The contenders, those that are still in it and those that dropped out.

    Attributes:
        calls: Contender -> what calls a method of its `Player`.
        warmups: Contender -> calls that do not show its speed.
        lost: Contender -> why it dropped out.
        energy: Where energy was read, or why it was not.
    """

    def __init__(self, progress: Progress = lambda _: None) -> None:
        self.progress = progress
        self.calls: dict[str, Callable[..., Any]] = {}
        self.warmups: dict[str, int] = {}
        self.lost: dict[str, str] = {}
        self.energy = ""

    def add(self, name: str, call: Callable[..., Any], first_calls: int) -> None:
        """Let one take part."""
        self.calls[name], self.warmups[name] = call, first_calls

    def call(self, name: str, method: str, *arguments: Any) -> Any:
        """What a contender answers; None if it was lost, now or before."""
        if name not in self.calls:
            return None
        try:
            return self.calls[name](method, *arguments)
        except Lost as error:
            del self.calls[name]
            self.lost[name] = str(error)
            self.progress(f"{name} drops out: {error}")
            return None

    def measure(
        self, batch: int, *, repeats: int, warmup: int, keep: Callable[[list[Run]], object] = lambda _: None
    ) -> list[Run]:
        """Time every contender on the same images, taking turns, so that the machine's noise meets all of them alike.

        Each repeat begins with the next one: none of them always follows the same neighbour's heat.

        Args:
            batch: Images a call.
            repeats: Timed calls of each.
            warmup: Untimed calls of each, the first included; at least those that record a graph.
            keep: Called with the runs so far, after each round.

        Returns:
            The runs of those that are there at the end, in their order.
        """
        names, runs = [*self.calls], dict[str, Run]()
        if not names:
            return []
        for name in names:
            self.progress(f"{name}, batch {batch}: warming up")
            self.call(name, "begin", batch)
            first = self.call(name, "restore")
            for _ in range(max(warmup, self.warmups[name]) - 1):
                self.call(name, "restore")
            if name in self.calls:
                runs[name] = Run(name, first, [])
        for repeat in range(repeats if runs else 0):
            self.progress(f"batch {batch}: repeat {repeat + 1} of {repeats}")
            turn = repeat % len(names)
            for name in (*names[turn:], *names[:turn]):
                if sample := self.call(name, "restore"):
                    runs[name].samples.append(sample)
            keep(self._left(runs))
        for name in names:
            images = self.call(name, "images")
            if name in runs:
                runs[name].images = images
            if found := self.call(name, "joules"):
                runs[name].joules, self.energy = found
        return self._left(runs)

    def _left(self, runs: dict[str, Run]) -> list[Run]:
        return [run for name, run in runs.items() if name in self.calls]


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
