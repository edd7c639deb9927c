"""Conversion between images of users and tensors of networks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.manifest import Pixels
from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.resize import between_corners, resize


def as_pixels(image: Any) -> NDArray[Any]:
    """The (H, W, 3) pixels of an image, uint8, uint16 or float32; see `Restorer.restore` for what it may be held in.

    Raises InputNotFound and InvalidImage.
    """
    if not isinstance(image, np.ndarray):
        from bfr.runtime.images.given import as_image, tensor_pixels  # OpenCV is slow to load

        tensor = tensor_pixels(image)
        image = as_image(image).pixels if tensor is None or tensor.dtype != np.float32 else tensor
    check_image(image)
    return image  # type: ignore[no-any-return]


def as_several(images: Any) -> list[Any]:
    """One image, a batch of them as an array or a tensor of four dimensions, or a sequence -> a list."""
    if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
        return list(images)
    return [images]


def check_image(image: NDArray[Any]) -> None:
    """Raise InvalidImage unless it is (H, W, 3), uint8, uint16 or float32."""
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InvalidImage(f"an image of shape {image.shape} was given: (H, W, 3) RGB is needed")
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise InvalidImage(f"an image of dtype {image.dtype} was given: uint8, uint16, or float32 in [0, 1] is needed")


def to_input(image: NDArray[Any], size: int, how: Pixels = Pixels()) -> Float32:  # noqa: B008  (frozen)
    """(H, W, 3) uint8, uint16, or float32 in [0, 1] -> (3, size, size) float32, resized where it must be."""
    check_image(image)
    x = image.astype(np.float32) / np.float32(full_scale(image.dtype))
    if x.shape[:2] != (size, size):
        x = resize(x, (size, size)) if how.resize == "bicubic" else between_corners(x, size)
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
    levels = x * np.float32(scale)
    return np.asarray((np.rint(levels) if how.rounding == "nearest" else np.floor(levels)).astype(like.dtype))


def full_scale(dtype: np.dtype[Any]) -> float:
    """The value of white: 255, 65535, or 1 for floats."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0
