"""What the Pareto benchmark found: samplers with their drift, cost and quality; the front, and presets read off it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from bfr.benchmarks.quality.drift import within
from bfr.benchmarks.quality.metrics import Mean
from bfr.runtime.bundle.manifest import Preset

BY = "psnr_db"  # the measure of drift that decides
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


@dataclass(frozen=True, slots=True)
class Sample:
    """One face through one sampler.

    drift: from the reference's result (see `bfr.benchmarks.quality.drift.drift`); of the reference itself, its spread.
    truth: against the ground truth (see `bfr.benchmarks.quality.metrics.score`). seconds: of the whole chain.
    """

    name: str
    drift: Mapping[str, float]
    truth: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sampler and what it did to every face; preset None is the estimate itself, without any call."""

    preset: Preset | None
    samples: Sequence[Sample]

    @property
    def calls(self) -> int:
        """Of the denoiser, for one image."""
        return self.preset.calls if self.preset else 0

    @property
    def seconds(self) -> float:
        """Per image: the median."""
        return median(sample.seconds for sample in self.samples)

    @property
    def line(self) -> tuple[str, str, float] | None:
        """Solver, spacing and eta: what samplers on one line of the plot share. None of the estimate."""
        return (str(self.preset.solver), self.preset.spacing, self.preset.eta) if self.preset else None

    def drift(self, measure: str = BY) -> Mean:
        """Over the faces."""
        return Mean.of([sample.drift[measure] for sample in self.samples])

    def truth(self, measure: str) -> Mean:
        """Over the faces."""
        return Mean.of([sample.truth[measure] for sample in self.samples])

    def nearer(self, other: "Candidate", measure: str = BY) -> Mean:
        """By how much it is nearer to the reference than `other`, paired by face."""
        pairs = zip(self.samples, other.samples, strict=True)
        return Mean.of([mine.drift[measure] - theirs.drift[measure] for mine, theirs in pairs])

    def __str__(self) -> str:
        return str(self.preset) if self.preset else "the estimate itself"


@dataclass(frozen=True, slots=True)
class Results:
    """All of one run, and what can be resumed.

    settings: what the numbers depend on; a run goes on only with the same. facts: what else the report says.
    reference: its samples' drift is the spread between seeds. candidates: the estimate first.
    """

    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    reference: Candidate
    candidates: Sequence[Candidate]

    def find(self, preset: Preset) -> Candidate | None:
        """What was measured of a preset."""
        return next((candidate for candidate in self.candidates if candidate.preset == preset), None)

    def with_candidate(self, candidate: Candidate) -> "Results":
        """These results and one more."""
        return replace(self, candidates=[*self.candidates, candidate])

    def difference(self, candidate: Candidate) -> Mean:
        """Of drift and spread, PSNR in dB, paired by face: above 0 is nearer than another seed of the reference."""
        return candidate.nearer(self.reference)

    def within_spread(self, candidate: Candidate) -> bool:
        """The verdict of `bfr.benchmarks.quality.drift.RULE`."""
        return within(self.difference(candidate))

    def front(self) -> list[Candidate]:
        """The candidates that no other beats in calls or drift without losing in the other, from fewest calls."""
        points = [(candidate.calls, candidate.drift().mean) for candidate in self.candidates]
        return [self.candidates[i] for i in front(points)]


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


def read_off(results: Results, allowance: Allowance) -> Candidate | None:
    """The preset within an allowance by the rule of READ_OFF; None where no candidate has so few calls."""
    allowed = [candidate for candidate in results.candidates if 1 <= candidate.calls <= allowance.calls]
    if not allowed:
        return None
    best = max(allowed, key=lambda candidate: (candidate.drift().mean, -candidate.calls))
    tied = [candidate for candidate in allowed if _tied(best.nearer(candidate), allowance.db)]
    return min(tied, key=lambda candidate: (candidate.calls, -candidate.drift().mean))


def _tied(lead: Mean, db: float) -> bool:
    return lead.mean <= max(db, lead.error or 0.0)
