"""The geometry of faces: landmarks, selection, and alignment to the crop that networks were trained on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.options import Selection

Matrix = NDArray[Any]
"""(2, 3) float64: takes (x, y, 1) in one image to (x, y) in another; the middle of the first pixel is (0, 0)."""

TEMPLATE_SIZE = 512
TEMPLATE = np.array([(192.98, 239.95), (318.90, 240.19), (256.63, 314.02), (201.26, 371.41), (313.09, 371.15)])
"""Where FFHQ's alignment puts the five landmarks in a crop of 512: DifFace and its family were trained so."""
OUTSIDE = np.array([132, 133, 135])  # RGB of a crop that holds nothing of the photograph
LOBES, CUTOFF = 3, 1.15  # of the Lanczos filter; at this cutoff, of the target's own, white noise keeps its power
_AT = np.arange(-4, 5) - 1 / 3
_LANCZOS = np.where(np.abs(_AT) < 4, np.sinc(_AT) * np.sinc(_AT / 4), 0)
_THIRD = (_LANCZOS / _LANCZOS.sum()).astype(np.float32)  # weights of 9 samples a third of a sample after the middle one
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """A detected face, in pixels of its photograph.

    Attributes:
        box: (4,) float32, left, top, right, bottom; may reach outside.
        landmarks: (5, 2) float32 x, y: left eye, right eye, nose, left and right corner of the mouth, as one sees them.
        score: The detector's confidence, 0 to 1.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    score: float

    @property
    def eye_distance(self) -> float:
        """Distance between the eyes, in pixels."""
        return float(np.hypot(*(self.landmarks[1] - self.landmarks[0])))

    @property
    def area(self) -> float:
        """Area of the box, in pixels."""
        return float(np.prod(np.maximum(self.box[2:] - self.box[:2], 0)))


def select_faces(
    faces: Sequence[Face],
    which: Selection,
    *,
    width: int,
    height: int,
    min_eye_distance: float,
    most: int | None = None,
) -> list[Face]:
    """Select faces, from left to right.

    Args:
        faces: The faces of one photograph.
        which: All, the one with the largest box, or the one nearest the middle of the photograph.
        width: Width of the photograph, pixels.
        height: Height of the photograph, pixels.
        min_eye_distance: Faces with less between the eyes are dropped, pixels.
        most: If there are more faces, keep those with the best scores and warn with the numbers.
    """
    wanted = [face for face in faces if face.eye_distance >= min_eye_distance]
    if which == "largest":
        wanted = sorted(wanted, key=lambda face: -face.area)[:1]
    elif which == "centre":
        middle = np.array([width - 1, height - 1]) / 2
        wanted = sorted(wanted, key=lambda face: float(np.hypot(*((face.box[:2] + face.box[2:]) / 2 - middle))))[:1]
    if most is not None and len(wanted) > most:
        _log.warning("%d faces were found, restoring the %d with the best scores: see --max-faces", len(wanted), most)
        wanted = sorted(wanted, key=lambda face: -face.score)[:most]
    return sorted(wanted, key=lambda face: tuple(face.box))


def moved(face: Face, matrix: Matrix) -> Face:
    """The same face in another image, to which `matrix` takes the points of its own; it turns by quarters alone."""
    corners = transform(matrix, face.box.reshape(2, 2))
    box = np.concatenate([corners.min(axis=0), corners.max(axis=0)]).astype(np.float32)
    return Face(box, transform(matrix, face.landmarks).astype(np.float32), face.score)


def template(size: int) -> Matrix:
    """(5, 2): where the landmarks belong in a crop of `size` x `size` pixels."""
    return (TEMPLATE + 0.5) * (size / TEMPLATE_SIZE) - 0.5


def alignment(landmarks: NDArray[Any], size: int) -> Matrix | None:
    """The similarity transform that takes a photograph to the crop of `size`; None for degenerate landmarks.

    Least median of squares, so that one wrong landmark of five does no harm.
    """
    matrix, _ = cv2.estimateAffinePartial2D(landmarks.astype(np.float64), template(size), method=cv2.LMEDS)
    if matrix is None or not np.isfinite(matrix).all() or not 1e-4 < scale_of(matrix) < 1e4:
        return None
    return np.asarray(matrix, np.float64)


def scale_of(matrix: Matrix) -> float:
    """How many pixels of the target a pixel of the source becomes, along each axis."""
    (a, b, _), (c, d, _) = matrix.tolist()
    return sqrt(abs(a * d - b * c))


def inverse(matrix: Matrix) -> Matrix:
    """The transform the other way round."""
    return np.asarray(cv2.invertAffineTransform(matrix), np.float64)


def compose(second: Matrix, first: Matrix) -> Matrix:
    """The transform that applies `first` and then `second`."""
    both = np.asarray(second[:, :2] @ first, np.float64)
    both[:, 2] += second[:, 2]
    return both


def transform(matrix: Matrix, points: NDArray[Any]) -> NDArray[np.float64]:
    """(N, 2) points -> (N, 2)."""
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float64)


def resizing(source: tuple[int, int], target: tuple[int, int]) -> Matrix:
    """The transform of a resize from (width, height) to (width, height)."""
    x, y = target[0] / source[0], target[1] / source[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])


def resized(pixels: NDArray[Any], scale: float) -> tuple[NDArray[Any], Matrix]:
    """An (H, W, 3) uint8 image at another scale, and the transform back."""
    height, width = pixels.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return pixels, resizing(size, size)
    # Averaging by a whole number first is quicker than by any other at once.
    whole = next((k for k in range(int(1 / scale), 1, -1) if width % k == height % k == 0), 1)
    if whole > 1:
        pixels = cv2.resize(pixels, (width // whole, height // whole), interpolation=cv2.INTER_AREA)
    method = cv2.INTER_AREA if size[0] < 0.8 * pixels.shape[1] else cv2.INTER_LINEAR  # six times as quick
    return np.asarray(cv2.resize(pixels, size, interpolation=method), np.uint8), resizing(size, (width, height))


def crop_face(pixels: NDArray[Any], matrix: Matrix, size: int) -> NDArray[Any]:
    """Return the aligned crop of a face, with the channels and bits of the photograph.

    Outside the photograph the crop is mirrored, as in FFHQ. The published code fills it with one colour, whose edge
    networks sharpen and spread into the photograph. A crop outside the photograph is grey. Only the face's surroundings
    are read, whatever the size of the photograph.

    Args:
        pixels: The photograph, (H, W, 3) or (H, W), uint8 or uint16.
        matrix: The transform from the photograph to the crop, from `alignment`.
        size: Side of the crop, in pixels.
    """
    margin = ceil(3 / min(scale_of(matrix), 1.0))  # pixels that the interpolation needs around the crop
    points = transform(inverse(matrix), _corners(size, (0, 0, 1, 1)))
    left, top, right, bottom = _bounds(points, pixels.shape, margin)
    if right <= left or bottom <= top:
        grey = OUTSIDE if pixels.ndim == 3 else OUTSIDE[0]
        return np.full((size, size, *pixels.shape[2:]), np.iinfo(pixels.dtype).max // 255 * grey, pixels.dtype)
    beyond = ceil(max(0.0, -float(points.min()), float((points.max(0) - pixels.shape[1::-1]).max())))
    left, top, right, bottom = _bounds(points, pixels.shape, margin + beyond)  # what is mirrored is read too
    part = pixels[top:bottom, left:right]
    matrix = compose(matrix, np.array([[1.0, 0, left], [0, 1.0, top]]))
    return warp(part, matrix, (size, size), cv2.BORDER_REFLECT_101)


def warp(pixels: NDArray[Any], matrix: Matrix, size: tuple[int, int], border: int) -> NDArray[Any]:
    """Transform an image to `size` = (width, height): bicubic, after averaging where it becomes smaller.

    `cv2.warpAffine` alone takes a few samples however many pixels fall into one, and aliases.
    """
    scale = scale_of(matrix)
    if scale < 1.0:
        height, width = pixels.shape[:2]
        smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
        matrix = compose(matrix, resizing(smaller, (width, height)))
    return _bicubic(pixels, matrix, size, border)


def warp_back(pixels: NDArray[np.float32], matrix: Matrix, size: tuple[int, int]) -> NDArray[np.float32]:
    """As `warp`, from a crop to the photograph: beyond the edge as at it, and by a Lanczos filter where it is smaller.

    What `crop_face` has enlarged comes back within 0.8 levels; averaging, which is quicker, loses 2.4.
    """
    smaller = CUTOFF * scale_of(matrix)
    if smaller < 1.0:
        taps = ceil(LOBES / smaller)
        at = np.arange(-taps, taps + 1) * smaller
        kernel = np.where(np.abs(at) < LOBES, np.sinc(at) * np.sinc(at / LOBES), 0)
        kernel = (kernel / kernel.sum()).astype(np.float32)
        pixels = np.asarray(cv2.sepFilter2D(pixels, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE), np.float32)
        return _bicubic(pixels, matrix, size, cv2.BORDER_REPLICATE)
    matrix = compose(matrix, resizing((3, 3), (1, 1)))
    warped = [
        cv2.warpAffine(_tripled(one), matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for one in cv2.split(pixels)
    ]
    return np.asarray(cv2.merge(warped), np.float32)


def _tripled(plane: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W) float32 -> (3 H, 3 W), as by `cv2.resize` with INTER_LANCZOS4, which takes three times as long.

    Between three samples and one, linear interpolation will do, and takes a fifth of bicubic's time.
    """
    height, width = plane.shape
    rows = cv2.merge([_shifted(plane, _THIRD[None, ::-1]), plane, _shifted(plane, _THIRD[None])]).reshape(height, -1)
    tripled = np.empty((height, 3, 3 * width), np.float32)
    tripled[:, 1] = rows
    _shifted(rows, _THIRD[::-1, None], tripled[:, 0])
    _shifted(rows, _THIRD[:, None], tripled[:, 2])
    return tripled.reshape(3 * height, 3 * width)


def _shifted(plane: NDArray[Any], kernel: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    return cv2.filter2D(plane, -1, np.ascontiguousarray(kernel), out, borderType=cv2.BORDER_REPLICATE)


def _bicubic(pixels: NDArray[Any], matrix: Matrix, size: tuple[int, int], border: int) -> NDArray[Any]:
    """One channel at a time and in floating point: OpenCV takes a third of the time of three channels of integers."""
    warped = [
        cv2.warpAffine(one.astype(np.float32), matrix, size, flags=cv2.INTER_CUBIC, borderMode=border)
        for one in cv2.split(pixels)
    ]
    whole = np.asarray(cv2.merge(warped))
    if pixels.dtype == np.float32:
        return whole
    return np.rint(whole).clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def rectangle(
    matrix: Matrix, size: int, shape: tuple[int, ...], part: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the pixels of an image that a crop covers.

    Right and bottom are exclusive; an empty rectangle has no pixel inside the image.

    Args:
        matrix: The transform from the image to the crop.
        size: Side of the crop, in pixels.
        shape: Shape of the image, (H, W, ...).
        part: Left, top, right and bottom of a part of the crop, as shares of its side.
    """
    return _bounds(transform(inverse(matrix), _corners(size, part)), shape, 0)


def _corners(size: int, part: tuple[float, float, float, float]) -> NDArray[np.float64]:
    left, top, right, bottom = (share * size - 0.5 for share in part)
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _bounds(points: NDArray[np.float64], shape: tuple[int, ...], margin: int) -> tuple[int, int, int, int]:
    """Of pixels inside an image of `shape`, with a margin around the points."""
    left, top = np.floor(points.min(0)).astype(int) - margin
    right, bottom = np.ceil(points.max(0)).astype(int) + 1 + margin
    height, width = shape[:2]
    left, top = min(max(int(left), 0), width), min(max(int(top), 0), height)
    return left, top, max(left, min(int(right), width)), max(top, min(int(bottom), height))
