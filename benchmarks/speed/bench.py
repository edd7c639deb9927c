"""`bfr bench`: the runtime's backends against eager PyTorch, interleaved, on the same weights, seeds and images.

Each runs in a process of its own, so that one that fails costs no more than its row. It writes `bench.json`
(everything, each single time included, after every round), `bench.md` and `roofline.png`.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from pathlib import Path

from bfr.benchmarks.environment import CpuWatch, GpuWatch, describe_machine
from bfr.benchmarks.publish import write_json
from bfr.benchmarks.speed import plots
from bfr.benchmarks.speed.apart import Apart, Lost
from bfr.benchmarks.speed.cold import cold_start
from bfr.benchmarks.speed.contender import BASELINES, default_backends, default_threads, split_name
from bfr.benchmarks.speed.interleave import Progress, Race, Run
from bfr.benchmarks.speed.options import BenchOptions
from bfr.benchmarks.speed.player import Facts, open_player
from bfr.benchmarks.speed.report import as_markdown
from bfr.benchmarks.speed.results import FORMAT, BackendResult, Measurement, Results, summarize
from bfr.benchmarks.speed.roofline import Ceilings, count_cost, measure_ceilings
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import BackendUnavailable, RestorationFailed
from bfr.runtime.files import write_bytes
from bfr.runtime.install import need
from bfr.runtime.restore.plan import Plan, make_plan
from bfr.runtime.restore.restorer import DEFAULT_SEED


def bench(options: BenchOptions, progress: Progress = lambda _: None) -> Path:
    """Measure and write the reports into `options.out`; returns the Markdown's path.

    `bench.json` is written after every round, so that a run that is cut short leaves what it found.

    Raises MissingDependency without torch or matplotlib, InvalidOption, BundleInvalid, BackendUnavailable where no
    backend works, RestorationFailed where none comes to an end, WriteFailed.
    """
    need("bench", "matplotlib")  # before the measurements, not after them
    markdown = options.out / "bench.md"

    def keep(found: Results) -> None:
        write_json(options.out / "bench.json", {"format": FORMAT, **asdict(found)})

    results = run_bench(options, progress, keep)
    keep(results)
    roofline = plots.roofline(results)
    if roofline is not None:
        write_bytes(options.out / "roofline.png", roofline)
    text = as_markdown(results, roofline="roofline.png" if roofline else None)
    write_bytes(markdown, text.encode())
    return markdown


def run_bench(
    options: BenchOptions, progress: Progress = lambda _: None, keep: Callable[[Results], None] = lambda _: None
) -> Results:
    """Measure; see `bench`. What does not work here, or drops out, leaves its reason.

    Args:
        options: What to measure.
        progress: Called with what is being measured.
        keep: Called with the results so far, after each round.
    """
    for name in options.backends:
        split_name(name)
    bundle = Bundle.open(options.bundle or default_bundle())
    sampler = bundle.preset(options.preset)
    if options.steps is not None:
        sampler = sampler.shortened(options.steps)
    plan = make_plan(bundle, sampler)
    names = options.backends or default_backends(bundle, options.device)
    threads = options.threads or default_threads()
    gpu = None if split_name(choose_baseline(bundle, names)).backend.endswith("-cpu") else options.device
    watch, gpu_watch = CpuWatch(), GpuWatch(gpu)
    results = Results(
        system=bundle.manifest.system,
        title=bundle.manifest.title,
        bundle_sha256=bundle.hash,
        image_size=bundle.manifest.image_size,
        preset=options.preset or (bundle.manifest.default_preset if bundle.denoisers else "none"),
        sampler=sampler.model_dump(),
        steps=plan.steps,
        date_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=options.command,
        seed=DEFAULT_SEED,
        repeats=options.repeats,
        warmup=options.warmup,
        threads=threads,
        baseline=choose_baseline(bundle, names),
        machine=describe_machine(),
        others_cores=None,
        backends=[],
        skipped={},
        measurements=[],
        ceilings=None,
        costs=count_cost(bundle, options.batches, half=gpu is not None),
        complete=False,
    )
    race = Race(progress)
    with ExitStack() as processes:
        processes.callback(gpu_watch.stop)
        results = replace(results, ceilings=_ceilings(gpu, threads, options.limit, results.notes, progress))
        backends = _open_all(bundle, names, sampler, threads, options, race, processes, results.skipped)
        if not backends:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in results.skipped.items())
            raise BackendUnavailable(f"no backend works here: {reasons}")
        results = replace(results, backends=backends, baseline=choose_baseline(bundle, [one.name for one in backends]))

        def keep_round(before: Results, batch: int, runs: Sequence[Run]) -> Results:
            grown = _with_runs(before, bundle, plan, race, batch, runs)
            keep(grown)
            return grown

        for batch in options.batches:
            told = partial(keep_round, results, batch)
            runs = race.measure(batch, repeats=options.repeats, warmup=options.warmup, keep=told)
            results = told(runs)
    # The processes have ended, so that what they took of the CPU is known, and the GPU's memory is free.
    results = replace(results, others_cores=watch.others(), machine=results.machine | gpu_watch.stop())
    if not results.measurements:
        raise RestorationFailed(f"no backend came to an end: {'; '.join(map(': '.join, results.lost.items()))}")
    for backend in [one for one in results.backends if options.cold and one.name not in results.lost]:
        progress(f"{backend.name}: a fresh process, for its start and its memory")
        try:
            cold = cold_start(
                bundle.folder,
                backend.name,
                sampler,
                batches=options.batches,
                threads=threads,
                index=options.device,
                limit=options.limit,
            )
        except Lost as error:
            progress(f"{backend.name} has no numbers of a fresh process: {error}")
            results.notes.append(f"No cold start of {backend.name}: {_publishable(str(error))}")
            continue
        known = [replace(one, cold=cold) if one is backend else one for one in results.backends]
        results = replace(results, backends=known)
        keep(results)
    return replace(results, complete=True)


def _with_runs(results: Results, bundle: Bundle, plan: Plan, race: Race, batch: int, runs: Sequence[Run]) -> Results:
    """The results with those of one more batch size, or of a part of it."""
    return replace(
        results,
        measurements=[*results.measurements, *summarize_all(bundle, plan, results, batch, runs)],
        lost={name: _publishable(why).removeprefix(f"{name}: ") for name, why in race.lost.items()},
        energy=race.energy,
    )


def choose_baseline(bundle: Bundle, names: Sequence[str]) -> str:
    """What the others are compared with: eager PyTorch in float32 where it is there, else the first one."""
    # What was wrapped has no PyTorch modules.
    wrapped = any(network.kind == "wrapped" for network in bundle.manifest.networks.values())
    return names[0] if wrapped else next((name for name in names if name in BASELINES), names[0])


def _open_all(
    bundle: Bundle,
    names: Sequence[str],
    sampler: Preset,
    threads: int,
    options: BenchOptions,
    race: Race,
    processes: ExitStack,
    skipped: dict[str, str],
) -> list[BackendResult]:
    """Open every backend in a process of its own; those that do not work here go to `skipped`."""
    opened = []
    for name in names:
        race.progress(f"loading {name}")
        try:
            request = (bundle.folder.absolute(), name, sampler.model_dump(), threads, options.device)
            process = Apart(open_player, *request, limit=options.limit)
            processes.callback(process.close)
            facts: Facts = process.call("facts")
        except Lost as error:
            skipped[name] = _publishable(str(error)).removeprefix(f"{name}: ")
            race.progress(f"{name} is skipped: {error}")
            continue
        race.add(name, process.call, facts.first_calls)
        opened.append(
            BackendResult(name, facts.precision, facts.versions, facts.load_seconds, None, facts.build_seconds)
        )
    return opened


def _ceilings(gpu: int | None, threads: int, limit: float, notes: list[str], progress: Progress) -> Ceilings | None:
    progress("measuring what the device could do")
    try:
        with closing(Apart(import_module, measure_ceilings.__module__, limit=limit)) as process:
            found: Ceilings = process.call(measure_ceilings.__name__, gpu, threads)
            return found
    except Lost as error:
        notes.append(f"No limit: {_publishable(str(error))}")
        return None


def summarize_all(bundle: Bundle, plan: Plan, results: Results, batch: int, runs: Sequence[Run]) -> list[Measurement]:
    """The statistics of every backend at one batch size; speed and results are held against the baseline's."""
    image_gflop = plan_gflop(bundle, plan)
    reference = next((run for run in runs if run.name == results.baseline), None)
    limits: dict[str, float] = {}
    if ceilings := results.ceilings:  # they say nothing of networks in another precision
        alike = [one.name for one in results.backends if one.precision == ceilings.precision]
        limits = {name: cost.limit_seconds(ceilings) for cost in results.costs if cost.batch == batch for name in alike}
    measured = []
    for run in runs:
        pictures = None
        if reference and run is not reference and run.images is not None and reference.images is not None:
            pictures = run.images, reference.images
        measured.append(
            summarize(
                run.name,
                batch,
                plan.steps,
                run.first,
                run.samples,
                gflop=None if image_gflop is None else batch * image_gflop,
                baseline=reference.samples if reference else (),
                images=pictures,
                limit_seconds=limits.get(run.name),
                joules=run.joules,
            )
        )
    return measured


def plan_gflop(bundle: Bundle, plan: Plan) -> float | None:
    """Billions of operations of all calls for one image, None where a network's are not counted."""
    counts = [(calls, bundle.network(name).gflop) for name, calls in plan.calls().items()]
    return None if any(gflop is None for _, gflop in counts) else sum(calls * (gflop or 0.0) for calls, gflop in counts)


def _publishable(reason: str) -> str:
    """The first line, without what may be a path of this machine: the reports are for publishing."""
    return re.sub(r"\S*[/\\]\S*", "...", reason.splitlines()[0]) if reason else reason
