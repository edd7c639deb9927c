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
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bfr.benchmarks.environment import describe_machine
from bfr.benchmarks.publish import Findings, say, write_json
from bfr.benchmarks.quality.faces import LEVELS, DegradedFace, degrade, level_at, read_faces, restore
from bfr.benchmarks.quality.metrics import SHARPNESS, UInt8, score
from bfr.benchmarks.quality.options import check_common, faces_command, numbers, words
from bfr.benchmarks.quality.pareto_report import as_markdown, as_png
from bfr.benchmarks.quality.pareto_results import (
    DRIFTS,
    JSON,
    Candidate,
    Sample,
    Study,
    as_dict,
    drift,
    load,
    load_pictures,
    save_pictures,
)
from bfr.benchmarks.quality.report import describe_degradation
from bfr.runtime.backends.registry import open_device
from bfr.runtime.bundle.bundle import Bundle, default_bundle
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
    """
    samples = []
    with restorer:
        for face, wanted in zip(faces, results, strict=True):
            pictures = restore(restorer, face, seed)
            samples.append(
                sample(face, pictures.stages["result"], drift(pictures.stages["result"], wanted), pictures.seconds)
            )
    candidate = Candidate(restorer.sampler, samples)
    say(f"{candidate}: {candidate.drift().mean:.2f} dB from the reference, {candidate.seconds:.3g} s")
    return candidate


def sample(face: DegradedFace, found: UInt8, drifted: Mapping[str, float], seconds: float) -> Sample:
    """Measure one face, found in `seconds`, against its truth, beside its drift."""
    return {"name": face.name, "drift": drifted, "truth": score(found, face.truth), "seconds": seconds}


def benchmark(args: argparse.Namespace) -> Findings:
    """Run what the command line asks for; keep the results of each sampler, and draw the picture."""
    check_common(args)
    others = numbers("--other-seeds", args.other_seeds, int)
    for seed in (args.seed, *others):
        check_seed(seed)
    if len({args.seed, *others}) != 1 + len(others):
        raise InvalidOption(
            f"--other-seeds {args.other_seeds} with --seed {args.seed}: name at least one, each different"
        )
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
    done = [candidate.preset for candidate in results.candidates] if results else []
    missing = [preset for preset in presets if preset not in done]
    if results is None or missing:
        networks = load_networks(bundle, device, "fp32")
        # All are made, and so all samplers are checked, before the first image is restored.
        restorers = [Restorer(bundle, device, preset, networks=networks) for preset in missing]
        if results is None:
            first = Restorer(bundle, device, reference, networks=networks)
            results = measure_reference(first, faces, settings, facts, args.out)
        wanted = load_pictures(args.out)
        for restorer in restorers:
            try:
                found = measure(restorer, faces, wanted, seed=args.seed)
            except RestorationFailed as error:
                raise RestorationFailed(f"{restorer.sampler}: {error}. Leave this sampler out to go on") from error
            results = replace(results, candidates=[*results.candidates, found])
            write_json(args.out / JSON, as_dict(results))
    write_bytes(args.out / "pareto.png", as_png(results))
    return as_dict(results), as_markdown(results)


def measure_reference(
    restorer: Restorer, faces: Sequence[DegradedFace], settings: dict[str, Any], facts: dict[str, Any], out: Path
) -> Study:
    """The reference, its spread (the mean drift of other seeds' results), and the estimate; kept in `out`."""
    own, estimates, results = [], [], []
    with restorer:
        restorer.warm_up()
        for face in faces:
            pictures = restore(restorer, face, settings["seed"])
            estimate, result = pictures.stages["estimate"], pictures.stages["result"]
            others = [restore(restorer, face, seed).stages["result"] for seed in settings["other_seeds"]]
            drifts = [drift(other, result) for other in others]
            spread = {measure: float(np.mean([one[measure] for one in drifts])) for measure in DRIFTS}
            own.append(sample(face, result, spread, pictures.seconds))
            estimates.append(sample(face, estimate, drift(estimate, result), pictures.estimate_seconds))
            results.append(result)
            if len(results) % 10 == 0 or len(results) == len(faces):
                say(f"reference, {restorer.sampler}, {1 + len(others)} seeds: {len(results)} of {len(faces)}")
    study = Study(settings, facts, Candidate(restorer.sampler, own), [Candidate(None, estimates)])
    save_pictures(out, results)
    write_json(out / JSON, as_dict(study))
    return study


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
