"""What the Pareto benchmark found: samplers with their drift, cost and quality; the front, and presets read off it.

Drift is how far one sampler's pictures are from the reference's, and its yardstick is how far the reference is from
itself: it draws one face of many that fit the input, and another seed draws another. A shorter sampler that is no
farther from the reference, same seed, than the reference is from itself with another seed changes nothing that chance
does not. Results are written after each sampler, and read again by a run that goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bfr.benchmarks.quality.metrics import MEASURES, Mean, UInt8, likeness
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.diffusion.schedule import GRIDS
from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import write_bytes

FORMAT = 1
JSON, PICTURES = "pareto.json", "reference.npz"
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
Sample = Mapping[str, Any]
"""One face through one sampler: its `name`; `drift` from the reference's result (of the reference itself, its spread);
`truth`, measured against the ground truth; `seconds` of the whole chain."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sampler and what it did to every face; preset None is the estimate itself, without any call."""

    preset: Preset | None
    samples: Sequence[Sample]

    @property
    def calls(self) -> int:
        """Calls of the denoiser for one image."""
        return self.preset.calls if self.preset else 0

    @property
    def seconds(self) -> float:
        """Median seconds per image."""
        return float(median(sample["seconds"] for sample in self.samples))

    @property
    def line(self) -> Line | None:
        """Solver, spacing, eta, and the start of a grid: what samplers on one line of the plot share."""
        if self.preset is None:
            return None
        start = self.preset.start if self.preset.spacing in GRIDS else 0.0
        return str(self.preset.solver), self.preset.spacing, self.preset.eta, start

    def drift(self, measure: str = BY) -> Mean:
        """Return the mean drift over the faces."""
        return Mean.of([sample["drift"][measure] for sample in self.samples])

    def truth(self, measure: str) -> Mean:
        """Return the mean of a measure against the truth."""
        return Mean.of([sample["truth"][measure] for sample in self.samples])

    def nearer(self, other: "Candidate") -> Mean:
        """Return how much nearer it is to the reference than `other`, in dB, paired by face."""
        pairs = zip(self.samples, other.samples, strict=True)
        return Mean.of([mine["drift"][BY] - theirs["drift"][BY] for mine, theirs in pairs])

    def __str__(self) -> str:
        return str(self.preset) if self.preset else "the estimate itself"


@dataclass(frozen=True, slots=True)
class Study:
    """All of one run, and what can be resumed.

    Attributes:
        settings: What the numbers depend on; a run goes on only with the same.
        facts: What else the report says.
        reference: Its samples' drift is the spread between seeds.
        candidates: The estimate first.
    """

    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    reference: Candidate
    candidates: Sequence[Candidate]

    def difference(self, candidate: Candidate) -> Mean:
        """Return drift less spread, PSNR in dB, paired by face; above 0, it is nearer than another seed."""
        return candidate.nearer(self.reference)

    def within_spread(self, candidate: Candidate) -> bool:
        """The verdict of RULE."""
        return within(self.difference(candidate))

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


def within(difference: Mean) -> bool:
    """The rule of RULE.

    Args:
        difference: Difference of PSNR in dB, drift less spread, image by image.
    """
    return difference.mean >= -(difference.error or 0.0)


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
        "format": FORMAT,
        **results.facts,
        "settings": results.settings,
        "reference": _as_dict(results.reference),
        "candidates": [
            {**_as_dict(c), "within_spread": results.within_spread(c), "difference_db": asdict(results.difference(c))}
            for c in results.candidates
        ],
        "front": [_preset(candidate) for candidate in results.front()],
        "read_off": {name: candidate and _preset(candidate) for name, candidate in results.presets().items()},
    }


def load(out: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Study | None:
    """Read what an earlier run left in `out`; None if there is nothing.

    Raises:
        InvalidOption: It was left by a run with other settings, or is something else.
    """
    path = out / JSON
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        found = {"format": content["format"], **content["settings"]}
        wanted = {"format": FORMAT, **json.loads(json.dumps(settings))}
        different = [name for name in (wanted | found) if wanted.get(name) != found.get(name)]
        if not different:
            reference, candidates = _candidate(content["reference"]), [_candidate(c) for c in content["candidates"]]
            return Study(settings, facts, reference, candidates)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidOption(f"{path} is not what this benchmark writes: delete it, or name another --out") from error
    raise InvalidOption(
        f"{path} holds results of another {', '.join(different)}: name another --out, or delete it to start anew"
    )


def save_pictures(out: Path, pictures: Sequence[UInt8]) -> None:
    """Keep the reference's results, (S, S, 3) uint8 RGB each, which drift is measured from."""
    stream = BytesIO()
    np.savez_compressed(stream, results=np.stack(pictures))
    write_bytes(out / PICTURES, stream.getvalue())


def load_pictures(out: Path) -> list[UInt8]:
    """Read what `save_pictures` kept.

    Raises:
        InvalidOption: It is gone.
    """
    path = out / PICTURES
    if not path.is_file():
        raise InvalidOption(f"{path} is gone, and {JSON} cannot go on without it: delete that to start anew")
    with np.load(path) as stored:
        return list(stored["results"])


def _preset(candidate: Candidate) -> dict[str, Any] | None:
    return candidate.preset.model_dump() if candidate.preset else None


def _as_dict(candidate: Candidate) -> dict[str, Any]:
    return {
        "preset": _preset(candidate),
        "calls": candidate.calls,
        "seconds_per_image": candidate.seconds,
        "drift": {measure: asdict(candidate.drift(measure)) for measure in DRIFTS},
        "truth": {measure: asdict(candidate.truth(measure)) for measure in MEASURES},
        "images": candidate.samples,
    }


def _candidate(content: Mapping[str, Any]) -> Candidate:
    preset = None if content["preset"] is None else Preset.model_validate(content["preset"])
    return Candidate(preset, content["images"])
