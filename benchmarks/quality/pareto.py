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
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from bfr.benchmarks.environment import describe_machine
from bfr.benchmarks.publish import Findings, say, write_json
from bfr.benchmarks.quality.drift import LABELS, RULE, anchor, check_seeds, drift
from bfr.benchmarks.quality.faces import LEVELS, DegradedFace, degrade, level_at, read_faces, restore
from bfr.benchmarks.quality.metrics import SHARPNESS, UInt8, score
from bfr.benchmarks.quality.options import check_common, faces_command, numbers, words
from bfr.benchmarks.quality.pareto_plot import as_png
from bfr.benchmarks.quality.pareto_results import (
    JSON,
    READ_OFF,
    Allowance,
    Candidate,
    FaceScores,
    Line,
    Study,
    as_dict,
    load,
    load_pictures,
    read_off,
    save_pictures,
)
from bfr.benchmarks.quality.report import describe_degradation
from bfr.benchmarks.tables import show, table
from bfr.runtime.backends.registry import open_device
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.diffusion.schedule import GRIDS, log_snr
from bfr.runtime.diffusion.solvers import SOLVERS
from bfr.runtime.errors import RestorationFailed
from bfr.runtime.files import write_bytes
from bfr.runtime.restore.chains import load_networks
from bfr.runtime.restore.plan import noise_schedule, sampler_table
from bfr.runtime.restore.restorer import Restorer

PRESETS = {"balanced": Allowance(20, 0.1), "fast": Allowance(10, 0.5)}
TRUTH = {
    "psnr_db": ("PSNR to truth", 2),
    "haar_psi": ("HaarPSI to truth", 4),
    "sharpness": ("sharpness", 3),
    "correlation": ("detail correlation", 3),
}


def candidates(
    bundle: Bundle,
    reference: str,
    *,
    solvers: Sequence[str],
    spacings: Sequence[str],
    steps: Sequence[int],
    starts: Sequence[float],
    etas: Sequence[float],
) -> list[Preset]:
    """Return the grid of samplers, each checked. Solvers without eta come once, with 0.

    Args:
        bundle: The system.
        reference: Name of the preset that all other fields are of.
        solvers: Their names.
        spacings: Grids and respacings.
        steps: Numbers of calls.
        starts: Timesteps that grids start at; a respacing starts at the index that gives it its number of calls.
        etas: Of the solvers that take one.

    Raises:
        InvalidOption: A sampler does not exist or does not fit the bundle.
    """
    presets: list[Preset] = []
    for solver, spacing, eta, start, count in product(solvers, spacings, etas, starts, steps):
        where = {"start": start, "steps": count} if spacing in GRIDS else {"start": count, "steps": None}
        used = eta if SOLVERS[solver].with_eta else 0.0
        preset = bundle.preset(reference, solver=solver, spacing=spacing, eta=used, **where)
        sampler_table(bundle, preset)
        if preset not in presets:
            presets.append(preset)
    return presets


def start_of(bundle: Bundle, preset: Preset) -> float:
    """The timestep that a preset diffuses the estimate to: where grids start that are to invent as much as it does."""
    schedule = noise_schedule(bundle.manifest.schedule)
    table = sampler_table(bundle, preset)
    return round(float(schedule.timesteps_at(log_snr(np.array([table.signal**2])))[0]), 3)


def measure(restorer: Restorer, faces: Sequence[DegradedFace], results: Sequence[UInt8], *, seed: int) -> Candidate:
    """Measure a sampler on all faces, and close its Restorer.

    Args:
        restorer: With the sampler.
        faces: The degraded faces.
        results: The reference's, (S, S, 3) uint8 RGB each.
        seed: Seed of the noise.
    """
    samples = []
    with restorer:
        for face, wanted in zip(faces, results, strict=True):
            pictures = restore(restorer, face, seed)
            found = pictures.stages["result"]
            samples.append(FaceScores(face.name, drift(found, wanted), score(found, face.truth), pictures.seconds))
    candidate = Candidate(restorer.sampler, samples)
    say(f"{candidate}: {candidate.drift().mean:.2f} dB from the reference, {candidate.seconds:.3g} s")
    return candidate


def benchmark(args: argparse.Namespace) -> Findings:
    """Run what the command line asks for; keep the results of each sampler, and draw the picture."""
    check_common(args)
    others = numbers("--other-seeds", args.other_seeds, int)
    check_seeds(args.seed, others)
    bundle = Bundle.open(args.bundle or default_bundle())
    size = bundle.manifest.image_size
    reference = bundle.preset(args.reference)
    starts = numbers("--start", args.start, float) if args.start else [start_of(bundle, reference)]
    presets = candidates(
        bundle,
        args.reference,
        solvers=words("--solvers", args.solvers, tuple(SOLVERS)),
        spacings=args.spacings.split(","),
        steps=numbers("--steps", args.steps, int),
        starts=starts,
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
            results = _begin(first, faces, settings, facts, args)
        wanted = load_pictures(args.out)
        for restorer in restorers:
            try:
                found = measure(restorer, faces, wanted, seed=args.seed)
            except RestorationFailed as error:
                raise RestorationFailed(f"{restorer.sampler}: {error}. Leave this sampler out to go on") from error
            results = results.with_candidate(found)
            write_json(args.out / JSON, as_dict(results, PRESETS))
    write_bytes(args.out / "pareto.png", as_png(results, PRESETS))
    return as_dict(results, PRESETS), as_markdown(results, PRESETS, plot="pareto.png")


def _begin(
    restorer: Restorer,
    faces: Sequence[DegradedFace],
    settings: dict[str, Any],
    facts: dict[str, Any],
    args: argparse.Namespace,
) -> Study:
    """The reference, its spread, and the estimate; kept in `args.out`."""
    restorer.warm_up()
    anchors = anchor(restorer, faces, seed=args.seed, others=settings["other_seeds"])
    own, estimates = [], []
    for face, each in zip(faces, anchors, strict=True):
        own.append(FaceScores(face.name, each.spread, score(each.result, face.truth), each.pictures.seconds))
        estimate = each.pictures.stages["estimate"]
        drifted, truth = drift(estimate, each.result), score(estimate, face.truth)
        estimates.append(FaceScores(face.name, drifted, truth, each.pictures.estimate_seconds))
    results = Study(settings, facts, Candidate(restorer.sampler, own), [Candidate(None, estimates)])
    save_pictures(args.out, [each.result for each in anchors])
    write_json(args.out / JSON, as_dict(results, PRESETS))
    return results


def as_markdown(results: Study, presets: Mapping[str, Allowance], *, plot: str) -> str:
    """Render the facts, the presets that are read off, the front, and every sampler; means ± standard errors.

    Args:
        results: Of the study.
        presets: To be read off.
        plot: File name of the picture.
    """
    facts, settings = results.facts, results.settings
    seeds = ", ".join(map(str, settings["other_seeds"]))
    size = facts["image_size"]
    lines = ["# Quality against calls", "", f"![Quality against calls]({plot})", ""]
    lines += [
        f"- System: {facts['system']}, {size}x{size}, {facts['precision']}; bundle `{settings['bundle']}`",
        f"- Reference: {results.reference}; seed {settings['seed']}, for the spread the seeds {seeds}",
        f"- Images: {len(results.reference.samples)}, {settings['level']}: {facts['degradation']}",
        f"- Backend: {settings['backend']}, {_threads(settings['threads'])}; {facts['machine']['CPU']}",
        "- Seconds are per image, one at a time, median; `cost` is their share of the reference's",
        f"- {RULE}",
        f"- {READ_OFF}",
        f"- {facts['definition']}",
        "- Values are means over the images ± their standard errors.",
        *([f"- {facts['attribution']}"] if facts["attribution"] else []),
        "",
        "## Presets",
        "",
        *table(
            ["preset", "calls at most", "dB behind at most", "sampler", "calls", "drift, dB", "spread"],
            _presets(results, presets),
        ),
        "",
        "## Pareto front",
        "",
        *_table(results, results.front()),
        "",
        "## All samplers",
        "",
        *_table(results, sorted(results.candidates, key=_order)),
    ]
    return "\n".join(lines) + "\n"


def _presets(results: Study, presets: Mapping[str, Allowance]) -> list[list[str]]:
    rows = []
    for name, allowance in presets.items():
        found = read_off(results, allowance)
        cells = [str(found), str(found.calls), show(found.drift(), 2), _verdict(results, found)] if found else ["none"]
        rows.append([name, str(allowance.calls), f"{allowance.db:g}", *cells, *[""] * (4 - len(cells))])
    return rows


def _table(results: Study, candidates: Sequence[Candidate]) -> list[str]:
    """A row of the reference with its spread, then one for each candidate."""
    head = ["sampler", "calls", *(f"drift {label}" for label, _ in LABELS.values()), "drift - spread, dB", "spread"]
    head += [*(label for label, _ in TRUTH.values()), "s", "cost"]
    rows = [_row(results, results.reference, f"reference: {results.reference}; its spread", "", "")]
    for candidate in candidates:
        difference = show(results.difference(candidate), 2, sign=True)
        rows.append(_row(results, candidate, str(candidate), difference, _verdict(results, candidate)))
    return table(head, rows)


def _row(results: Study, candidate: Candidate, name: str, difference: str, verdict: str) -> list[str]:
    drifts = [show(candidate.drift(measure), digits) for measure, (_, digits) in LABELS.items()]
    truths = [show(candidate.truth(measure), digits) for measure, (_, digits) in TRUTH.items()]
    cost = candidate.seconds / results.reference.seconds
    return [
        name,
        str(candidate.calls),
        *drifts,
        difference,
        verdict,
        *truths,
        f"{candidate.seconds:.3g}",
        f"{cost:.1%}",
    ]


def _verdict(results: Study, candidate: Candidate) -> str:
    return "within" if results.within_spread(candidate) else "outside"


def _threads(threads: int | None) -> str:
    return "threads as it chooses" if threads is None else f"{threads} thread{'s' * (threads > 1)}"


def _order(candidate: Candidate) -> tuple[Line, int]:
    return candidate.line or ("", "", 0.0, 0.0), candidate.calls


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    command = faces_command("bfr.benchmarks.quality.pareto", __doc__)
    command.add_argument("--reference", default="reference", help="the preset that drift is from (%(default)s)")
    command.add_argument("--other-seeds", default="1,2", help="of the reference, for its spread (%(default)s)")
    command.add_argument("--level", default="medium", help=f"one of {', '.join(LEVELS)} (%(default)s)")
    command.add_argument("--solvers", default="ddim,dpmpp-2m,dpmpp-3m,unipc-2", help="(%(default)s)")
    command.add_argument("--spacings", default=",".join(GRIDS), help="grids, and respacings as ddim250 (%(default)s)")
    command.add_argument("--steps", default="2,3,4,6,10,20", help="calls of the denoiser (%(default)s)")
    command.add_argument("--start", help="timesteps of the grids' first calls; the reference's own start")
    command.add_argument("--etas", default="0", help="of the solvers that take one (%(default)s)")
    return command.run(arguments, benchmark)


if __name__ == "__main__":
    sys.exit(main())
