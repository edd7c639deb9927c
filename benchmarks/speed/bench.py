"""`bfr bench`: the runtime's backends against eager PyTorch, interleaved, on the same weights, seeds and images.

Each runs in a separate process, so that one that fails costs no more than its row. It writes `bench.json`
(everything, each single time included, after every round), `bench.md` and `roofline.png`.
"""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path

from bfr.benchmarks.environment import CpuWatch, GpuWatch, describe_machine, gpu_used_bytes
from bfr.benchmarks.publish import write_json
from bfr.benchmarks.speed import plots
from bfr.benchmarks.speed.apart import Apart, Lost
from bfr.benchmarks.speed.contender import BASELINES, default_backends, default_threads, split_name
from bfr.benchmarks.speed.interleave import Progress, Race
from bfr.benchmarks.speed.options import BenchOptions
from bfr.benchmarks.speed.player import Entry, open_player
from bfr.benchmarks.speed.report import as_markdown
from bfr.benchmarks.speed.results import FORMAT, BackendResult, Cold, Measurement, Results, Run, summarize
from bfr.benchmarks.speed.roofline import Ceilings, count_cost, measure_ceilings
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import BackendUnavailable, InputNotFound, RestorationFailed
from bfr.runtime.files import write_bytes
from bfr.runtime.install import need
from bfr.runtime.restore.plan import Plan, make_plan
from bfr.runtime.restore.restorer import DEFAULT_SEED

PUBLISHED = "published-cpu"  # the contender that `--published` adds


def bench(options: BenchOptions, progress: Progress = lambda _: None) -> Path:
    """Measure and write the reports into `options.out`; returns the Markdown's path.

    `bench.json` is written after every round, so that a run that is cut short leaves what it found.

    Raises:
        MissingDependency: torch or matplotlib is missing.
        InvalidOption: An option does not fit the bundle.
        BundleInvalid: The folder is no bundle.
        InputNotFound: `options.published` is no clone of DifFace.
        BackendUnavailable: No backend works here.
        RestorationFailed: No backend comes to an end.
        WriteFailed: A report cannot be written.
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
    published = options.published and options.published.absolute()
    if published and not (published / "models" / "script_util.py").is_file():
        raise InputNotFound(f"{published} is no clone of github.com/zsyOAOA/DifFace: --published names its folder")
    bundle = Bundle.open(options.bundle or default_bundle())
    sampler = bundle.preset(options.preset)
    if options.steps is not None:
        sampler = sampler.shortened(options.steps)
    plan = make_plan(bundle, sampler)
    names = options.backends or default_backends(bundle, options.device)
    baseline, threads = choose_baseline(bundle, names), options.threads or default_threads()
    gpu = None if split_name(baseline).backend.endswith("-cpu") else options.device
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
        baseline=baseline,
        machine=describe_machine(),
        others_cores=None,
        costs=count_cost(bundle, options.batches, half=gpu is not None),
    )
    race, entries = Race(progress), dict[str, Entry]()
    with ExitStack() as processes:
        processes.callback(gpu_watch.stop)
        results.ceilings = _ceilings(gpu, threads, options.limit, results.notes, progress)
        for name in (*names, *([PUBLISHED] if published else [])):
            progress(f"loading {name}")
            own = published if name == PUBLISHED else None
            entry = entries[name] = Entry(bundle.folder.absolute(), name, sampler, threads, options.device, own)
            try:
                process = processes.enter_context(closing(Apart(open_player, entry, limit=options.limit)))
                facts: BackendResult = process.call("facts")
                race.add(name, process.call, process.call("first_calls"))
            except Lost as error:
                results.skipped[name] = _publishable(str(error)).removeprefix(f"{name}: ")
                progress(f"{name} is skipped: {error}")
                continue
            results.backends.append(facts)
        if not results.backends:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in results.skipped.items())
            raise BackendUnavailable(f"no backend works here: {reasons}")
        results.baseline = choose_baseline(bundle, [one.name for one in results.backends])
        for batch in options.batches:
            before = results.measurements

            def keep_round(runs: Sequence[Run], before: list[Measurement] = before, batch: int = batch) -> None:
                results.measurements = [*before, *summarize_all(bundle, plan, results, batch, runs)]
                results.lost = {name: _publishable(why).removeprefix(f"{name}: ") for name, why in race.lost.items()}
                results.energy = race.energy
                keep(results)

            keep_round(race.measure(batch, repeats=options.repeats, warmup=options.warmup, keep=keep_round))
    # The processes have ended, so that what they took of the CPU is known, and the GPU's memory is free.
    results.others_cores = watch.others()
    results.machine |= gpu_watch.stop()
    if not results.measurements:
        raise RestorationFailed(f"no backend came to an end: {'; '.join(map(': '.join, results.lost.items()))}")
    for i, backend in enumerate(results.backends):
        if not options.cold or backend.name in results.lost:
            continue
        progress(f"{backend.name}: a fresh process, for its start and its memory")
        try:
            cold = cold_start(entries[backend.name], options.batches, options.limit)
        except Lost as error:
            progress(f"{backend.name} has no numbers of a fresh process: {error}")
            results.notes.append(f"No cold start of {backend.name}: {_publishable(str(error))}")
            continue
        results.backends[i] = replace(backend, cold=cold)
        keep(results)
    results.complete = True
    return results


def cold_start(entry: Entry, batches: tuple[int, ...], limit: float) -> Cold:
    """Start one backend alone in a fresh process, and restore a batch of each size in it.

    In one process the memory of several would add up. The process imports what a deployment would import: PyTorch only
    for a backend of PyTorch. The smallest batch runs the whole sampler; the others one step of it, which needs as much
    memory.

    Args:
        entry: Who starts.
        batches: Sizes, in any order.
        limit: Seconds that the start, and each call, may take.

    Raises:
        Lost: With its last words, if it fails.
    """
    begin, before = time.perf_counter(), gpu_used_bytes()
    first, sizes = 0.0, sorted(batches)
    peaks: dict[int, int | None] = {}
    grown: dict[int, int | None] = {}
    with closing(Apart(open_player, entry, limit=limit)) as process:
        load_seconds, first_calls = process.call("facts").load_seconds, process.call("first_calls")
        for batch in sizes:
            process.call("begin", batch, batch != sizes[0])
            process.call("restore")
            first = first or time.perf_counter() - begin
            if first_calls > 1:
                process.call("restore")  # a graph has memory of its own
            (peaks[batch], imports_torch), used = process.call("footprint"), gpu_used_bytes()
            grown[batch] = None if used is None or before is None else used - before
    return Cold(sizes[0], first, load_seconds, peaks, grown, imports_torch)


def choose_baseline(bundle: Bundle, names: Sequence[str]) -> str:
    """What the others are compared with: eager PyTorch in float32 where it is there, else the first one."""
    return names[0] if bundle.wrapped else next((name for name in names if name in BASELINES), names[0])


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
    counts = [(calls, bundle.network(name).gflop) for name, calls in plan.calls().items()]
    known = all(gflop is not None for _, gflop in counts)
    gflop = batch * sum(calls * (gflop or 0.0) for calls, gflop in counts) if known else None
    baseline = next((run for run in runs if run.name == results.baseline), None)
    limits: dict[str, float] = {}
    if ceilings := results.ceilings:  # they say nothing of networks in another precision
        alike = [one.name for one in results.backends if one.precision == ceilings.precision]
        limits = {name: cost.limit_seconds(ceilings) for cost in results.costs if cost.batch == batch for name in alike}
    return [
        summarize(run, batch, plan.steps, baseline=baseline, gflop=gflop, limit_seconds=limits.get(run.name))
        for run in runs
    ]


def _publishable(reason: str) -> str:
    """The first line, without what may be a path of this machine: the reports are for publishing."""
    return re.sub(r"\S*[/\\]\S*", "...", reason.splitlines()[0]) if reason else reason
