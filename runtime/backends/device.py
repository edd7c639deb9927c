"""What a backend provides. A backend's module is imported when it is chosen (`bfr.runtime.backends.registry`)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bfr.runtime.bundle.bundle import Bundle
    from bfr.runtime.bundle.manifest import Precision

Float32 = NDArray[np.float32]
Buffer = Any
"""A float32 array in the memory of a device, allocated once; only the device that made it can read it."""

BoundCall = Callable[[], None]
"""Runs a network once on the buffers that it was bound to. It may return before the device is done."""


class Network(Protocol):
    """A network loaded on a device."""

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """Fix the buffers of a call. An output must not be one of the inputs."""
        ...


class Noise(Protocol):
    """A stream of Gaussian noise on a device: calls after `ready(k)` find step `k` in `buffers[k % 2]`.

    A batch smaller than the buffers fills their first images.
    """

    @property
    def buffers(self) -> tuple[Buffer, Buffer]: ...

    def begin(self, seed: int, images: tuple[int, ...], last: int) -> None:
        """Begin a stream of steps 0 .. `last` for a batch whose images have the keys `images`."""
        ...

    def ready(self, step: int) -> None: ...


class Input(Protocol):
    """Uploads batches to a device."""

    @property
    def buffer(self) -> Buffer: ...

    def upload(self, values: Float32) -> None:
        """Start the upload of the next batch, (b, ...), of the buffer's size or smaller; the device may be busy."""
        ...

    def commit(self) -> None:
        """Make the uploaded batch the content of `buffer` for the calls that follow."""
        ...


class Output(Protocol):
    """Downloads results to the host, those of two batches at a time."""

    def take(self, result: Buffer) -> Callable[[], Float32]:
        """Set aside the content of a buffer after all calls so far; later calls may overwrite the buffer.

        Return a function that waits for these calls alone and returns the content. The second `take` that follows
        overwrites the returned array.
        """
        ...


class Stopwatch(Protocol):
    """Measures the seconds of a chain's stages, and under `network` those spent in the networks."""

    def begin(self) -> None: ...

    def call(self, call: BoundCall) -> None:
        """Call a network."""
        ...

    def mark(self, stage: str) -> None:
        """End a stage, and begin the next."""
        ...

    def stop(self) -> Callable[[], dict[str, float]]:
        """Set aside the seconds since `begin`; return a function that waits for them, as `Output.take` does."""
        ...


class Memory(Protocol):
    """Allocates buffers."""

    def array(self, shape: tuple[int, ...]) -> Buffer:
        """Allocate a float32 buffer of zeros. Raises DeviceOutOfMemory."""
        ...

    def release(self, buffers: Sequence[Buffer]) -> None:
        """Free buffers that `array` made."""
        ...


class Device(Memory, Protocol):
    """Holds a chain's buffers and runs its networks, in the order of the calls.

    Closing `owned`, where a method takes it, frees what the method made.
    """

    name: str
    asynchronous: bool
    """Whether calls may return before they are done, so that a batch can be launched while another one runs."""

    @property
    def buckets(self) -> tuple[int, ...] | None:
        """The batch sizes that chains are made for, ascending, or None if every size is as good."""
        ...

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that compute, by name, for reports."""
        ...

    def view(self, buffer: Buffer, batch: int) -> Buffer:
        """Return the first `batch` images of a buffer; they share its memory."""
        ...

    def write(self, buffer: Buffer, values: Float32) -> None: ...

    def read(self, buffer: Buffer) -> Float32:
        """Wait for all calls and return a copy of a buffer."""
        ...

    def zero(self, buffer: Buffer) -> None: ...

    def diffuse(self, estimate: Buffer, noise: Buffer, x: Buffer, levels: Buffer) -> None:
        """Write signal * estimate + sigma * noise into `x`; levels: (B, 2), signal and sigma of each image."""
        ...

    def noise(self, owned: ExitStack, shape: tuple[int, ...], first: int = 0) -> Noise:
        """Return a stream of noise whose step k is step `first` + k of `bfr.runtime.diffusion.noise`."""
        ...

    def input(self, owned: ExitStack, shape: tuple[int, ...]) -> Input: ...

    def output(self, owned: ExitStack, shape: tuple[int, ...]) -> Output: ...

    def record(self, owned: ExitStack, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that repeats `work` on the same buffers, from a recording where the device can record."""
        ...

    def stopwatch(self, owned: ExitStack) -> Stopwatch: ...

    def memory(self) -> tuple[int, int] | None:
        """Free and total bytes of the device's own memory; None if it shares the host's or does not say."""
        ...

    def workspace(self, networks: Sequence[Network], batch: int) -> int | None:
        """Bytes that these networks need beside a chain's buffers at a batch size; None if it is unknown."""
        ...

    def load(self, bundle: "Bundle", name: str, precision: "Precision") -> Network:
        """Load a network of a bundle, its files checked first."""
        ...

    def close(self) -> None:
        """Free everything. Networks, buffers and programs of the device cannot be used after it."""
        ...


def own_array(owned: ExitStack, device: Memory, shape: tuple[int, ...]) -> Buffer:
    """Allocate a buffer that is freed when `owned` is closed."""
    buffer = device.array(shape)
    owned.callback(device.release, [buffer])
    return buffer


def refuse_shared(inputs: Collection[int], outputs: Collection[int]) -> None:
    """Raise ValueError if a buffer of a call, by its address, is both read and written."""
    if {*inputs} & {*outputs}:
        raise ValueError("an output buffer is also an input: the result would depend on the order of the writes")
