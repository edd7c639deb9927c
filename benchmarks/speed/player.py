"""A contender in its own process, and what it does there when it is its turn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bfr.benchmarks.energy import EnergyMeter, find_source
from bfr.benchmarks.speed.contender import Contender, open_contender
from bfr.benchmarks.speed.interleave import synthetic_faces, time_batch
from bfr.benchmarks.speed.results import Timing
from bfr.runtime.backends.cuda.device import GpuDevice
from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision, Preset
from bfr.runtime.restore.restorer import Restorer

ENERGY_SECONDS = 3.0  # counters are renewed ten times a second, or less often


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a contender that is ready, see `Contender`."""

    precision: Precision
    versions: dict[str, str]
    load_seconds: float
    build_seconds: float | None
    first_calls: int


class Player:
    """A contender that restores batches when it is told to; lives in a process of its own, see `Apart`."""

    def __init__(self, contender: Contender, bundle: Bundle, sampler: Preset) -> None:
        self.contender, self.bundle, self.sampler = contender, bundle, sampler
        self._restorer: Restorer | None = None
        self._faces: list[Float32] = []
        self._made: Float32 | None = None

    def facts(self) -> Facts:
        """Return facts for reports."""
        one = self.contender
        return Facts(one.precision, one.device.versions, one.load_seconds, one.build_seconds, one.first_calls)

    def begin(self, batch: int) -> None:
        """Make ready for a batch size; what the previous one needed is given back."""
        if self._restorer:
            self._restorer.close()
        self._faces = synthetic_faces(batch, self.bundle.manifest.image_size)
        self._restorer = self.contender.restorer(self.bundle, self.sampler, batch)

    def time(self) -> Timing:
        """Restore a batch. Raises RestorationFailed where a result is not finite."""
        if self._restorer is None:
            raise RuntimeError("begin() comes before time()")
        timing, self._made = time_batch(self.contender, self._restorer, self._faces)
        return timing

    def images(self) -> Float32 | None:
        """What the last batch became, (B, H, W, 3) float32 in [0, 1]."""
        return self._made

    def joules(self) -> tuple[float | None, str]:
        """Energy of a face, over calls in a row, and where it was read or why not; GPU and CPU by where it runs."""
        device = self.contender.device
        found = find_source(device.cuda.bus_id if isinstance(device, GpuDevice) else None)
        if isinstance(found, str):
            return None, found
        calls = 0
        try:
            with EnergyMeter(found) as meter:
                while meter.seconds < ENERGY_SECONDS:
                    self.time()
                    calls += 1
                joules = meter.joules()
        except OSError as error:
            return None, f"{found.name} stopped answering: {error}"
        return joules / (calls * len(self._faces)), found.name


def open_player(folder: Path, name: str, sampler: dict[str, Any], threads: int, index: int) -> Player:
    """Open a bundle's contender, its idle threads asleep while others have their turn."""
    bundle = Bundle.open(folder)
    contender = open_contender(bundle, name, threads=threads, spinning=False, index=index)
    return Player(contender, bundle, Preset.model_validate(sampler))
