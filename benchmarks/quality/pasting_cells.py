"""What `pasting` measures: photographs around a face, degraded, and ways of pasting a restored crop into them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.benchmarks.quality.metrics import UInt8
from bfr.models.systems.mini.degrade import Degradation
from bfr.runtime.errors import InputNotFound
from bfr.runtime.faces.background import Lanczos
from bfr.runtime.faces.geometry import (
    Matrix,
    alignment,
    compose,
    crop_face,
    inverse,
    resizing,
    scale_of,
    transform,
    warp,
)
from bfr.runtime.faces.options import Detail
from bfr.runtime.faces.paste import make_patch, paste_faces
from bfr.runtime.faces.yunet import YuNet
from bfr.runtime.images.decode import read_image
from bfr.runtime.jobs.sources import find_images

AROUND = 1.3  # the part of the photograph that is looked at, in sides of the square
DEGRADATIONS = {  # what one restores a face for; blur in percent of the square's side
    "noise 8": Degradation(noise=8),
    "noise 20": Degradation(noise=20),
    "blur 2 %": Degradation(blur=(2.0, 2.0)),
    "blur 4 %": Degradation(blur=(4.0, 4.0)),
    "JPEG 50": Degradation(jpeg=50),
    "JPEG 20": Degradation(jpeg=20),
}
OWN: dict[str, Detail] = {"pasted": "auto", "detail photo": "photo", "detail crop": "crop"}
OTHERS = ("published", "difference", "crop")


@dataclass(frozen=True, slots=True, eq=False)
class Portrait:
    """A photograph, (H, W, 3) uint8 RGB, the landmarks of its largest face, and its square's side, pixels."""

    pixels: UInt8
    landmarks: NDArray[Any]
    side: float


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A face to paste: the truth, the photograph, `upscale` times smaller, both aligned by `matrix` of the latter."""

    truth: UInt8
    photograph: UInt8
    matrix: Matrix
    landmarks: NDArray[Any]
    upscale: int

    @property
    def to_crop(self) -> Matrix:
        """From the truth to the crop."""
        return compose(self.matrix, resizing(self.truth.shape[1::-1], self.photograph.shape[1::-1]))

    def clean(self, size: int) -> UInt8:
        """The truth's own crop, (size, size, 3): what a perfect restorer gives."""
        return np.asarray(crop_face(self.truth, self.to_crop, size), np.uint8)

    def enlarged(self) -> UInt8:
        """The photograph at the truth's size, unrestored."""
        return np.asarray(Lanczos().enlarge(self.photograph, self.upscale), np.uint8)


def read_portraits(folder: Path, limit: int, size: int) -> list[Portrait]:
    """Read the first photographs of a folder in which YuNet finds a face.

    Args:
        folder: Folder of photographs.
        limit: How many are read.
        size: Side of the aligned crop, pixels.

    Raises:
        InputNotFound: There is none.
    """
    detector, found = YuNet(), list[Portrait]()
    for item in find_images([folder]):
        pixels = np.asarray(read_image(Path(item.source)).pixels, np.uint8)
        faces = sorted(detector.detect(pixels), key=lambda face: face.area)
        if faces and (matrix := alignment(faces[-1].landmarks, size)) is not None:
            side = size / scale_of(matrix)
            found.append(Portrait(pixels, faces[-1].landmarks, side))
        if len(found) == limit:
            break
    if not found:
        raise InputNotFound(f"{folder} has no photograph in which YuNet finds a face")
    return found


def make_cell(portrait: Portrait, side: int, upscale: int, degradation: Degradation, size: int) -> Cell | None:
    """The photograph around the face, at the size at which the face's square has `side` pixels.

    None if it would be enlarged, or if the landmarks fit no face.
    """
    scale = side / portrait.side
    if scale * upscale > 1.02:
        return None
    pixels, landmarks = _surroundings(portrait)
    height, width = pixels.shape[:2]
    small = (round(width * scale), round(height * scale))
    large = (small[0] * upscale, small[1] * upscale)
    truth = np.asarray(cv2.resize(pixels, large, interpolation=cv2.INTER_AREA), np.uint8)
    photograph = np.asarray(cv2.resize(truth, small, interpolation=cv2.INTER_AREA), np.uint8) if upscale > 1 else truth
    landmarks = transform(resizing((width, height), small), landmarks)
    matrix = alignment(landmarks, size)
    if matrix is None:
        return None
    if sigma := degradation.blur[0] * side / 100:  # Degradation's kernel is too small for large faces
        photograph = np.asarray(cv2.GaussianBlur(photograph, (0, 0), sigma), np.uint8)
    degraded = replace(degradation, blur=(0.0, 0.0)).apply(photograph, np.random.default_rng(side))
    return Cell(truth, degraded, matrix, landmarks, upscale)


def _surroundings(portrait: Portrait) -> tuple[UInt8, NDArray[Any]]:
    """The part of the photograph within AROUND squares of the face, and the landmarks in it."""
    middle, reach = portrait.landmarks.mean(axis=0), portrait.side * AROUND / 2
    height, width = portrait.pixels.shape[:2]
    left, top = np.maximum(np.floor(middle - reach), 0).astype(int)
    right, bottom = np.minimum(np.ceil(middle + reach), (width, height)).astype(int)
    return portrait.pixels[top:bottom, left:right], portrait.landmarks - (left, top)


def paste_own(cell: Cell, crop: UInt8, restored: UInt8) -> dict[str, UInt8]:
    """By this runtime, with each choice of `detail`."""
    patch = make_patch(crop, restored, cell.matrix, landmarks=cell.landmarks)
    results = {}
    for name, detail in OWN.items():
        if name == "pasted" or scale_of(cell.matrix) < 1:  # else there is nothing to choose
            results[name] = cell.enlarged()
            paste_faces(results[name], [patch], upscale=cell.upscale, detail=detail)
    return results


def paste_others(cell: Cell, crop: UInt8, restored: UInt8) -> dict[str, UInt8]:
    """By three other ways, as `paste_own`.

    published: as facexlib does: the restored crop, bilinear, under a square that is eroded by a tenth of its side and
    blurred by as much. crop: the same, antialiased, under a mask that falls from a tenth of the side on. difference:
    what restoring changed, added under that mask.
    """
    enlarged = cell.enlarged()
    height, width = enlarged.shape[:2]
    size, back = crop.shape[0], inverse(cell.to_crop)
    square = cv2.warpAffine(np.ones((size, size), np.float32), back, (width, height))
    reach = max(int(square.sum() ** 0.5) // 20, 1)
    eroded = cv2.erode(square, np.ones((2 * reach,) * 2, np.uint8), borderValue=0)
    published = cv2.GaussianBlur(eroded, (2 * reach + 1,) * 2, 0)[..., None]
    bilinear = cv2.warpAffine(restored, back, (width, height), borderMode=cv2.BORDER_REPLICATE)
    edge = size // 20
    profile = np.zeros((1, size), np.float32)
    profile[:, edge : size - edge] = 1
    soft = cv2.GaussianBlur(profile, (2 * edge + 1, 1), 0, borderType=cv2.BORDER_CONSTANT)
    former = cv2.warpAffine(soft.T @ soft, back, (width, height))[..., None]
    face = warp(restored.astype(np.float32), back, (width, height), cv2.BORDER_REPLICATE)
    change = warp(restored.astype(np.float32) - crop, back, (width, height), cv2.BORDER_REPLICATE)
    results = {
        "published": enlarged + published * (bilinear.astype(np.float32) - enlarged),
        "difference": enlarged + former * change,
        "crop": enlarged + former * (face - enlarged),
    }
    return {name: np.clip(np.rint(pixels), 0, 255).astype(np.uint8) for name, pixels in results.items()}
