"""Quality of a system on faces whose truth is known: `python -m bfr.benchmarks.quality.quality FOLDER --out DIR`.

Every image of FOLDER, an aligned face, is resized to the system's size, degraded by seeded degradations and restored.
PSNR, SSIM, HaarPSI and two measures of detail of the input, the estimate and the result are written to quality.json
and quality.md, and contact sheets beside them. The level `clean` restores the undegraded face and compares the result
with it. --geometry adds what became of the face's landmarks. The same seed gives the same numbers, the seconds apart.
`bfr.benchmarks.quality.pareto` compares samplers.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bfr.benchmarks.publish import Findings, say
from bfr.benchmarks.quality.faces import LEVELS, DegradedFace, Pictures, degrade, level_at, restore
from bfr.benchmarks.quality.geometry import examine
from bfr.benchmarks.quality.metrics import Sample, score
from bfr.benchmarks.quality.options import faces_command, open_inputs, words
from bfr.benchmarks.quality.report import STAGES, Evaluation, as_markdown, describe_degradation
from bfr.benchmarks.quality.sheet import Tile, contact_sheet
from bfr.models.systems.mini.degrade import Degradation
from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.detect import Detector
from bfr.runtime.faces.yunet import YuNet
from bfr.runtime.files import write_bytes
from bfr.runtime.restore.chains import load_networks
from bfr.runtime.restore.restorer import Restorer

PARTS = ("solver", "spacing", "start", "steps", "eta")  # of a preset


def evaluate(
    restorer: Restorer,
    faces: Sequence[DegradedFace],
    *,
    title: str,
    degradation: Degradation,
    seed: int,
    keep: int = 0,
    detector: Detector | None = None,
) -> tuple[Evaluation, list[Pictures]]:
    """Restore and measure all faces with the restorer's sampler.

    Args:
        restorer: What restores.
        faces: The degraded faces.
        title: Name of the level.
        degradation: What the faces were degraded by.
        seed: Seed of the noise.
        keep: How many faces to return as pictures too.
        detector: Measures the geometry; None leaves it out.
    """
    samples: list[Sample] = []
    kept: list[Pictures] = []
    for face in faces:
        pictures = restore(restorer, face, seed)
        stages = {stage: score(pictures.stages[stage], face.truth) for stage in STAGES}
        record = examine(detector, face.name, pictures.stages, face.truth) if detector else None
        geometry = {"geometry": record} if record else {}
        samples.append({"name": face.name, **stages, **geometry, "seconds": pictures.seconds})
        if len(kept) < keep:
            kept.append(pictures)
        if len(samples) % 10 == 0 or len(samples) == len(faces):
            say(f"{title}, {restorer.sampler}: {len(samples)} of {len(faces)}")
    return Evaluation(restorer.sampler, samples, title, degradation), kept


def draw_sheet(evaluation: Evaluation, pictures: Sequence[Pictures], facts: dict[str, Any]) -> bytes:
    """PNG bytes: a row for each face, its stages and its truth in columns, measured values underneath."""
    rows = []
    for kept, sample in zip(pictures, evaluation.samples, strict=False):
        form = "{psnr_db:.2f} dB   {ssim:.3f}   {sharpness:.2f}"
        tiles = [Tile(kept.stages[stage], form.format(**sample[stage])) for stage in STAGES]
        rows.append((kept.name, [*tiles, Tile(kept.truth)]))
    sampler = f"{facts['bundle']['system']}: {evaluation.preset}; seed {facts['seed']}"
    under = "Under the pictures: PSNR, SSIM, sharpness relative to the truth."
    notes = [describe_degradation(evaluation.degradation), sampler, under, facts["attribution"] or ""]
    return contact_sheet([*STAGES, "truth"], rows, title=evaluation.title, notes=notes)


def benchmark(args: argparse.Namespace) -> Findings:
    """Run what the command line asks for, and write the contact sheets."""
    if args.sheet < 0:
        raise InvalidOption(f"--sheet {args.sheet} is out of range: choose 0 (no sheets) or more")
    bundle, device, truths, facts = open_inputs(args)
    size = bundle.manifest.image_size
    chosen = {name: getattr(args, name) for name in PARTS if getattr(args, name) is not None}
    levels = words("--levels", args.levels or ",".join(LEVELS), tuple(LEVELS))
    degradations = {name: level_at(name, size) for name in levels}
    precision = bundle.precision(args.precision)
    networks = load_networks(bundle, device, precision)
    sampler = bundle.preset(args.preset, **chosen)
    detector = YuNet() if args.geometry else None
    facts |= {"precision": precision, "detector": detector.name if detector else None}
    evaluations = []
    with Restorer(bundle, device, sampler, precision=precision, networks=networks) as restorer:
        restorer.warm_up()
        for title, degradation in degradations.items():
            faces = [degrade(*truth, degradation, args.seed) for truth in truths]
            options = {"title": title, "degradation": degradation, "seed": args.seed, "keep": args.sheet}
            evaluation, pictures = evaluate(restorer, faces, detector=detector, **options)
            evaluations.append(evaluation)
            if pictures:
                write_bytes(args.out / f"sheet_{title}.png", draw_sheet(evaluation, pictures, facts))
    figures = {**facts, "evaluations": [evaluation.as_dict() for evaluation in evaluations]}
    return figures, as_markdown(facts, evaluations)


main = faces_command("bfr.benchmarks.quality.quality", __doc__, benchmark)
main.add_argument("--preset", default="reference", help="a preset of the bundle (%(default)s)")
for name, kind in zip(PARTS, (str, str, float, int, float), strict=True):
    main.add_argument(f"--{name}", type=kind, help="instead of the preset's")
main.add_argument("--precision", default="fp32", help="of the networks (%(default)s)")
main.add_argument("--geometry", action="store_true", help="measure landmarks and proportions too, with YuNet")
main.add_argument("--levels", help=f"of {','.join(LEVELS)}; all")
main.number("--sheet", 6, "faces on a contact sheet (%(default)s)")

if __name__ == "__main__":
    sys.exit(main())
