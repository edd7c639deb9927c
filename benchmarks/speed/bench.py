"""`bfr bench`: the runtime's backends against eager PyTorch, interleaved, on the same weights, seeds and images.

`python -m bfr.benchmarks.speed.bench BUNDLE --out DIR` writes `bench.json` (everything, each single time included),
`bench.md`, `bench.png` and `roofline.png` into DIR.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bfr.benchmarks.environment import CpuWatch, GpuWatch, describe_machine
from bfr.benchmarks.speed import report
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
from bfr.benchmarks.speed.results import BackendResult, Measurement, Results, summarize
from bfr.benchmarks.speed.roofline import count_cost, measure_ceilings
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import (
    BackendUnavailable,
    BfrError,
    EngineMismatch,
    EngineMissing,
    InvalidOption,
    MissingDependency,
)
from bfr.runtime.files import write_bytes
from bfr.runtime.restore.plan import Plan, make_plan
from bfr.runtime.restore.restorer import DEFAULT_SEED


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What to measure.

    backends: names as `bfr.benchmarks.speed.contender` describes them; empty is what works here.
    batches: images per call. preset: of the bundle; steps: its number of calls, changed. repeats: timed calls of each
    backend and batch, after `warmup` others. threads: of the CPU, for all; None is PyTorch's choice. device: the number
    of the GPU. out: the folder.
    """

    bundle: Path
    out: Path
    backends: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    preset: str | None = None
    steps: int | None = None
    repeats: int = 20
    warmup: int = 2
    threads: int | None = None
    device: int = 0

    def __post_init__(self) -> None:
        for name, values in (("batches", self.batches), ("repeats", (self.repeats,)), ("warmup", (self.warmup,))):
            if not values or min(values) < 1:
                raise InvalidOption(f"{name} {values} is out of range: choose 1 or more")
        if self.threads is not None and self.threads < 1:
            raise InvalidOption(f"threads {self.threads} is out of range: choose 1 or more")
        if self.device < 0:
            raise InvalidOption(f"device {self.device} is out of range: choose 0 or more")
        for repeated in (self.backends, self.batches):
            if len(set(repeated)) < len(repeated):
                raise InvalidOption(f"{repeated} names something twice")
        for name in self.backends:
            split_name(name)

    @property
    def command(self) -> str:
        """The command of this configuration; its folders are placeholders, so that it can be published."""
        options = {
            "--backends": ",".join(self.backends) or None,
            "--batches": ",".join(map(str, self.batches)),
            "--preset": self.preset,
            "--steps": self.steps,
            "--repeats": self.repeats,
            "--warmup": self.warmup,
            "--threads": self.threads,
            "--device": self.device or None,
        }
        words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return f"python -m bfr.benchmarks.speed.bench BUNDLE --out DIR {shlex.join(words)}"


def bench(config: BenchConfig, progress: Progress = lambda _: None) -> Path:
    """Measure and write the reports into `config.out`; returns the Markdown's path.

    Raises MissingDependency without torch or matplotlib, InvalidOption, BundleInvalid, BackendUnavailable where the
    baseline does not work, RestorationFailed for a result that is not finite, WriteFailed.
    """
    report.need_matplotlib()  # before the measurements, not after them
    results = run_bench(config, progress)
    markdown = config.out / "bench.md"
    write_bytes(config.out / "bench.json", report.as_json(results))
    write_bytes(config.out / "bench.png", report.as_png(results))
    roofline = report.as_roofline(results)
    if roofline is not None:
        write_bytes(config.out / "roofline.png", roofline)
    write_bytes(
        markdown,
        report.as_markdown(results, plot="bench.png", roofline="roofline.png" if roofline else None).encode(),
    )
    return markdown


def run_bench(config: BenchConfig, progress: Progress = lambda _: None) -> Results:
    """Measure; see `bench`. What does not work here is skipped with its reason, the baseline apart."""
    bundle = Bundle.open(config.bundle)
    sampler = bundle.preset(config.preset)
    if config.steps is not None:
        sampler = sampler.shortened(config.steps)
    plan = make_plan(bundle, sampler)
    names = config.backends or default_backends(bundle, config.device)
    wrapped = any(network.kind == "wrapped" for network in bundle.manifest.networks.values())
    # What was wrapped has no PyTorch modules: the first backend is what others are compared with.
    baseline = names[0] if wrapped else next((name for name in names if name in BASELINES), None)
    if baseline is None:
        raise InvalidOption(f"there is nothing to compare with: add {' or '.join(BASELINES)} to the backends")
    threads_before = default_threads()
    threads = config.threads or threads_before
    machine = describe_machine()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    gpu = None if baseline.split(":")[0].endswith("-cpu") else config.device
    contenders, skipped = open_all(bundle, names, baseline, threads, config.device, progress)
    measurements: list[Measurement] = []
    watch, gpu_watch = CpuWatch(), GpuWatch(gpu)
    set_threads(threads)
    try:
        progress("measuring what the device could do")
        ceilings, costs = measure_ceilings(gpu), count_cost(bundle, config.batches, half=gpu is not None)
        limits = {cost.batch: cost.limit_seconds(ceilings) for cost in costs}
        for batch in config.batches:
            runs = measure(
                bundle, sampler, contenders, batch, repeats=config.repeats, warmup=config.warmup, progress=progress
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
                cold=_cold_or_none(config, contender.name, sampler, threads, progress),
                build_seconds=contender.build_seconds,
            )
        )
    return Results(
        system=bundle.manifest.system,
        title=bundle.manifest.title,
        bundle_sha256=bundle.hash,
        image_size=bundle.manifest.image_size,
        preset=config.preset or (bundle.manifest.default_preset if bundle.denoisers else "none"),
        sampler=sampler.model_dump(),
        steps=plan.steps,
        date_utc=date,
        command=config.command,
        seed=DEFAULT_SEED,
        repeats=config.repeats,
        warmup=config.warmup,
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


def _cold_or_none(config: BenchConfig, name: str, sampler: Preset, threads: int, progress: Progress) -> Cold | None:
    try:
        return cold_start(config.bundle, name, sampler, batches=config.batches, threads=threads, index=config.device)
    except RuntimeError as error:
        progress(f"{name} has no numbers of a fresh process: {error}")
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bfr.benchmarks.speed.bench", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--backends", default="", help="separated by commas; default: what works here")
    parser.add_argument("--batches", default="1", help="images per call, separated by commas")
    parser.add_argument("--preset", help="of the bundle; default: the bundle's")
    parser.add_argument("--steps", type=int, help="number of denoiser calls, instead of the preset's")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, help="of the CPU, for all; default: PyTorch's choice")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--quick", action="store_true", help="3 repeats after 1 call: a trial, not a result")
    options = vars(parser.parse_args(arguments))
    if options.pop("quick"):
        options |= {"repeats": 3, "warmup": 1}
    try:
        options["batches"] = tuple(int(batch) for batch in options["batches"].split(","))
    except ValueError:
        parser.error(f"--batches {options['batches']}: numbers separated by commas are needed")
    options["backends"] = tuple(name for name in options["backends"].split(",") if name)
    try:
        print(bench(BenchConfig(**options), lambda text: print(text, file=sys.stderr)))
    except BfrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
