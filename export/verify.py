"""Proves a backend against a float32 reference: every network, and the whole loop, on the same noise."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from bfr.runtime import manifest
from bfr.runtime.backends import Device, Float32, Network
from bfr.runtime.backends.choose import open_device
from bfr.runtime.bundle import Bundle
from bfr.runtime.errors import VerificationFailed
from bfr.runtime.loop import Chain
from bfr.runtime.manifest import Check, Precision
from bfr.runtime.noise import fill_normal
from bfr.runtime.restorer import load_networks, sampler_table
from bfr.runtime.solvers import StepTable

if TYPE_CHECKING:
    from torch import nn

BATCHES = (1, 3)  # graphs are traced at 2: an axis that became a constant shows at both
REFERENCE_BATCH = 4  # the reference runs larger batches in parts, so that the host's memory holds them
SEED = 12345
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


@dataclass(frozen=True, slots=True)
class Reference:
    """What is compared with: the float32 networks of a bundle, by name, on a device."""

    name: str
    device: Device
    networks: Mapping[str, Network]


def eager_reference(modules: Mapping[str, "nn.Module"]) -> Reference:
    """Float32 stage modules by the bundle's names, see `bfr.export.reference`, on the CPU."""
    from bfr.export.eager import EagerDevice, EagerNetwork

    return Reference("eager float32", EagerDevice(), {name: EagerNetwork(module) for name, module in modules.items()})


def open_reference(bundle: Bundle, index: int = 0) -> Reference:
    """Eager PyTorch in float32, on GPU `index` where PyTorch has CUDA; without PyTorch ONNX Runtime on the CPU."""
    if find_spec("torch") is None:
        cpu = open_device("onnxruntime-cpu")
        return Reference("ONNX Runtime float32 on the CPU", cpu, load_networks(bundle, cpu, "fp32"))
    import torch

    from bfr.export.eager import EagerDevice

    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cuda.matmul.allow_tf32 = False
    device = EagerDevice(f"cuda:{index}" if torch.cuda.is_available() else "cpu")
    where = "the GPU" if torch.cuda.is_available() else "the CPU"
    return Reference(f"eager float32 on {where}", device, load_networks(bundle, device, "fp32"))


def verify(
    bundle: Bundle,
    reference: Reference | Mapping[str, "nn.Module"],
    precision: Precision,
    *,
    backend: str = "onnxruntime-cpu",
    device: Device | None = None,
    networks: Mapping[str, Network] | None = None,
    preset: str = "reference",
    steps: int | None = None,
    threads: int | None = None,
    gpu: str | None = None,
    progress: Progress = lambda _: None,
) -> list[Check]:
    """Compare a backend with the reference; returns one Check a network and batch, and one of the loop.

    reference: or its modules, see `eager_reference`. device: the backend's, where it is open already, and `networks` on
    it, where they are loaded. steps: the most that the loop takes. threads: of the backend, on a CPU. gpu: the name of
    the one that the backend runs on.
    A device with buckets is compared at its smallest and its largest, others at BATCHES.
    Raises VerificationFailed where a result is not finite or its PSNR is below its floor.
    """
    if not isinstance(reference, Reference):
        reference = eager_reference(reference)
    device = device or open_device(backend, threads=threads)
    tested = networks or load_networks(bundle, device, precision)
    sampler = bundle.preset(preset)
    if steps is not None and steps < sampler.calls:
        sampler = sampler.shortened(steps)
    table = sampler_table(bundle, sampler)
    batches = sorted({min(device.buckets), max(device.buckets)}) if device.buckets else BATCHES
    where: dict[str, Any] = {"device": device.name, "precision": precision, "reference": reference.name, "gpu": gpu}
    checks = []
    for name, entry in bundle.manifest.networks.items():
        floor = network_floor(entry, precision)
        for batch in batches:
            progress(f"{name} in {precision} at batch {batch} against {reference.name}")
            inputs = _inputs(bundle, name, table, batch, reference)
            outputs = {tensor.name: tuple(int(size) for size in tensor.shape[1:]) for tensor in entry.outputs}
            a = run_in_parts(reference.device, reference.networks[name], inputs, outputs, REFERENCE_BATCH)
            b = run_network(device, tested[name], inputs, outputs)
            checks.append(compare(f"{name}, batch {batch}", a, b, batch=batch, floor=floor, **where))
    progress(f"the loop in {precision}, {len(table)} steps, against {reference.name}")
    a, eager_seconds = run_loop(bundle, reference.device, reference.networks, table, batches[0])
    b, seconds = run_loop(bundle, device, tested, table, batches[0])
    what = f"loop, preset {preset}, {sampler}"
    check = compare(what, a, b, batch=batches[0], floor=FLOORS_DB[precision][1], **where)
    times = {"seconds_a_step": round(seconds, 7), "eager_seconds_a_step": round(eager_seconds, 7)}
    return [*checks, check.model_copy(update=times)]


def network_floor(network: manifest.Network, precision: Precision) -> float:
    """What a network has to reach, in dB; in fp32 where it has no such variant."""
    kind = precision if precision in network.variants else "fp32"
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
    gpu: str | None = None,
) -> Check:
    """A Check of two arrays, or VerificationFailed."""
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
            "Nothing was published; export in fp32, or with another --opset"
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
    )


def run_network(
    device: Device, network: Network, inputs: Mapping[str, Float32], outputs: Mapping[str, tuple[int, ...]]
) -> Float32:
    """Run a network once; its outputs, (B, ...) each, side by side along axis 1. outputs: their shapes without B."""
    batch = len(next(iter(inputs.values())))
    buffers = {name: device.array(value.shape) for name, value in inputs.items()}
    results = {name: device.array((batch, *shape)) for name, shape in outputs.items()}
    try:
        for name, value in inputs.items():
            device.write(buffers[name], value)
        network.bind(buffers, results)()
        return np.concatenate([device.read(result) for result in results.values()], axis=1)
    finally:
        device.release([*buffers.values(), *results.values()])


def run_in_parts(
    device: Device, network: Network, inputs: Mapping[str, Float32], outputs: Mapping[str, tuple[int, ...]], part: int
) -> Float32:
    """`run_network`, at most `part` images at a time."""
    batch = len(next(iter(inputs.values())))
    parts = [
        run_network(device, network, {name: value[i : i + part] for name, value in inputs.items()}, outputs)
        for i in range(0, batch, part)
    ]
    return np.concatenate(parts)


def run_loop(
    bundle: Bundle, device: Device, networks: Mapping[str, Network], table: StepTable, batch: int = 1
) -> tuple[Float32, float]:
    """The final images of synthetic faces through the chain, (B, 3, S, S) in [-1, 1], and the seconds a step.

    On a device that records chains, they are those of the recorded one.
    """
    conditioner = bundle.denoise.conditioner
    chain = Chain(
        device,
        networks[bundle.estimator],
        networks[bundle.denoise.network],
        table,
        batch=batch,
        size=bundle.manifest.image_size,
        conditioner=networks[conditioner] if conditioner else None,
        features=bundle.features,
    )
    faces = np.stack([smooth_image(inputs_shape(bundle), image) for image in range(batch)])
    try:
        for _ in range(1 if device.memory() is None else GPU_RUNS):
            result = chain.run(faces, seed=SEED, images=tuple(range(batch)))
    finally:
        chain.close()
    return result.image * 2.0 - 1.0, result.seconds["denoise"] / len(table)


def inputs_shape(bundle: Bundle) -> tuple[int, int, int]:
    """(3, S, S)."""
    return (3, bundle.manifest.image_size, bundle.manifest.image_size)


def smooth_image(shape: tuple[int, int, int], image: int) -> Float32:
    """A deterministic image in [0, 1] with the statistics that matter here: smooth, with a little noise on top."""
    noise = np.empty(shape, np.float32)
    fill_normal(noise, seed=SEED, image=image, step=0)
    axis = np.linspace(0.0, 2.0 * np.pi, shape[-1], dtype=np.float32)
    phases = noise[:, 0, :2, None]
    waves = np.sin(axis + phases[:, :1])[:, :, None, :] * np.cos(axis + phases[:, 1:])[:, :, :, None]
    return np.asarray(np.clip(0.5 + 0.3 * waves.reshape(shape) + 0.02 * noise, 0.0, 1.0), np.float32)


def _inputs(bundle: Bundle, name: str, table: StepTable, batch: int, reference: Reference) -> dict[str, Float32]:
    shape = inputs_shape(bundle)
    middle = len(table) // 2
    # Different steps side by side: a batch may hold images at different times.
    t = np.roll(table.timesteps, -middle)[np.arange(batch) % len(table)]
    conditioner = bundle.denoise.conditioner
    if name == conditioner:
        return {"t": t}
    clean = np.stack([smooth_image(shape, image) for image in range(batch)])
    if bundle.network(name).kind == "estimator":
        return {"degraded": clean}
    draws = {key: np.stack(list(_draws(shape, batch, step))) for step, key in enumerate(("x", "noise"), start=1)}
    if conditioner:
        outputs = {"conditioning": (bundle.features,)}
        t = run_network(reference.device, reference.networks[conditioner], {"t": t}, outputs)
    return {
        "x": np.float32(table.signal) * (2.0 * clean - 1.0) + np.float32(table.noise) * draws["x"],
        "h1": 2.0 * clean - 1.0,
        "h2": 2.0 * clean - 1.0,
        "t": t,
        "row": np.roll(table.rows, -middle, axis=0)[np.arange(batch) % len(table)],
        "noise": draws["noise"],
    }


def _draws(shape: tuple[int, ...], batch: int, step: int) -> Iterator[Float32]:
    for image in range(batch):
        draw = np.empty(shape, np.float32)
        fill_normal(draw, seed=SEED, image=image, step=step)
        yield draw
