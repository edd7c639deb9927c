"""A GPU made of NumPy: cuda-python's functions at the library's boundary, as lazy as a GPU is.

What is enqueued on a stream runs when somebody waits for it and not before, so that whoever forgets to wait reads old
data; or, of an `eager` GPU, at once, so that whoever reads too late finds the next batch's. Device addresses are no
addresses of this process: whoever follows one crashes. Freed memory is refused.
"""

import ctypes
import threading
from collections.abc import Callable
from inspect import ismethod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bfr.runtime.backends.cuda import bindings as cuda
from bfr.runtime.diffusion.noise import fill_normal

real: Any = pytest.importorskip("cuda.bindings.runtime")
OK = real.cudaError_t.cudaSuccess
MISUSE = real.cudaError_t.cudaErrorStreamCaptureUnsupported
TOTAL = 1 << 30


class Handle(int):
    """Of a stream, event or graph, with what it stands for."""

    thing: Any


class FakeGpu:
    """The state of one GPU and what was asked of it.

    log: (call, details), in order. fail: call -> the name of the error that it reports next, "everything" for good.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.device: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.alive: dict[int, str] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.capturing: dict[int, list[tuple[str, Callable[[], None]]]] = {}
        self.log: list[tuple[str, Any]] = []
        self.fail: dict[str, str] = {}
        self.eager = self.integrated = False
        self.spoiled = set[int]()  # streams whose capture something ended that a capture does not bear
        self.capability = (8, 9)
        self.total, self.clock, self.next = TOTAL, 0.0, 0x7000_0000_0000 + (index << 40)

    @property
    def used(self) -> int:
        return sum(block.size for block in self.device.values())

    def handle(self, kind: str, thing: Any = None) -> Handle:
        self.next += 256
        handle = Handle(self.next)
        handle.thing = thing
        self.alive[handle] = kind
        return handle

    def destroy(self, handle: Handle, kind: str) -> None:
        assert self.alive.pop(handle) == kind

    def at(self, address: int, size: int) -> np.ndarray:
        """The bytes at an address, of the device or page-locked."""
        for blocks in (self.device, self.pinned):
            for base, block in blocks.items():
                if base <= address and address + size <= base + block.size:
                    return block[address - base : address - base + size]
        raise AssertionError(f"{size} bytes at {address:#x} belong to nobody, or not any more")

    def floats(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        return self.at(address, 4 * int(np.prod(shape))).view(np.float32).reshape(shape)

    def enqueue(self, stream: int, name: str, work: Callable[[], None], details: Any = None) -> None:
        assert self.alive[stream] == "stream"
        if stream in self.capturing:
            self.capturing[stream].append((name, work))
        else:
            self.log.append((name, details))
            self.queues[stream].append(work)
            if self.eager:
                self.drain(stream)

    def spoil(self) -> bool:
        """Something happens that no capture bears; whether one goes on."""
        self.spoiled.update(self.capturing)
        return bool(self.capturing)

    def drain(self, stream: int) -> None:
        while self.queues[stream]:
            self.advance(stream)

    def advance(self, stream: int) -> None:
        """Do the next thing of a stream."""
        self.clock += 1.0
        self.queues[stream].pop(0)()

    def until(self, marks: list[SimpleNamespace]) -> None:
        """Advance the streams of some records of events until those happened, and no further."""
        for mark in marks:
            while not mark.done:
                self.advance(mark.stream)

    def names(self) -> list[str]:
        return [name for name, _ in self.log]


class FakeRuntime:
    """The functions of `cuda.bindings.runtime` that are used, over several FakeGpus."""

    cudaError_t, cudaStreamCaptureMode, cudaMemcpyKind, cudaDeviceAttr = (
        real.cudaError_t,
        real.cudaStreamCaptureMode,
        real.cudaMemcpyKind,
        real.cudaDeviceAttr,
    )
    cudaStreamNonBlocking = real.cudaStreamNonBlocking
    cudaEventDisableTiming = real.cudaEventDisableTiming

    def __init__(self, gpus: list[FakeGpu]) -> None:
        self.gpus, self.threads = gpus, threading.local()

    def __getattribute__(self, name: str) -> Any:
        """Every call may be made to fail, once or, for sticky errors, for good."""
        found = object.__getattribute__(self, name)
        if not name.startswith("cuda") or name == "cudaGetLastError" or not ismethod(found):
            return found
        gpu = self.gpu
        error = gpu.fail.get("everything") or gpu.fail.pop(name, None)
        return (lambda *_: (getattr(real.cudaError_t, error),)) if error else found

    @property
    def gpu(self) -> FakeGpu:
        """The current one of this thread; that of a new thread is the first."""
        return self.gpus[getattr(self.threads, "current", 0)]

    def cudaGetDeviceCount(self) -> Any:
        return OK, len(self.gpus)

    def cudaSetDevice(self, index: int) -> Any:
        if not 0 <= index < len(self.gpus):
            return (real.cudaError_t.cudaErrorInvalidDevice,)
        self.threads.current = index
        return (OK,)

    def cudaGetLastError(self) -> Any:
        return (OK,)

    def cudaGetDeviceProperties(self, index: int) -> Any:
        return OK, SimpleNamespace(
            name=f"Fake {index}".encode(),
            major=self.gpus[index].capability[0],
            minor=self.gpus[index].capability[1],
        )

    def cudaDeviceGetAttribute(self, attribute: Any, index: int) -> Any:
        assert attribute == real.cudaDeviceAttr.cudaDevAttrIntegrated
        return OK, int(self.gpus[index].integrated)

    def cudaDeviceGetPCIBusId(self, length: int, index: int) -> Any:
        return OK, f"0000:{index:02x}:00.0".encode().ljust(length, b"\0")

    def cudaRuntimeGetVersion(self) -> Any:
        return OK, 13000

    def cudaDriverGetVersion(self) -> Any:
        return OK, 13010

    def cudaMemGetInfo(self) -> Any:
        return OK, self.gpu.total - self.gpu.used, self.gpu.total

    def cudaMalloc(self, size: int) -> Any:
        gpu = self.gpu
        if gpu.spoil():
            return MISUSE, None
        if gpu.used + size > gpu.total:
            return real.cudaError_t.cudaErrorMemoryAllocation, None
        gpu.next += (size + 511) // 256 * 256
        address = gpu.next - (size + 255) // 256 * 256
        gpu.device[address] = np.full(size, 0xFF, np.uint8)  # NaN, as far as anybody can tell
        gpu.log.append(("cudaMalloc", size))
        return OK, address

    def cudaFree(self, address: int) -> Any:
        gpu = self.gpu
        if gpu.spoil():
            return (MISUSE,)
        for stream in gpu.queues:
            gpu.drain(stream)
        if address:
            del gpu.device[address]
        return (OK,)

    def cudaMallocHost(self, size: int) -> Any:
        if self.gpu.spoil():
            return MISUSE, None
        block = np.full(size, 0xFF, np.uint8)
        self.gpu.pinned[block.ctypes.data] = block
        self.gpu.log.append(("cudaMallocHost", size))
        return OK, block.ctypes.data

    def cudaFreeHost(self, address: int) -> Any:
        if self.gpu.spoil():
            return (MISUSE,)
        del self.gpu.pinned[address]
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> Any:
        gpu = self.gpu

        def work() -> None:
            gpu.at(target, size)[...] = gpu.at(source, size)

        gpu.enqueue(stream, "copy", work, (target, source, size, stream))
        return (OK,)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> Any:
        gpu = self.gpu
        gpu.enqueue(stream, "zero", lambda: gpu.at(address, size).fill(value), (address, size))
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        handle = self.gpu.handle("stream")
        self.gpu.queues[handle] = []
        return OK, handle

    def cudaStreamDestroy(self, stream: Handle) -> Any:
        self.gpu.drain(stream)
        self.gpu.destroy(stream, "stream")
        del self.gpu.queues[stream]
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        if stream in self.gpu.capturing:
            self.gpu.spoiled.add(stream)
            return (MISUSE,)
        self.gpu.log.append(("wait", stream))
        self.gpu.drain(stream)
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        assert flags == real.cudaEventDisableTiming
        return OK, self.gpu.handle("event", SimpleNamespace(marks=[]))

    def cudaEventDestroy(self, event: Handle) -> Any:
        self.gpu.destroy(event, "event")
        return (OK,)

    def cudaEventRecord(self, event: Handle, stream: int) -> Any:
        assert stream not in self.gpu.capturing, "an event without the external flag is no node of a graph"
        gpu, mark = self.gpu, SimpleNamespace(stream=stream, done=False)
        event.thing.marks.append(mark)

        def work() -> None:
            mark.done = True

        gpu.enqueue(stream, "event", work)
        return (OK,)

    def cudaEventSynchronize(self, event: Handle) -> Any:
        gpu = self.gpu
        assert gpu.alive[event] == "event"
        gpu.log.append(("wait", event))
        gpu.until(event.thing.marks[-1:])
        return (OK,)

    def cudaStreamWaitEvent(self, stream: int, event: Handle, flags: int) -> Any:
        gpu, marks = self.gpu, event.thing.marks[-1:]
        if stream in gpu.capturing:  # the event was recorded outside
            gpu.spoil()
            return (real.cudaError_t.cudaErrorStreamCaptureIsolation,)
        gpu.enqueue(stream, "wait event", lambda: gpu.until(marks))
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.gpu.capturing[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        work = self.gpu.capturing.pop(stream)
        if stream in self.gpu.spoiled:
            self.gpu.spoiled.remove(stream)
            return real.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return OK, self.gpu.handle("graph", work)

    def cudaGraphDestroy(self, graph: Handle) -> Any:
        self.gpu.destroy(graph, "graph")
        return (OK,)

    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> Any:
        return OK, self.gpu.handle("executable", graph.thing)

    def cudaGraphExecDestroy(self, graph: Handle) -> Any:
        self.gpu.destroy(graph, "executable")
        return (OK,)

    def cudaGraphLaunch(self, graph: Handle, stream: int) -> Any:
        assert self.gpu.alive[graph] == "executable"
        assert stream not in self.gpu.capturing, "no graph is a node of a graph"

        def work() -> None:
            for _, node in graph.thing:
                self.gpu.clock += 1.0
                node()

        self.gpu.enqueue(stream, "graph", work, [name for name, _ in graph.thing])
        return (OK,)


class FakeDriver:
    """The driver's part: the kernels, in NumPy."""

    CUresult = pytest.importorskip("cuda.bindings.driver").CUresult
    CUfunction = staticmethod(int)

    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime = runtime
        self.kernels = ("fill_normal", "diffuse", "stamp")

    def cuLibraryLoadData(self, image: bytes, *_: Any) -> Any:
        assert image[:4] == b"\x7fELF"  # NVRTC's own machine code
        return self.CUresult.CUDA_SUCCESS, 1

    def cuLibraryGetKernel(self, library: int, name: bytes) -> Any:
        return self.CUresult.CUDA_SUCCESS, 100 + self.kernels.index(name.decode())

    def cuLaunchKernel(self, function: int, *arguments: Any) -> Any:
        gx, gy, gz, bx, by, bz, shared, stream, (values, types), _ = arguments
        assert (gz, by, bz, shared) == (1, 1, 1, 0)
        assert len(values) == len(types)
        gpu, name = self.runtime.gpu, self.kernels[function - 100]
        work = {"fill_normal": self.fill_normal, "diffuse": self.diffuse, "stamp": self.stamp}[name]
        assert all(t in (ctypes.c_void_p, ctypes.c_uint32) for t in types)
        gpu.enqueue(stream, name, lambda: work(gpu, gx * bx, gy, *values), values)
        return (self.CUresult.CUDA_SUCCESS,)

    @staticmethod
    def fill_normal(gpu: FakeGpu, threads: int, images: int, out: int, keys: int, step: int, quads: int) -> None:
        assert threads >= quads
        for (seed, image), row in zip(
            gpu.at(keys, 8 * images).view(np.uint32).reshape(-1, 2), gpu.floats(out, (images, 4 * quads)), strict=True
        ):
            fill_normal(row, seed=int(seed), image=int(image), step=step)

    @staticmethod
    def stamp(gpu: FakeGpu, threads: int, images: int, times: int, index: int) -> None:
        assert threads >= images == 1
        gpu.at(times + 8 * index, 8).view(np.uint64)[0] = int(1e9 * gpu.clock)

    @staticmethod
    def diffuse(
        gpu: FakeGpu, threads: int, images: int, x: int, estimate: int, noise: int, levels: int, n: int
    ) -> None:
        assert threads >= n
        signal, sigma = gpu.floats(levels, (images, 2)).T[:, :, None]
        gpu.floats(x, (images, n))[...] = signal * gpu.floats(estimate, (images, n)) + sigma * gpu.floats(
            noise, (images, n)
        )


def install(monkeypatch: pytest.MonkeyPatch) -> list[FakeGpu]:
    """Two GPUs in the place of this machine's."""
    found = [FakeGpu(0), FakeGpu(1)]
    runtime = FakeRuntime(found)
    driver = FakeDriver(runtime)
    monkeypatch.setattr(cuda, "bindings", lambda: (runtime, driver))
    return found
