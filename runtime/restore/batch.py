"""A batch of images: prepared, launched on a chain, and its results."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.restore.chain import Chain, ChainResult, Launched
from bfr.runtime.restore.inputs import Given, ImageInputs, keep_known
from bfr.runtime.restore.loop import OnStep
from bfr.runtime.restore.pixels import to_output
from bfr.runtime.restore.plan import DEGRADED


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of one image.

    Attributes:
        pixels: (H, W, 3) RGB of the input's size and dtype, or None where it failed.
        seconds: Stage -> this image's share of its batch, in seconds.
        precision: Precision of the networks that made it.
        error: Why it failed.
    """

    pixels: NDArray[Any] | None
    seconds: dict[str, float]
    precision: Precision
    error: str | None = None


class Batch:
    """Images that run through a chain together."""

    def __init__(
        self,
        inputs: ImageInputs,
        images: Sequence[NDArray[Any]],
        keys: Sequence[int | None],
        seed: int,
        given: Mapping[str, Given] | None = None,
    ) -> None:
        """Prepare the images.

        Args:
            inputs: How the system's inputs are made of pictures.
            images: (H, W, 3) RGB each.
            keys: Keys of their noise; None is a function of the pixels.
            seed: Seed of the noise.
            given: Pictures for the system's other inputs, by name, one or None for each image.
        """
        self.images, self.keys, self.seed, self.given, self.pixels = images, keys, seed, given or {}, inputs.pixels
        self.prepared = [inputs.prepare(image, self.pictures(i)) for i, image in enumerate(images)]

    def launch(self, chain: Chain, on_step: OnStep | None) -> Launched:
        """Start the images on a chain that is large enough. The device may still run the previous batch."""
        padding = chain.batch - len(self.prepared)
        named = [
            image_key(one[DEGRADED]) if key is None else key for one, key in zip(self.prepared, self.keys, strict=True)
        ]
        inputs = {
            name: np.stack([one[name] for one in self.prepared] + [np.zeros_like(first)] * padding)
            for name, first in self.prepared[0].items()
        }
        chain.upload(inputs.pop(DEGRADED), inputs)
        return chain.launch(seed=self.seed, images=(*named, *(0 for _ in range(padding))), on_step=on_step)

    def results(self, outcome: ChainResult, precision: Precision, again: "Again") -> list[Restored]:
        """Return a result for each image; `again` restores those that are not finite."""
        seconds = {stage: total / len(self.images) for stage, total in outcome.seconds.items()}
        return [
            Restored(self._output(i, face), seconds, precision) if np.isfinite(face).all() else again(self, i, seconds)
            for i, face in enumerate(outcome.image[: len(self.images)])  # padding is left out
        ]

    def _output(self, i: int, face: Float32) -> NDArray[Any]:
        """Return a result in the image's size and dtype; outside a mask the pixels are the image's own."""
        image, result = self.images[i], to_output(face, self.images[i], self.pixels)
        return keep_known(image, result, self.pictures(i).get("mask")) if "mask" in self.prepared[i] else result

    def pictures(self, i: int) -> dict[str, NDArray[Any] | None]:
        """Return the pictures of an image for further inputs, by name."""
        return {name: pictures[i] for name, pictures in self.given.items()}


Again = Callable[[Batch, int, dict[str, float]], Restored]
"""Restores an image of a batch once more; the seconds are those of the first time."""


class Pending(Protocol):
    """A batch whose results are fetched later."""

    @property
    def done(self) -> bool:
        """Whether there is nothing to wait for."""
        ...

    def finish(self) -> list[Restored]:
        """Wait for the batch; return a result for each image, in order. Call it once."""
        ...


@dataclass(frozen=True, slots=True)
class Finished:
    """A batch that was restored when it was launched."""

    results: list[Restored]
    done: bool = True

    def finish(self) -> list[Restored]:
        """As of `Pending`."""
        return self.results


@dataclass(slots=True, eq=False)
class Flight:
    """A batch in flight on a device.

    Attributes:
        launched: Waits for the device; None after that.
        outcome: The result, after it was set aside.
        results: Makes images of it.
    """

    launched: Launched | None
    results: Callable[[ChainResult], list[Restored]]
    outcome: ChainResult | None = field(default=None, init=False)

    @property
    def done(self) -> bool:
        """As of `Pending`."""
        return self.launched is None

    def settle(self) -> None:
        """Wait for the device, and set the result aside: the batch after the next one would overwrite it."""
        if self.launched is not None:
            launched, self.launched = self.launched, None
            found = launched.finish()
            self.outcome = ChainResult(found.state.copy(), found.seconds)

    def finish(self) -> list[Restored]:
        """As of `Pending`."""
        if self.launched is not None:
            launched, self.launched = self.launched, None
            return self.results(launched.finish())
        if self.outcome is None:
            raise RuntimeError("this batch was fetched before, or its device failed")
        outcome, self.outcome = self.outcome, None
        return self.results(outcome)


def choose_bucket(count: int, buckets: tuple[int, ...] | None) -> int:
    """The smallest bucket that holds `count` images; `count` itself where the device has no buckets."""
    return min((b for b in buckets or () if b >= count), default=count)


def image_key(degraded: NDArray[Any]) -> int:
    """The noise's key of an image: a function of its pixels, so that neither order nor neighbours matter."""
    return zlib.crc32(degraded.tobytes())
