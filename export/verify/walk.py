"""Call every network of a chain once, on inputs like those of a restoration: a backend is compared on them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from bfr.runtime.backends.device import Device, Float32, Network
from bfr.runtime.bundle import manifest
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.diffusion.noise import fill_normal
from bfr.runtime.restore.plan import DEGRADED, Loop, Plan, Shape

SEED = 12345
REFERENCE_BATCH = 4  # the reference runs larger batches in parts, so that the host's memory holds them


@dataclass(frozen=True, slots=True)
class Reference:
    """The float32 networks of a bundle, by name, on a device."""

    name: str
    device: Device
    networks: Mapping[str, Network]


Walked = tuple[str, dict[str, Float32], dict[str, Float32]]


def walk(bundle: Bundle, plan: Plan, reference: Reference, batch: int) -> Iterator[Walked]:
    """Yield every network of a plan once: its name, inputs like those of a restoration, and the reference's outputs.

    In a loop, each image of the batch is at another step, from the middle on. The loop's source serves as its result.
    Where the graphs take no such batch, it is the smallest that they take.
    """
    ours = bundle.manifest.batches
    batch = batch if ours is None or batch in ours else min(ours)
    piece = REFERENCE_BATCH if ours is None else batch

    def call(name: str, inputs: Mapping[str, Float32]) -> dict[str, Float32]:
        network, shapes, made = reference.networks[name], output_shapes(bundle.network(name)), []
        for i in range(0, batch, piece):
            part = {key: value[i : i + piece] for key, value in inputs.items()}
            made.append(call_network(reference.device, network, part, shapes))
        return {key: np.concatenate([one[key] for one in made]) for key in shapes}

    seen: set[str] = set()

    def walked(name: str, inputs: dict[str, Float32]) -> tuple[list[Walked], dict[str, Float32]]:
        outputs, first = call(name, inputs), name not in seen
        seen.add(name)
        return [(name, inputs, outputs)] * first, outputs

    values = {name: synthetic(name, shape, batch) for name, shape in plan.inputs.items()}
    for stage in plan.stages:
        if isinstance(stage, Loop):
            rows, timesteps = (_at_the_middle(column, batch) for column in (stage.table.rows, stage.table.timesteps))
            t = timesteps
            if stage.conditioner:
                found, made = walked(stage.conditioner, {"t": t})
                yield from found
                t = made["conditioning"]
            # A picture replaces the results of earlier networks: with random inputs nearly all of x0 would be clipped.
            picture = stage.shape == plan.inputs[DEGRADED]
            source = 2.0 * values[DEGRADED] - 1.0 if picture else values[stage.source]
            draws = [np.stack(list(_draws(shape, batch, k))) for k, shape in ((1, stage.shape), (2, stage.noise))]
            x = np.float32(stage.table.signal) * source + np.float32(stage.table.noise) * draws[0]
            inputs = {"x": x if stage.diffuse else source, "h1": source, "h2": source, "t": t, "row": rows}
            inputs |= {"noise": draws[1]} | {name: values[value] for name, value in stage.conditions.items()}
            if stage.strength is not None:
                inputs["strength"] = np.full(batch, stage.strength, np.float32)
            found, made = walked(stage.network, inputs)
            yield from found
            if stage.guide:
                inputs = {"x_next": made["x_next"], "x0": made["x0"], "row": rows}
                inputs["strength"] = np.full(batch, stage.guide.strength, np.float32)
                inputs |= {name: values[value] for name, value in stage.guide.inputs.items()}
                yield from walked(stage.guide.network, inputs)[0]
            values[stage.result] = source
        else:
            found, made = walked(stage.network, {name: values[value] for name, value in stage.inputs.items()})
            yield from found
            values |= {stage.outputs[name]: value for name, value in made.items()}


def _at_the_middle(steps: Float32, batch: int) -> Float32:
    """The entries of a table's steps from the middle on, one for each image, around its end where there are too few."""
    return np.roll(steps, -(len(steps) // 2), axis=0)[np.arange(batch) % len(steps)]


def call_network(
    device: Device, network: Network, inputs: Mapping[str, Float32], outputs: Mapping[str, Shape]
) -> dict[str, Float32]:
    """Run a network once.

    Args:
        device: The device that holds the network.
        network: The network.
        inputs: Inputs by name, (B, ...) float32 each.
        outputs: Shapes of the outputs by name, without B.

    Returns:
        The outputs by name, (B, ...) float32 each.
    """
    batch = len(next(iter(inputs.values())))
    buffers = {name: device.array(value.shape) for name, value in inputs.items()}
    results = {name: device.array((batch, *shape)) for name, shape in outputs.items()}
    try:
        for name, value in inputs.items():
            device.write(buffers[name], value)
        network.bind(buffers, results)()
        return {name: device.read(result) for name, result in results.items()}
    finally:
        device.release([*buffers.values(), *results.values()])


def side_by_side(outputs: Mapping[str, Float32]) -> Float32:
    """(B, N) float32, all outputs of each image in a row."""
    return np.concatenate([output.reshape(len(output), -1) for output in outputs.values()], axis=1)


def output_shapes(network: manifest.Network) -> dict[str, Shape]:
    """The shapes of a network's outputs, by name, without the batch."""
    return {tensor.name: tuple(int(size) for size in tensor.shape[1:]) for tensor in network.outputs}


def synthetic(name: str, shape: Shape, batch: int) -> Float32:
    """(B, *shape) in [0, 1]: pictures for an input of a system, or a mask with a square hole."""
    if name == "mask":
        mask = np.zeros((batch, *shape), np.float32)
        side = shape[-1]
        mask[..., side // 4 : side // 2, side // 4 : side // 2] = 1.0
        return mask
    if len(shape) == 1:  # a weight
        return np.full((batch, *shape), 0.5, np.float32)
    other = 100 * (name != DEGRADED)  # other pictures, where a system reads several
    return np.stack([smooth_image(shape, other + image) for image in range(batch)])


def smooth_image(shape: Shape, image: int) -> Float32:
    """A deterministic image in [0, 1] with the statistics that matter here: smooth, with a little noise on top."""
    drawn = np.empty((prod(shape) + 3) // 4 * 4, np.float32)
    fill_normal(drawn, seed=SEED, image=image, step=0)
    noise = drawn[: prod(shape)].reshape(shape)
    axis = np.linspace(0.0, 2.0 * np.pi, shape[-1], dtype=np.float32)
    phases = noise[:, 0, :2, None]
    waves = np.sin(axis + phases[:, :1])[:, :, None, :] * np.cos(axis + phases[:, 1:])[:, :, :, None]
    return np.asarray(np.clip(0.5 + 0.3 * waves.reshape(shape) + 0.02 * noise, 0.0, 1.0), np.float32)


def _draws(shape: Shape, batch: int, step: int) -> Iterator[Float32]:
    for image in range(batch):
        draw = np.empty(shape, np.float32)
        fill_normal(draw, seed=SEED, image=image, step=step)
        yield draw
