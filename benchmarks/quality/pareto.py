"""Quality against network calls: `python -m bfr.benchmarks.quality.pareto FOLDER --out DIR`.

Every solver, spacing, number of steps and eta restores the aligned faces of FOLDER, degraded by a seeded level, and is
measured by its drift from a reference preset, beside the spread between seeds of the reference itself, and by what it
costs. The front, the full table and the presets that are read off it are written to pareto.json, pareto.md and
pareto.png, at the end of the run.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from bfr.benchmarks.environment import describe_machine
from bfr.benchmarks.publish import Findings, say
from bfr.benchmarks.quality.faces import LEVELS, DegradedFace, degrade, level_at, restore
from bfr.benchmarks.quality.metrics import Sample, UInt8, score
from bfr.benchmarks.quality.options import faces_command, numbers, open_inputs, words
from bfr.benchmarks.quality.pareto_report import as_markdown, as_png
from bfr.benchmarks.quality.pareto_results import DRIFTS, Candidate, Study, as_dict, drift
from bfr.benchmarks.quality.report import describe_degradation
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.diffusion.noise import check_seed
from bfr.runtime.diffusion.schedule import GRIDS, log_snr
from bfr.runtime.diffusion.solvers import SOLVERS
from bfr.runtime.errors import InvalidOption, RestorationFailed
from bfr.runtime.files import write_bytes
from bfr.runtime.restore.chains import load_networks
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.restore.tables import noise_schedule, sampler_table


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
        etas: Values of eta, for solvers that take one.

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
        restorer: The Restorer with the sampler.
        faces: The degraded faces.
        results: The reference's, (S, S, 3) uint8 RGB each.
        seed: Seed of the noise.

    Raises:
        RestorationFailed: A result holds NaN or Inf; the message names the sampler.
    """
    samples = []
    with restorer:
        for face, wanted in zip(faces, results, strict=True):
            try:
                pictures = restore(restorer, face, seed)
            except RestorationFailed as error:
                raise RestorationFailed(f"{restorer.sampler}: {error}. Or leave this sampler out") from error
            found = pictures.stages["result"]
            samples.append(sample(face, found, drift(found, wanted), pictures.seconds))
    candidate = Candidate(restorer.sampler, samples)
    say(f"{candidate}: {candidate.drift().mean:.2f} dB from the reference, {candidate.seconds:.3g} s")
    return candidate


def sample(face: DegradedFace, found: UInt8, drifted: Mapping[str, float], seconds: float) -> Sample:
    """Measure one face, found in `seconds`, against its truth, beside its drift."""
    return {"name": face.name, "drift": drifted, "truth": score(found, face.truth), "seconds": seconds}


def measure_reference(
    restorer: Restorer, faces: Sequence[DegradedFace], seed: int, other_seeds: Sequence[int]
) -> tuple[Candidate, Candidate, list[UInt8]]:
    """Measure the reference, and close its Restorer.

    Args:
        restorer: The Restorer with the reference.
        faces: The degraded faces.
        seed: Seed of the noise.
        other_seeds: The mean drift of their results is the spread.

    Returns:
        The reference, the estimate, and the reference's results, (S, S, 3) uint8 RGB each.
    """
    own, estimates, results = [], [], []
    with restorer:
        restorer.warm_up()
        for face in faces:
            pictures = restore(restorer, face, seed)
            estimate, result = pictures.stages["estimate"], pictures.stages["result"]
            drifts = [drift(restore(restorer, face, other).stages["result"], result) for other in other_seeds]
            spread = {measure: float(np.mean([one[measure] for one in drifts])) for measure in DRIFTS}
            own.append(sample(face, result, spread, pictures.seconds))
            estimates.append(sample(face, estimate, drift(estimate, result), pictures.estimate_seconds))
            results.append(result)
            if len(results) % 10 == 0 or len(results) == len(faces):
                say(f"reference, {restorer.sampler}, {1 + len(drifts)} seeds: {len(results)} of {len(faces)}")
    return Candidate(restorer.sampler, own), Candidate(None, estimates), results


def benchmark(args: argparse.Namespace) -> Findings:
    """Run what the command line asks for, and draw the picture."""
    bundle, device, truths, facts = open_inputs(args)
    other_seeds = numbers("--other-seeds", args.other_seeds, int)
    for seed in other_seeds:
        check_seed(seed)
    if len({args.seed, *other_seeds}) != 1 + len(other_seeds):
        raise InvalidOption(
            f"--other-seeds {args.other_seeds} with --seed {args.seed}: name at least one, each different"
        )
    reference = bundle.preset(args.reference)
    presets = candidates(
        bundle,
        args.reference,
        solvers=words("--solvers", args.solvers, tuple(SOLVERS)),
        spacings=args.spacings.split(","),
        steps=numbers("--steps", args.steps, int),
        starts=numbers("--start", args.start, float) if args.start else [start_of(bundle, reference)],
        etas=numbers("--etas", args.etas, float),
    )
    level = level_at(args.level, bundle.manifest.image_size)
    faces = [degrade(*truth, level, args.seed) for truth in truths]
    facts |= {
        "precision": "fp32",
        "threads": args.threads,
        "machine": describe_machine(),
        "level": args.level,
        "degradation": describe_degradation(level),
        "other_seeds": other_seeds,
    }
    networks = load_networks(bundle, device, "fp32")
    # All are made, and so all samplers are checked, before the first image is restored.
    first, *others = [Restorer(bundle, device, preset, networks=networks) for preset in (reference, *presets)]
    spread, estimate, results = measure_reference(first, faces, args.seed, other_seeds)
    measured = [measure(restorer, faces, results, seed=args.seed) for restorer in others]
    study = Study(facts, spread, [estimate, *measured])
    write_bytes(args.out / "pareto.png", as_png(study))
    return as_dict(study), as_markdown(study)


main = faces_command("bfr.benchmarks.quality.pareto", __doc__, benchmark)
main.add_argument("--reference", default="reference", help="the preset that drift is from (%(default)s)")
main.add_argument("--other-seeds", default="1,2", help="of the reference, for its spread (%(default)s)")
main.add_argument("--level", default="medium", help=f"one of {', '.join(LEVELS)} (%(default)s)")
main.add_argument("--solvers", default="ddim,dpmpp-2m,dpmpp-3m,unipc-2", help="(%(default)s)")
main.add_argument("--spacings", default=",".join(GRIDS), help="grids, and respacings as ddim250 (%(default)s)")
main.add_argument("--steps", default="2,3,4,6,10,20", help="calls of the denoiser (%(default)s)")
main.add_argument("--start", help="timesteps of the grids' first calls; the reference's own start")
main.add_argument("--etas", default="0", help="of the solvers that take one (%(default)s)")

if __name__ == "__main__":
    sys.exit(main())
