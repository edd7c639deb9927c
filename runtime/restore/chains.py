"""The chains of a system by batch size, the buffers that they share, and the batches that the device works on."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.device import Device, Float32, Network
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.diffusion.noise import check_seed
from bfr.runtime.errors import DeviceLost, DeviceOutOfMemory, InvalidOption
from bfr.runtime.restore.batch import Finished, Pending, Restored
from bfr.runtime.restore.buffers import Buffers
from bfr.runtime.restore.chain import Chain, ChainResult
from bfr.runtime.restore.inputs import Given, ImageInputs, image_key, keep_known, to_output
from bfr.runtime.restore.loop import OnStep
from bfr.runtime.restore.plan import DEGRADED, Plan


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
            inputs: Makes the system's inputs from pictures.
            images: (H, W, 3) RGB each.
            keys: Keys of their noise; None is a function of the pixels.
            seed: Seed of the noise.
            given: Pictures for the system's other inputs, by name, one or None for each image.

        Raises:
            InvalidOption: A key is no integer of 32 bits.
        """
        for key in keys:
            if key is not None:
                check_seed(key, "key")
        self.images, self.keys, self.seed, self.given, self.pixels = images, keys, seed, given or {}, inputs.pixels
        self.prepared = [inputs.prepare(image, self.pictures(i)) for i, image in enumerate(images)]

    def launch(self, chain: Chain, on_step: OnStep | None) -> Callable[[], ChainResult]:
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
"""Restores an image of a batch again; the seconds are those of the first run."""


@dataclass(slots=True, eq=False)
class Flight:
    """A batch in flight on a device, as `Pending`.

    Attributes:
        fetch: Waits for the device; None once it was called.
        results: Makes images of what it returns.
    """

    fetch: Callable[[], ChainResult] | None
    results: Callable[[ChainResult], list[Restored]]
    done: bool = field(default=False, init=False)

    def settle(self) -> None:
        """Wait for the device, and set the result aside: the batch after the next one would overwrite it."""
        if not self.done:
            kept = self._take().kept()
            self.fetch = lambda: kept

    def finish(self) -> list[Restored]:
        """See `Pending`."""
        return self.results(self._take())

    def _take(self) -> ChainResult:
        fetch, self.fetch, self.done = self.fetch, None, True
        if fetch is None:
            raise RuntimeError("this batch was fetched before, or its device failed")
        return fetch()


class Chains:
    """The chains by batch size, each made when it is first needed. At most two batches are in flight.

    buffers: what they share, of the largest of these sizes; None before the first chain.
    flights: the batches in flight: the buffers hold the results of two.
    """

    def __init__(self, bundle: Bundle, device: Device, networks: dict[str, Network], plan: Plan) -> None:
        self.bundle, self.device, self.networks, self.plan = bundle, device, networks, plan
        self.made: dict[int, Chain] = {}
        self.buffers: Buffers | None = None
        self.flights: list[Flight] = []

    @property
    def buckets(self) -> tuple[int, ...] | None:
        """The batch sizes that chains are made for, ascending, or None if every size is as good."""
        return common_buckets(self.bundle.manifest.batches, self.device.buckets)

    def limit(self, batch: int) -> int:
        """Return how many of `batch` faces run together: fewer where the bundle's graphs take no more.

        Raises InvalidOption if the device runs no such batch.
        """
        ours, buckets = self.bundle.manifest.batches, self.buckets
        most = min(batch, max(ours)) if ours else batch
        if buckets and most > max(buckets):
            raise InvalidOption(
                f"batch {batch} is out of range: {self.device.name} runs batches of "
                f"{', '.join(map(str, buckets))} here. Choose at most {max(buckets)}"
                f"{', or build with --batches' if self.device.name.startswith('tensorrt') else ''}"
            )
        return most

    def sizes(self, batch: int) -> list[int]:
        """Return the sizes of the chains for up to `batch` faces, ascending: buckets, or every size."""
        largest = choose_bucket(batch, self.buckets)
        return [size for size in self.buckets or range(1, batch + 1) if size <= largest]

    def reserve(self, batch: int) -> None:
        """Allocate the largest chain now, on a device with its own memory.

        Raises DeviceOutOfMemory, whose text has needed and free bytes, and the largest batch that fits.
        """
        memory = self.device.memory()
        if memory is None:
            return
        free, _ = memory
        needed = {size: self._bytes_needed(size) for size in self.sizes(batch)}
        largest = max(needed)
        if needed[largest] > free:
            fitting = max((size for size in needed if needed[size] <= free), default=None)
            remedy = "not even a batch of 1 fits" if fitting is None else f"the largest batch that fits is {fitting}"
            side = self.bundle.manifest.image_size
            raise DeviceOutOfMemory(
                f"batch {batch} at {side}x{side} needs {needed[largest]:,} bytes on the device, "
                f"{free:,} are free: {remedy}; choose it with --batch, or end what else uses the GPU (nvidia-smi)"
            )
        self.chain(largest)

    def chain(self, size: int) -> Chain:
        """Return the chain of a batch size; the first call makes it."""
        if self.buffers is None or self.buffers.batch < size:
            self.clear()
            self.buffers = Buffers(self.device, self.plan, size)
        if size not in self.made:
            self.made[size] = Chain(self.device, self.networks, self.plan, batch=size, buffers=self.buffers)
        return self.made[size]

    def launch(self, batch: Batch, on_step: OnStep | None, results: Callable[[ChainResult], list[Restored]]) -> Pending:
        """Start a batch. All batches before the previous one are finished first.

        Args:
            batch: The images.
            on_step: See `Chain.launch`.
            results: Makes images of what the chain returned.

        Raises:
            DeviceOutOfMemory: The batch does not fit. The batches before it are finished, as after every other error.
        """
        self.settle(all_but=1)
        try:
            launched = batch.launch(self.chain(choose_bucket(len(batch.images), self.buckets)), on_step)
        except BaseException:
            self.settle()  # before anything overwrites the results of the batches in flight
            raise
        if not self.device.asynchronous:
            return Finished(results(launched()))
        self.flights.append(Flight(launched, results))
        return self.flights[-1]

    def settle(self, *, all_but: int = 0) -> None:
        """Wait for the batches in flight, all but the last `all_but`, and set their results aside."""
        self.flights = [flight for flight in self.flights if not flight.done]
        while len(self.flights) > all_but:
            self.flights.pop(0).settle()

    def clear(self) -> None:
        """Finish the batches in flight and free the chains and the buffers."""
        self.settle()
        for chain in self.made.values():
            chain.close()
        self.made.clear()
        if self.buffers:
            self.buffers.close()
            self.buffers = None

    def close(self) -> None:
        """Free everything, even on a device that failed, and drop the networks."""
        with suppress(DeviceLost):  # its memory went with it
            self.clear()
        self.networks = {}  # engines and weights end with the device, not with this object

    def _bytes_needed(self, size: int) -> int:
        """On the device: the chain's buffers, rows and timesteps, and the networks' activations where known."""
        rows = sum(
            size * (8 + sum(4 * (1 + loop.features + len(row)) for row in loop.table.rows)) for loop in self.plan.loops
        )
        activations = self.device.workspace(list(self.networks.values()), size)
        return Buffers.bytes(self.plan, size) + rows + (activations or 0)


def load_networks(bundle: Bundle, device: Device, precision: Precision) -> dict[str, Network]:
    """Load every network of a bundle, its files checked first. A network without that precision runs in fp32."""
    return {
        name: device.load(bundle, name, precision if precision in network.variants else "fp32")
        for name, network in bundle.manifest.networks.items()
    }


def choose_bucket(count: int, buckets: tuple[int, ...] | None) -> int:
    """Return the smallest bucket that holds `count` images; `count` where the device has no buckets."""
    return min((b for b in buckets or () if b >= count), default=count)


def common_buckets(ours: tuple[int, ...] | None, device: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the batch sizes that a bundle's graphs and a device take, ascending; None if every size fits."""
    if ours is None or device is None:
        return ours or device
    return tuple(size for size in ours if size in device) or ours
