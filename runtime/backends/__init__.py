"""What a backend provides, and the choice of one. A backend's module is imported when it is chosen, not before."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidOption

Float32 = NDArray[np.float32]
Buffer = Any
"""A float32 array in the memory of a device, allocated once; only the device that made it can look inside."""

BoundCall = Callable[[], None]
"""Runs a network once on the buffers that it was bound to."""

BackendName = Literal["auto", "onnxruntime-cpu", "onnxruntime-cuda"]
BACKENDS: tuple[BackendName, ...] = ("auto", "onnxruntime-cpu", "onnxruntime-cuda")


class Network(Protocol):
    """A network loaded on a device."""

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """Fix the buffers of a call. An output must not be one of the inputs."""
        ...


class Noise(Protocol):
    """A stream of Gaussian noise on a device: step `k` stands in `buffers[k % 2]` once `ready(k)` has returned."""

    @property
    def buffers(self) -> tuple[Buffer, Buffer]: ...

    def start(self, seed: int, images: tuple[int, ...], last: int) -> None: ...

    def ready(self, step: int) -> None: ...

    def close(self) -> None: ...


class Device(Protocol):
    """Where a chain's buffers live and its networks run."""

    name: str
    buckets: tuple[int, ...] | None
    """The batch sizes that chains are made for, or None where every size is as good."""

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries that compute, for reports."""
        ...

    def array(self, shape: tuple[int, ...]) -> Buffer:
        """Allocate a float32 buffer of zeros."""
        ...

    def write(self, buffer: Buffer, values: Float32) -> None: ...

    def read(self, buffer: Buffer) -> Float32:
        """A copy of a buffer."""
        ...

    def diffuse(self, estimate: Buffer, noise: Buffer, x: Buffer, signal: float, sigma: float) -> None:
        """Write signal * estimate + sigma * noise into `x`."""
        ...

    def noise(self, shape: tuple[int, ...]) -> Noise: ...

    def load(self, graph: Path) -> Network: ...


def open_device(name: str, *, threads: int | None = None) -> Device:
    """Open the device `name`, one of BACKENDS; `auto` is CUDA where it works, else the CPU.

    threads: of the CPU backend; None lets it choose. Raises InvalidOption for an unknown name, MissingDependency
    without ONNX Runtime, BackendUnavailable where the requested provider does not work.
    """
    if name not in BACKENDS:
        raise InvalidOption(f"backend {name!r} is unknown: choose one of {', '.join(BACKENDS)}")
    from bfr.runtime.backends import onnxruntime as ort

    if name == "auto":
        name = "onnxruntime-cuda" if ort.cuda_works() else "onnxruntime-cpu"
    return ort.CudaDevice() if name == "onnxruntime-cuda" else ort.CpuDevice(threads)
