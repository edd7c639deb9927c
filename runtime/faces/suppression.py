"""Non-maximum suppression: keep the best of several detections of one face; overlap of boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Face

OVERLAP = 0.4  # intersection over union of two boxes of one face
INSIDE = 0.6  # share of the smaller box in the larger: at a fine scale a detector reports half a face as one
MOST = 1000  # faces of one picture: each costs a pass over the remaining ones

Float64 = NDArray[np.float64]


def overlaps(first: NDArray[Any], second: NDArray[Any]) -> tuple[Float64, Float64]:
    """How much boxes overlap, (N, 4) and (M, 4) left, top, right, bottom.

    Returns (N, M) intersection over union, and (N, M) intersection over the smaller box, both 0 to 1.
    """
    a, b = first[:, None].astype(np.float64), second[None].astype(np.float64)
    common = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0).prod(axis=2)
    one, other = (np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=2) for boxes in (a, b))
    union, smaller = one + other - common, np.minimum(one, other)
    return common / np.maximum(union, 1e-9), common / np.maximum(smaller, 1e-9)


def without_repeats(faces: Sequence[Face], most: int = MOST) -> list[Face]:
    """Return the best detection of each face by score, at most `most` faces.

    Two detections are one face where their boxes overlap by OVERLAP, where INSIDE of the smaller lies in the larger, or
    where their eyes are nearer to each other than two heads can be.
    """
    if not faces:
        return []
    scores = np.array([face.score for face in faces])
    boxes = np.stack([face.box for face in faces])
    eyes = np.stack([face.landmarks[:2] for face in faces]).astype(np.float64)
    middles, distances = eyes.mean(axis=1), np.hypot(*(eyes[:, 1] - eyes[:, 0]).T)
    left = np.argsort(-scores, kind="stable")
    kept: list[Face] = []
    while len(left) and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(faces[best])
        union, inside = overlaps(boxes[best : best + 1], boxes[left])
        apart = np.hypot(*(middles[left] - middles[best]).T)
        same_eyes = apart < 0.5 * np.minimum(distances[left], distances[best])
        left = left[~((union[0] >= OVERLAP) | (inside[0] >= INSIDE) | same_eyes)]
    return kept
