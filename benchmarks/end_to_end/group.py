"""Group photographs, composed from portraits whose landmarks are known: ground truth for finding and pasting faces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.detect import Detector
from bfr.runtime.faces.geometry import Face, transform, warp

AROUND = 1.9  # side of the square taken from a portrait, in sides of the face's box
MIN_FACE, MAX_TURN = 0.1, 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Portrait:
    """One person: (H, W, 3) uint8 RGB and the five landmarks, (5, 2)."""

    pixels: NDArray[np.uint8]
    landmarks: NDArray[Any]
    box: NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A composed photograph, and the landmarks of each person, (5, 2)."""

    pixels: NDArray[np.uint8]
    landmarks: tuple[NDArray[np.float64], ...]


def measure_portrait(pixels: NDArray[np.uint8], detector: Detector) -> Portrait | None:
    """The landmarks of one person as the median of nine looks: five sizes, and four of them mirrored.

    They are the detector's own at its best, no person's annotation; None if it is not found in most looks.
    """
    height, width = pixels.shape[:2]
    looks: list[Face] = []
    for longest in (240, 320, 400, 480, 640):
        size = (round(width * longest / max(height, width)), round(height * longest / max(height, width)))
        small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        back = np.array([width / size[0], height / size[1]], np.float32)
        for mirrored in (False, True)[: 1 if longest == 640 else 2]:
            faces = detector.detect(np.ascontiguousarray(small[:, ::-1]) if mirrored else small)
            if not faces:
                continue
            box, points = faces[0].box.reshape(2, 2).copy(), faces[0].landmarks.copy()
            if mirrored:
                points = np.stack([size[0] - 1 - points[:, 0], points[:, 1]], 1)[[1, 0, 2, 4, 3]]
                box = np.stack([size[0] - 1 - box[::-1, 0], box[:, 1]], 1)
            looks.append(Face(((box + 0.5) * back - 0.5).ravel(), (points + 0.5) * back - 0.5, faces[0].score))
    if len(looks) < 5:
        return None
    box = np.median([face.box for face in looks], axis=0)
    return Portrait(pixels, np.median([face.landmarks for face in looks], axis=0), box)


def compose_group(
    portraits: Sequence[Portrait], count: int, *, width: int, height: int, rng: np.random.Generator
) -> Group:
    """`count` people in a grid on a plain wall.

    Scales are log-uniform from MIN_FACE to 1, heads turned by up to MAX_TURN degrees.
    A person never grows beyond its place in the grid.
    """
    columns = int(np.ceil(np.sqrt(count * width / height)))
    rows = int(np.ceil(count / columns))
    cell = np.array([width / columns, height / rows])
    wall = cv2.resize(
        rng.uniform(90, 150, (4, 5, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    canvas = np.clip(wall + rng.normal(0, 2, (height, width, 1)).astype(np.float32), 0, 255).astype(np.uint8)
    landmarks = []
    for i in range(count):
        portrait = portraits[int(rng.integers(len(portraits)))]
        side = AROUND * float((portrait.box[2:] - portrait.box[:2]).max())
        most = min(1.0, float(cell.min()) / side)
        scale = float(np.exp(rng.uniform(np.log(min(MIN_FACE, most)), np.log(most))))
        middle = cell * (i % columns + 0.5, i // columns + 0.5)
        centre = (portrait.box[:2] + portrait.box[2:]) / 2
        turn = float(rng.uniform(-MAX_TURN, MAX_TURN))
        matrix = np.asarray(cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), turn, scale), np.float64)
        matrix[:, 2] += middle - centre
        _place(canvas, portrait, matrix, scale * side / 2, middle)
        landmarks.append(transform(matrix, portrait.landmarks))
    return Group(canvas, tuple(landmarks))


def _place(
    canvas: NDArray[np.uint8], portrait: Portrait, matrix: NDArray[np.float64], radius: float, middle: NDArray[Any]
) -> None:
    """Head and shoulders, in a disc with a soft edge."""
    left, top = np.maximum(np.floor(middle - radius), 0).astype(int)
    right, bottom = np.minimum(np.ceil(middle + radius), canvas.shape[1::-1]).astype(int)
    local = matrix - [[0, 0, left], [0, 0, top]]
    size = (int(right - left), int(bottom - top))
    person = warp(portrait.pixels, local, size, cv2.BORDER_REPLICATE)
    y, x = np.mgrid[top:bottom, left:right]
    distance = np.hypot(x - middle[0], y - middle[1]) / radius
    weight = np.clip((1 - distance) / 0.08, 0, 1)[..., None].astype(np.float32)
    part = canvas[top:bottom, left:right]
    part[...] = np.rint(part + weight * (person.astype(np.float32) - part)).astype(np.uint8)
