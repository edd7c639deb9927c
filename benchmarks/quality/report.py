"""What the quality benchmark found, as JSON and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bfr.benchmarks.quality.faces import CLEAN
from bfr.benchmarks.quality.geometry import describe_geometry, geometry_table
from bfr.benchmarks.quality.metrics import MEASURES, Mean, Measured
from bfr.benchmarks.tables import page, show, table
from bfr.models.systems.mini.degrade import Degradation

STAGES = ("input", "estimate", "result")
GAINS = (("estimate", "input"), ("result", "estimate"), ("result", "input"))


@dataclass(frozen=True, slots=True)
class Evaluation(Measured):
    """One preset on one set of inputs.

    A face has the measures of `bfr.benchmarks.quality.metrics.score` for each of STAGES, and `geometry`, see
    `bfr.benchmarks.quality.geometry.examine`, if that was asked for and a face was found.

    Attributes:
        title: The level.
        degradation: At the system's size; CLEAN where the input is the truth.
    """

    title: str
    degradation: Degradation

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures."""
        return tuple(self.samples[0]["input"])

    @property
    def clean(self) -> bool:
        """Whether the input is the truth, at an infinite PSNR: nothing is compared with it."""
        return self.degradation == CLEAN

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages to average."""
        return STAGES[1:] if self.clean else STAGES

    def gain(self, stage: str, over: str) -> Mean:
        """Return the gain in PSNR, in dB; its error is that of the paired differences."""
        return Mean.of([sample[stage]["psnr_db"] - sample[over]["psnr_db"] for sample in self.samples])

    def least_db(self, stage: str) -> float:
        """The PSNR of the worst image, in dB."""
        return float(min(sample[stage]["psnr_db"] for sample in self.samples))

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers, those of each image included."""
        return {
            "title": self.title,
            "preset": self.preset and self.preset.model_dump(),
            "degradation": asdict(self.degradation),
            "mean": {s: {m: asdict(self.mean(s, m)) for m in self.measures} for s in self.stages},
            "gain_db": None if self.clean else {f"{a} - {b}": asdict(self.gain(a, b)) for a, b in GAINS},
            "least_db": {s: self.least_db(s) for s in self.stages} if self.clean else None,
            "seconds_per_image": self.seconds,
            "images": self.samples,
        }


def as_markdown(facts: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> str:
    """The facts, then a table for each evaluation; means ± standard errors."""
    bundle = facts["bundle"]
    known = [
        f"System: {bundle['system']}, {bundle['image_size']}x{bundle['image_size']}, {facts['precision']}",
        f"Bundle: `{bundle['hash']}`",
        f"Backend: {facts['backend']}",
        f"Images: {facts['images']}, seed {facts['seed']}",
        facts["definition"],
        "Values are means over the images ± their standard errors; seconds are per image, one at a time, median.",
        describe_geometry(facts["detector"]) if facts["detector"] else None,
        facts["attribution"],
    ]
    parts = ["# Quality", "\n".join(f"- {fact}" for fact in known if fact)]
    for evaluation in evaluations:
        words = describe_degradation(evaluation.degradation)
        words = f"{words[0].upper()}{words[1:]}; {evaluation.preset}: {evaluation.seconds:.3g} s per image."
        parts += [f"## {evaluation.title}", words, _stage_table(evaluation)]
        if facts["detector"]:
            parts.append(geometry_table([sample.get("geometry") for sample in evaluation.samples]))
    return page(*parts)


def describe_degradation(degradation: Degradation) -> str:
    """In words, lengths in pixels of the system's size."""
    if degradation == CLEAN:
        return "the undegraded face, which the results are compared with"
    return (
        f"blur of sigma {degradation.blur[0]:g} px, downsampling {degradation.downsample:g}x, noise "
        f"{degradation.noise:g} of 255, JPEG {degradation.jpeg}, back to size bilinearly"
    )


def _stage_table(evaluation: Evaluation) -> str:
    head = ["", *(MEASURES[measure][0] for measure in evaluation.measures)]
    rows = [
        [stage, *(show(evaluation.mean(stage, m), MEASURES[m][1]) for m in evaluation.measures)]
        for stage in evaluation.stages
    ]
    if evaluation.clean:
        return table([*head, "least PSNR, dB"], [[*row, f"{evaluation.least_db(row[0]):.2f}"] for row in rows])
    gains = [[f"{a} - {b}", show(evaluation.gain(a, b), 2, sign=True)] for a, b in GAINS]
    return f"{table(head, rows)}\n\n{table(['gain', 'PSNR, dB'], gains)}"
