"""The measurements on the GPU, a function for each stage, the most important first.

Each runs in a separate process, returns its figures, and hands over what it has so far with `Context.keep`: a stage
that is cut off loses no more than the figure that it was working on. `Context.gpu` is false in a rehearsal, which runs
small on a CPU; what makes no sense there raises NeedsGpu.
"""

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from bfr.benchmarks.environment import describe_machine
from bfr.benchmarks.gpu.measure import Context, Figures, NeedsGpu, Stage, call_denoiser, restore
from bfr.benchmarks.gpu.prepare import complete_bundle, pack_cache
from bfr.runtime.backends.registry import CompilerOption
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import MissingDependency
from bfr.runtime.restore.options import OpenOptions


def machine(context: Context) -> Figures:
    """Versions; NVRTC compiles the project's kernels; on a GPU the noise kernel against NumPy."""
    from bfr.runtime.backends.cuda.kernels import compile_kernels

    figures: Figures = {"facts": describe_machine()}
    if smi := shutil.which("nvidia-smi"):
        figures["nvidia-smi"] = subprocess.run([smi], capture_output=True, text=True, check=False).stdout  # noqa: S603
    context.keep(figures)
    if not context.gpu:
        with suppress(MissingDependency):
            figures["kernels' bytes"] = len(compile_kernels("9.0"))
        context.keep(figures)
        raise NeedsGpu
    from bfr.runtime.backends.cuda.device import GpuDevice
    from bfr.runtime.diffusion.noise import fill_normal

    device, owned = GpuDevice(0), ExitStack()
    figures["compute capability"] = device.cuda.facts.compute_capability
    figures["kernels' bytes"] = len(compile_kernels(figures["compute capability"]))
    context.keep(figures)
    shape, keys = (2, 3, 512, 512), (7, 4_000_000_000)
    noise = device.noise(owned, shape)
    noise.begin(12345, keys, 3)
    noise.ready(1)
    made, expected = device.read(noise.buffers[1]), np.empty(shape, np.float32)
    for image, key in enumerate(keys):
        fill_normal(expected[image], seed=12345, image=key, step=1)
    figures["noise, largest difference from NumPy"] = float(np.abs(made - expected).max())
    return figures


def mini(context: Context) -> Figures:
    """The packaged system, eager with and without graphs, against the CPU: batches 2, 1, 2, 2, 2, 2."""
    return _against_cpu(context, ("eager-cuda", "eager-cuda+graph") if context.gpu else ("onnxruntime-cpu",))


def mini_compiled(context: Context) -> Figures:
    """The packaged system compiled by the defaults; each batch size is recorded once."""
    if not context.gpu:
        raise NeedsGpu
    return _against_cpu(context, ("torch-cuda",))


def _against_cpu(context: Context, names: tuple[str, ...]) -> Figures:
    from bfr.benchmarks.speed.contender import open_contender
    from bfr.benchmarks.speed.interleave import synthetic_faces, time_batch
    from bfr.benchmarks.speed.results import drift

    bundle = Bundle.open(default_bundle()) if context.gpu else context.bundle
    sampler = bundle.preset().shortened(4)
    faces = synthetic_faces(2, bundle.manifest.image_size)

    def restored(name: str, sizes: tuple[int, ...]) -> Figures:
        contender = open_contender(bundle, name, threads=None if context.gpu else 1, compiler=())
        with contender.restorer(bundle, sampler, 2) as restorer:
            timed = [time_batch(contender, restorer, faces[:size]) for size in sizes]
        contender.device.close()
        return {"seconds": [timing.seconds for timing, _ in timed], "images": [images for _, images in timed]}

    sizes = (2, 1, 2, 2, 2, 2)  # recorded, and replayed
    expected = dict(zip((2, 1), restored("eager-cpu", (2, 1))["images"], strict=True))
    figures: Figures = {}
    for name in names:
        found = restored(name, sizes)
        far = [asdict(drift(a, expected[size])) for a, size in zip(found.pop("images"), sizes, strict=True)]
        figures[name] = {**found, "batches": sizes, "against the CPU": far}
        context.keep(figures)
    return figures


def weights(context: Context) -> Figures:
    """Make the weights anew from the parameters' names, and check every file's sha256."""
    return complete_bundle(context.prepared / "bundle", context.work / "bundle")


def ceilings(context: Context) -> Figures:
    """A large matrix product and a large copy, and the least that a call can take below them."""
    from bfr.benchmarks.speed.roofline import count_cost, measure_ceilings

    found = measure_ceilings(0 if context.gpu else None, repeats=20 if context.gpu else 2)
    costs = count_cost(context.bundle, (1, 16), half=context.gpu)
    limits = {str(cost.batch): cost.limit_seconds(found) for cost in costs}
    return {**asdict(found), "limit seconds by batch": limits}


def unet(context: Context) -> Figures:
    """The denoiser alone: eager float32, TF32, half, half as a graph too; the kernels of a call by time."""
    figures: Figures = {}
    for name, precision, tf32 in (("float32", "fp32", False), ("half", "fp16", False), ("TF32", "fp32", True)):
        if context.gpu or not tf32:
            part, graph = context.below(figures, name), context.gpu and precision == "fp16"
            figures[name] = call_denoiser(part, precision, None, tf32=tf32, graph=graph)
        else:
            figures[name] = {"skipped": "needs a GPU"}
        context.keep(figures)
    return figures


def compiled(context: Context) -> Figures:
    """The denoiser alone in half, compiled with the compiler's defaults, and recorded."""
    from bfr.export.pytorch.compiled import compile_options

    compiler = compile_options(()) if context.gpu else {"backend": "aot_eager"}  # C++ for a CPU takes minutes
    return call_denoiser(context, "fp16" if context.gpu else "fp32", compiler, tf32=False, graph=context.gpu)


def autotuned(context: Context) -> Figures:
    """The same with every kernel measured, without coordinate descent."""
    if not context.gpu:
        raise NeedsGpu
    from bfr.export.pytorch.compiled import compile_options

    options = compile_options(OpenOptions().compiler)
    return {"options": options, **call_denoiser(context, "fp16", options, tf32=False, graph=True)}


def chain(name: str, context: Context) -> Figures:
    """One face with the published 100 steps through a Restorer, by contender `name`."""
    return restore(context, name, batch=1, steps=None, repeats=10, compiler=ready_compiler(context))


def ready_compiler(context: Context) -> tuple[CompilerOption, ...] | None:
    """The options whose code is in the compiler's cache: None, those of `autotuned`, where it ended; else the defaults.

    Measuring every kernel anew would take the time of everything that comes after it.
    """
    path = context.out / "results.json"
    stages = json.loads(path.read_text())["stages"] if path.is_file() else {}
    return None if stages.get("autotuned", {}).get("status") == "done" else ()


def batches(context: Context) -> Figures:
    """Batches of 16, 10 steps each: throughput. Compiled by the defaults: measuring every kernel takes too long."""
    batch = 16 if context.gpu else 2
    part = context.below({}, f"batch {batch}")
    return {f"batch {batch}": restore(part, "torch-cuda:fp16", batch=batch, steps=10, repeats=5, compiler=())}


def memory(context: Context) -> Figures:
    """Memory in use on the device and on the host over 208 images of 10 steps, compiled as `batches`."""
    from bfr.benchmarks.end_to_end.endurance import endure

    if context.gpu:
        return endure(context.bundle, "torch-cuda:fp16", images=208, batch=16, steps=10, compiler=())
    return endure(context.bundle, "onnxruntime-cpu", images=2, steps=2, threads=1)


def cache(context: Context) -> Figures:
    """The compiler's cache as archives, so that the next run starts warmer."""
    return pack_cache(context.work / "inductor", context.out)


def train(role: str, context: Context) -> Figures:
    """Train a network of `mini` until the stage's time is over: steps a second, and the loss."""
    faces, out = context.faces, context.work / "train"
    if faces is None:
        faces = _noisy_faces(context.work / "faces")
    command = [sys.executable, "-m", "bfr.models.systems.mini.train", role, f"--faces={faces}", f"--out={out}"]
    if context.gpu:
        command += ["--steps=30000", "--batch=64", "--ema=0.9995", "--workers=6", "--log-every=20"]
    else:
        command += ["--steps=3", "--batch=1", "--log-every=1"]
    process = subprocess.Popen(command)  # noqa: S603
    try:
        status = process.wait(max(1.0, context.seconds - 8))
    except subprocess.TimeoutExpired:
        process.terminate()
        status = process.wait()
    else:
        if status:
            raise RuntimeError(f"the training ended with status {status}")
    entries = [json.loads(line) for line in (out / f"{role}.jsonl").read_text().splitlines()]
    first, last = entries[0], entries[-1]
    seconds = last["at"] - first["at"]
    rate = (last["step"] - first["step"]) / seconds if seconds else None
    return {"steps": last["step"], "steps a second": rate, "first loss": first["loss"], "last loss": last["loss"]}


def _noisy_faces(folder: Path) -> Path:
    """Four pictures of noise, of the size that training takes: it measures detail, which must be there."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (320, 320, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


STAGES = (
    Stage("machine", machine, 40, 10, "Does cuda-python work, and is the noise NumPy's?"),
    Stage("weights", weights, 90, 15, "Are the networks those that were exported?"),
    Stage("mini", mini, 45, 20, "Do capture, events, memory pool and pinned memory work?"),
    Stage("ceilings", ceilings, 30, 12, "What could the device do at most?"),
    Stage("unet", unet, 70, 25, "What does a call take without compiling, and where does it go?"),
    Stage("compiled", compiled, 130, 45, "What does compiling gain?"),
    Stage("autotuned", autotuned, 150, 60, "Does measuring every kernel reach 1.5 ms (H200) or 1.7 ms (H100)?"),
    Stage("chain eager-cuda", partial(chain, "eager-cuda"), 60, 20, "100 steps of eager float32"),
    Stage("chain eager-half", partial(chain, "eager-half"), 45, 20, "100 eager half steps: 5 times slower than ours?"),
    Stage(
        "chain torch-cuda:fp16", partial(chain, "torch-cuda:fp16"), 150, 40, "Are 100 steps done in 160 ms (180 ms)?"
    ),
    Stage("batches", batches, 120, 60, "Does batch 16 reach half of the limit?"),
    Stage("memory", memory, 90, 30, "Is memory constant?"),
    Stage("mini compiled", mini_compiled, 90, 60, "Does the default system run compiled?"),
    Stage("cache", cache, 30, 5, "The next run starts warmer."),
)
TRAINING = (
    Stage("train estimator", partial(train, "estimator"), 90, 30, "Steps a second, and does the loss fall?"),
    Stage("train denoiser", partial(train, "denoiser"), 90, 30, "Steps a second, and does the loss fall?"),
)
