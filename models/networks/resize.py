"""Resizing as products with constant matrices: exact on every backend, and the same for every batch."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidOption

Filter = Literal["bicubic", "bilinear"]


def resize_matrix(
    source: int,
    target: int,
    start: float = 0.0,
    stop: float | None = None,
    *,
    filter: Filter = "bicubic",  # noqa: A002  (the name in Pillow)
) -> NDArray[np.float64]:
    """(target, source) float64: resamples the pixels from `start` to `stop`, all of them, antialiased along one axis.

    As Pillow's `resize(box=...)`: a triangle, or Keys' cubic with a = -0.5, as wide as the larger of a source and a
    target pixel, cut off at the image's edges, its weights summing to 1. Raises InvalidOption for a box outside.
    """
    stop = float(source) if stop is None else stop
    if not 0.0 <= start < stop <= source:
        raise InvalidOption(
            f"the crop from {start:g} to {stop:g} is not within an image of {source} pixels: choose whole"
        )
    scale = (stop - start) / target
    centres = start + (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source)[None, :] + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = _cubic(distance) if filter == "bicubic" else np.maximum(1.0 - distance, 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return np.asarray(np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0)))


def mirrored_matrix(source: int, target: int) -> NDArray[np.float64]:
    """(target, source) float64: as `resize_matrix`, bicubic, of an image that is mirrored beyond its edges."""
    scale = source / target
    reach = int(np.ceil(2.0 * max(scale, 1.0))) + 1
    there = np.arange(-reach, source + reach)
    centres = (np.arange(target) + 0.5) * scale - 0.5
    weights = _cubic(np.abs(there[None, :] - centres[:, None]) / max(scale, 1.0))
    folded = there % (2 * source)
    matrix = np.zeros((source, target))
    np.add.at(matrix, np.where(folded < source, folded, 2 * source - 1 - folded), weights.T)
    return np.asarray((matrix / weights.sum(axis=1)).T)
