"""Images as people have them, and as networks read and write them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.manifest import Pixels
from bfr.runtime.errors import InvalidImage


def check_image(image: NDArray[Any]) -> None:
    """Raise InvalidImage unless it is (H, W, 3), uint8, uint16 or float32."""
    if not isinstance(image, np.ndarray):
        raise InvalidImage(
            f"a {type(image).__name__} was given: an (H, W, 3) array is needed; bfr.runtime.restore_image takes others"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InvalidImage(f"an image of shape {image.shape} was given: (H, W, 3) RGB is needed")
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise InvalidImage(f"an image of dtype {image.dtype} was given: uint8, uint16, or float32 in [0, 1] is needed")


def to_input(image: NDArray[Any], size: int, how: Pixels = Pixels()) -> Float32:  # noqa: B008  (frozen)
    """(H, W, 3) uint8, uint16, or float32 in [0, 1] -> (3, size, size) float32, resized where it must be."""
    check_image(image)
    x = image.astype(np.float32) / np.float32(full_scale(image.dtype))
    if x.shape[:2] != (size, size):
        x = resize(x, (size, size)) if how.resize == "bicubic" else _between_corners(x, size)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def to_output(face: Float32, like: NDArray[Any], how: Pixels = Pixels()) -> NDArray[Any]:  # noqa: B008  (frozen)
    """(3, S, S) float32 in [0, 1] -> (H, W, 3) of the dtype of `like`, and of its size or (S, S, 3), see `Pixels`."""
    x = np.ascontiguousarray(face.transpose(1, 2, 0))
    height, width = like.shape[:2]
    if x.shape[:2] != (height, width) and how.size == "image":
        x = np.clip(resize(x, (width, height)), 0.0, 1.0)
    scale = full_scale(like.dtype)
    if scale == 1.0:
        return x
    return (np.rint if how.rounding == "nearest" else np.floor)(x * scale).astype(like.dtype)


def full_scale(dtype: np.dtype[Any]) -> float:
    """The value of white: 255, 65535, or 1 for floats."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0


def resize(pixels: Float32, size: tuple[int, int]) -> Float32:
    """Resize (H, W, C) float32 to `size` = (width, height), as Pillow has it: antialiased bicubic, a = -0.5.

    Results are not clipped: they overshoot [0, 1] at edges.
    """
    channels = [Pillow.fromarray(np.ascontiguousarray(channel, np.float32)) for channel in np.moveaxis(pixels, 2, 0)]
    resized = [channel.resize(size, Pillow.Resampling.BICUBIC) for channel in channels]
    return np.dstack([np.asarray(channel, np.float32) for channel in resized])


def _between_corners(pixels: Float32, size: int) -> Float32:
    """(H, W, C) -> (size, size, C): bilinear between the centres of the corner pixels (`align_corners`)."""
    for axis in (0, 1):
        last = pixels.shape[axis] - 1
        position = np.linspace(0.0, last, size, dtype=np.float32)
        before = position.astype(np.intp)
        share = (position - before).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        low, high = pixels.take(before, axis), pixels.take(np.minimum(before + 1, last), axis)
        pixels = low + share * (high - low)
    return pixels
