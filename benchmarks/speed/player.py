"""A contender in its own process, and what it does there when it is its turn."""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from bfr.benchmarks.energy import find_source, measure_joules
from bfr.benchmarks.environment import peak_rss_bytes
from bfr.benchmarks.speed.contender import Contender, open_contender
from bfr.benchmarks.speed.interleave import synthetic_faces, time_batch
from bfr.benchmarks.speed.results import BackendResult, Timing
from bfr.runtime.backends.cuda.device import GpuDevice
from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset

ENERGY_SECONDS = 3.0  # counters are renewed ten times a second, or less often


class Entry(NamedTuple):
    """Who takes part, and what is run.

    Attributes:
        folder: Absolute folder of the bundle.
        name: Name of the contender.
        threads: CPU threads; None is each library's own choice.
        gpu: Its number.
        published: The clone of the published code that it is; None for the others.
    """

    folder: Path
    name: str
    sampler: Preset
    threads: int | None
    gpu: int = 0
    published: Path | None = None


class Player:
    """A contender that restores batches on request; lives in a separate process, see `Apart`."""

    def __init__(self, contender: Contender, bundle: Bundle, sampler: Preset) -> None:
        self.contender, self.bundle, self.sampler = contender, bundle, sampler
        self._restorer: Any = None
        self._faces: list[Float32] = []
        self._made: Float32 | None = None

    def facts(self) -> BackendResult:
        """Return facts for reports."""
        one = self.contender
        return BackendResult(one.name, one.precision, one.device.versions, one.load_seconds, None, one.build_seconds)

    def first_calls(self) -> int:
        """Return how many calls of a batch size do not show its speed."""
        return self.contender.first_calls

    def begin(self, batch: int, short: bool = False) -> None:
        """Make ready for a batch size, of one step if `short`; what the previous one needed is given back."""
        if self._restorer:
            self._restorer.close()
        self._faces = synthetic_faces(batch, self.bundle.manifest.image_size)
        self._restorer = self.contender.restorer(
            self.bundle, self.sampler.shortened(1) if short else self.sampler, batch
        )

    def restore(self) -> Timing:
        """Restore a batch. Raises RestorationFailed if a result is not finite."""
        timing, self._made = time_batch(self.contender, self._restorer, self._faces)
        return timing

    def images(self) -> Float32 | None:
        """What the last batch became, (B, H, W, 3) float32 in [0, 1]."""
        return self._made

    def footprint(self) -> tuple[int | None, bool]:
        """Peak of the resident memory so far in bytes, and whether PyTorch was imported."""
        return peak_rss_bytes(), "torch" in sys.modules

    def joules(self) -> tuple[float | None, str]:
        """Energy of a face, over calls in a row, and where it was read or why not; GPU and CPU by where it runs."""
        device = self.contender.device
        found = find_source(device.cuda.bus_id if isinstance(device, GpuDevice) else None)
        if isinstance(found, str):
            return None, found
        calls, end = 0, time.perf_counter() + ENERGY_SECONDS

        def work() -> None:
            nonlocal calls
            while time.perf_counter() < end:
                self.restore()
                calls += 1

        try:
            return measure_joules(found, work) / (calls * len(self._faces)), found.name
        except OSError as error:
            return None, f"{found.name} stopped answering: {error}"


def open_player(entry: Entry) -> Player:
    """Open a bundle's contender."""
    bundle = Bundle.open(entry.folder)
    if entry.published:
        from bfr.benchmarks.speed.published import open_published

        contender: Contender = open_published(bundle, entry.name, entry.published, threads=entry.threads)
    else:
        contender = open_contender(bundle, entry.name, threads=entry.threads, index=entry.gpu)
    return Player(contender, bundle, entry.sampler)
