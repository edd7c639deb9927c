"""What a stage works with, and the measurements that several share: calls of the denoiser, and whole faces."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bfr.runtime.backends.registry import CompilerOption
from bfr.runtime.bundle.bundle import Bundle

TOP = 20  # kernels that are named
MEASURING = 0.75  # of a stage's seconds, after which no more samples are taken: compiling may have used most of them
Figures = dict[str, Any]


class NeedsGpu(Exception):
    """The stage measures nothing without a GPU."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage works with.

    Attributes:
        prepared: The folder of `--prepare`.
        work: Folder for what is not copied back, logs and weights.
        out: Folder for what is copied back.
        gpu: False in a rehearsal.
        seconds: Seconds until the stage is stopped.
        faces: Faces to train on.
    """

    prepared: Path
    work: Path
    out: Path
    gpu: bool
    seconds: float
    faces: Path | None
    keep: Callable[[Figures], None]

    @property
    def bundle(self) -> Bundle:
        """The bundle that the stage `weights` completed."""
        return Bundle.open(self.work / "bundle")

    def below(self, figures: Figures, name: str) -> "Context":
        """The same, for a part whose figures are kept as `name` beside those that there are already."""
        return replace(self, keep=lambda found: self.keep({**figures, name: found}))


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of STAGES.

    Attributes:
        seconds: The most it gets.
        least: Seconds; with less time left, it does not begin.
    """

    name: str
    run: Callable[[Context], Figures]
    seconds: int
    least: int
    answers: str


def call_denoiser(
    context: Context, precision: Any, compiler: Mapping[str, Any] | None, *, tf32: bool, graph: bool
) -> Figures:
    """Times of a call at batch 1, what the first call took, and the kernels of one call."""
    import torch

    from bfr.benchmarks.speed.roofline import median_seconds
    from bfr.export.pytorch.compiled import prepare_stage, stage_call
    from bfr.export.pytorch.reference import load_stage
    from bfr.export.verify.walk import output_shapes

    bundle, where = context.bundle, torch.device("cuda" if context.gpu else "cpu")
    stage: Any = load_stage(bundle, bundle.denoise.network)
    inputs = {name: value.to(where) for name, value in stage.examples(bundle.manifest.image_size, 1).items()}
    stage = prepare_stage(stage, precision, channels_last=compiler is not None).to(where)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=compiler is not None, benchmark_limit=0, allow_tf32=tf32)
    # Laid out as a chain's buffers: what is compiled here is found in the compiler's cache there.
    shapes = output_shapes(bundle.network(bundle.denoise.network)).values()
    outputs = tuple(torch.zeros(1, *shape, device=where) for shape in shapes)
    with torch.no_grad(), flags:
        run = stage_call(stage, compiler)

        def call() -> None:
            run(inputs, outputs)

        begin = time.perf_counter()
        call()
        _wait(context)
        figures: Figures = {"first call seconds": time.perf_counter() - begin}
        figures["finite"] = all(bool(torch.isfinite(one).all()) for one in outputs)
        repeats = 30 if context.gpu else 3
        figures["milliseconds"] = 1e3 * median_seconds(call, where, repeats)
        context.keep(figures)
        if graph:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded, capture_error_mode="thread_local"):
                call()
            figures["milliseconds as a graph"] = 1e3 * median_seconds(recorded.replay, where, repeats)
            context.keep(figures)
        # Last: a profiler that fails, or that leaves the driver's tracing on, costs no time measured before.
        figures["kernels"], figures["longest kernels"] = _profile(call, context)
    return figures


def _wait(context: Context) -> None:
    import torch

    if context.gpu:
        torch.cuda.synchronize()


def _profile(call: Callable[[], Any], context: Context) -> tuple[int, list[dict[str, Any]]]:
    """How many kernels a call has, and those that take longest by name; on a CPU its operators."""
    from torch.profiler import ProfilerActivity, profile

    wanted = "CUDA" if context.gpu else "CPU"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if context.gpu else [])]
    with profile(activities=activities) as profiler:
        call()
        _wait(context)
    found: dict[str, list[float]] = {}
    for event in profiler.events() or ():
        if event.device_type.name == wanted and not event.is_user_annotation:  # of compiled code, around its kernels
            found.setdefault(event.name, []).append(event.time_range.elapsed_us())
    longest = sorted(found.items(), key=lambda one: -sum(one[1]))[:TOP]
    rows = [{"name": name[:120], "calls": len(times), "microseconds": sum(times)} for name, times in longest]
    return sum(map(len, found.values())), rows


def restore(
    context: Context,
    name: str,
    *,
    batch: int,
    steps: int | None,
    repeats: int,
    compiler: Collection[CompilerOption] | None = None,
) -> Figures:
    """Time batches of faces; compare the images with those of eager float32, where it ran before.

    Args:
        context: The stage's context.
        name: The contender.
        batch: Faces a call.
        steps: Number of steps of the loop; None is the preset's.
        repeats: Timed batches.
        compiler: See `open_contender`; an empty one is `defaults` in the report.
    """
    from bfr.benchmarks.speed.contender import open_contender
    from bfr.benchmarks.speed.interleave import synthetic_faces, time_batch
    from bfr.benchmarks.speed.results import Run, drift, summarize

    stop = time.monotonic() + MEASURING * context.seconds
    baseline, bundle = name == "eager-cuda", context.bundle
    sampler = bundle.preset() if steps is None else bundle.preset().shortened(steps)
    if not context.gpu:
        name = "eager-cpu" if baseline else "onnxruntime-cpu"
        sampler, repeats = bundle.preset().shortened(2), 2
    faces = synthetic_faces(batch, bundle.manifest.image_size)
    contender = open_contender(bundle, name, threads=None if context.gpu else 1, compiler=compiler)
    label = f"{name}, defaults" if compiler == () and "torch" in name else name
    with contender.restorer(bundle, sampler, batch) as restorer:
        first, _ = time_batch(contender, restorer, faces)
        run = Run(name, first, [])
        begun: Figures = {"contender": label, "batch": batch, "first seconds": first.seconds}
        context.keep(begun)
        for _ in range(4 if contender.records else 1):
            time_batch(contender, restorer, faces)
        while len(run.samples) < repeats and (not run.samples or time.monotonic() < stop):
            timing, images = time_batch(contender, restorer, faces)
            run.samples.append(timing)
            context.keep({**begun, "so far": [sample.seconds for sample in run.samples]})
        calls = len(restorer.table)
    contender.device.close()
    found = asdict(summarize(run, batch, calls))
    for unknown in ("gflop_per_second", "speedup", "drift", "limit_seconds"):
        del found[unknown]
    found = {"contender": label, "steps": calls, **found}
    float32 = context.work / f"float32_{batch}x{calls}.npy"
    if baseline:
        np.save(float32, images)
    elif float32.is_file():
        found["against eager float32"] = asdict(drift(images, np.load(float32)))
    return found
