"""Compare a backend with a float32 reference: every network, and the whole loop, with the same noise."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bfr.export.verify.explain import differs, explain
from bfr.export.verify.walk import SEED, Reference, call_network, output_shapes, side_by_side, synthetic, walk
from bfr.runtime.backends.cuda.device import GpuDevice
from bfr.runtime.backends.device import Device, Float32, Network
from bfr.runtime.backends.registry import open_device
from bfr.runtime.bundle import manifest
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Check, Extent, Precision
from bfr.runtime.diffusion.schedule import respace
from bfr.runtime.errors import VerificationFailed
from bfr.runtime.restore.chain import Chain
from bfr.runtime.restore.chains import common_buckets, load_networks
from bfr.runtime.restore.plan import DEGRADED, Plan, make_plan
from bfr.runtime.restore.tables import noise_schedule

if TYPE_CHECKING:
    from torch import nn

BATCHES = (1, 3)  # graphs are traced at 2: an axis that became a constant shows at both
QUICK_STEPS = 4
GPU_RUNS = 3  # the first is enqueued call by call, the second records the chain
# dB of PSNR with peak 2, of a network and of the loop. In float32 only the order of sums differs; half keeps 11 bits of
# every activation. int8 reaches 43 and 44 dB with the weights of `mini` on these inputs, unlike what it was calibrated
# on, and 37 with the random ones of the tests; a step, of whose result the network is a small part, reaches 63 dB.
FLOORS_DB: Mapping[Precision, tuple[float, float]] = {
    "fp32": (90.0, 80.0),
    "fp16": (40.0, 35.0),
    "bf16": (30.0, 25.0),
    "int8": (34.0, 34.0),
}
INT8_STEP_DB = 50.0

Progress = Callable[[str], None]
AnySampler = TypeVar("AnySampler", bound=manifest.Sampler)


def eager_reference(modules: Mapping[str, "nn.Module"]) -> Reference:
    """Float32 stage modules by the bundle's names, see `bfr.export.pytorch.reference`, on the CPU."""
    from bfr.export.pytorch.eager import EagerDevice, EagerNetwork

    return Reference("eager float32", EagerDevice(), {name: EagerNetwork(module) for name, module in modules.items()})


def open_reference(bundle: Bundle, index: int = 0) -> Reference:
    """Eager PyTorch in float32, on GPU `index` where PyTorch has CUDA; without PyTorch ONNX Runtime on the CPU."""
    if find_spec("torch") is None or bundle.wrapped:
        cpu = open_device("onnxruntime-cpu")
        return Reference("ONNX Runtime float32 on the CPU", cpu, load_networks(bundle, cpu, "fp32"))
    import torch

    from bfr.export.pytorch.eager import EagerDevice

    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cuda.matmul.allow_tf32 = False
    device = EagerDevice(f"cuda:{index}" if torch.cuda.is_available() else "cpu")
    where = "the GPU" if torch.cuda.is_available() else "the CPU"
    return Reference(f"eager float32 on {where}", device, load_networks(bundle, device, "fp32"))


def verify(
    bundle: Bundle,
    reference: Reference,
    precision: Precision,
    *,
    device: Device | None = None,
    networks: Mapping[str, Network] | None = None,
    preset: str | None = None,
    steps: int | None = None,
    extent: Extent = "full",
    threads: int | None = None,
    gpu: str | None = None,
    progress: Progress = lambda _: None,
) -> list[Check]:
    """Compare a backend with the reference: every network, and the whole loop.

    A device with buckets is compared at its smallest and its largest, others at BATCHES.

    Args:
        bundle: The bundle.
        reference: The float32 networks.
        precision: Precision of the backend's networks.
        device: The backend's device; ONNX Runtime on the CPU if left out.
        networks: The bundle's networks on `device`, where they are loaded already.
        preset: The preset whose loop is compared; None is `reference` if there is one, else the default.
        steps: The most steps that the loop takes.
        extent: `quick` runs loops of QUICK_STEPS, spread over the time that all steps would take.
        threads: Threads of the CPU backend.
        gpu: Name of the GPU that the backend runs on.
        progress: Called with a line at each comparison.

    Returns:
        One Check a network and batch, and one of the loop.

    Raises:
        VerificationFailed: A result is not finite, or its PSNR is below its floor. Where Polygraphy is installed, the
            text names the layer, see `bfr.export.verify.explain`.
    """
    device = device or open_device("onnxruntime-cpu", threads=threads)
    tested = networks or load_networks(bundle, device, precision)
    preset = bundle.reference_preset if preset is None else preset
    sampler = bundle.preset(preset)
    if steps is not None:
        sampler = _shortened(sampler, steps)
    if extent == "quick":
        sampler = _spread(bundle, sampler)
    plan = make_plan(bundle, sampler)
    buckets = common_buckets(bundle.manifest.batches, device.buckets)
    batches = sorted({min(buckets), max(buckets)}) if buckets else BATCHES
    where: Any = {
        "device": device.name,
        "precision": precision,
        "reference": reference.name,
        "gpu": gpu,
        "extent": extent,
    }
    checks = []
    for batch in batches:
        for name, inputs, expected in walk(bundle, plan, reference, batch):
            entry = bundle.network(name)
            progress(f"comparing {name} in {precision} at batch {batch} against {reference.name}")
            b = side_by_side(call_network(device, tested[name], inputs, output_shapes(entry)))
            floor, a = network_floor(entry, precision), side_by_side(expected)
            try:
                checks.append(compare(f"{name}, batch {batch}", a, b, batch=batch, floor=floor, **where))
            except VerificationFailed as error:
                i = _worst_image(a, b)
                progress(f"{name} is below its floor: looking for the layer")
                image = inputs if bundle.manifest.batches else {key: value[i : i + 1] for key, value in inputs.items()}
                raise VerificationFailed(f"{error}{_explained(bundle, name, precision, image, device)}") from error
    progress(f"comparing the whole loop in {precision}, {plan.steps} steps, against {reference.name}")
    a, eager_seconds = run_chain(plan, reference.device, reference.networks, batches[0])
    b, seconds = run_chain(plan, device, tested, batches[0])
    what = f"loop, preset {preset}, {sampler}" if plan.steps else "chain"
    try:
        check = compare(what, a, b, batch=batches[0], floor=FLOORS_DB[precision][1], **where)
    except VerificationFailed as error:
        progress("the chain is below its floor: looking for the layer")
        found = (
            _explained(bundle, name, precision, inputs, device) for name, inputs, _ in walk(bundle, plan, reference, 1)
        )
        raise VerificationFailed("".join([str(error), *found])) from error
    if not plan.steps:
        return [*checks, check]
    times = {"seconds_a_step": round(seconds, 7), "eager_seconds_a_step": round(eager_seconds, 7)}
    return [*checks, check.model_copy(update=times)]


def network_floor(network: manifest.Network, precision: Precision) -> float:
    """The least PSNR of a network, in dB: of fp32 if it lacks this precision, of half if its file computes in half."""
    kind = precision if precision in network.variants else "fp32"
    kind = "fp16" if network.parameters.get("half") else kind
    return INT8_STEP_DB if kind == "int8" and network.kind.startswith("step") else FLOORS_DB[kind][0]


def compare(
    what: str,
    expected: Float32,
    found: Float32,
    *,
    device: str,
    precision: Precision,
    batch: int,
    floor: float,
    reference: str = "eager float32",
    remedy: str = "Export in fp32, or with another --opset",
    gpu: str | None = None,
    extent: Extent = "full",
) -> Check:
    """A Check of two arrays, or VerificationFailed."""
    if not np.isfinite(expected).all():
        raise VerificationFailed(
            f"{what}: the reference, {reference}, holds NaN or Inf, so nothing can be compared with it. "
            "The weights do not belong to this network, or were never trained: check them, and export again"
        )
    if not np.isfinite(found).all():
        raise VerificationFailed(
            f"{what} on {device} in {precision}: the result holds NaN or Inf. "
            "Half precision overflows where activations exceed 65504: export this network in fp32"
        )
    difference = found.astype(np.float64) - expected
    rms = max(float(np.sqrt(np.mean(difference**2))), 1e-12)
    psnr = 20.0 * np.log10(2.0 / rms)
    if psnr < floor:
        raise VerificationFailed(
            f"{what} on {device} in {precision}: {psnr:.1f} dB against {reference}, the floor is {floor:.0f} dB. "
            f"Nothing was published. {remedy}"
        )
    return Check(
        what=what,
        backend=device,
        precision=precision,
        batch=batch,
        psnr_db=round(psnr, 1),
        max_abs=float(np.abs(difference).max()),
        relative=float(np.linalg.norm(difference) / max(float(np.linalg.norm(expected)), 1e-12)),
        floor_db=floor,
        reference=reference,
        gpu=gpu,
        extent=extent,
    )


def run_chain(plan: Plan, device: Device, networks: Mapping[str, Network], batch: int = 1) -> tuple[Float32, float]:
    """The final images of synthetic faces through a chain, (B, 3, S, S) in [-1, 1], and the seconds a step.

    On a device that records chains, they are those of the recorded one.
    """
    chain = Chain(device, networks, plan, batch=batch)
    faces = {name: synthetic(name, shape, batch) for name, shape in plan.inputs.items()}
    degraded, loops = faces.pop(DEGRADED), list(plan.loops)
    try:
        for _ in range(1 if device.memory() is None else GPU_RUNS):
            result = chain.run(degraded, seed=SEED, images=tuple(range(batch)), inputs=faces)
    finally:
        chain.close()
    return result.image * 2.0 - 1.0, sum(result.seconds[loop.name] for loop in loops) / max(plan.steps, 1)


def _explained(bundle: Bundle, name: str, precision: Precision, inputs: Mapping[str, Float32], device: Device) -> str:
    """Explain a network as `bfr verify --explain` does, or say why not; empty if there is nothing to compare."""
    if not differs(bundle, name, precision, device.name):
        return ""
    index = device.cuda.index if isinstance(device, GpuDevice) else 0
    try:
        return f"\n{explain(bundle, name, precision, inputs, backend=device.name, index=index)}"
    except Exception as problem:  # a failed explanation must not hide the error that it explains
        return f"\nThe layer is not named: {problem}"


def _worst_image(expected: Float32, found: Float32) -> int:
    """The image of a batch that is farthest from its reference; NaN is farther than all numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    return int(np.argmax(np.where(np.isfinite(distance), distance, np.inf)))


def _shortened(sampler: manifest.Preset, steps: int) -> manifest.Preset:
    """A preset whose loops take at most so many steps each."""
    own = sampler.shortened(steps) if steps < sampler.calls else sampler
    stages = {name: one.shortened(steps) if steps < one.calls else one for name, one in own.stages.items()}
    return own.model_copy(update={"stages": stages})


def _spread(bundle: Bundle, preset: manifest.Preset) -> manifest.Preset:
    """A preset whose loops take QUICK_STEPS from where they start to the end, even in time."""
    schedule = noise_schedule(bundle.manifest.schedule)

    def few(sampler: AnySampler) -> AnySampler:
        if sampler.calls <= QUICK_STEPS:
            return sampler
        if sampler.steps is not None:
            return sampler.model_copy(update={"steps": QUICK_STEPS})
        first = respace(schedule, sampler.spacing).timesteps[int(sampler.start) - 1]  # of its first call
        grid = {"spacing": "time", "start": float(first), "steps": QUICK_STEPS, "matched": False, "stop": 0}
        return sampler.model_copy(update=grid)

    return few(preset).model_copy(update={"stages": {name: few(one) for name, one in preset.stages.items()}})
