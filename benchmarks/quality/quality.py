"""Quality of a system on faces whose truth is known: `python -m bfr.benchmarks.quality.quality FOLDER --out DIR`.

Every image of FOLDER, an aligned face, is resized to the system's size, degraded by seeded degradations and restored.
PSNR, SSIM, HaarPSI and two measures of detail of the input, the estimate and the result are written to quality.json
and quality.md, and contact sheets beside them. With --sweep, one level is restored with a grid of truncations and etas;
with --no-truth, images are restored as they are; --against adds the drift from another preset, --geometry what became
of the face's landmarks. The same seed gives the same numbers, the seconds apart.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bfr.benchmarks.quality.chains import Pictures, restore
from bfr.benchmarks.quality.drift import Anchor, anchor, check_seeds, drift
from bfr.benchmarks.quality.geometry import examine
from bfr.benchmarks.quality.levels import Face, degrade, level_at, read_faces
from bfr.benchmarks.quality.metrics import HIGH_PASS, SHARPNESS, score
from bfr.benchmarks.quality.options import OTHER_SEEDS, check_common, command_line, numbers, words
from bfr.benchmarks.quality.report import (
    STAGES,
    Evaluation,
    ImageScores,
    as_json,
    as_markdown,
    describe_degradation,
)
from bfr.benchmarks.quality.sheet import Tile, contact_sheet
from bfr.models.systems.mini.degrade import LEVELS, Degradation
from bfr.runtime.backends.registry import open_device
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.diffusion.noise import check_seed
from bfr.runtime.errors import BfrError, InputNotFound, InvalidOption
from bfr.runtime.faces.detect import Detector, open_detector
from bfr.runtime.files import write_bytes
from bfr.runtime.restore.restorer import DEFAULT_SEED, Restorer, load_networks

PARTS = ("solver", "spacing", "start", "steps", "eta")  # of a preset
STARTS, ETAS = "2,4,6,8,10,12", "0,0.5,1"
Report = Callable[[str], None]


def evaluate(
    restorer: Restorer,
    faces: Sequence[Face],
    *,
    title: str,
    degradation: Degradation | None,
    seed: int,
    keep: int = 0,
    anchors: Sequence[Anchor] | None = None,
    detector: Detector | None = None,
    report: Report = lambda _: None,
) -> tuple[Evaluation, list[Pictures]]:
    """Restore and measure all faces with the restorer's sampler; returns the first `keep` as pictures too.

    anchors: of the faces, to measure the drift from. detector: to measure geometry with.
    """
    scores: list[ImageScores] = []
    kept: list[Pictures] = []
    for i, face in enumerate(faces):
        pictures = restore(restorer, face, seed)
        stages = {stage: score(pictures.stages[stage], face.truth) for stage in STAGES}
        drifted = drift(pictures.stages["result"], anchors[i].result) if anchors else None
        spread = anchors[i].spread if anchors else None
        geometry = examine(detector, face.name, pictures.stages, face.truth) if detector else None
        scores.append(ImageScores(face.name, stages, pictures.seconds, drifted, spread, geometry))
        if len(kept) < keep:
            kept.append(pictures)
        if len(scores) % 10 == 0 or len(scores) == len(faces):
            report(f"{title}, {restorer.sampler}: {len(scores)} of {len(faces)}")
    table = restorer.table
    return Evaluation(title, restorer.sampler, float(table.timesteps[0]), table.noise, degradation, scores), kept


def draw_sheet(evaluation: Evaluation, pictures: Sequence[Pictures], facts: dict[str, Any]) -> bytes:
    """PNG bytes: a row for each face, its stages and its truth in columns, measured values underneath."""
    rows = []
    for kept, scores in zip(pictures, evaluation.images, strict=False):
        tiles = [Tile(kept.stages[stage], _caption(scores.stages[stage])) for stage in STAGES]
        rows.append((kept.name, tiles if kept.truth is None else [*tiles, Tile(kept.truth)]))
    truth = evaluation.degradation is not None
    sampler = f"{facts['bundle']['system']}: {evaluation.preset}; seed {facts['seed']}"
    under = "Under the pictures: PSNR, SSIM, sharpness relative to the truth." if truth else ""
    notes = [describe_degradation(evaluation.degradation), sampler, under, facts["attribution"] or ""]
    return contact_sheet([*STAGES, *["truth"] * truth], rows, title=evaluation.title, notes=notes)


def _caption(scores: Mapping[str, float]) -> str:
    if "high_pass" in scores:
        return f"high-pass {scores['high_pass']:.1f}"
    return f"{scores['psnr_db']:.2f} dB   {scores['ssim']:.3f}   {scores['sharpness']:.2f}"


def benchmark(args: argparse.Namespace, command: str, report: Report) -> str:
    """Run what the command line asks for, write its files, and return the Markdown."""
    _check(args)
    bundle = Bundle.open(args.bundle or default_bundle())
    size = bundle.manifest.image_size
    chosen = {name: getattr(args, name) for name in PARTS if getattr(args, name) is not None}
    settings = [chosen]
    if args.sweep:
        starts, etas = numbers("--starts", args.starts, float), numbers("--etas", args.etas, float)
        settings = [{**chosen, "start": start, "eta": eta} for start in starts for eta in etas]
    levels = words("--levels", args.levels or ("medium" if args.sweep else ",".join(LEVELS)), tuple(LEVELS))
    if args.sweep and len(levels) > 1:
        raise InvalidOption(f"--sweep runs one level, not {', '.join(levels)}: name one with --levels")
    degradations = {"as found": None} if args.no_truth else {name: level_at(name, size) for name in levels}
    truths = read_faces(args.folder, size, args.limit)
    device = open_device(args.backend, threads=args.threads)
    networks = load_networks(bundle, device, "fp32")
    # All are made, and so all settings are checked, before the first image is restored.
    samplers = [bundle.preset(args.preset, **setting) for setting in settings]
    restorers = [Restorer(bundle, device, sampler, networks=networks) for sampler in samplers]
    others = numbers("--other-seeds", args.other_seeds, int)
    reference = None
    if args.against:
        check_seeds(args.seed, others)
        reference = Restorer(bundle, device, bundle.preset(args.against), networks=networks)
    detector, no_geometry = _open_detector(args, report)
    facts = {
        "command": command,
        "bundle": {"system": bundle.manifest.system, "hash": bundle.hash, "image_size": size},
        "precision": "fp32",
        "backend": device.name,
        "versions": device.versions,
        "seed": args.seed,
        "images": len(truths),
        "definition": HIGH_PASS if args.no_truth else SHARPNESS,
        "against": f"{args.against} ({reference.sampler})" if reference else None,
        "other_seeds": others if reference else None,
        "detector": detector.name if detector else None,
        "no_geometry": no_geometry,
        "attribution": args.attribution,
    }
    restorers[0].warm_up()
    evaluations = []
    for title, degradation in degradations.items():
        faces = [degrade(*t, degradation, args.seed) if degradation else Face(*t, None) for t in truths]
        anchors = anchor(reference, faces, seed=args.seed, others=others, report=report) if reference else None
        for restorer in restorers:
            keep = 0 if args.sweep else args.sheet
            with restorer:
                evaluation, pictures = evaluate(
                    restorer,
                    faces,
                    title=title,
                    degradation=degradation,
                    seed=args.seed,
                    keep=keep,
                    anchors=anchors,
                    detector=detector,
                    report=report,
                )
            evaluations.append(evaluation)
            if pictures:
                sheet = draw_sheet(evaluation, pictures, facts)
                write_bytes(args.out / f"sheet_{title.replace(' ', '_')}.png", sheet)
    markdown = as_markdown(facts, evaluations, sweep=args.sweep)
    write_bytes(args.out / "quality.json", as_json(facts, evaluations).encode())
    write_bytes(args.out / "quality.md", markdown.encode())
    return markdown


def _open_detector(args: argparse.Namespace, report: Report) -> tuple[Detector | None, str | None]:
    """YuNet where geometry is wanted, or why it is not there: the cascades' landmarks are too coarse for this."""
    if not args.geometry:
        return None, None
    try:
        return open_detector("yunet", folder=args.yunet), None
    except InputNotFound:
        why = "Geometry was left out: YuNet is not there. `bfr fetch yunet` downloads it, --yunet names its folder."
        report(why)
        return None, why


def _check(args: argparse.Namespace) -> None:
    check_common(args)
    check_seed(args.seed)
    if args.sheet < 0:
        raise InvalidOption(f"--sheet {args.sheet} is out of range: choose 0 (no sheets) or more")
    if args.sweep and (args.start is not None or args.eta is not None):
        raise InvalidOption("--sweep takes --starts and --etas, not --start and --eta")
    if args.sweep and (args.against or args.geometry):
        raise InvalidOption(
            "--sweep goes without --against and --geometry: `python -m bfr.benchmarks.quality.pareto` has drift"
        )
    if args.no_truth and (args.sweep or args.levels):
        raise InvalidOption("--no-truth degrades nothing and compares with nothing: leave out --sweep and --levels")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="aligned faces, square")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for quality.json, quality.md and sheets"
    )
    parser.add_argument("--bundle", type=Path, help="folder of the bundle; the default is the system mini")
    parser.add_argument("--preset", default="reference", help="a preset of the bundle (%(default)s)")
    for name, kind in zip(PARTS, (str, str, float, int, float), strict=True):
        parser.add_argument(f"--{name}", type=kind, help="instead of the preset's")
    parser.add_argument("--against", metavar="PRESET", help="measure the drift from this preset's results too")
    parser.add_argument("--other-seeds", default=OTHER_SEEDS, help="of that preset, for its spread (%(default)s)")
    parser.add_argument("--geometry", action="store_true", help="measure landmarks and proportions too, with YuNet")
    parser.add_argument("--yunet", type=Path, metavar="FOLDER", help="where YuNet is, instead of bfr's cache")
    parser.add_argument("--levels", help=f"of {','.join(LEVELS)}; all, for a sweep medium")
    parser.add_argument("--sweep", action="store_true", help="a grid of --starts and --etas, on one level")
    parser.add_argument("--starts", default=STARTS, help="(%(default)s)")
    parser.add_argument("--etas", default=ETAS, help="(%(default)s)")
    parser.add_argument("--no-truth", action="store_true", help="restore the images as they are")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of all noise (%(default)s)")
    parser.add_argument("--sheet", type=int, default=6, metavar="N", help="faces on a contact sheet (%(default)s)")
    parser.add_argument("--attribution", metavar="TEXT", help="a line for the report and the sheets, as licences ask")
    parser.add_argument("--backend", default="auto", help="auto, onnxruntime-cpu or onnxruntime-cuda (%(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU backend")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        markdown = benchmark(
            args,
            command_line("bfr.benchmarks.quality.quality", parser, args),
            lambda text: print(text, file=sys.stderr, flush=True),
        )
    except BfrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
