"""`bfr bench`: the runtime's backends against eager PyTorch, interleaved, on the same weights, seeds and images.

It writes `bench.json` (everything, each single time included), `bench.md`, `bench.png` and `roofline.png`.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bfr.benchmarks.environment import CpuWatch, GpuWatch, describe_machine
from bfr.benchmarks.publish import write_json
from bfr.benchmarks.speed import plots
from bfr.benchmarks.speed.cold import Cold, cold_start
from bfr.benchmarks.speed.contender import (
    BASELINES,
    Contender,
    default_backends,
    default_threads,
    open_contender,
    split_name,
)
from bfr.benchmarks.speed.interleave import Progress, Run, measure
from bfr.benchmarks.speed.options import BenchOptions
from bfr.benchmarks.speed.report import as_markdown
from bfr.benchmarks.speed.results import FORMAT, BackendResult, Measurement, Results, summarize
from bfr.benchmarks.speed.roofline import count_cost, measure_ceilings
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import (
    BackendUnavailable,
    EngineMismatch,
    EngineMissing,
    InvalidOption,
    MissingDependency,
)
from bfr.runtime.files import write_bytes
from bfr.runtime.restore.plan import Plan, make_plan
from bfr.runtime.restore.restorer import DEFAULT_SEED


def bench(options: BenchOptions, progress: Progress = lambda _: None) -> Path:
    """Measure and write the reports into `options.out`; returns the Markdown's path.

    Raises MissingDependency without torch or matplotlib, InvalidOption, BundleInvalid, BackendUnavailable where the
    baseline does not work, RestorationFailed for a result that is not finite, WriteFailed.
    """
    plots.need_matplotlib()  # before the measurements, not after them
    results = run_bench(options, progress)
    markdown = options.out / "bench.md"
    write_json(options.out / "bench.json", {"format": FORMAT, **asdict(results)})
    write_bytes(options.out / "bench.png", plots.bar_chart(results))
    roofline = plots.roofline(results)
    if roofline is not None:
        write_bytes(options.out / "roofline.png", roofline)
    text = as_markdown(results, plot="bench.png", roofline="roofline.png" if roofline else None)
    write_bytes(markdown, text.encode())
    return markdown


def run_bench(options: BenchOptions, progress: Progress = lambda _: None) -> Results:
    """Measure; see `bench`. What does not work here is skipped with its reason, the baseline apart."""
    for name in options.backends:
        split_name(name)
    bundle = Bundle.open(options.bundle or default_bundle())
    sampler = bundle.preset(options.preset)
    if options.steps is not None:
        sampler = sampler.shortened(options.steps)
    plan = make_plan(bundle, sampler)
    names = options.backends or default_backends(bundle, options.device)
    wrapped = any(network.kind == "wrapped" for network in bundle.manifest.networks.values())
    # What was wrapped has no PyTorch modules: the first backend is what others are compared with.
    baseline = names[0] if wrapped else next((name for name in names if name in BASELINES), None)
    if baseline is None:
        raise InvalidOption(f"there is nothing to compare with: add {' or '.join(BASELINES)} to the backends")
    threads_before = default_threads()
    threads = options.threads or threads_before
    machine = describe_machine()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    gpu = None if baseline.split(":")[0].endswith("-cpu") else options.device
    contenders, skipped = open_all(bundle, names, baseline, threads, options.device, progress)
    measurements: list[Measurement] = []
    watch, gpu_watch = CpuWatch(), GpuWatch(gpu)
    set_threads(threads)
    try:
        progress("measuring what the device could do")
        ceilings, costs = measure_ceilings(gpu), count_cost(bundle, options.batches, half=gpu is not None)
        limits = {cost.batch: cost.limit_seconds(ceilings) for cost in costs}
        for batch in options.batches:
            runs = measure(
                bundle, sampler, contenders, batch, repeats=options.repeats, warmup=options.warmup, progress=progress
            )
            measurements += summarize_all(bundle, plan, baseline, batch, runs, limits.get(batch))
    finally:
        set_threads(threads_before)
        machine |= gpu_watch.stop()
    others_cores = watch.others()
    backends = []
    for contender in contenders:
        contender.device.close()  # before the fresh processes need the GPU's memory
    for contender in contenders:
        progress(f"{contender.name}: a fresh process, for its start and its memory")
        backends.append(
            BackendResult(
                name=contender.name,
                precision=contender.precision,
                versions=contender.device.versions,
                load_seconds=contender.load_seconds,
                cold=_cold_or_none(bundle, options, contender.name, sampler, threads, progress),
                build_seconds=contender.build_seconds,
            )
        )
    return Results(
        system=bundle.manifest.system,
        title=bundle.manifest.title,
        bundle_sha256=bundle.hash,
        image_size=bundle.manifest.image_size,
        preset=options.preset or (bundle.manifest.default_preset if bundle.denoisers else "none"),
        sampler=sampler.model_dump(),
        steps=plan.steps,
        date_utc=date,
        command=options.command,
        seed=DEFAULT_SEED,
        repeats=options.repeats,
        warmup=options.warmup,
        threads=threads,
        baseline=baseline,
        machine=machine,
        others_cores=others_cores,
        backends=backends,
        skipped=skipped,
        measurements=measurements,
        ceilings=ceilings,
        costs=costs,
    )


def open_all(
    bundle: Bundle, names: Sequence[str], baseline: str, threads: int, index: int, progress: Progress
) -> tuple[list[Contender], dict[str, str]]:
    """Open every backend; those that do not work here, by name with the reason."""
    contenders: list[Contender] = []
    skipped: dict[str, str] = {}
    for name in names:
        progress(f"loading {name}")
        try:
            contenders.append(open_contender(bundle, name, threads=threads, spinning=False, index=index))
        except (BackendUnavailable, MissingDependency, EngineMissing, EngineMismatch) as error:
            if name == baseline:
                raise
            # The reports are for publishing: what may be a path of this machine stays out of them.
            skipped[name] = re.sub(r"\S*[/\\]\S*", "...", str(error).splitlines()[0])
            progress(f"{name} is skipped: {error}")
    return contenders, skipped


def summarize_all(
    bundle: Bundle, plan: Plan, baseline: str, batch: int, runs: Sequence[Run], limit_seconds: float | None
) -> list[Measurement]:
    """The statistics of every backend at one batch size; speed and results are held against the baseline's."""
    image_gflop = plan_gflop(bundle, plan)
    gflop = None if image_gflop is None else batch * image_gflop
    reference = next(run for run in runs if run.name == baseline)
    return [
        summarize(
            run.name,
            batch,
            plan.steps,
            run.first,
            run.samples,
            gflop=gflop,
            baseline=reference.samples,
            images=None if run is reference else (run.images, reference.images),
            limit_seconds=limit_seconds,
        )
        for run in runs
    ]


def plan_gflop(bundle: Bundle, plan: Plan) -> float | None:
    """Billions of operations of all calls for one image, None where a network's are not counted."""
    counts = [(calls, bundle.network(name).gflop) for name, calls in plan.calls().items()]
    return None if any(gflop is None for _, gflop in counts) else sum(calls * (gflop or 0.0) for calls, gflop in counts)


def set_threads(threads: int) -> None:
    """Of PyTorch, in this process."""
    import torch

    torch.set_num_threads(threads)


def _cold_or_none(
    bundle: Bundle, options: BenchOptions, name: str, sampler: Preset, threads: int, progress: Progress
) -> Cold | None:
    try:
        return cold_start(bundle.folder, name, sampler, batches=options.batches, threads=threads, index=options.device)
    except RuntimeError as error:
        progress(f"{name} has no numbers of a fresh process: {error}")
        return None
