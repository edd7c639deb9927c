"""Resizing as products with constant matrices: exact on every backend, and the same for every batch."""

import numpy as np
from numpy.typing import NDArray


def resize_matrix(source: int, target: int) -> NDArray[np.float64]:
    """(target, source) float64: antialiased bicubic resampling along one axis, its rows summing to 1.

    Pillow's filter: Keys' cubic with a = -0.5, as wide as the sampling when it shrinks, cut at the image's edges.
    """
    scale = source / target
    width = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source)[None, :] + 0.5 - centres[:, None]) / width
    near = ((1.5 * distance - 2.5) * distance) * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    weights = np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
