"""Restored faces back into their photograph: inside each face's rectangle only, under a soft mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Matrix, compose, inverse, rectangle, resizing, warp

MASK_SIZE = 256
CENTRE, RADII = (0.5, 0.55), (0.27, 0.37)  # of the face's oval in the aligned crop, which is 1 wide and high
SHARPNESS = 4.0  # of the border between two overlapping faces

Float32 = NDArray[np.float32]
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """What restoring did to a face.

    change: (S, S, 3) float32, the restored crop minus the crop, in levels of the photograph.
    matrix: the transform from the photograph to the crop.
    """

    change: Float32
    matrix: Matrix


def make_patch(crop: NDArray[Any], restored: NDArray[Any], matrix: Matrix, *, keep_colour: bool, grey: bool) -> Patch:
    """The patch of a face: crop and restored crop are (S, S, 3) uint8 or uint16 of one dtype.

    keep_colour: what restoring did to colours and light (all below a sixteenth of the face) is left out.
    grey: of a grey photograph, so that the face gets no colour.
    """
    change = restored.astype(np.float32) - crop
    if grey:
        change = np.repeat(cv2.cvtColor(change, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    if keep_colour:
        size = change.shape[0]
        coarse = cv2.resize(change, (16, 16), interpolation=cv2.INTER_AREA)
        change = change - cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return Patch(np.asarray(change, np.float32), matrix)


def paste_faces(photograph: NDArray[Any], patches: Sequence[Patch], *, upscale: int = 1, blend: float = 1.0) -> None:
    """Add what restoring changed to a photograph, in place.

    photograph: (H, W, 3) uint8 or uint16 RGB, `upscale` times as wide and high as what the patches' matrices speak of.
    blend: 0 leaves the faces as they are, 1 restores them. A pixel outside every face's rectangle is not touched, and
    a face that did not change leaves no trace: detail beyond the crop's resolution stays the photograph's own.
    Where faces overlap, a pixel goes to the one whose oval it lies deeper in, in whatever order the patches come.
    """
    height, width = photograph.shape[:2]
    reduced = resizing((width, height), (width // upscale, height // upscale))
    crops = [
        (compose(patch.matrix, reduced), patch.change.shape[0]) for patch in patches
    ]  # enlarged photograph -> crop
    rectangles = [rectangle(matrix, size, photograph.shape) for matrix, size in crops]
    top = np.iinfo(photograph.dtype).max
    waiting: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for place in rectangles:
        near = [k for k, other in enumerate(rectangles) if _touch(place, other)]  # the face itself among them
        if not near:  # the rectangle is empty
            continue
        left, upper, right, lower = place
        part = photograph[upper:lower, left:right]
        pixels = part.astype(np.float32)
        common = [_common(place, rectangles[k]) for k in near]
        weights = _weights([crops[k] for k in near], common, place)
        for k, shared, weight in zip(near, common, weights, strict=True):
            change = warp(patches[k].change, _local(crops[k][0], shared), _size(shared), cv2.BORDER_REPLICATE)
            change *= (weight * np.float32(blend))[..., None]
            pixels[_inside(shared, place)] += change
        pasted = np.clip(np.rint(pixels, out=pixels), 0, top, out=pixels).astype(photograph.dtype)
        if len(near) == 1:
            part[...] = pasted
        else:  # its neighbours need the photograph as it is
            waiting.append((part, pasted))
    for part, pasted in waiting:
        part[...] = pasted


def to_grey(pixels: NDArray[Any]) -> NDArray[Any]:
    """(H, W, 3) RGB of any dtype -> the same with three equal channels, ITU-R BT.601 luma."""
    luma = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    return np.repeat(luma[..., None], 3, axis=2)


@lru_cache(maxsize=4)
def _mask(size: int) -> Float32:
    """(size, size): 1 in the middle, falling to 0 between a tenth of the side from the edge and the edge itself.

    The published profile: the square eroded by a twentieth of its side, then a Gaussian a tenth wide.
    """
    edge = size // 20
    kernel = 2 * edge + 1
    profile = np.zeros(size, np.float32)
    profile[edge : size - edge] = 1
    profile = cv2.GaussianBlur(profile[None], (kernel, 1), 0, borderType=cv2.BORDER_CONSTANT)[0]
    profile[0] = profile[-1] = 0
    return np.outer(profile, profile)


def _weight(matrix: Matrix, size: int, place: Rectangle) -> Float32:
    """The mask of a face inside a rectangle, (h, w) float32."""
    to_mask = compose(resizing((size, size), (MASK_SIZE, MASK_SIZE)), matrix)
    weight = cv2.warpAffine(_mask(MASK_SIZE), _local(to_mask, place), _size(place), flags=cv2.INTER_LINEAR)
    return np.asarray(weight, np.float32)


def _weights(crops: list[tuple[Matrix, int]], common: list[Rectangle], place: Rectangle) -> list[Float32]:
    """The masks of faces inside a rectangle; where they overlap, parts of them that add up to one at most.

    common: what each face's own rectangle has in common with `place`; its mask is of that size.
    """
    masks = [_weight(*crop, shared) for crop, shared in zip(crops, common, strict=True)]
    if len(masks) == 1:
        return masks
    claims = [mask * _depth(*crop, shared) for mask, crop, shared in zip(masks, crops, common, strict=True)]
    total = np.full(_size(place)[::-1], np.finfo(np.float32).tiny, np.float32)
    for claim, shared in zip(claims, common, strict=True):
        total[_inside(shared, place)] += claim
    return [
        np.asarray(mask * claim / total[_inside(shared, place)], np.float32)
        for mask, claim, shared in zip(masks, claims, common, strict=True)
    ]


def _depth(matrix: Matrix, size: int, place: Rectangle) -> Float32:
    """How deep the pixels of a rectangle lie in a face's oval: exp(-SHARPNESS * squared distance), 1 in its middle."""
    left, top, right, bottom = place
    x, y = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)
    distance = np.zeros((bottom - top, right - left), np.float32)
    for axis in (0, 1):
        (a, b, c), middle, radius = matrix[axis] / size, CENTRE[axis] - 0.5 / size, RADII[axis]
        distance += (((a * x)[None] + (b * y + c - middle)[:, None]) / radius).astype(np.float32) ** 2
    return np.asarray(np.exp(-SHARPNESS * np.minimum(distance, 15.0)), np.float32)


def _local(matrix: Matrix, place: Rectangle) -> Matrix:
    """From a crop to a rectangle of the image; matrix: image -> crop."""
    local = inverse(matrix)
    local[:, 2] -= place[:2]
    return local


def _size(place: Rectangle) -> tuple[int, int]:
    return place[2] - place[0], place[3] - place[1]


def _touch(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _common(a: Rectangle, b: Rectangle) -> Rectangle:
    """What two rectangles that touch have in common."""
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _inside(part: Rectangle, place: Rectangle) -> tuple[slice, slice]:
    """Where a part of a rectangle lies in an array of the rectangle's pixels."""
    left, upper = place[:2]
    return slice(part[1] - upper, part[3] - upper), slice(part[0] - left, part[2] - left)
