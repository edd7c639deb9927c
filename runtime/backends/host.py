"""The CPU as a device: buffers are NumPy arrays, and a thread computes noise ahead.

A backend on the CPU is a child of HostDevice that implements `load`.
"""

import ctypes
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress

import numpy as np

from bfr.runtime.backends.device import (
    BoundCall,
    Buffer,
    Device,
    Float32,
    Input,
    Network,
    Noise,
    Output,
    Stopwatch,
    own_array,
)
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.diffusion.noise import fill_normal
from bfr.runtime.errors import InvalidOption

THREADS_A_CORE = 4  # more wait for each other, and thousands take minutes to start


def check_threads(threads: int | None) -> None:
    """Raise InvalidOption for fewer than 1 or more than THREADS_A_CORE threads a core."""
    cores = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= THREADS_A_CORE * cores:
        raise InvalidOption(
            f"threads {threads} is out of range: this machine has {cores} cores; "
            f"choose between 1 and {THREADS_A_CORE * cores}"
        )


def environments_threads() -> int | None:
    """Return the number of threads that OMP_NUM_THREADS asks for, as PyTorch and OpenBLAS read it; None without it.

    THREADS_A_CORE threads a core at most: the variable may have been set for another machine.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(first), THREADS_A_CORE * (os.cpu_count() or 1)) if first.isdecimal() and int(first) > 0 else None


def trim_heap() -> None:
    """Return freed memory to the system, which glibc keeps otherwise; other C libraries return it themselves.

    After DifFace 512 was loaded that is often 200 MiB.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


class HostDevice:
    """A device whose calls return when they are done. Any batch size is as good as another."""

    name = "host"
    asynchronous = False
    buckets: tuple[int, ...] | None = None

    @property
    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def array(self, shape: tuple[int, ...]) -> Buffer:
        return np.zeros(shape, np.float32)

    def release(self, buffers: Sequence[Buffer]) -> None:
        """Nothing to do: Python frees the arrays."""

    def view(self, buffer: Buffer, batch: int) -> Buffer:
        return buffer[:batch]

    def write(self, buffer: Buffer, values: Float32) -> None:
        buffer[...] = values

    def read(self, buffer: Buffer) -> Float32:
        return np.array(buffer)

    def zero(self, buffer: Buffer) -> None:
        buffer.fill(0.0)

    def diffuse(self, estimate: Buffer, noise: Buffer, x: Buffer, levels: Buffer) -> None:
        signal, sigma = levels.T[:, :, None, None, None]
        np.multiply(estimate, signal, out=x)
        np.add(x, sigma * noise, out=x)

    def noise(self, owned: ExitStack, shape: tuple[int, ...], first: int = 0) -> Noise:
        return HostNoise(owned, shape, first)

    def input(self, owned: ExitStack, shape: tuple[int, ...]) -> Input:
        return HostInput(self, own_array(owned, self, shape))

    def output(self, owned: ExitStack, shape: tuple[int, ...]) -> Output:
        del owned, shape
        return HostOutput(self)

    def record(self, owned: ExitStack, work: Callable[[], None]) -> Callable[[], None]:
        del owned
        return work

    def stopwatch(self, owned: ExitStack) -> Stopwatch:
        del owned
        return HostStopwatch()

    def memory(self) -> tuple[int, int] | None:
        return None

    def workspace(self, networks: Sequence[Network], batch: int) -> int | None:
        del networks, batch
        return None

    def load(self, bundle: Bundle, name: str, precision: Precision) -> Network:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to give back."""


class HostNoise:
    """A stream of noise for one batch. A thread computes it ahead, as far as the buffers go, while the networks run.

    `buffers` are two, (B, C, H, W) float32: buffer `step % 2` holds the noise of `step` from the return of
    `ready(step)` until the next call: step `first` + `step` of the noise, so that streams of a chain share no numbers.
    """

    def __init__(self, owned: ExitStack, shape: tuple[int, ...], first: int = 0) -> None:
        """`owned` ends the thread when it is closed."""
        self.first = first
        self.buffers: tuple[Buffer, Buffer] = (np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        self._thread = owned.enter_context(ThreadPoolExecutor(1, thread_name_prefix="bfr-noise"))
        self._pending: deque[Future[None]] = deque()
        self._seed, self._last = 0, 0
        self._images: tuple[int, ...] = ()

    def begin(self, seed: int, images: tuple[int, ...], last: int) -> None:
        """Begin a stream of steps 0 .. `last` for a batch whose images have the keys `images`."""
        while self._pending:  # fills of a chain that stopped early must not write into this one's noise
            self._pending.popleft().exception()
        self._seed, self._images, self._last = seed, images, last
        self._pending.extend(self._thread.submit(self._fill, step) for step in range(min(last, 1) + 1))

    def ready(self, step: int) -> None:
        """Wait until its buffer holds the noise of `step`, and refill the other one. Call it with steps in order."""
        if not self._pending:
            raise RuntimeError("begin() comes before ready()")
        self._pending.popleft().result()
        if 0 < step < self._last:  # `begin` fills both
            self._pending.append(self._thread.submit(self._fill, step + 1))

    def _fill(self, step: int) -> None:
        for out, image in zip(self.buffers[step % 2], self._images, strict=False):  # the batch may be smaller
            fill_normal(out, seed=self._seed, image=image, step=self.first + step)


class HostInput:
    """An input without an upload beside the device's work: `commit` writes the batch."""

    def __init__(self, device: Device, buffer: Buffer) -> None:
        self.device, self.buffer = device, buffer
        self._next: Float32 | None = None

    def upload(self, values: Float32) -> None:
        self._next = values

    def commit(self) -> None:
        if self._next is None:
            raise RuntimeError("upload() comes before commit()")
        self.device.write(self.device.view(self.buffer, len(self._next)), self._next)


class HostOutput:
    """Results of a device whose calls return when they are done: copies, made at once."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def take(self, result: Buffer) -> Callable[[], Float32]:
        copy = self.device.read(result)
        return lambda: copy


class HostStopwatch:
    """A stopwatch for a device whose calls return when they are done."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._seconds = {"network": 0.0}
        self._last = time.perf_counter()

    def call(self, call: BoundCall) -> None:
        begin = time.perf_counter()
        call()
        self._seconds["network"] += time.perf_counter() - begin

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def stop(self) -> Callable[[], dict[str, float]]:
        found = self._seconds
        return lambda: found
