"""Counter-based Gaussian noise: `noise(seed, image, step)` is the same on every device and in every batch.

Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) keyed by (seed, image) and
counted by (element, step), then Box-Muller. Each count gives four words, and from these four adjacent normals.
"""

import numpy as np
from numpy.typing import NDArray

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
        key0, key1 = (np.uint64((int(k) + r * w) & WORD) for k, w in zip(key, WEYL, strict=True))
        product0, product1 = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0 = (product1 >> _SHIFT) ^ x1 ^ key0
        x2 = (product0 >> _SHIFT) ^ x3 ^ key1
        x1, x3 = product1 & _LOW, product0 & _LOW
    return x0, x1, x2, x3


def fill_normal(out: Float32, *, seed: int, image: int, step: int) -> None:
    """Fill an array with standard normals.

    Args:
        out: Any shape, float32, C-contiguous; its size is a multiple of 4.
        seed: 0 .. 2**32 - 1, as `image` and `step`.
        image: Key of the image.
        step: Number of the draw.

    Raises:
        InvalidOption: The seed is out of range.
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


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise InvalidOption unless `seed` is an integer of 32 bits. name: what the message calls it."""
    if not isinstance(seed, int | np.integer):
        raise InvalidOption(f"{name} {seed!r} is not accepted: a whole number is needed")
    if not 0 <= seed <= WORD:
        raise InvalidOption(f"{name} {seed} is out of range: choose between 0 and {WORD}")
