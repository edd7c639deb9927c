"""A CUDA GPU as a device: buffers allocated once, one stream, and whole chains recorded as CUDA graphs.

A backend on a GPU (TensorRT, ONNX Runtime, compiled PyTorch) is a child of GpuDevice that implements `load`.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.cuda.bindings import Argument, Cuda, pointer, word
from bfr.runtime.backends.cuda.kernels import BLOCK, NAMES, compile_kernels
from bfr.runtime.backends.cuda.parts import GpuInput, GpuNoise, GpuOutput, GpuStopwatch
from bfr.runtime.backends.device import Float32, Network
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import DeviceLost

BUCKETS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class GpuBuffer:
    """A float32 array in device memory. Its address is aligned to 256 bytes."""

    address: int
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return 4 * prod(self.shape)


class GpuDevice:
    """One GPU. Everything is enqueued on one stream, in the order of the calls; only `read` and `write` wait for it.

    Uploads and results go through page-locked memory on separate streams, in parallel with the main one.
    """

    name = "gpu"
    asynchronous = True
    records = True  # whether `record` makes graphs; False where the networks cannot be captured

    def __init__(self, index: int = 0) -> None:
        """Raises MissingDependency without cuda-python or NVRTC, BackendUnavailable without such a GPU."""
        self.cuda = Cuda(index)
        self.facts = self.cuda.facts
        self.kernels = self.cuda.load_kernels(compile_kernels(self.facts.compute_capability), NAMES)
        self._owned, self._staged = ExitStack(), ExitStack()
        self.stream, self.copy_stream, self.back_stream = (self.cuda.stream(self._owned) for _ in range(3))
        self._staging = np.empty(0, np.uint8)

    @classmethod
    def check(cls, bundle: Bundle | None, precision: Precision, index: int) -> None:
        """Raise a BfrError if the device cannot work here. Loads no network."""

    @property
    def buckets(self) -> tuple[int, ...] | None:
        return BUCKETS

    @property
    def versions(self) -> dict[str, str]:
        return {"CUDA": self.facts.runtime, "driver's CUDA": self.facts.driver}

    def array(self, shape: tuple[int, ...]) -> GpuBuffer:
        buffer = GpuBuffer(self.cuda.allocate(4 * prod(shape)), shape)
        self.zero(buffer)
        return buffer

    def view(self, buffer: GpuBuffer, batch: int) -> GpuBuffer:
        return GpuBuffer(buffer.address, (batch, *buffer.shape[1:]))

    def release(self, buffers: Sequence[GpuBuffer]) -> None:
        for buffer in buffers:
            self.cuda.free(buffer.address)  # waits until the device is done with it

    def write(self, buffer: GpuBuffer, values: Float32) -> None:
        staging = self._pinned(buffer.bytes)
        staging.view(np.float32).reshape(buffer.shape)[...] = values
        self.cuda.copy(buffer.address, staging.ctypes.data, buffer.bytes, self.stream)
        self.cuda.synchronize(self.stream)

    def read(self, buffer: GpuBuffer) -> Float32:
        staging = self._pinned(buffer.bytes)
        self.cuda.copy(staging.ctypes.data, buffer.address, buffer.bytes, self.stream)
        self.cuda.synchronize(self.stream)
        return staging.view(np.float32).reshape(buffer.shape).copy()

    def zero(self, buffer: GpuBuffer) -> None:
        self.cuda.zero(buffer.address, buffer.bytes, self.stream)

    def diffuse(self, estimate: GpuBuffer, noise: GpuBuffer, x: GpuBuffer, levels: GpuBuffer) -> None:
        count = prod(x.shape[1:])
        arguments = [*(pointer(b.address) for b in (x, estimate, noise, levels)), word(count)]
        self.launch("diffuse", (-(-count // BLOCK), x.shape[0]), arguments)

    def noise(self, owned: ExitStack, shape: tuple[int, ...], first: int = 0) -> GpuNoise:
        return GpuNoise(self, owned, shape, first)

    def input(self, owned: ExitStack, shape: tuple[int, ...]) -> GpuInput:
        return GpuInput(self, owned, shape)

    def output(self, owned: ExitStack, shape: tuple[int, ...]) -> GpuOutput:
        return GpuOutput(self, owned, shape)

    def record(self, owned: ExitStack, work: Callable[[], None]) -> Callable[[], None]:
        return GraphProgram(self, owned, work)

    def capture(self, work: Callable[[], None]) -> Any:
        """Record what `work` enqueues as a graph; nothing runs."""
        self.settle()
        return self.cuda.capture(self.stream, work)

    def settle(self) -> None:
        """Prepare for a capture: wait, and collect garbage, because freeing GPU memory during a capture ends it."""
        gc.collect()
        self.cuda.synchronize(self.stream)

    def raise_if_lost(self, library: str, error: Exception) -> None:
        """Raise DeviceLost if a library's error destroyed the CUDA context."""
        try:
            self.cuda.synchronize(self.stream)
        except DeviceLost as lost:
            raise DeviceLost(f"{library}: {str(error).partition(chr(10))[0]}; {lost}") from error
        except RuntimeError:  # a capture goes on: nothing is lost, and the library's error says what is wrong
            pass

    def replay(self, graph: Any) -> None:
        """Enqueue a graph."""
        self.cuda.launch_graph(graph, self.stream)

    def forget(self, graph: Any) -> None:
        """Free a graph after its last run."""
        self.cuda.synchronize(self.stream)
        self.cuda.destroy_graph(graph)

    def stopwatch(self, owned: ExitStack) -> GpuStopwatch:
        return GpuStopwatch(self, owned)

    def memory(self) -> tuple[int, int] | None:
        return self.cuda.memory()

    def workspace(self, networks: Sequence[Network], batch: int) -> int | None:
        del networks, batch
        return None

    def launch(self, kernel: str, grid: tuple[int, int], arguments: Sequence[Argument]) -> None:
        """Enqueue one of the project's kernels."""
        self.cuda.launch(self.kernels[kernel], grid, BLOCK, arguments, self.stream)

    def close(self) -> None:
        with suppress(DeviceLost):  # a lost device has no memory to free
            self.cuda.synchronize(self.stream)
            self._staged.close()
            self._owned.close()

    def _pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked memory for synchronous copies: one block of the size of the largest copy."""
        if self._staging.size < size:
            self._staged.close()
            self._staging = np.empty(0, np.uint8)
            self._staging = self.cuda.pinned(self._staged, size)
        return self._staging[:size]


class GraphProgram:
    """Work that runs call by call once, so that libraries allocate what they need, then as one graph."""

    def __init__(self, device: GpuDevice, owned: ExitStack, work: Callable[[], None]) -> None:
        self.device, self.work = device, work
        self._ran = False
        self._graph: Any = None
        owned.callback(self._forget)

    def __call__(self) -> None:
        if not (self._ran and self.device.records):
            self.work()
            self._ran = True
            return
        if self._graph is None:
            self._graph = self.device.capture(self.work)
        self.device.replay(self._graph)

    def _forget(self) -> None:
        if self._graph is not None:
            self.device.forget(self._graph)
            self._graph = None
