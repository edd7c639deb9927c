"""Counter-based Gaussian noise: `noise(seed, image, step)` is the same wherever and in whatever batch it is made.

Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) keyed by (seed, image) and
counted by (element, step), then Box-Muller. Each count gives four words and so four normals, which stand side by side.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.device import Device
from bfr.runtime.errors import InvalidOption

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
_LOW, _SHIFT = np.uint64(WORD), np.uint64(32)

Float32 = NDArray[np.float32]


def philox(counters: tuple[NDArray[np.uint64], ...], key: tuple[int, int]) -> tuple[NDArray[np.uint64], ...]:
    """Philox4x32-10: four arrays of 32-bit counter words, two 32-bit key words -> four arrays of random words.

    The words are held in uint64, where the 32x32-bit products fit.
    """
    x0, x1, x2, x3 = counters
    for r in range(ROUNDS):
        key0, key1 = (np.uint64((k + r * w) & WORD) for k, w in zip(key, WEYL, strict=True))
        product0, product1 = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0 = (product1 >> _SHIFT) ^ x1 ^ key0
        x2 = (product0 >> _SHIFT) ^ x3 ^ key1
        x1, x3 = product1 & _LOW, product0 & _LOW
    return x0, x1, x2, x3


def fill_normal(out: Float32, *, seed: int, image: int, step: int) -> None:
    """Fill `out`, any shape, float32, C-contiguous, with standard normals. The size must be a multiple of 4.

    seed, image, step: 0 .. 2**32 - 1. Raises InvalidOption for others.
    """
    check_seed(seed)
    count = out.size // 4
    if out.size % 4 or not out.flags.c_contiguous:
        raise ValueError(f"noise of shape {out.shape} is not a contiguous multiple of 4 elements")
    zero = np.zeros(1, np.uint64)
    element = np.arange(count, dtype=np.uint64)
    words = philox((element, zero + np.uint64(step), zero, zero), (seed, image))
    normals = out.reshape(count, 4)
    for pair in (0, 2):
        # The words' middle points, in (0, 1]: the logarithm is finite.
        radius = _uniform(words[pair])
        np.log(radius, out=radius)
        radius *= np.float32(-2.0)
        np.sqrt(radius, out=radius)
        angle = _uniform(words[pair + 1])
        angle *= np.float32(2.0 * np.pi)
        np.multiply(radius, np.cos(angle), out=normals[:, pair])
        np.multiply(radius, np.sin(angle), out=normals[:, pair + 1])


def _uniform(words: NDArray[np.uint64]) -> Float32:
    uniform = words.astype(np.float32)
    uniform *= np.float32(2.0**-32)
    uniform += np.float32(2.0**-33)
    return uniform


def check_seed(seed: int) -> None:
    """Raise InvalidOption unless `seed` is an integer of 32 bits."""
    if not 0 <= seed <= WORD:
        raise InvalidOption(f"seed {seed} is out of range: choose between 0 and {WORD}")


class HostNoise:
    """A stream of noise for one batch, made one step ahead on a thread of its own while the network runs.

    `arrays` are two, (B, C, H, W) float32: the noise of `step` is in array `step % 2`, from the return of
    `ready(step)` until the next call. It is step `first` + `step` of the noise: streams of one chain share no numbers.
    """

    def __init__(self, shape: tuple[int, ...], first: int = 0) -> None:
        self.first = first
        self.arrays = (np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bfr-noise")
        self._pending: Future[None] | None = None
        self._seed, self._last = 0, 0
        self._images: tuple[int, ...] = ()

    def start(self, seed: int, images: tuple[int, ...], last: int) -> None:
        """Begin a stream of steps 0 .. `last` for a batch whose images have the keys `images`."""
        self._drain()
        self._seed, self._images, self._last = seed, images, last
        self._pending = self._thread.submit(self._fill, 0)

    def ready(self, step: int) -> None:
        """Wait until the noise of `step` stands in its buffer, and begin the next. Steps are asked for in order."""
        if self._pending is None:
            raise RuntimeError("start() comes before ready()")
        self._pending.result()
        if step < self._last:
            self._pending = self._thread.submit(self._fill, step + 1)

    def close(self) -> None:
        """End the thread."""
        self._drain()
        self._thread.shutdown()

    def _drain(self) -> None:
        # A chain that stopped half-way leaves a fill under way: it must not write into the next chain's noise.
        if self._pending is not None:
            self._pending.exception()
            self._pending = None

    def _fill(self, step: int) -> None:
        for out, image in zip(self.arrays[step % 2], self._images, strict=False):  # the batch may be smaller
            fill_normal(out, seed=self._seed, image=image, step=self.first + step)


class UploadedNoise(HostNoise):
    """Host noise for a device with a memory of its own: written there as soon as it is due."""

    def __init__(self, device: Device, shape: tuple[int, ...], first: int = 0) -> None:
        super().__init__(shape, first)
        self.device = device
        self.buffers = (device.array(shape), device.array(shape))

    def ready(self, step: int) -> None:
        super().ready(step)
        count, which = len(self._images), step % 2
        self.device.write(self.device.view(self.buffers[which], count), self.arrays[which][:count])
