"""What the quality benchmark found, as JSON and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bfr.benchmarks.quality.drift import RULE, drift_table
from bfr.benchmarks.quality.faces import CLEAN
from bfr.benchmarks.quality.geometry import Record, describe_geometry, geometry_table
from bfr.benchmarks.quality.metrics import Mean
from bfr.benchmarks.tables import show, table
from bfr.models.systems.mini.degrade import Degradation
from bfr.runtime.bundle.manifest import Preset

STAGES = ("input", "estimate", "result")
GAINS = (("estimate", "input"), ("result", "estimate"), ("result", "input"))
LABELS = {
    "psnr_db": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "haar_psi": ("HaarPSI", 4),
    "sharpness": ("sharpness", 3),
    "correlation": ("detail correlation", 3),
    "high_pass": ("high-pass, grey levels", 2),
}


@dataclass(frozen=True, slots=True)
class ImageScores:
    """One image: its measures by stage, and the seconds of its chain.

    The measures are those of `bfr.benchmarks.quality.metrics.score`.

    Attributes:
        drift: Drift from the reference's result (see `bfr.benchmarks.quality.drift`); None where it was not asked for.
        spread: Spread of the reference; None where it was not asked for.
        geometry: See `bfr.benchmarks.quality.geometry.examine`; None where it was not asked for, or no face was found.
    """

    name: str
    stages: Mapping[str, Mapping[str, float]]
    seconds: float
    drift: Mapping[str, float] | None = None
    spread: Mapping[str, float] | None = None
    geometry: Record | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One preset on one set of inputs.

    Attributes:
        title: The level, or what the inputs are.
        degradation: At the system's size; None where inputs are as found, CLEAN where the input is the truth.
    """

    title: str
    preset: Preset
    degradation: Degradation | None
    images: Sequence[ImageScores]

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what was measured."""
        return tuple(self.images[0].stages["input"])

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages to average; the input of a clean face is the truth, at an infinite PSNR."""
        return STAGES[1:] if self.degradation == CLEAN else STAGES

    @property
    def gains(self) -> tuple[tuple[str, str], ...]:
        """The pairs of stages whose difference says something: none without a truth or a degradation."""
        return GAINS if self.degradation not in (None, CLEAN) else ()

    def mean(self, stage: str, measure: str) -> Mean:
        """Over the images."""
        return Mean.of([image.stages[stage][measure] for image in self.images])

    def gain(self, stage: str, over: str) -> Mean:
        """Of PSNR in dB, image by image: its error is that of the paired differences."""
        return Mean.of([image.stages[stage]["psnr_db"] - image.stages[over]["psnr_db"] for image in self.images])

    def least_db(self, stage: str) -> float:
        """The PSNR of the worst image, in dB."""
        return min(image.stages[stage]["psnr_db"] for image in self.images)

    @property
    def seconds(self) -> float:
        """Per image: the median."""
        return median(image.seconds for image in self.images)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, per image too."""
        return {
            "title": self.title,
            "preset": self.preset.model_dump(),
            "degradation": asdict(self.degradation) if self.degradation else None,
            "mean": {s: {m: asdict(self.mean(s, m)) for m in self.measures} for s in self.stages},
            "gain_db": {f"{a} - {b}": asdict(self.gain(a, b)) for a, b in self.gains} or None,
            "least_db": {s: self.least_db(s) for s in self.stages} if self.degradation == CLEAN else None,
            "seconds_per_image": self.seconds,
            "images": [_image(image) for image in self.images],
        }


def as_markdown(facts: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> str:
    """The facts, then a table for each evaluation; means ± standard errors."""
    bundle = facts["bundle"]
    lines = ["# Quality", ""]
    lines += [f"- System: {bundle['system']}, {bundle['image_size']}x{bundle['image_size']}, {facts['precision']}"]
    lines += [f"- Bundle: `{bundle['hash']}`", f"- Backend: {facts['backend']}"]
    lines += [f"- Images: {facts['images']}, seed {facts['seed']}", f"- {facts['definition']}"]
    lines += [
        "- Values are means over the images ± their standard errors; seconds are per image, one at a time, median."
    ]
    lines += [f"- {RULE} Reference: {facts['against']}."] if facts["against"] else []
    if facts["detector"]:
        lines += [f"- {describe_geometry(facts['detector'], truth=evaluations[0].degradation is not None)}"]
    lines += [f"- {facts[name]}" for name in ("no_geometry", "attribution") if facts[name]]
    for evaluation in evaluations:
        lines += ["", *_heading(evaluation), "", *_stage_table(evaluation), *_drift_table(evaluation, facts)]
        if facts["detector"]:
            lines += ["", *geometry_table([image.geometry for image in evaluation.images])]
    return "\n".join(lines) + "\n"


def describe_degradation(degradation: Degradation | None) -> str:
    """In words, lengths in pixels of the system's size."""
    if degradation is None:
        return "inputs as they are, without ground truth"
    if degradation == CLEAN:
        return "the undegraded face, which the results are compared with"
    return (
        f"blur of sigma {degradation.blur[0]:g} px, downsampling {degradation.downsample:g}x, noise "
        f"{degradation.noise:g} of 255, JPEG {degradation.jpeg}, back to size bilinearly"
    )


def _heading(evaluation: Evaluation) -> list[str]:
    words = describe_degradation(evaluation.degradation)
    words = f"{words}; {evaluation.preset}: {evaluation.seconds:.3g} s per image"
    return [f"## {evaluation.title}", "", f"{words[0].upper()}{words[1:]}."]


def _stage_table(evaluation: Evaluation) -> list[str]:
    head = ["", *(LABELS[measure][0] for measure in evaluation.measures)]
    rows = [
        [stage, *(show(evaluation.mean(stage, m), LABELS[m][1]) for m in evaluation.measures)]
        for stage in evaluation.stages
    ]
    if evaluation.degradation == CLEAN:
        head.append("least PSNR, dB")
        rows = [[*row, f"{evaluation.least_db(row[0]):.2f}"] for row in rows]
    lines = table(head, rows)
    if evaluation.gains:
        gains = [[f"{a} - {b}", show(evaluation.gain(a, b), 2, sign=True)] for a, b in evaluation.gains]
        lines += ["", *table(["gain", "PSNR, dB"], gains)]
    return lines


def _drift_table(evaluation: Evaluation, facts: Mapping[str, Any]) -> list[str]:
    drifts = [image.drift for image in evaluation.images if image.drift is not None]
    spreads = [image.spread for image in evaluation.images if image.spread is not None]
    if not drifts:
        return []
    seeds = ", ".join(map(str, facts["other_seeds"]))
    title = f"Drift from {facts['against']}, seed {facts['seed']}; spread of that over the seeds {seeds}:"
    return ["", title, "", *drift_table(drifts, spreads)]


def _image(image: ImageScores) -> dict[str, Any]:
    more = {name: getattr(image, name) for name in ("drift", "spread", "geometry")}
    measured = {name: value for name, value in more.items() if value is not None}
    return {"name": image.name, **image.stages, **measured, "seconds": image.seconds}
