"""What a benchmark found, and the statistics that lead there. Nothing is left out of them: no outlier is removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bfr.benchmarks.speed.roofline import Ceilings, Cost
from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.manifest import Precision

FORMAT, BUSY_CORES = 2, 0.2
STAGES = ("upload", "estimate", "diffuse", "denoise", "download")


@dataclass(frozen=True, slots=True)
class Timing:
    """One timed batch: seconds from host images to host images, and those of its stages, as the loop measures them."""

    seconds: float
    stages: dict[str, float]

    @property
    def overhead(self) -> float:
        """The share of the wall time outside the networks' calls, 0 .. 1."""
        return 1.0 - self.stages["network"] / self.seconds


@dataclass(slots=True)
class Run:
    """One backend at one batch size.

    Attributes:
        first: Its first call.
        samples: The timed ones, in their order.
        images: (B, H, W, 3), what the last one made, once all are timed.
        joules: Joules of a face.
    """

    name: str
    first: Timing
    samples: list[Timing]
    images: Float32 | None = None
    joules: float | None = None


@dataclass(frozen=True, slots=True)
class Cold:
    """A backend's start in a separate process.

    Attributes:
        first_result_seconds: From the process's start to the first batch restored.
        load_seconds: Seconds of the networks, hashing included.
        peak_bytes: Peak bytes of resident memory after a batch of each size, sizes ascending.
        gpu_bytes: What the GPUs' used memory grew by, CUDA's context included; None without nvidia-smi.
        imports_torch: Whether torch was imported.
    """

    batch: int
    first_result_seconds: float
    load_seconds: float
    peak_bytes: dict[int, int | None]
    gpu_bytes: dict[int, int | None]
    imports_torch: bool


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of seconds per batch. Percentiles are interpolated linearly between the two nearest times."""

    p50: float
    p90: float
    p99: float
    mean: float
    min: float


@dataclass(frozen=True, slots=True)
class Drift:
    """Distance of results from the baseline's, images in [0, 1]: PSNR, and the largest absolute difference."""

    psnr_db: float
    max_abs: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One backend at one batch size.

    `images_per_second`, `gflop_per_second` and `speedup` follow from the medians.

    Attributes:
        first_seconds: Seconds of the first call, in which buffers are made.
        seconds: Seconds of the timed calls, which follow the warm-up.
        stages: Median seconds of each stage.
        step_seconds: Median seconds of one denoising step.
        overhead: Share of the wall time outside the networks' calls, 0 to 1.
        speedup: The baseline's median over this one; None if the baseline was lost.
        drift: Distance from the baseline's results; None for the baseline itself, and where it was lost.
        samples: Seconds of the timed calls, in order.
        limit_seconds: The least that a step can take below the measured ceilings; None if none were measured, or
            those of another precision.
        joules: Joules of a face, None if the machine does not tell.
    """

    backend: str
    batch: int
    first_seconds: float
    seconds: Statistics
    stages: dict[str, float]
    step_seconds: float
    overhead: float
    images_per_second: float
    gflop_per_second: float | None
    speedup: float | None
    drift: Drift | None
    samples: list[float]
    limit_seconds: float | None = None
    joules: float | None = None

    @property
    def share(self) -> float | None:
        """The share of the limit's speed that a step reaches, 0 .. 1."""
        return None if self.limit_seconds is None else self.limit_seconds / self.step_seconds


@dataclass(frozen=True, slots=True)
class BackendResult:
    """A backend apart from batches.

    Attributes:
        load_seconds: Seconds of its networks in the common process, hashing included.
        build_seconds: Seconds of its engines, when they were built; None of what builds nothing beforehand.
    """

    name: str
    precision: Precision
    versions: dict[str, str]
    load_seconds: float
    cold: Cold | None
    build_seconds: float | None = None


@dataclass(slots=True)
class Results:
    """All of one run, as far as it is known.

    Attributes:
        sampler: The preset's fields as used.
        machine: Facts by name.
        others_cores: How many cores other processes kept busy during the measurements, on average; None until they
            are over.
        skipped: Contenders that could not begin, by name with the reason.
        ceilings: Ceilings of the baseline's device; None if unknown.
        costs: Costs of a step at each batch size; empty if unknown.
        lost: Contenders that began and dropped out, by name with the reason.
        energy: Where it was read, or why not.
        notes: What else is missing.
        complete: Whether the run came to its end: what it found is written as it goes on.
    """

    system: str
    title: str
    bundle_sha256: str
    image_size: int
    preset: str
    sampler: dict[str, Any]
    steps: int
    date_utc: str
    command: str
    seed: int
    repeats: int
    warmup: int
    threads: int
    baseline: str
    machine: dict[str, str]
    others_cores: float | None
    backends: list[BackendResult] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    ceilings: Ceilings | None = None
    costs: list[Cost] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    energy: str = ""
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def busy(self) -> bool:
        """Whether other processes took enough of the CPU during the measurements to falsify them."""
        return self.others_cores is not None and self.others_cores > BUSY_CORES

    @property
    def absent(self) -> dict[str, str]:
        """Contenders that have not all rows, with the reason."""
        return {**self.skipped, **self.lost}

    @property
    def batches(self) -> list[int]:
        """The batch sizes, ascending."""
        return sorted({m.batch for m in self.measurements})

    def at(self, batch: int) -> list[Measurement]:
        """The measurements of one batch size, in the backends' order."""
        return [m for m in self.measurements if m.batch == batch]


def statistics(seconds: Sequence[float]) -> Statistics:
    """Return the statistics of at least one time."""
    p50, p90, p99 = (float(p) for p in np.percentile(seconds, (50, 90, 99)))
    return Statistics(p50, p90, p99, float(np.mean(seconds)), min(seconds))


def drift(found: Float32, expected: Float32) -> Drift:
    """Return the drift between arrays of one shape in [0, 1]. Equal ones have 240 dB: JSON has no infinity."""
    difference = found.astype(np.float64) - expected
    rms = max(float(np.sqrt(np.mean(difference**2))), 1e-12)
    return Drift(psnr_db=float(-20.0 * np.log10(rms)), max_abs=float(np.abs(difference).max()))


def by_kind(stages: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a system's own stages, by name, as those of STAGES: `denoise-high` is one that denoises.

    Whatever else calls a network is an estimate.
    """
    found = dict.fromkeys((*STAGES, "network"), 0.0)
    for name, seconds in stages.items():
        kind = name.split("-", 1)[0]
        found[kind if kind in found else "estimate"] += seconds
    return found


def summarize(
    run: Run,
    batch: int,
    steps: int,
    *,
    baseline: Run | None = None,
    gflop: float | None = None,
    limit_seconds: float | None = None,
) -> Measurement:
    """Return the statistics of one backend at one batch size.

    Args:
        run: Its calls.
        batch: Images a call.
        steps: Number of steps of the loop.
        baseline: What speed and images are held against, `run` itself included; None if it was lost.
        gflop: Billions of operations of a batch, where they are counted.
        limit_seconds: The least that a step can take.
    """
    seconds = statistics([sample.seconds for sample in run.samples])
    kinds = [by_kind(sample.stages) for sample in run.samples]
    stages = {stage: float(np.median([found[stage] for found in kinds])) for stage in (*STAGES, "network")}
    base = statistics([sample.seconds for sample in baseline.samples]) if baseline else None
    images, others = run.images, baseline.images if baseline and baseline is not run else None
    return Measurement(
        backend=run.name,
        batch=batch,
        first_seconds=run.first.seconds,
        seconds=seconds,
        stages=stages,
        step_seconds=stages["denoise"] / max(steps, 1),
        overhead=float(np.median([sample.overhead for sample in run.samples])),
        images_per_second=batch / seconds.p50,
        gflop_per_second=None if gflop is None else gflop / seconds.p50,
        speedup=None if base is None else base.p50 / seconds.p50,
        drift=None if images is None or others is None else drift(images, others),
        samples=[sample.seconds for sample in run.samples],
        limit_seconds=limit_seconds,
        joules=run.joules,
    )
