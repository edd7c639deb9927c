"""Quality of a system on faces whose truth is known: `python -m bfr.benchmarks.quality FOLDER --out DIR`.

Every image of FOLDER, an aligned face, is resized to the system's size, degraded by seeded degradations and restored.
PSNR, SSIM and two measures of detail of the input, the estimate and the result are written to quality.json and
quality.md, and contact sheets beside them. With --sweep, one level is restored with a grid of truncations and etas;
with --no-truth, images are restored as they are. The same seed gives the same numbers, the seconds apart.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bfr.benchmarks.levels import LEVELS, Face, degrade, level_at, read_faces
from bfr.benchmarks.metrics import HIGH_PASS, SHARPNESS, UInt8, score
from bfr.benchmarks.quality_report import (
    STAGES,
    Evaluation,
    ImageScores,
    as_json,
    as_markdown,
    describe_degradation,
    describe_preset,
)
from bfr.benchmarks.sheet import Tile, contact_sheet
from bfr.models.mini.degrade import Degradation
from bfr.runtime.backends.choose import open_device
from bfr.runtime.batch import choose_bucket, image_key
from bfr.runtime.bundle import Bundle, default_bundle
from bfr.runtime.errors import (
    BfrError,
    InputNotFound,
    InvalidOption,
    MissingDependency,
    RestorationFailed,
)
from bfr.runtime.files import write_bytes
from bfr.runtime.noise import check_seed
from bfr.runtime.pixels import to_input, to_output
from bfr.runtime.restorer import DEFAULT_SEED, Restorer, load_networks

STARTS, ETAS = "2,4,6,8,10,12", "0,0.5,1"
Report = Callable[[str], None]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Pictures:
    """One face at each stage, (S, S, 3) uint8 RGB."""

    name: str
    stages: dict[str, UInt8]
    truth: UInt8 | None


def restore(restorer: Restorer, face: Face, seed: int) -> tuple[Pictures, float]:
    """One face through the chain, and the seconds that the chain took. Raises RestorationFailed for NaN or Inf."""
    degraded = to_input(face.degraded, restorer.size)
    batch = choose_bucket(1, restorer.device.buckets)
    chain = restorer.chain(batch)
    begin = time.perf_counter()
    outcome = chain.run(np.stack([degraded] * batch), seed=seed, images=(image_key(degraded),) * batch)
    seconds = time.perf_counter() - begin
    if not (np.isfinite(outcome.image[0]).all() and np.isfinite(outcome.estimate[0]).all()):
        raise RestorationFailed(f"{face.name}: the result holds NaN or Inf; `bfr verify` checks the bundle")
    estimate, result = (to_output(x[0], face.degraded) for x in (outcome.estimate, outcome.image))
    return Pictures(face.name, {"input": face.degraded, "estimate": estimate, "result": result}, face.truth), seconds


def evaluate(
    restorer: Restorer,
    faces: Sequence[Face],
    *,
    title: str,
    degradation: Degradation | None,
    seed: int,
    keep: int = 0,
    report: Report = lambda _: None,
) -> tuple[Evaluation, list[Pictures]]:
    """Restore and measure all faces with the restorer's sampler; returns the first `keep` as pictures too."""
    scores: list[ImageScores] = []
    kept: list[Pictures] = []
    for face in faces:
        pictures, seconds = restore(restorer, face, seed)
        stages = {stage: score(pictures.stages[stage], face.truth) for stage in STAGES}
        scores.append(ImageScores(face.name, stages, seconds))
        if len(kept) < keep:
            kept.append(pictures)
        if len(scores) % 10 == 0 or len(scores) == len(faces):
            report(f"{title}, {describe_preset(restorer.sampler)}: {len(scores)} of {len(faces)}")
    table = restorer.table
    return Evaluation(title, restorer.sampler, float(table.timesteps[0]), table.noise, degradation, scores), kept


def draw_sheet(evaluation: Evaluation, pictures: Sequence[Pictures], facts: dict[str, Any]) -> bytes:
    """PNG bytes: a row for each face, its stages and its truth in columns, measured values underneath."""
    rows = []
    for kept, scores in zip(pictures, evaluation.images, strict=False):
        tiles = [Tile(kept.stages[stage], _caption(scores.stages[stage])) for stage in STAGES]
        rows.append((kept.name, tiles if kept.truth is None else [*tiles, Tile(kept.truth)]))
    truth = evaluation.degradation is not None
    sampler = f"{facts['bundle']['system']}: {describe_preset(evaluation.preset)}; seed {facts['seed']}"
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
    chosen = {name: getattr(args, name) for name in ("start", "eta", "spacing") if getattr(args, name) is not None}
    settings = [chosen]
    if args.sweep:
        starts, etas = _numbers("--starts", args.starts, int), _numbers("--etas", args.etas, float)
        settings = [{**chosen, "start": start, "eta": eta} for start in starts for eta in etas]
    levels = (args.levels or ("medium" if args.sweep else ",".join(LEVELS))).split(",")
    if args.sweep and len(levels) > 1:
        raise InvalidOption(f"--sweep runs one level, not {', '.join(levels)}: name one with --levels")
    degradations = {"as found": None} if args.no_truth else {name: level_at(name, size) for name in levels}
    truths = read_faces(args.folder, size, args.limit)
    device = open_device(args.backend, threads=args.threads)
    networks = load_networks(bundle, device, "fp32")
    # All are made, and so all settings are checked, before the first image is restored.
    samplers = [bundle.preset(args.preset, **setting) for setting in settings]
    restorers = [Restorer(bundle, device, sampler, networks=networks) for sampler in samplers]
    facts = {
        "command": command,
        "bundle": {"system": bundle.manifest.system, "hash": bundle.hash, "image_size": size},
        "precision": "fp32",
        "backend": device.name,
        "versions": device.versions,
        "seed": args.seed,
        "images": len(truths),
        "definition": HIGH_PASS if args.no_truth else SHARPNESS,
        "attribution": args.attribution,
    }
    restorers[0].warm_up()
    evaluations = []
    for title, degradation in degradations.items():
        faces = [degrade(*t, degradation, args.seed) if degradation else Face(*t, None) for t in truths]
        for restorer in restorers:
            keep = 0 if args.sweep else args.sheet
            with restorer:
                evaluation, pictures = evaluate(
                    restorer, faces, title=title, degradation=degradation, seed=args.seed, keep=keep, report=report
                )
            evaluations.append(evaluation)
            if pictures:
                sheet = draw_sheet(evaluation, pictures, facts)
                write_bytes(args.out / f"sheet_{title.replace(' ', '_')}.png", sheet)
    markdown = as_markdown(facts, evaluations, sweep=args.sweep)
    write_bytes(args.out / "quality.json", as_json(facts, evaluations).encode())
    write_bytes(args.out / "quality.md", markdown.encode())
    return markdown


def _check(args: argparse.Namespace) -> None:
    missing = [
        name for name, module in (("scikit-image", "skimage"), ("matplotlib", "matplotlib")) if not find_spec(module)
    ]
    if missing:
        raise MissingDependency(f'{" and ".join(missing)} not installed: pip install "bfr-runtime[bench]"')
    check_seed(args.seed)
    if not args.folder.is_dir():
        raise InputNotFound(f"{args.folder} is no folder: name a folder of aligned faces")
    if args.limit is not None and args.limit < 1:
        raise InvalidOption(f"--limit {args.limit} is out of range: choose 1 or more")
    if args.out.exists() and not args.out.is_dir():
        raise InvalidOption(f"{args.out} is a file: name a folder with --out")
    if args.sheet < 0:
        raise InvalidOption(f"--sheet {args.sheet} is out of range: choose 0 (no sheets) or more")
    if args.sweep and (args.start is not None or args.eta is not None):
        raise InvalidOption("--sweep takes --starts and --etas, not --start and --eta")
    if args.no_truth and (args.sweep or args.levels):
        raise InvalidOption("--no-truth degrades nothing and compares with nothing: leave out --sweep and --levels")


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidOption(f"{option} {text!r} is not a list of numbers: write it as {STARTS} or {ETAS}") from error


def _command(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The command line without defaults; of paths, the last part alone: a report tells nothing of the machine."""
    words = ["python", "-m", "bfr.benchmarks.quality", args.folder.resolve().name]
    for name, value in vars(args).items():
        if name == "folder" or value == parser.get_default(name):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(value.resolve().name if isinstance(value, Path) else str(value))
    return shlex.join(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="aligned faces, square")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for quality.json, quality.md and sheets"
    )
    parser.add_argument("--bundle", type=Path, help="folder of the bundle; the default is the system mini")
    parser.add_argument("--preset", default="reference", help="a preset of the bundle (%(default)s)")
    parser.add_argument("--start", type=int, help="instead of the preset's: N, the number of steps")
    parser.add_argument("--eta", type=float, help="instead of the preset's: 0 to 1")
    parser.add_argument("--spacing", help="instead of the preset's: kept timesteps, as ddim250")
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
        markdown = benchmark(args, _command(parser, args), lambda text: print(text, file=sys.stderr, flush=True))
    except BfrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
