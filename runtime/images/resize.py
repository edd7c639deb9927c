"""Resizing as Pillow does it, in floating point."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

Float32 = NDArray[np.float32]


def resize(pixels: Float32, size: tuple[int, int]) -> Float32:
    """Resize (H, W, C) float32 to `size` = (width, height), as Pillow has it: antialiased bicubic, a = -0.5.

    Results are not clipped: they overshoot [0, 1] at edges.
    """
    channels: list[Any] = [
        Pillow.fromarray(np.ascontiguousarray(channel, np.float32)) for channel in np.moveaxis(pixels, 2, 0)
    ]
    resized = [channel.resize(size, Pillow.Resampling.BICUBIC) for channel in channels]
    return np.dstack([np.asarray(channel, np.float32) for channel in resized])


def between_corners(pixels: Float32, size: int) -> Float32:
    """(H, W, C) -> (size, size, C): bilinear between the centres of the corner pixels (`align_corners`)."""
    for axis in (0, 1):
        last = pixels.shape[axis] - 1
        position = np.linspace(0.0, last, size, dtype=np.float32)
        before = position.astype(np.intp)
        share = (position - before).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        low, high = pixels.take(before, axis), pixels.take(np.minimum(before + 1, last), axis)
        pixels = low + share * (high - low)
    return pixels
