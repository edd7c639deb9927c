"""Which pixels of an aligned crop are the face and its hair: a prior of heads in that place, fitted to the picture.

No network computes it. The prior is an oval around where the alignment puts a head; the guided filter (He, Sun, Tang,
"Guided Image Filtering", IEEE TPAMI 35, 2013; its form for colour) fits it, window by window, to a linear function of
the colours, several times. So pixels of the wall's colours leave the mask and pixels of the hair's colours join it; if
both have similar colours, the border stays soft. The result is continuous: a small movement of a face changes its mask
only a little.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

GRID = 64  # cells a side that the mask is fitted on
SIDE = 128  # cells a side of the mask: the fit, which is smooth, is applied to finer colours
HEAD = ((0.5, 0.5), (0.36, 0.48), 0.12)  # centre, radii and softness of the prior, of a crop 1 wide and high
FACE = ((0.5, 0.56), (0.25, 0.33), 0.06)  # what belongs to the face whatever its colours are
TURN = 0.7  # how far the head's middle lies behind the nose of a turned face, in the nose's own offset
RADII = (12, 12, 6, 6)  # cells, of the windows of each fit
EPSILON = 1e-3  # variance of Lab / 100 below which the colours of a window do not differ
STEEP, LAST_STEEP = 2.0, 3.0  # contrast of the mask after each fit, and after the last
GROWN, SOFT = 4, 2.5  # cells of SIDE by which the mask reaches past the hair's edge, and of its own edge
STEEPNESS = 2.5  # of the mask where it rises from 0
NEAR, FADING = 6, 3.0  # cells of GRID around the head in which a fringe may lie, and over which that ends
FRINGE = 4.0  # levels of 255, averaged over a cell: a weaker fringe stays
MOST_CHANGE = 0.9  # levels of 255, the mean over what is neither face nor hair: more of a fringe stays where needed
EDGE = SIDE // 20  # cells: half of the width in which the mask falls to 0 towards the crop's edge


def head_mask(
    crop: NDArray[Any], restored: NDArray[Any], landmarks: NDArray[Any] | None = None
) -> tuple[Float32, Float32]:
    """The mask of a face and its hair.

    A blur spreads the head's colours into its surroundings, where they would stay as a fringe. The mask covers the
    fringe and reduces it to the same strength everywhere, which leaves no visible ring: to FRINGE, or to more where
    the surroundings would change by more than MOST_CHANGE.

    Args:
        crop: The aligned crop, (S, S, 3) uint8 or uint16.
        restored: The same, restored.
        landmarks: (5, 2) of the face in the crop, pixels; they show which way it is turned.

    Returns:
        The mask, and the face and hair alone, which it reaches past: (SIDE, SIDE) float32 from 0 to 1 each.
    """
    before, after = _reduced(crop), _reduced(restored)
    coarse, head = _heads(_lab(after), 0.0 if landmarks is None else _turn(landmarks / crop.shape[0]))
    wider = cv2.dilate(head, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * GROWN + 1,) * 2))
    soft = _steep(cv2.GaussianBlur(wider, (0, 0), SOFT), STEEP)  # no pixel is changed by a small share only
    mask = np.asarray(1 - (1 - soft * _edge()) ** STEEPNESS, np.float32)
    return np.maximum(mask, _to(_fringe(after - before, coarse, _to(mask, GRID)), SIDE)), head


def _heads(colours: Float32, turn: float) -> tuple[Float32, Float32]:
    """Face and hair by their colours, (SIDE, SIDE, 3) Lab: (GRID, GRID) and (SIDE, SIDE), 0 to 1. turn: see `_turn`."""
    guide, head, face = _to(colours, GRID), _oval(HEAD, turn), _oval(FACE, 0.0)
    limit = np.minimum(head * 8, 1)
    mask = head
    for i, radius in enumerate(RADII):
        if i == 0 or radius != RADII[i - 1]:
            window = _Window(guide, radius)
        fit = window.fit(mask)
        mask = np.maximum(_steep(_applied(guide, fit), STEEP), face) * limit
    fine = np.maximum(_steep(_applied(colours, _to(fit, SIDE)), LAST_STEEP), _to(face, SIDE)) * _to(limit, SIDE)
    return mask, fine


def _fringe(change: Float32, head: Float32, mask: Float32) -> Float32:
    """The mask of the fringe that a blur spread around the head, (GRID, GRID).

    Args:
        change: (SIDE, SIDE, 3) from crop to restored crop, -1 to 1.
        head: (GRID, GRID) of face and hair.
        mask: (GRID, GRID) of face and hair, with their margin.
    """
    averaged = np.abs(cv2.GaussianBlur(_to(change, GRID), (0, 0), 1.0))  # signed until here: noise cancels
    strength = np.maximum(cv2.transform(averaged, np.full((1, 3), 255 / 3, np.float32)), np.float32(1e-3))
    near = cv2.dilate(head, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * NEAR + 1,) * 2))
    near = cv2.GaussianBlur(near, (0, 0), FADING) * _to(_edge(), GRID)
    around = mask < 0.5

    def masked(staying: float) -> Float32:
        return np.asarray(near * np.maximum(1 - staying / strength, 0), np.float32)

    def harmless(staying: float) -> bool:
        return not around.any() or (strength * np.maximum(mask, masked(staying)))[around].mean() <= MOST_CHANGE

    if harmless(FRINGE):
        return masked(FRINGE)
    weaker, stronger = FRINGE, 255.0
    for _ in range(10):  # bisection, to a quarter of a level
        middle = (weaker + stronger) / 2
        weaker, stronger = (weaker, middle) if harmless(middle) else (middle, stronger)
    return masked(stronger)


class _Window:
    """The guided filter's windows of a (GRID, GRID, 3) guide: its means, and the inverse of its covariances."""

    def __init__(self, guide: Float32, radius: int) -> None:
        self.radius, self.guide = radius, cv2.split(guide)
        self.mean = [self._box(x) for x in self.guide]
        aa, ab, ac, bb, bc, cc = (
            self._box(self.guide[i] * self.guide[j]) - self.mean[i] * self.mean[j] + np.float32(EPSILON * (i == j))
            for i in range(3)
            for j in range(i, 3)
        )
        first = (bb * cc - bc * bc, ac * bc - ab * cc, ab * bc - ac * bb)
        second = (first[1], aa * cc - ac * ac, ab * ac - aa * bc)
        third = (first[2], second[2], aa * bb - ab * ab)
        determinant = aa * first[0] + ab * first[1] + ac * first[2]
        self.inverse = [[x / determinant for x in row] for row in (first, second, third)]

    def fit(self, mask: Float32) -> Float32:
        """(GRID, GRID, 4): three factors of the guide's channels and a constant, averaged over the windows."""
        mean = self._box(mask)
        covariance = [self._box(x * mask) - y * mean for x, y in zip(self.guide, self.mean, strict=True)]
        factors = [_weighted(covariance, row) for row in self.inverse]
        return self._box(cv2.merge([*factors, mean - _weighted(self.mean, factors)]))

    def _box(self, x: NDArray[Any]) -> Float32:
        return np.asarray(
            cv2.boxFilter(x, -1, (2 * self.radius + 1,) * 2, borderType=cv2.BORDER_REFLECT_101), np.float32
        )


def _reduced(pixels: NDArray[Any]) -> Float32:
    """(S, S, 3) of any depth -> (SIDE, SIDE, 3) from 0 to 1."""
    unit = np.float32(1.0 / np.iinfo(pixels.dtype).max)
    return np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA) * unit, np.float32)


def _applied(guide: Float32, fit: Float32) -> Float32:
    *factors, constant = cv2.split(fit)
    return _weighted(cv2.split(guide), factors) + constant


def _weighted(planes: Sequence[NDArray[Any]], weights: Sequence[NDArray[Any]]) -> Float32:
    """The sum of planes, (H, W) each, weighted by others."""
    return np.asarray(sum(x * y for x, y in zip(planes, weights, strict=True)), np.float32)


def _lab(unit: Float32) -> Float32:
    return np.asarray(cv2.cvtColor(unit, cv2.COLOR_RGB2Lab) * np.float32(0.01), np.float32)


def _to(x: Float32, size: int) -> Float32:
    method = cv2.INTER_AREA if size < x.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(x, (size, size), interpolation=method), np.float32)


def _steep(x: NDArray[Any], contrast: float) -> Float32:
    return np.asarray(np.clip((x - 0.5) * contrast + 0.5, 0, 1), np.float32)


def _turn(landmarks: NDArray[Any]) -> float:
    """How far to the right of the crop's middle the head's lies, as a share of its side."""
    middle = (landmarks[:2].mean(axis=0) + landmarks[3:].mean(axis=0)) / 2
    return float(np.clip(-TURN * (landmarks[2, 0] - middle[0]), -0.12, 0.12))


def _oval(shape: tuple[tuple[float, float], tuple[float, float], float], shift: float) -> Float32:
    """(GRID, GRID): 1 inside, 0 outside, half at the radii."""
    (x, y), radii, softness = shape
    at = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    distance = np.hypot(((at - (x + shift)) / radii[0])[None], ((at - y) / radii[1])[:, None])
    return np.asarray(1 / (1 + np.exp((distance - 1) / softness)), np.float32)


@lru_cache(maxsize=1)
def _edge() -> Float32:
    """(SIDE, SIDE): 1 in the middle, falling to 0 between a tenth of the side from the edge and the edge itself."""
    profile = np.zeros(SIDE, np.float32)
    profile[EDGE : SIDE - EDGE] = 1
    profile = cv2.GaussianBlur(profile[None], (2 * EDGE + 1, 1), 0, borderType=cv2.BORDER_CONSTANT)[0]
    profile[0] = profile[-1] = 0
    return np.outer(profile, profile)
