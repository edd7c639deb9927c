"""What the Pareto benchmark found: samplers with their drift, cost and quality; the front, and presets read off it.

Drift is how far one sampler's pictures are from the reference's, and its yardstick is how far the reference is from
itself: it draws one face of many that fit the input, and another seed draws another. A shorter sampler that is no
farther from the reference, same seed, than the reference is from itself with another seed changes nothing that chance
does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bfr.benchmarks.quality.metrics import MEASURES, Mean, Measured, UInt8, likeness
from bfr.runtime.diffusion.schedule import GRIDS

Line = tuple[str, str, float, float]
BY = "psnr_db"  # the measure of drift that decides
EQUAL_DB = 100.0  # the PSNR that equal pictures count as: one sample that is a level off has about as much
DRIFTS = ("psnr_db", "ssim", "haar_psi")
RULE = (
    "Drift is measured between a sampler's results and the reference's, same inputs and same seed; the spread between "
    "the reference's results with one seed and with others. A sampler is within the spread if its mean drift PSNR is "
    "at least the spread's less one standard error of the paired difference (image by image, drift - spread; above 0 "
    "is nearer to the reference than its own other seeds are). A blur lies between all draws, and nearer to each than "
    "they to each other, so that it can be within the spread too: read the verdict beside the sharpness."
)
READ_OFF = (
    "Read off: of the samplers of at most so many calls, the best is the one with the least drift (highest PSNR to the "
    "reference); taken is the one of fewest calls among those that are no farther behind it than so many dB, or than "
    "one standard error of the paired difference, and of several the one with the least drift."
)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a preset may cost: calls at most, and by how many dB it may be behind the best of so many calls."""

    calls: int
    db: float = 0.0


PRESETS = {"balanced": Allowance(20, 0.1), "fast": Allowance(10, 0.5)}


@dataclass(frozen=True, slots=True)
class Candidate(Measured):
    """A sampler of the table.

    A face has its `drift` from the reference's result (of the reference itself, its spread), and `truth`, measured
    against the ground truth.
    """

    @property
    def calls(self) -> int:
        """Calls of the denoiser for one image."""
        return self.preset.calls if self.preset else 0

    @property
    def line(self) -> Line | None:
        """Solver, spacing, eta, and the start of a grid: what samplers on one line of the plot share."""
        if self.preset is None:
            return None
        start = self.preset.start if self.preset.spacing in GRIDS else 0.0
        return str(self.preset.solver), self.preset.spacing, self.preset.eta, start

    def drift(self, measure: str = BY) -> Mean:
        """Return the mean drift over the faces."""
        return self.mean("drift", measure)

    def nearer(self, other: "Candidate") -> Mean:
        """Return how much nearer it is to the reference than `other`, in dB, paired by face."""
        pairs = zip(self.samples, other.samples, strict=True)
        return Mean.of([mine["drift"][BY] - theirs["drift"][BY] for mine, theirs in pairs])

    def __str__(self) -> str:
        return str(self.preset) if self.preset else "the estimate itself"


@dataclass(frozen=True, slots=True)
class Study:
    """All of one run.

    Attributes:
        facts: What the report says of it.
        reference: Its samples' drift is the spread between seeds.
        candidates: The estimate first.
    """

    facts: Mapping[str, Any]
    reference: Candidate
    candidates: Sequence[Candidate]

    def difference(self, candidate: Candidate) -> Mean:
        """Return drift less spread, PSNR in dB, paired by face; above 0, it is nearer than another seed."""
        return candidate.nearer(self.reference)

    def within_spread(self, candidate: Candidate) -> bool:
        """The verdict of RULE."""
        difference = self.difference(candidate)
        return difference.mean >= -(difference.error or 0.0)

    def front(self) -> list[Candidate]:
        """The candidates that no other beats in calls or drift without losing in the other, from fewest calls."""
        points = [(candidate.calls, candidate.drift().mean) for candidate in self.candidates]
        return [self.candidates[i] for i in front(points)]

    def presets(self) -> dict[str, Candidate | None]:
        """What is read off for each of PRESETS."""
        return {name: read_off(self, allowance) for name, allowance in PRESETS.items()}


def drift(image: UInt8, reference: UInt8) -> dict[str, float]:
    """DRIFTS between two pictures, (H, W, 3) uint8 RGB; PSNR is EQUAL_DB at most."""
    found = likeness(image, reference)
    return {**found, "psnr_db": min(found["psnr_db"], EQUAL_DB)}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The Pareto front of (cost, value): indices of the points that none dominates, from least cost.

    A point dominates another if it costs no more and is worth no less, and differs; of equal points the first is kept.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept


def read_off(results: Study, allowance: Allowance) -> Candidate | None:
    """The preset within an allowance by the rule of READ_OFF; None if no candidate has so few calls."""
    allowed = [candidate for candidate in results.candidates if 1 <= candidate.calls <= allowance.calls]
    if not allowed:
        return None
    best = max(allowed, key=lambda candidate: (candidate.drift().mean, -candidate.calls))
    tied = [
        candidate
        for candidate in allowed
        if (lead := best.nearer(candidate)).mean <= max(allowance.db, lead.error or 0.0)
    ]
    return min(tied, key=lambda candidate: (candidate.calls, -candidate.drift().mean))


def as_dict(results: Study) -> dict[str, Any]:
    """Return what pareto.json holds, with the presets that are read off."""
    return {
        **results.facts,
        "reference": _as_dict(results.reference),
        "candidates": [
            {**_as_dict(c), "within_spread": results.within_spread(c), "difference_db": asdict(results.difference(c))}
            for c in results.candidates
        ],
        "front": [_preset(candidate) for candidate in results.front()],
        "read_off": {name: candidate and _preset(candidate) for name, candidate in results.presets().items()},
    }


def _preset(candidate: Candidate) -> dict[str, Any] | None:
    return candidate.preset.model_dump() if candidate.preset else None


def _as_dict(candidate: Candidate) -> dict[str, Any]:
    return {
        "preset": _preset(candidate),
        "calls": candidate.calls,
        "seconds_per_image": candidate.seconds,
        "drift": {measure: asdict(candidate.drift(measure)) for measure in DRIFTS},
        "truth": {measure: asdict(candidate.mean("truth", measure)) for measure in MEASURES},
        "images": candidate.samples,
    }
