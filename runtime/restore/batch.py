"""Some images on their way through a chain, and what became of each."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.device import Device, Float32
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import BfrError
from bfr.runtime.restore.chain import Chain, ChainResult
from bfr.runtime.restore.inputs import Given, ImageInputs, keep_known
from bfr.runtime.restore.loop import OnStep
from bfr.runtime.restore.pixels import to_output
from bfr.runtime.restore.plan import DEGRADED


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of one image.

    pixels: (H, W, 3) RGB of the input's size and dtype, or None where it failed. error: why it failed.
    seconds: stage -> this image's share of its batch, in seconds. precision: of the networks that made it.
    """

    pixels: NDArray[Any] | None
    seconds: dict[str, float]
    precision: Precision
    error: str | None = None


class Owner(Protocol):
    """What a batch needs of its Restorer."""

    device: Device
    precision: Precision
    inputs: ImageInputs

    @property
    def buckets(self) -> tuple[int, ...] | None: ...

    def chain(self, batch: int) -> Chain: ...

    def float32(self) -> "Owner": ...

    def run(
        self,
        images: Sequence[NDArray[Any]],
        *,
        seed: int,
        keys: Sequence[int | None] | None,
        inputs: Mapping[str, Given] | None,
    ) -> list[Restored]: ...


class Batch:
    """Some images on their way through the chain of their bucket."""

    def __init__(
        self,
        restorer: Owner,
        images: Sequence[NDArray[Any]],
        keys: Sequence[int | None],
        seed: int,
        given: Mapping[str, Given] | None = None,
    ) -> None:
        """given: pictures for the system's other inputs, by name, one or None for each image."""
        self.restorer, self.images, self.keys, self.seed, self.given = restorer, images, keys, seed, given or {}
        self.prepared = [restorer.inputs.prepare(image, self._pictures(i)) for i, image in enumerate(images)]

    def stage(self) -> None:
        """Hand the images to the device, which may still work on other ones. Raises DeviceOutOfMemory."""
        bucket = choose_bucket(len(self.images), self.restorer.buckets)
        padding = bucket - len(self.prepared)
        named = [
            image_key(one[DEGRADED]) if key is None else key for one, key in zip(self.prepared, self.keys, strict=True)
        ]
        self.noise_keys = (*named, *(0 for _ in range(padding)))
        self.chain = self.restorer.chain(bucket)
        inputs = {
            name: np.stack([one[name] for one in self.prepared] + [np.zeros_like(first)] * padding)
            for name, first in self.prepared[0].items()
        }
        self.chain.stage(inputs.pop(DEGRADED), inputs)

    def start(self, on_step: OnStep | None) -> None:
        """Begin the work. The previous batch must be finished."""
        self.chain.start(seed=self.seed, images=self.noise_keys, on_step=on_step)

    def finish(self) -> ChainResult:
        """Wait for the work."""
        return self.chain.finish()

    def results(self, outcome: ChainResult) -> list[Restored]:
        """One for each image; what is not finite is made again in float32 where that is another network."""
        seconds = {stage: total / len(self.images) for stage, total in outcome.seconds.items()}
        return [
            Restored(self._output(i, face), seconds, self.restorer.precision)
            if np.isfinite(face).all()
            else self._again(i, seconds)
            for i, face in enumerate(outcome.image[: len(self.images)])  # padding is left out
        ]

    def _output(self, i: int, face: Float32) -> NDArray[Any]:
        """A result as the image came; where there is a mask, the known pixels are the image's own."""
        image, result = self.images[i], to_output(face, self.images[i])
        return keep_known(image, result, self._pictures(i).get("mask")) if "mask" in self.prepared[i] else result

    def _pictures(self, i: int) -> dict[str, NDArray[Any] | None]:
        return {name: pictures[i] for name, pictures in self.given.items()}

    def _again(self, i: int, seconds: dict[str, float]) -> Restored:
        precision = self.restorer.precision
        if not all(np.isfinite(values).all() for values in self.prepared[i].values()):
            return Restored(None, seconds, precision, "the input holds NaN or Inf")
        if precision == "fp32":
            return Restored(None, seconds, "fp32", "the result holds NaN or Inf in float32")
        try:
            float32 = self.restorer.float32()
        except BfrError as error:
            return Restored(None, seconds, precision, f"the result holds NaN or Inf, and float32 is not there: {error}")
        given = {name: [picture] for name, picture in self._pictures(i).items()}
        return float32.run([self.images[i]], seed=self.seed, keys=[self.keys[i]], inputs=given)[0]


def choose_bucket(count: int, buckets: tuple[int, ...] | None) -> int:
    """The smallest bucket that holds `count` images; `count` itself where the device has no buckets."""
    return min((b for b in buckets or () if b >= count), default=count)


def image_key(degraded: NDArray[Any]) -> int:
    """The noise's key of an image: a function of its pixels, so that neither order nor neighbours matter."""
    return zlib.crc32(degraded.tobytes())
