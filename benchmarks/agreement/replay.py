"""What the goldens share: recorded noise and estimates, a loop whose states are compared, both backends."""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bfr.export.pytorch.eager import EagerDevice
from bfr.runtime.backends.device import BoundCall, Buffer, Device, Float32
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.errors import InputNotFound
from bfr.runtime.restore.chain import Chain, ChainResult
from bfr.runtime.restore.plan import Shape

# Parameters of the published classes that choose nothing in inference.
IGNORED = {"dims", "use_fp16", "use_checkpoint", "dropout", "drop_rate", "attn_drop_rate", "drop_path_rate"}
Arrays = Mapping[str, Any]
"""What a golden holds, by name."""
Config = Mapping[str, Any]
"""What lies beside it as JSON."""


class Errors(NamedTuple):
    """The largest absolute error of one golden on both backends."""

    eager: float
    onnxruntime: float

    @property
    def worst(self) -> float:
        """The larger one; NaN counts as infinitely wrong."""
        return max(np.inf if np.isnan(error) else error for error in self)


class ReplayedNoise:
    """A recorded stream of noise instead of a device's own."""

    def __init__(self, device: Device, draws: NDArray[np.float32]) -> None:
        self.device, self.draws = device, draws
        self.buffers = (device.array(draws[0].shape), device.array(draws[0].shape))

    def begin(self, seed: int, images: tuple[int, ...], last: int) -> None:
        """Nothing to prepare: the draws are there."""

    def ready(self, step: int) -> None:
        """Write the recorded draw of `step`."""
        self.device.write(self.buffers[step % 2], self.draws[step])


class GivenNetwork:
    """Recorded outputs instead of a network's own."""

    def __init__(self, device: Device, outputs: Mapping[str, Float32]) -> None:
        self.device, self.outputs = device, outputs

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """A call that writes them."""
        del inputs

        def call() -> None:
            for name, buffer in outputs.items():
                self.device.write(buffer, self.outputs[name])

        return call


def recorded_noise(name: str, count: int, image: Shape) -> Float32:
    """(count, 1, *image): the noise that the golden `name` was recorded with, which its name seeds."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name} noise".encode())))
    return generator.standard_normal((count, 1, *image)).astype(np.float32)


def unit_picture(picture: NDArray[Any]) -> Float32:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    return np.ascontiguousarray(np.moveaxis(picture, 2, 0)[None] / np.float32(255.0), np.float32)


def distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The largest absolute difference."""
    return float(np.abs(a.astype(np.float64) - b).max())


def run_chain(
    chain: Chain, arrays: Arrays, degraded: Float32, *, every: int = 1, **options: Any
) -> tuple[ChainResult, list[float]]:
    """Run a recorded loop; return the result, and the largest error of each kept state.

    Args:
        chain: The chain with the golden's noise.
        arrays: The golden: `states` after the numbers of steps in `kept`.
        degraded: (B, 3, H, W) in [0, 1].
        every: Pixels of a side from one that the golden holds to the next.
        options: More of `Chain.run`.
    """
    kept = {int(index): state for index, state in zip(arrays["kept"], arrays["states"], strict=True)}
    errors = []

    def compare(done: int, buffer: Buffer) -> None:
        if done in kept:
            found = chain.device.read(buffer)[..., ::every, ::every]
            errors.append(distance(found, kept[done].reshape(found.shape)))

    result = chain.run(degraded, seed=0, images=(0,) * len(degraded), on_step=compare, **options)
    if len(errors) != len(kept):
        raise RuntimeError(f"{len(errors)} of {len(kept)} states were compared")
    return result, errors


def on_both(run: Callable[[Any], float]) -> Errors:
    """Run a chain in eager PyTorch, and on ONNX Runtime; `run` takes a device and returns the largest error."""
    return Errors(run(EagerDevice()), run(CpuDevice()))


def read_config(path: Path) -> dict[str, Any]:
    """What a JSON file says of a golden or of a network. Raises InputNotFound."""
    if not path.is_file():
        raise InputNotFound(f"{path} does not exist: it describes the golden's network and must lie beside it")
    return dict(json.loads(path.read_text()))


def parameters(config: Config, image_size: int) -> dict[str, Any]:
    """The parameters of our network of a published class, for images of `image_size` pixels a side."""
    found = {name: value for name, value in config["params"].items() if name not in IGNORED}
    # The published class of LaMa has no such parameter.
    return {**found, "image_size": image_size} if config["class"] == "FFCResNetGenerator" else found
