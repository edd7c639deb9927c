"""Paste restored faces into their photograph: face and hair, under a soft mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.each import each
from bfr.runtime.faces.geometry import (
    Matrix,
    compose,
    inverse,
    rectangle,
    resizing,
    scale_of,
    transform,
    warp_back,
)
from bfr.runtime.faces.mask import FACE, head_mask
from bfr.runtime.faces.options import Detail

SHARPNESS = 4.0  # of the border between two overlapping faces
REACH, SMOOTH = 12, 1.5  # of 128 cells a side: how far around a place its range is taken, and the noise's smoothing
RIM = 0.7  # cells over which what overshoots is averaged: single hairs stay
SLACK = 3.0  # levels of 255 by which the surroundings of a head may leave that range
FLOOR = 0.2  # the share of places in a face with the least fine detail: what they have is the photograph's noise
EXCESS = 1.5  # fine detail is kept by how far its power exceeds so many times the noise's
SEEN = 4.0  # levels of 255: noise well below this is invisible and is kept: removing it removes detail too
ROUNDING = 0.6  # squared levels of 255: what rounding, resampling and JPEG leave of a smooth picture is no detail
KEPT = 0.9  # the share of fine detail that is right in a JPEG; in others losing the rest is not seen

Float32 = NDArray[np.float32]
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A face to paste.

    Attributes:
        pixels: The restored crop, (S, S, 3) float32 in levels of the photograph, or (S, S) or (S, S, C) of its planes.
            None leaves the face unchanged, and no neighbour overwrites it.
        mask: (M, M) float32, 0 to 1, over the same square.
        matrix: The transform from the photograph to the crop.
        size: S, pixels.
        before: The crop that was restored, as `pixels`. What the photograph has beyond it is finer detail; without it
            none is kept.
    """

    pixels: Float32 | None
    mask: Float32
    matrix: Matrix
    size: int
    before: Float32 | None = None


def make_patch(
    crop: NDArray[Any],
    restored: NDArray[Any] | None,
    matrix: Matrix,
    *,
    landmarks: NDArray[Any] | None = None,
    keep_colour: bool = False,
    grey: bool = False,
) -> Patch:
    """The patch of a face.

    Args:
        crop: (S, S, 3) uint8 or uint16.
        restored: The same, restored; None for a face that stays as it is.
        matrix: The transform from the photograph to the crop.
        landmarks: (5, 2) of the face in the photograph, which show the mask where it is turned.
        keep_colour: What restoring did to colours and light (all below a sixteenth of the face) is left out.
        grey: Whether the photograph is grey; the face then gets no colour.
    """
    size = crop.shape[0]
    within = None if landmarks is None else transform(matrix, landmarks)
    if restored is None:
        return Patch(None, head_mask(crop, crop, within)[0], matrix, size)
    mask, head = head_mask(crop, restored, within)
    pixels = (to_grey(restored) if grey else restored).astype(np.float32)
    if keep_colour:
        coarse = cv2.resize(pixels - crop, (16, 16), interpolation=cv2.INTER_AREA)
        pixels -= cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return Patch(_without_halo(pixels, crop, head), mask, matrix, size, crop.astype(np.float32))


def paste_faces(
    photograph: NDArray[Any],
    patches: Sequence[Patch],
    *,
    upscale: int = 1,
    blend: float = 1.0,
    detail: Detail = "auto",
    white: int | None = None,
) -> None:
    """Paste faces into a photograph, in place.

    Where the crop is at least as fine as the photograph, the restored crop replaces the face. A face that is larger
    than its crop has detail above the crop's resolution; `detail` decides whether it is kept. If faces overlap, a pixel
    goes to the face in whose oval it is deeper, whatever the order of the patches.

    Args:
        photograph: (H, W, 3) uint8 or uint16 RGB, or planes, (H, W) or (H, W, C), `upscale` times as wide and high as
            what the patches' matrices speak of, by whatever means.
        patches: Patches of its faces. No pixel outside their masks is touched.
        upscale: How many times the photograph was enlarged.
        blend: 0 leaves the faces as they are, 1 restores them.
        detail: See `PhotoOptions.detail`.
        white: The highest level; that of the dtype if left out.
    """
    height, width = photograph.shape[:2]
    back = resizing((width, height), (width // upscale, height // upscale))
    crops = [compose(patch.matrix, back) for patch in patches]  # enlarged photograph -> crop
    places = [_place(patch, matrix, photograph.shape) for matrix, patch in zip(crops, patches, strict=True)]
    top = white or np.iinfo(photograph.dtype).max
    near = [[k for k, other in enumerate(places) if _touch(place, other)] for place in places]  # itself among them

    def changed(i: int) -> Float32:
        weight = _weight_among([(patches[k], crops[k], places[k]) for k in near[i]], near[i].index(i))
        part = photograph[_inside(places[i])]
        change = _change(part, patches[i], _local(crops[i], places[i]), weight, detail, top / 255)
        return change if blend == 1 else change * np.float32(blend)

    # An empty rectangle touches nothing.
    pasted_faces = [i for i, patch in enumerate(patches) if patch.pixels is not None and near[i]]
    changes = dict(zip(pasted_faces, each(changed, pasted_faces), strict=True))
    waiting = []
    for i, change in changes.items():
        others = [k for k in near[i] if k != i and k in changes]
        total = change.copy() if others else change
        for k in others:
            shared = _common(places[i], places[k])
            total[_inside(shared, places[i])] += changes[k][_inside(shared, places[k])]
        part = photograph[_inside(places[i])]
        pasted = cv2.add(part, total, dtype=cv2.CV_8U if part.dtype == np.uint8 else cv2.CV_16U)
        waiting.append((places[i], pasted if white is None else np.minimum(pasted, white, out=pasted)))
    for place, pasted in waiting:  # neighbours needed the photograph as it was
        photograph[_inside(place)] = pasted


def _change(
    part: NDArray[Any], patch: Patch, to_part: Matrix, weight: Float32, detail: Detail, level: float
) -> Float32:
    """The change that pasting a face with pixels makes to a part of the photograph, (h, w) or (h, w, 3).

    to_part: the transform from its crop to the part.
    weight: the mask of the face, (h, w).
    level: one level of 255, in the photograph's units.
    """
    assert patch.pixels is not None  # noqa: S101  (the caller leaves such faces out)
    face = warp_back(patch.pixels, to_part, (part.shape[1], part.shape[0]))
    if detail != "crop" and patch.before is not None and scale_of(patch.matrix) < 1.0:
        face += _finer(part, patch.before, to_part, weight if detail == "auto" else None, level)
    change = np.asarray(cv2.subtract(face, part, dtype=cv2.CV_32F), np.float32)
    every = weight if change.ndim == 2 else cv2.merge([weight] * change.shape[2])
    return np.asarray(cv2.multiply(change, every, change), np.float32)


def to_grey(pixels: NDArray[Any]) -> NDArray[Any]:
    """(H, W, 3) RGB of any dtype -> the same with three equal channels, ITU-R BT.601 luma."""
    luma = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    return np.repeat(luma[..., None], 3, axis=2)


def _without_halo(restored: Float32, crop: NDArray[Any], head: Float32) -> Float32:
    """A restored crop whose surroundings of the head are no lighter and no darker than the crop's own near there.

    Networks sharpen edges too much; on a plain wall the overshoot is visible beside the head as a rim of light.
    """
    side, size = head.shape[0], crop.shape[0]
    near = np.ones((2 * REACH + 1,) * 2, np.uint8)
    own, new = (
        cv2.GaussianBlur(cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA), (0, 0), sigma).astype(np.float32)
        for x, sigma in ((crop, SMOOTH), (restored, RIM))
    )
    slack = np.float32(SLACK * np.iinfo(crop.dtype).max / 255)
    beyond = (1 - head)[..., None] * (new - np.clip(new, cv2.erode(own, near) - slack, cv2.dilate(own, near) + slack))
    return np.asarray(restored - cv2.resize(beyond, (size, size)), np.float32)


def _finer(part: NDArray[Any], before: Float32, local: Matrix, weight: Float32 | None, level: float) -> Float32:
    """The detail of a part of the photograph, (h, w) or (h, w, 3), that is finer than its crop.

    local: the transform from the crop to the part.
    weight: the mask of the face, (h, w). With it the result has the luma alone, without its noise: finer colours are
        mostly noise.
    level: one level of 255, in the photograph's units.
    """
    own = part.astype(np.float32)
    if weight is not None and own.ndim == 3:
        own, before = (np.asarray(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), np.float32) for each in (own, before))
    fine = own - warp_back(before, local, (own.shape[1], own.shape[0]))
    if weight is not None:
        fine *= _above_noise(fine, weight, level)
    return np.asarray(fine if fine.ndim == part.ndim else fine[..., None], np.float32)


def _place(patch: Patch, matrix: Matrix, shape: tuple[int, ...]) -> Rectangle:
    """Where a mask is not 0 in a photograph of `shape`; matrix: photograph -> crop."""
    if not patch.mask.any():
        return 0, 0, 0, 0
    shares = []
    for axis in (0, 1):
        used = np.flatnonzero(patch.mask.any(axis=axis))
        shares.append(((used[0] - 1) / patch.mask.shape[1 - axis], (used[-1] + 2) / patch.mask.shape[1 - axis]))
    (left, right), (top, bottom) = shares
    return rectangle(matrix, patch.size, shape, (left, top, right, bottom))


def _above_noise(fine: Float32, weight: Float32, level: float) -> Float32:
    """The share of fine detail, (h, w), to keep: Wiener's, of a noise as strong as in the face's smoothest places.

    level: of 255, in those of the picture.
    """
    size = fine.shape[1::-1]
    third = (max(1, size[0] // 3), max(1, size[1] // 3))
    whole = fine[: 3 * third[1], : 3 * third[0]]  # averaging by 3 takes a quarter of the time of any fraction
    power = cv2.blur(cv2.resize(whole * whole, third, interpolation=cv2.INTER_AREA), (3, 3))
    inside = power[cv2.resize(weight, third, interpolation=cv2.INTER_NEAREST) > 0.5]
    if not inside.size:
        return np.zeros_like(fine)
    noise = float(np.quantile(inside, FLOOR))
    lost = max(EXCESS * noise * noise / (noise + (SEEN * level) ** 2), ROUNDING * level**2)
    return np.asarray(cv2.resize(np.float32(KEPT) * (1 - lost / np.maximum(power, lost)), size), np.float32)


def _weight_among(faces: list[tuple[Patch, Matrix, Rectangle]], own: int) -> Float32:
    """The mask of one of several faces that touch it, (h, w): where they overlap, its part of what they share."""
    patch, matrix, place = faces[own]
    mask = _mask(patch, matrix, place)
    if len(faces) == 1:
        return mask
    claim = mask * _depth(matrix, patch.size, place)
    total = claim + np.finfo(np.float32).tiny
    for k, (other, to_crop, elsewhere) in enumerate(faces):
        if k != own:
            shared = _common(place, elsewhere)
            total[_inside(shared, place)] += _mask(other, to_crop, shared) * _depth(to_crop, other.size, shared)
    return np.asarray(mask * claim / total, np.float32)


def _mask(patch: Patch, matrix: Matrix, place: Rectangle) -> Float32:
    """The mask of a face inside a rectangle, (h, w)."""
    to_mask = compose(resizing((patch.size, patch.size), patch.mask.shape[::-1]), matrix)
    return np.asarray(
        cv2.warpAffine(patch.mask, _local(to_mask, place), _size(place), flags=cv2.INTER_LINEAR), np.float32
    )


def _depth(matrix: Matrix, size: int, place: Rectangle) -> Float32:
    """How deep the pixels of a rectangle lie in a face's oval: exp(-SHARPNESS * squared distance), 1 in its middle."""
    left, top, right, bottom = place
    x, y = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)
    distance = np.zeros((bottom - top, right - left), np.float32)
    centre, radii, _ = FACE
    for axis in (0, 1):
        (a, b, c), middle, radius = matrix[axis] / size, centre[axis] - 0.5 / size, radii[axis]
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


def _inside(part: Rectangle, place: Rectangle = (0, 0, 0, 0)) -> tuple[slice, slice]:
    """Where a part of a rectangle lies in an array of the rectangle's pixels; of the photograph's if left out."""
    left, upper = place[:2]
    return slice(part[1] - upper, part[3] - upper), slice(part[0] - left, part[2] - left)
