"""Quality against network calls: `python -m bfr.benchmarks.quality.pareto FOLDER --out DIR`.

Every solver, spacing, number of steps and eta restores the aligned faces of FOLDER, degraded by a seeded level, and is
measured by its drift from a reference preset, beside the spread between seeds of the reference itself, and by what it
costs. The front, the full table and the presets that are read off it are written to pareto.json, pareto.md and
pareto.png. Results are kept after each sampler: the same command goes on where it was interrupted, and with more
solvers or steps adds to the table.
"""

import argparse
import sys
import zlib
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bfr.benchmarks.environment import describe_machine
from bfr.benchmarks.quality.chains import restore
from bfr.benchmarks.quality.drift import anchor, check_seeds, drift
from bfr.benchmarks.quality.levels import Face, degrade, level_at, read_faces
from bfr.benchmarks.quality.metrics import SHARPNESS, UInt8, score
from bfr.benchmarks.quality.options import OTHER_SEEDS, check_common, command_line, numbers, words
from bfr.benchmarks.quality.pareto_plot import as_png
from bfr.benchmarks.quality.pareto_report import as_markdown
from bfr.benchmarks.quality.pareto_results import Allowance, Candidate, Results, Sample
from bfr.benchmarks.quality.pareto_store import load, load_pictures, save, save_pictures
from bfr.benchmarks.quality.report import describe_degradation
from bfr.models.systems.mini.degrade import LEVELS
from bfr.runtime.backends.registry import open_device
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.diffusion.schedule import GRIDS, linear_schedule, log_snr
from bfr.runtime.diffusion.solvers import SOLVERS, WITH_ETA
from bfr.runtime.errors import BfrError, RestorationFailed
from bfr.runtime.files import write_bytes
from bfr.runtime.restore.plan import sampler_table
from bfr.runtime.restore.restorer import DEFAULT_SEED, Restorer, load_networks

PRESETS = {"balanced": Allowance(20, 0.1), "fast": Allowance(10, 0.5)}
Report = Callable[[str], None]


def candidates(
    bundle: Bundle,
    reference: str,
    *,
    solvers: Sequence[str],
    spacings: Sequence[str],
    steps: Sequence[int],
    start: float,
    etas: Sequence[float],
) -> list[Preset]:
    """The grid of samplers, each checked. Solvers without eta come once, with 0.

    start: the timestep that grids start at; a respacing starts at the index that gives it its number of calls.
    Raises InvalidOption where a sampler does not exist or does not fit the bundle.
    """
    presets: list[Preset] = []
    for solver, spacing, eta, count in product(solvers, spacings, etas, steps):
        where = {"start": start, "steps": count} if spacing in GRIDS else {"start": count, "steps": None}
        used = eta if solver in WITH_ETA else 0.0
        preset = bundle.preset(reference, solver=solver, spacing=spacing, eta=used, **where)
        sampler_table(bundle, preset)
        if preset not in presets:
            presets.append(preset)
    return presets


def start_of(bundle: Bundle, preset: Preset) -> float:
    """The timestep that a preset diffuses the estimate to: where grids start that are to invent as much as it does."""
    spec = bundle.manifest.schedule
    schedule = linear_schedule(spec.timesteps, spec.beta_start, spec.beta_end)
    table = sampler_table(bundle, preset)
    return round(float(schedule.timesteps_at(log_snr(np.array([table.signal**2])))[0]), 3)


def measure(
    restorer: Restorer, faces: Sequence[Face], results: Sequence[UInt8], *, seed: int, report: Report
) -> Candidate:
    """A sampler on all faces. results: the reference's, (S, S, 3) uint8 RGB each. Its chains are closed after."""
    samples = []
    with restorer:
        for face, wanted in zip(faces, results, strict=True):
            pictures = restore(restorer, face, seed)
            found = pictures.stages["result"]
            samples.append(Sample(face.name, drift(found, wanted), score(found, face.truth), pictures.seconds))
    candidate = Candidate(restorer.sampler, samples)
    report(f"{candidate}: {candidate.drift().mean:.2f} dB from the reference, {candidate.seconds:.3g} s")
    return candidate


def benchmark(args: argparse.Namespace, command: str, report: Report) -> str:
    """Run what the command line asks for, write its files, and return the Markdown."""
    check_common(args)
    others = numbers("--other-seeds", args.other_seeds, int)
    check_seeds(args.seed, others)
    bundle = Bundle.open(args.bundle or default_bundle())
    size = bundle.manifest.image_size
    reference = bundle.preset(args.reference)
    start = start_of(bundle, reference) if args.start is None else args.start
    presets = candidates(
        bundle,
        args.reference,
        solvers=words("--solvers", args.solvers, SOLVERS),
        spacings=args.spacings.split(","),
        steps=numbers("--steps", args.steps, int),
        start=start,
        etas=numbers("--etas", args.etas, float),
    )
    level = level_at(args.level, size)
    faces = [degrade(*face, level, args.seed) for face in read_faces(args.folder, size, args.limit)]
    device = open_device(args.backend, threads=args.threads)
    settings = {
        "bundle": bundle.hash,
        "backend": device.name,
        "threads": args.threads,
        "reference": reference.model_dump(exclude_defaults=True),
        "level": args.level,
        "seed": args.seed,
        "other_seeds": others,
        "faces": {face.name: zlib.crc32(face.degraded.tobytes()) for face in faces},
    }
    facts = {
        "command": command,
        "system": bundle.manifest.system,
        "image_size": size,
        "precision": "fp32",
        "versions": device.versions,
        "machine": describe_machine(),
        "degradation": describe_degradation(level),
        "definition": SHARPNESS,
        "attribution": args.attribution,
    }
    results = load(args.out, settings, facts)
    missing = [preset for preset in presets if results is None or not results.find(preset)]
    if results is None or missing:
        networks = load_networks(bundle, device, "fp32")
        # All are made, and so all samplers are checked, before the first image is restored.
        restorers = [Restorer(bundle, device, preset, networks=networks) for preset in missing]
        if results is None:
            first = Restorer(bundle, device, reference, networks=networks)
            results = _begin(first, faces, settings, facts, args, report)
        wanted = load_pictures(args.out)
        for restorer in restorers:
            try:
                found = measure(restorer, faces, wanted, seed=args.seed, report=report)
            except RestorationFailed as error:
                raise RestorationFailed(f"{restorer.sampler}: {error}. Leave this sampler out to go on") from error
            results = results.with_candidate(found)
            save(args.out, results, PRESETS)
    save(args.out, results, PRESETS)
    markdown = as_markdown(results, PRESETS, plot="pareto.png")
    write_bytes(args.out / "pareto.png", as_png(results, PRESETS))
    write_bytes(args.out / "pareto.md", markdown.encode())
    return markdown


def _begin(
    restorer: Restorer,
    faces: Sequence[Face],
    settings: dict[str, Any],
    facts: dict[str, Any],
    args: argparse.Namespace,
    report: Report,
) -> Results:
    """The reference, its spread, and the estimate; kept in `args.out`."""
    restorer.warm_up()
    anchors = anchor(restorer, faces, seed=args.seed, others=settings["other_seeds"], report=report)
    own, estimates = [], []
    for face, each in zip(faces, anchors, strict=True):
        own.append(Sample(face.name, each.spread, score(each.result, face.truth), each.pictures.seconds))
        estimate = each.pictures.stages["estimate"]
        drifted, truth = drift(estimate, each.result), score(estimate, face.truth)
        estimates.append(Sample(face.name, drifted, truth, each.pictures.estimate_seconds))
    results = Results(settings, facts, Candidate(restorer.sampler, own), [Candidate(None, estimates)])
    save_pictures(args.out, [each.result for each in anchors])
    save(args.out, results, PRESETS)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="aligned faces, square")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for pareto.json, .md and .png")
    parser.add_argument("--bundle", type=Path, help="folder of the bundle; the default is the system mini")
    parser.add_argument("--reference", default="reference", help="the preset that drift is from (%(default)s)")
    parser.add_argument("--level", default="medium", help=f"one of {', '.join(LEVELS)} (%(default)s)")
    parser.add_argument("--solvers", default="ddim,dpmpp-2m,dpmpp-3m,unipc-2", help="(%(default)s)")
    parser.add_argument("--spacings", default=",".join(GRIDS), help="grids, and respacings as ddim250 (%(default)s)")
    parser.add_argument("--steps", default="2,3,4,6,10,20", help="calls of the denoiser (%(default)s)")
    parser.add_argument("--start", type=float, help="timestep of the grids' first call; the reference's own start")
    parser.add_argument("--etas", default="0", help=f"of {', '.join(WITH_ETA)} (%(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of all noise (%(default)s)")
    parser.add_argument("--other-seeds", default=OTHER_SEEDS, help="of the reference, for its spread (%(default)s)")
    parser.add_argument("--attribution", metavar="TEXT", help="a line for the report, as licences ask")
    parser.add_argument("--backend", default="auto", help="auto, onnxruntime-cpu or onnxruntime-cuda (%(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU backend")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    command = command_line("bfr.benchmarks.quality.pareto", parser, args)
    try:
        markdown = benchmark(args, command, lambda text: print(text, file=sys.stderr, flush=True))
    except BfrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
