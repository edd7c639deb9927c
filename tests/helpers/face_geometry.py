"""Faces and crops whose place is known, for tests of geometry."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Face

PUBLISHED = [(192.98, 239.95), (318.90, 240.19), (256.63, 314.02), (201.26, 371.41), (313.09, 371.15)]


def similarity(scale: float, degrees: float, centre: tuple[float, float], size: int) -> NDArray[Any]:
    """Photograph -> crop: `centre` comes to the crop's middle, turned, and `scale` times as large."""
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    turn = np.array([[c, -s], [s, c]])
    return np.hstack([turn, ((size - 1) / 2 - turn @ np.array(centre))[:, None]])


def undone(matrix: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:
    """Where points of the crop lie in the photograph, by solving for them."""
    return np.linalg.solve(matrix[:, :2], (points - matrix[:, 2]).T).T


def face(box: tuple[float, ...], *, score: float = 0.9, eyes: float | None = None) -> Face:
    """A face whose landmarks lie in its box as in a crop; `eyes` apart, where given."""
    left, top, right, bottom = box
    landmarks = np.array(PUBLISHED) / 512 * [right - left, bottom - top] + [left, top]
    if eyes is not None:
        landmarks[:2] = landmarks[:2].mean(0) + np.array([(-eyes / 2, 0), (eyes / 2, 0)])
    return Face(np.array(box, np.float32), landmarks.astype(np.float32), score)
