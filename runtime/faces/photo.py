"""Whole photographs: faces are found, aligned, restored and pasted back."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidImage, InvalidOption
from bfr.runtime.faces.background import Background, Lanczos, enlarge, open_background
from bfr.runtime.faces.condition import Condition, measure_condition
from bfr.runtime.faces.detect import Detector
from bfr.runtime.faces.each import each
from bfr.runtime.faces.geometry import Face, Matrix, alignment, crop_face, moved, select_faces
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.paste import Patch, make_patch, paste_faces, to_grey
from bfr.runtime.faces.yunet import YuNet
from bfr.runtime.images.decode import MAX_PIXELS, Image
from bfr.runtime.images.given import as_image
from bfr.runtime.images.result import Result
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.pipeline import FaceRestorer
from bfr.runtime.restore.restorer import DEFAULT_SEED

SURE = 0.92  # score from which on no other orientation is tried; turned pictures of 61 people had 0.91 at most
TURNED = 0.7  # least score of a face in a turned photograph


@dataclass(frozen=True, slots=True, eq=False)
class AlignedFace:
    """A face of a photograph, its transform to the crop, and the crop, (S, S, 3) of the photograph's dtype.

    Attributes:
        left: Whether it stays unchanged because it is already sharp; it then has no result.
    """

    face: Face
    matrix: Matrix
    crop: NDArray[Any]
    left: bool = False

    def condition(self, photograph: NDArray[Any] | None = None) -> Condition:
        """The condition of the face, see `measure_condition`."""
        return measure_condition(self.crop, self.matrix, photograph)


@dataclass(frozen=True, slots=True, eq=False)
class RestoredPhoto(Result):
    """The result of a photograph; notebooks display it.

    Attributes:
        pixels: (H * upscale, W * upscale, 3) RGB of its dtype; without faces, it is only enlarged.
        faces: The restored faces, left to right; empty for an aligned face.
        errors: The errors of faces that failed; these faces are unchanged.
        sharp: The faces left unchanged because they are already sharp.
        seconds: Stage -> seconds.
        source: The photograph, a copy of an array that was given.
    """

    pixels: NDArray[Any] = field(repr=False)
    faces: tuple[Face, ...]
    errors: tuple[str, ...]
    sharp: tuple[Face, ...]
    seconds: dict[str, float]
    source: Image = field(repr=False)


class PhotoEditor:
    """Everything but the networks: finds faces, crops them, and pastes restored ones."""

    def __init__(
        self,
        size: int,
        options: PhotoOptions | None = None,
        *,
        detector: Detector | None = None,
        background: Background | None = None,
    ) -> None:
        """Open what the options name.

        Args:
            size: Side of crops, in pixels.
            options: How faces are found and pasted.
            detector: A face detector, instead of YuNet.
            background: Enlarges the photograph, instead of the options' own.
        """
        if not isinstance(options, PhotoOptions | None):
            raise InvalidOption(f"options are PhotoOptions, not of type {type(options).__name__}")
        self.size, self.options = size, options or PhotoOptions()
        self.detector = detector or YuNet()
        self.background = background or open_background(self.options.background)

    def align(self, photograph: NDArray[Any]) -> list[AlignedFace]:
        """The faces of an (H, W, 3) uint8 or uint16 RGB photograph that the options choose, as crops."""
        shape, dtype = photograph.shape, photograph.dtype
        if photograph.ndim != 3 or shape[2] != 3 or photograph.size == 0 or dtype not in (np.uint8, np.uint16):
            raise InvalidImage(
                f"a photograph of shape {shape} and {dtype} was given: (H, W, 3) uint8 or uint16 RGB is needed"
            )
        faces = self.crop(photograph, self.find(photograph))
        if self.options.restore_sharp:
            return faces
        return [replace(face, left=face.condition(photograph).sharp) for face in faces]

    def find(self, photograph: NDArray[Any], *, turns: bool = True) -> list[Face]:
        """Return the faces that the options choose, from left to right.

        If no face has the score SURE, it tries four orientations and takes the one with the best score.

        Args:
            photograph: (H, W, 3) uint8 or uint16 RGB.
            turns: False tries one orientation, for frames of a video, where three more would cost time at each.
        """
        eight = photograph if photograph.dtype == np.uint8 else (photograph >> 8).astype(np.uint8)
        upright = self._look(eight)
        if not turns or any(face.score >= SURE for face in upright):
            return upright
        looks = (upright, *self._look_at_turns(eight))
        return max(looks, key=lambda faces: max((face.score for face in faces), default=0.0))

    def _look(self, eight: NDArray[np.uint8]) -> list[Face]:
        height, width = eight.shape[:2]
        found = select_faces(
            self.detector.detect(eight),
            self.options.faces,
            width=width,
            height=height,
            min_eye_distance=self.options.min_eye_distance,
            most=self.options.max_faces,
        )
        return each(lambda face: self.detector.refine(eight, face), found)

    def _look_at_turns(self, eight: NDArray[np.uint8]) -> Iterator[list[Face]]:
        """The faces seen after a turn by 90, 180 and 270 degrees, where they are in the photograph."""
        height, width = eight.shape[:2]
        back = {  # quarters counter-clockwise -> from the turned photograph to the photograph
            1: [[0, -1, width - 1], [1, 0, 0]],
            2: [[-1, 0, width - 1], [0, -1, height - 1]],
            3: [[0, 1, 0], [-1, 0, height - 1]],
        }
        for quarters, matrix in back.items():
            seen = self._look(np.ascontiguousarray(np.rot90(eight, quarters)))
            faces = [moved(face, np.array(matrix, np.float64)) for face in seen if face.score >= TURNED]
            yield sorted(faces, key=lambda face: tuple(face.box))

    def crop(self, photograph: NDArray[Any], faces: Sequence[Face]) -> list[AlignedFace]:
        """The crops of known faces; one whose landmarks fit no face is left out."""
        return self.crop_by(lambda matrix, size: crop_face(photograph, matrix, size), faces)

    def crop_by(self, cut: Callable[[Matrix, int], NDArray[Any]], faces: Sequence[Face]) -> list[AlignedFace]:
        """Return crops as `crop` does, cut by a function of an alignment and a size."""
        matrices = [(face, alignment(face.landmarks, self.size)) for face in faces]
        known = [(face, matrix) for face, matrix in matrices if matrix is not None]
        return each(lambda one: AlignedFace(*one, cut(one[1], self.size)), known)

    def paste(self, image: Image, faces: Sequence[AlignedFace], results: Sequence[Restored]) -> RestoredPhoto:
        """The photograph with its faces restored.

        Args:
            image: As `align` has seen it.
            faces: The faces, from `align` or `crop`.
            results: Those of the faces that are not left as they are, in their order.
        """
        begin = time.perf_counter()
        options = self.options
        pixels = enlarge(self.background, image.pixels, image.alpha, options.upscale)
        grey = image.colourless
        if grey and not isinstance(self.background, Lanczos):
            pixels = to_grey(pixels)  # a network may have coloured it
        enlarged = time.perf_counter()
        pairs = _paired(faces, results)
        restored = tuple(face.face for face, result in pairs if result and result.pixels is not None)
        errors = tuple(result.error or "unknown" for _, result in pairs if result and result.pixels is None)
        sharp = tuple(face.face for face in faces if face.left)
        if restored:
            patches = self.patches(faces, results, grey=grey)
            paste_faces(pixels, patches, upscale=options.upscale, blend=options.blend, detail=options.detail)
        seconds = {"background": enlarged - begin, "paste": time.perf_counter() - enlarged}
        return RestoredPhoto(pixels, restored, errors, sharp, seconds, image)

    def patches(self, faces: Sequence[AlignedFace], results: Sequence[Restored], *, grey: bool) -> list[Patch]:
        """What is to be pasted, as of `paste`; grey: into a picture without colour."""
        return [  # one after the other: in threads, so many short calls wait for Python's lock
            make_patch(
                face.crop,
                result.pixels if result else None,
                face.matrix,
                landmarks=face.face.landmarks,
                keep_colour=self.options.keep_colour,
                grey=grey,
            )
            for face, result in _paired(faces, results)
        ]


class PhotoRestorer(PhotoEditor):
    """Restores the faces of photographs with a Restorer.

    `align` and `paste` may be called from other threads while the Restorer runs; `restore` is all three in a row.
    """

    def __init__(
        self,
        restorer: FaceRestorer,
        options: PhotoOptions | None = None,
        *,
        detector: Detector | None = None,
        background: Background | None = None,
    ) -> None:
        """`detector` and `background` as of `PhotoEditor`. Raises InvalidOption if `restorer` or `options` are none."""
        if not hasattr(restorer, "run"):
            raise InvalidOption(f"an object of type {type(restorer).__name__} was given: open a Restorer first")
        super().__init__(restorer.size, options, detector=detector, background=background)
        self.restorer = restorer

    def __getstate__(self) -> NoReturn:
        raise TypeError("a PhotoRestorer cannot be copied or sent to another process: make one there")

    def restore(self, photograph: Any, *, seed: int = DEFAULT_SEED) -> RestoredPhoto:
        """Restore the faces of a photograph, which is not changed. In one without colour, faces get no colour.

        Args:
            photograph: A path, bytes, a PIL image, an array or a tensor, as `bfr.runtime.as_image` takes them; floats
                become 16 bits.
            seed: Seed of the noise, as in `Restorer.restore`.

        Raises:
            InputNotFound, InvalidImage: `photograph` is no image.
        """
        begin = time.perf_counter()
        image = as_image(photograph)
        faces = self.align(image.pixels)
        aligned = time.perf_counter()
        results = self.restorer.run([face.crop for face in faces if not face.left], seed=seed)
        restored = time.perf_counter()
        photo = self.paste(image, faces, results)
        seconds = {"align": aligned - begin, "restore": restored - aligned, "paste": time.perf_counter() - restored}
        return replace(photo, seconds=seconds)


def _paired(faces: Sequence[AlignedFace], results: Sequence[Restored]) -> list[tuple[AlignedFace, Restored | None]]:
    """Faces and their results; None if one is left as it is."""
    following = iter(results)
    return [(face, None if face.left else next(following)) for face in faces]


def read_reference(image: Any, worker: FaceRestorer | PhotoRestorer, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Return a picture of the person for systems that keep an identity: the largest face of a photograph, aligned.

    Args:
        image: A photograph as `as_image` takes it. With a Restorer, which takes aligned faces, it is an aligned face.
        worker: What restores the images that the reference is for.
        max_pixels: Larger images are refused.

    Raises:
        InvalidImage: It is no image, or has no face.
    """
    pixels = as_image(image, max_pixels=max_pixels).pixels
    if not isinstance(worker, PhotoRestorer):
        return pixels
    faces = PhotoEditor(worker.size, PhotoOptions(faces="largest"), detector=worker.detector).align(pixels)
    if not faces:
        name = image if isinstance(image, str | PathLike) else "the reference"
        raise InvalidImage(f"{name}: no face was found: choose a clear photograph of the person for --reference")
    return faces[0].crop
