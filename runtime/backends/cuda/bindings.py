"""One GPU through cuda-python: as much of the CUDA runtime as a chain needs, every return value checked.

This is the only module that touches cuda-python. Pointers, streams, events and graphs are integers or the library's
own handles. Closing `owned` frees what a method made with it; the caller frees all else.
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.board import memory as host_memory
from bfr.runtime.errors import BackendUnavailable, DeviceLost, DeviceOutOfMemory, MissingDependency
from bfr.runtime.install import install_command

Handle = Any
Argument = tuple[int, type[Any]]
"""An argument of a kernel and its C type."""
# After these the context is gone: every later call fails the same way (CUDA Runtime API, "Error handling"). A GPU that
# fell off the bus reports Unknown.
STICKY = frozenset(
    f"cudaError{name}"
    for name in (
        "IllegalAddress", "LaunchFailure", "LaunchTimeout", "HardwareStackError", "IllegalInstruction",
        "MisalignedAddress", "InvalidAddressSpace", "InvalidPc", "Assert", "ECCUncorrectable", "NvlinkUncorrectable",
        "ExternalDevice", "ContextIsDestroyed", "Contained", "TensorMemoryLeak",
        "MpsClientTerminated", "Unknown",
    )
)  # fmt: skip
# What keeps CUDA from starting though driver and GPU are there, and what to do.
NOT_STARTED = {
    "cudaErrorSystemNotReady": "start the fabric manager, which GPUs that are joined by NVSwitch need "
    "(`systemctl start nvidia-fabricmanager`)",
    "cudaErrorSystemDriverMismatch": "the driver was updated while it ran: restart the machine, and its containers",
    "cudaErrorCompatNotSupportedOnDevice": "remove CUDA's folder `compat` from LD_LIBRARY_PATH: this GPU does not take "
    "the libraries there",
    "cudaErrorDevicesUnavailable": "another program has the GPU alone: end it, or allow several "
    "(`nvidia-smi -c DEFAULT`)",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """A GPU and its driver.

    Attributes:
        compute_capability: As "9.0".
        runtime: CUDA version of the runtime, as "13.0".
    """

    name: str
    compute_capability: str
    runtime: str
    driver: str


def pointer(address: int) -> Argument:
    """Return a pointer to device memory, as a kernel's argument."""
    return address, ctypes.c_void_p


def word(value: int) -> Argument:
    """Return an unsigned int of 32 bits, as a kernel's argument."""
    return value, ctypes.c_uint32


def remedy() -> str:
    """The command that installs cuda-python and what it needs."""
    return f"{install_command('EXTRA')} with the extra that `bfr doctor` names"


@cache
def bindings() -> tuple[ModuleType, ModuleType]:
    """Return the runtime and the driver API of cuda-python. Raises MissingDependency if they cannot be imported."""
    try:
        return import_module("cuda.bindings.runtime"), import_module("cuda.bindings.driver")
    except ImportError as error:
        raise MissingDependency(f"cuda-python cannot be imported ({error}): {remedy()}") from error


def device_count() -> int:
    """Return how many GPUs CUDA sees; 0 without a driver or without cuda-python."""
    return count_devices()[0]


def count_devices() -> tuple[int, str]:
    """Return how many GPUs CUDA sees, and the name of its error, or what is missing without cuda-python."""
    try:
        runtime, _ = bindings()
    except MissingDependency as missing:
        return 0, str(missing)
    error, count = runtime.cudaGetDeviceCount()
    return int(count) if error == runtime.cudaError_t.cudaSuccess else 0, error.name


class Cuda:
    """The GPU number `index`. Every call makes it the current one of its thread first: processes may use several."""

    def __init__(self, index: int = 0) -> None:
        """Raises MissingDependency without cuda-python, BackendUnavailable if there is no such GPU."""
        self.index = index
        self.rt, self.driver = bindings()
        found, error = count_devices()
        if not 0 <= index < found:
            have = f"there are {found}, numbered from 0" if found else f"CUDA finds none ({error})"
            look = "check `nvidia-smi` and the driver, run `bfr doctor`; in a container, start it with --gpus all"
            raise BackendUnavailable(
                f"GPU {index} is not available, {have}: {NOT_STARTED.get(error, look)}. Without a GPU there is "
                "--backend onnxruntime-cpu"
            )
        self._capture_mode = self.rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal

    @property
    def facts(self) -> Facts:
        """The GPU and its driver. Makes no context, which takes memory and fails where another program has the GPU."""

        def ask(name: str, *arguments: int) -> Any:
            return self._check(name, getattr(self.rt, name)(*arguments))

        found = ask("cudaGetDeviceProperties", self.index)
        name = found.name.decode() if isinstance(found.name, bytes) else found.name
        return Facts(
            name=name.rstrip("\0"),
            compute_capability=f"{found.major}.{found.minor}",
            runtime=_version(ask("cudaRuntimeGetVersion")),
            driver=_version(ask("cudaDriverGetVersion")),
        )

    @property
    def bus_id(self) -> str:
        """Its address on the PCI bus, which names it in other libraries."""
        return bytes(self._call("cudaDeviceGetPCIBusId", 32, self.index)).split(b"\0")[0].decode()

    def memory(self) -> tuple[int, int]:
        """Free and total bytes; on a GPU that shares the host's memory, what the system would give back is free too."""
        free, total = map(int, self._call("cudaMemGetInfo"))
        if self._call("cudaDeviceGetAttribute", self.rt.cudaDeviceAttr.cudaDevAttrIntegrated, self.index):
            # CUDA does not count memory that the kernel can reclaim, such as the page cache.
            free = min(max(free, int(host_memory().get("MemAvailable", 0.0) * 2**30)), total)
        return free, total

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes on the device and return their address. Raises DeviceOutOfMemory."""
        return int(self._call("cudaMalloc", size, needed=size))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cudaFree", address)

    def pinned(self, owned: ExitStack, size: int) -> NDArray[np.uint8]:
        """Allocate page-locked host memory, (size,) uint8: copies from it run beside the host's work."""
        address = int(self._call("cudaMallocHost", size, needed=size))
        owned.callback(self._call, "cudaFreeHost", address)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))

    def copy(self, target: int, source: int, size: int, stream: Handle) -> None:
        """Enqueue a copy between any two memories."""
        self._call("cudaMemcpyAsync", target, source, size, self.rt.cudaMemcpyKind.cudaMemcpyDefault, stream)

    def zero(self, address: int, size: int, stream: Handle) -> None:
        """Enqueue the writing of zeros."""
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def stream(self, owned: ExitStack) -> Handle:
        """Make a stream that does not wait for the default one."""
        stream = self._call("cudaStreamCreateWithFlags", self.rt.cudaStreamNonBlocking)
        owned.callback(self._call, "cudaStreamDestroy", stream)
        return stream

    def synchronize(self, stream: Handle) -> None:
        """Wait until everything enqueued on a stream is done; raise an error of that work."""
        self._call("cudaStreamSynchronize", stream)

    def event(self, owned: ExitStack) -> Handle:
        """Make an event without a time, for which CUDA promises the quickest waits."""
        event = self._call("cudaEventCreateWithFlags", self.rt.cudaEventDisableTiming)
        owned.callback(self._call, "cudaEventDestroy", event)
        return event

    def record(self, event: Handle, stream: Handle) -> None:
        """Enqueue the event."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: Handle, event: Handle) -> None:
        """Make a stream wait for an event."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def await_event(self, event: Handle) -> None:
        """Wait until an event happened as it was last recorded; an event that never was has happened."""
        self._call("cudaEventSynchronize", event)

    def capture(self, stream: Handle, work: Callable[[], None]) -> Handle:
        """Record what `work` enqueues on a stream as an executable graph; nothing runs.

        If `work` raises, the capture ends and the stream can be used as before.
        """
        self._call("cudaStreamBeginCapture", stream, self._capture_mode)
        try:
            work()
        except BaseException:
            # The capture must end whatever happened in it; the error of EndCapture would hide the first one.
            error, graph = self.rt.cudaStreamEndCapture(stream)
            if error == self.rt.cudaError_t.cudaSuccess and int(graph):
                self.rt.cudaGraphDestroy(graph)
            self.rt.cudaGetLastError()
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        """Enqueue an executable graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Handle) -> None:
        """Free an executable graph."""
        self._call("cudaGraphExecDestroy", graph)

    def load_kernels(self, image: bytes, names: Sequence[str]) -> dict[str, Handle]:
        """Load compiled kernels, which stay loaded until the process ends."""
        self._call("cudaFree", 0)  # makes the device's context, which loading needs
        library = self._driver_call("cuLibraryLoadData", image, [], [], 0, [], [], 0)
        return {name: self._driver_call("cuLibraryGetKernel", library, name.encode()) for name in names}

    def launch(
        self, kernel: Handle, grid: tuple[int, int], block: int, arguments: Sequence[Argument], stream: Handle
    ) -> None:
        """Enqueue a kernel."""
        self.use()
        function, (values, types) = self.driver.CUfunction(int(kernel)), zip(*arguments, strict=True)
        self._driver_call("cuLaunchKernel", function, *grid, 1, block, 1, 1, 0, stream, (values, types), 0)

    def use(self) -> None:
        """Make this GPU the current one of the thread, for libraries that ask CUDA which one they are on."""
        self._check("cudaSetDevice", self.rt.cudaSetDevice(self.index))

    def _call(self, name: str, *arguments: Any, needed: int | None = None) -> Any:
        self.use()
        return self._check(name, getattr(self.rt, name)(*arguments), needed)

    def _check(self, name: str, answer: tuple[Any, ...], needed: int | None = None) -> Any:
        error, *values = answer
        if error != self.rt.cudaError_t.cudaSuccess:
            self._fail(name, error.name, needed)
        return values[0] if len(values) == 1 else tuple(values)

    def _driver_call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self.driver, name)(*arguments)
        if error != self.driver.CUresult.CUDA_SUCCESS:
            same = next((one for one in self.rt.cudaError_t if int(one) == int(error)), error)
            self._fail(name, same.name, None)  # the name of the runtime API, which numbers errors as the driver does
        return values[0] if values else None

    def _fail(self, call: str, error: str, needed: int | None) -> None:
        where = f"GPU {self.index}: {call} reports {error}"
        if error == "cudaErrorMemoryAllocation":
            self.rt.cudaGetLastError()  # clears this error, which does not destroy the context
            status, free, total = self.rt.cudaMemGetInfo()
            known = status == self.rt.cudaError_t.cudaSuccess
            have = f"{free:,} of {total:,} bytes are free" if known else "how much is free is unknown"
            wanted = "" if needed is None else f", {needed:,} bytes were needed"
            raise DeviceOutOfMemory(
                f"{where}{wanted}, {have}: choose a smaller --batch, or end what else uses the GPU (nvidia-smi)"
            )
        if error in NOT_STARTED:
            raise BackendUnavailable(f"{where}: {NOT_STARTED[error]}")
        if error in STICKY:
            raise DeviceLost(
                f"{where}: this process can no longer use the GPU and must be restarted. If it happens again, look "
                "at the kernel log (dmesg, lines with Xid) and run `bfr verify`"
            )
        raise RuntimeError(where)


def _version(number: Any) -> str:
    return f"{int(number) // 1000}.{int(number) % 1000 // 10}"
