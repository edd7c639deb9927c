"""The parts of a chain on a GPU: upload, download, noise, and a clock."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.cuda.bindings import Argument, Cuda, Handle, pointer, word
from bfr.runtime.backends.cuda.kernels import BLOCK
from bfr.runtime.backends.device import Buffer, Float32, Memory, own_array
from bfr.runtime.diffusion.noise import check_seed

MARKS = 64  # of a chain's stages and its beginning


class Gpu(Memory, Protocol):
    """What the parts need of a `bfr.runtime.backends.cuda.device.GpuDevice`."""

    cuda: Cuda
    stream: Handle
    copy_stream: Handle
    back_stream: Handle

    def launch(self, kernel: str, grid: tuple[int, int], arguments: Sequence[Argument]) -> None: ...


def own_slots(owned: ExitStack, cuda: Cuda, size: int) -> list[tuple[NDArray[np.uint8], Handle]]:
    """Allocate two page-locked blocks of `size` bytes, each with an event: two batches may be in flight."""
    return [(cuda.pinned(owned, size), cuda.event(owned)) for _ in range(2)]


class GpuInput:
    """Uploads the next batch on the copy stream while the main stream computes.

    A batch goes from page-locked memory to a staging buffer on the device. Once the main stream is ready, it copies the
    batch to the buffer that the networks read.
    """

    def __init__(self, device: Gpu, owned: ExitStack, shape: tuple[int, ...]) -> None:
        self.device, self.cuda, self._staged = device, device.cuda, 0
        self.buffer, self._arrived_in = (own_array(owned, device, shape) for _ in range(2))
        self._pinned = self.cuda.pinned(owned, self.buffer.bytes)
        self._arrived, self._taken = self.cuda.event(owned), self.cuda.event(owned)
        self.cuda.record(self._taken, device.stream)  # the zeros that `array` writes come before the first upload
        owned.callback(self.cuda.synchronize, device.copy_stream)  # before any of it is given back

    def upload(self, values: Float32) -> None:
        self.cuda.synchronize(self.device.copy_stream)  # the previous upload has left the page-locked memory
        self._staged = values.nbytes
        self._pinned[: values.nbytes].view(np.float32).reshape(values.shape)[...] = values
        self.cuda.wait(self.device.copy_stream, self._taken)
        self.cuda.copy(self._arrived_in.address, self._pinned.ctypes.data, values.nbytes, self.device.copy_stream)
        self.cuda.record(self._arrived, self.device.copy_stream)

    def commit(self) -> None:
        self.cuda.wait(self.device.stream, self._arrived)
        self.cuda.copy(self.buffer.address, self._arrived_in.address, self._staged, self.device.stream)
        self.cuda.record(self._taken, self.device.stream)


class GpuOutput:
    """Downloads results while the main stream continues.

    The main stream copies a result to a buffer that the next batch does not use; another stream copies that to
    page-locked memory.
    """

    def __init__(self, device: Gpu, owned: ExitStack, shape: tuple[int, ...]) -> None:
        self.device, self.cuda = device, device.cuda
        self._held = own_array(owned, device, shape)
        self._slots = own_slots(owned, self.cuda, self._held.bytes)
        self._made = self.cuda.event(owned)
        owned.callback(self.cuda.synchronize, device.back_stream)  # before any of it is given back

    def take(self, result: Buffer) -> Callable[[], Float32]:
        _, left = self._slots[0]
        self._slots.reverse()
        pinned, arrived = self._slots[0]
        self.cuda.wait(self.device.stream, left)  # until the previous result was downloaded
        self.cuda.copy(self._held.address, result.address, result.bytes, self.device.stream)
        self.cuda.record(self._made, self.device.stream)
        self.cuda.wait(self.device.back_stream, self._made)
        self.cuda.copy(pinned.ctypes.data, self._held.address, result.bytes, self.device.back_stream)
        self.cuda.record(arrived, self.device.back_stream)

        def fetch() -> Float32:
            self.cuda.await_event(arrived)
            return pinned[: result.bytes].view(np.float32).reshape(result.shape)

        return fetch


class GpuNoise:
    """Noise as a kernel that reads seed and image keys from device memory: a graph can hold it."""

    def __init__(self, device: Gpu, owned: ExitStack, shape: tuple[int, ...], first: int = 0) -> None:
        if prod(shape[1:]) % 4:
            raise ValueError(f"noise of shape {shape} is not a multiple of 4 elements an image")
        self.device, self.cuda, self.first, self._count = device, device.cuda, first, 0
        self._quads = prod(shape[1:]) // 4
        self.buffers = (own_array(owned, device, shape), own_array(owned, device, shape))
        self._keys = own_array(owned, device, (shape[0], 2))  # words of 32 bits, as float32 has
        self._slots = own_slots(owned, self.cuda, self._keys.bytes)

    def begin(self, seed: int, images: tuple[int, ...], last: int) -> None:
        del last  # `ready` makes the noise of a step
        check_seed(seed)
        self._slots.reverse()
        pinned, left = self._slots[0]
        self.cuda.await_event(left)  # the keys of the batch before the previous one
        self._count = len(images)
        keys = pinned.view(np.uint32).reshape(-1, 2)
        keys[: self._count, 0], keys[: self._count, 1] = seed, images
        self.cuda.copy(self._keys.address, pinned.ctypes.data, self._keys.bytes, self.device.stream)
        self.cuda.record(left, self.device.stream)

    def ready(self, step: int) -> None:
        arguments = [
            pointer(self.buffers[step % 2].address),
            pointer(self._keys.address),
            word(self.first + step),
            word(self._quads),
        ]
        self.device.launch("fill_normal", (-(-self._quads // BLOCK), self._count), arguments)


class GpuStopwatch:
    """The GPU's own clock, which a kernel reads at each mark, inside a recorded graph as well.

    CUDA events cannot do this: the next batch records them again before the host reads the times of this one. `network`
    is the sum of the stages that call a network.
    """

    def __init__(self, device: Gpu, owned: ExitStack) -> None:
        self.device, self.cuda = device, device.cuda
        self._times = own_array(owned, device, (MARKS, 2))  # nanoseconds of 64 bits
        self._slots = own_slots(owned, self.cuda, self._times.bytes)
        self._marks: list[str] = []
        self._calls, self._calling = set[str](), False

    def begin(self) -> None:
        self._stamp(0)

    def call(self, call: Callable[[], None]) -> None:
        self._calling = True
        call()

    def mark(self, stage: str) -> None:
        if self._calling:
            self._calls.add(stage)
            self._calling = False
        if stage not in self._marks:
            self._marks.append(stage)
        self._stamp(1 + self._marks.index(stage))

    def stop(self) -> Callable[[], dict[str, float]]:
        self._slots.reverse()
        pinned, arrived = self._slots[0]
        self.cuda.copy(pinned.ctypes.data, self._times.address, self._times.bytes, self.device.stream)
        self.cuda.record(arrived, self.device.stream)

        def seconds() -> dict[str, float]:
            self.cuda.await_event(arrived)
            times = pinned.view(np.uint64)
            found = {stage: (int(times[i + 1]) - int(times[i])) / 1e9 for i, stage in enumerate(self._marks)}
            return {**found, "network": sum(found[stage] for stage in self._calls)}

        return seconds

    def _stamp(self, index: int) -> None:
        if index >= MARKS:
            raise ValueError(f"a chain of more than {MARKS - 1} stages")
        self.device.launch("stamp", (1, 1), [pointer(self._times.address), word(index)])
