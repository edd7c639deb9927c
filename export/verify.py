"""Proves an exported bundle against eager float32 PyTorch: every network, and the whole loop, on the same noise."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from torch import nn

from bfr.export.eager import EagerDevice, EagerNetwork
from bfr.runtime.backends import Device, Float32, Network
from bfr.runtime.backends.choose import open_device
from bfr.runtime.bundle import Bundle
from bfr.runtime.errors import VerificationFailed
from bfr.runtime.loop import Chain
from bfr.runtime.manifest import Check, Precision, Preset
from bfr.runtime.noise import fill_normal
from bfr.runtime.restorer import load_networks, sampler_table
from bfr.runtime.solvers import StepTable

BATCHES = (1, 3)  # graphs are traced at 2: an axis that became a constant shows at both
SEED = 12345
# dB of PSNR with peak 2. In float32 only the order of sums differs; half keeps 11 bits of every activation.
FLOORS_DB: Mapping[Precision, tuple[float, float]] = {"fp32": (90.0, 80.0), "fp16": (40.0, 35.0), "bf16": (30.0, 25.0)}

Progress = Callable[[str], None]


def verify(
    bundle: Bundle,
    reference: Mapping[str, nn.Module],
    precision: Precision,
    *,
    backend: str = "onnxruntime-cpu",
    preset: str = "reference",
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> list[Check]:
    """Compare a backend with eager float32; returns one Check a network and batch, and one of the loop.

    reference: the float32 stage modules by the bundle's names, see `bfr.export.reference`. threads: of the backend, on
    a CPU.
    Raises VerificationFailed where a result is not finite or its PSNR is below its floor.
    """
    device, eager = open_device(backend, threads=threads), EagerDevice()
    tested = load_networks(bundle, device, precision)
    expected = {name: EagerNetwork(module) for name, module in reference.items()}
    sampler = bundle.preset(preset)
    table = sampler_table(bundle, sampler)
    network_floor, loop_floor = FLOORS_DB[precision]
    checks = []
    for name in bundle.manifest.networks:
        for batch in BATCHES:
            progress(f"{name} in {precision} at batch {batch} against eager float32")
            inputs = _inputs(bundle, name, table, batch)
            outputs = {tensor.name: (batch, *inputs_shape(bundle)) for tensor in bundle.network(name).outputs}
            a = run_network(eager, expected[name], inputs, outputs)
            b = run_network(device, tested[name], inputs, outputs)
            what = f"{name}, batch {batch}"
            checks.append(
                compare(what, a, b, device=device.name, precision=precision, batch=batch, floor=network_floor)
            )
    progress(f"the loop in {precision}, {len(table)} steps, against eager float32")
    a, eager_seconds = run_loop(bundle, eager, expected, table)
    b, seconds = run_loop(bundle, device, tested, table)
    what = f"loop, preset {preset}, {describe(sampler)}"
    check = compare(what, a, b, device=device.name, precision=precision, batch=1, floor=loop_floor)
    times = {"seconds_a_step": round(seconds, 5), "eager_seconds_a_step": round(eager_seconds, 5)}
    return [*checks, check.model_copy(update=times)]


def compare(
    what: str, expected: Float32, found: Float32, *, device: str, precision: Precision, batch: int, floor: float
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
            f"{what} on {device} in {precision}: {psnr:.1f} dB against eager float32, the floor is {floor:.0f} dB. "
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
    )


def run_network(
    device: Device, network: Network, inputs: Mapping[str, Float32], outputs: Mapping[str, tuple[int, ...]]
) -> Float32:
    """Run a network once; its outputs, (B, ...) each, side by side along axis 1."""
    buffers = {name: device.array(value.shape) for name, value in inputs.items()}
    for name, value in inputs.items():
        device.write(buffers[name], value)
    results = {name: device.array(shape) for name, shape in outputs.items()}
    network.bind(buffers, results)()
    return np.concatenate([device.read(result) for result in results.values()], axis=1)


def run_loop(
    bundle: Bundle, device: Device, networks: Mapping[str, Network], table: StepTable
) -> tuple[Float32, float]:
    """The final image of one synthetic face through the chain, (1, 3, S, S) in [-1, 1], and the seconds a step."""
    chain = Chain(
        device,
        networks[bundle.estimator],
        networks[bundle.denoise.network],
        table,
        batch=1,
        size=bundle.manifest.image_size,
    )
    result = chain.run(smooth_image(inputs_shape(bundle), 0)[None], seed=SEED, images=(0,))
    chain.close()
    return result.image * 2.0 - 1.0, result.seconds["denoise"] / len(table)


def describe(sampler: Preset) -> str:
    """A sampler in a few words."""
    return f"{sampler.start} steps of {sampler.spacing}, {sampler.solver}, eta {sampler.eta:g}"


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


def _inputs(bundle: Bundle, name: str, table: StepTable, batch: int) -> dict[str, Float32]:
    shape = inputs_shape(bundle)
    clean = np.stack([smooth_image(shape, image) for image in range(batch)])
    if bundle.network(name).kind == "estimator":
        return {"degraded": clean}
    draws = {key: np.stack(list(_draws(shape, batch, step))) for step, key in enumerate(("x", "noise"), start=1)}
    middle = len(table) // 2
    return {
        "x": np.float32(table.signal) * (2.0 * clean - 1.0) + np.float32(table.noise) * draws["x"],
        "h1": 2.0 * clean - 1.0,
        "h2": 2.0 * clean - 1.0,
        # Different steps side by side: a batch may hold images at different times.
        "t": np.roll(table.timesteps, -middle)[np.arange(batch) % len(table)],
        "row": np.roll(table.rows, -middle, axis=0)[np.arange(batch) % len(table)],
        "noise": draws["noise"],
    }


def _draws(shape: tuple[int, ...], batch: int, step: int) -> Iterator[Float32]:
    for image in range(batch):
        draw = np.empty(shape, np.float32)
        fill_normal(draw, seed=SEED, image=image, step=step)
        yield draw
