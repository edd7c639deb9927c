"""The cascades inside OpenCV 4 (Viola and Jones, 2001): a detector that needs no file."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import InputNotFound, MissingDependency
from bfr.runtime.faces.geometry import Face, Matrix, inverse, resized, template, transform
from bfr.runtime.faces.suppression import without_repeats

RGB8 = NDArray[Any]  # uint8


class Haar:
    """For upright faces and heads turned by TURNS.

    Landmarks are less exact than a network's: the eyes are found by a cascade of their own, or supposed where faces
    have them; nose and mouth follow from the eyes.
    """

    name = "haar"
    SIDE = 960  # longest side that is searched, pixels
    TURNS = (0.0, -22.0, 22.0)  # degrees
    SMALLEST = 24  # pixels of a face, at that size
    AGREEING = 15  # neighbouring windows that must agree on a face whose eyes are not seen: folds and walls reach 13

    def __init__(self) -> None:
        self._faces = _cascade("haarcascade_frontalface_alt2.xml")
        self._eyes = _cascade("haarcascade_eye.xml")
        self._searching = threading.Lock()  # a cascade that two threads use at once ends the process

    def detect(self, pixels: RGB8) -> list[Face]:
        """See `Detector`."""
        scale = min(self.SIDE, 2 * max(pixels.shape[:2])) / max(pixels.shape[:2])
        smaller, back = resized(pixels, scale)
        grey = cv2.equalizeHist(cv2.cvtColor(smaller, cv2.COLOR_RGB2GRAY))
        with self._searching:
            faces = [face for turn in self.TURNS for face in self._turned(grey, turn, back)]
        return without_repeats(faces)

    def refine(self, pixels: RGB8, face: Face) -> Face:  # noqa: ARG002
        """The face as it is: its eyes were looked for already."""
        return face

    def _turned(self, grey: RGB8, degrees: float, back: Matrix) -> Iterator[Face]:
        height, width = grey.shape
        turn = np.asarray(cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0))
        corners = transform(turn, np.array([(0, 0), (width, 0), (width, height), (0, height)]))
        turn[:, 2] -= corners.min(0)
        size = np.ceil(np.ptp(corners, axis=0)).astype(int)
        turned = cv2.warpAffine(grey, turn, (int(size[0]), int(size[1]))) if degrees else grey
        boxes, counts = self._faces.detectMultiScale2(turned, 1.1, 4, minSize=(self.SMALLEST, self.SMALLEST))
        undo = inverse(turn)
        for (x, y, side, _), count in zip(boxes, np.ravel(counts).tolist(), strict=True):
            eyes, certain = self._eye_pair(turned[y : y + side, x : x + side])
            if not certain and count < self.AGREEING:
                continue
            landmarks = _from_eyes(eyes + np.array([x, y]))
            # A face whose eyes were seen is preferred to one whose were not.
            score = (0.5 if certain else 0.0) + 0.5 * count / (count + self.AGREEING)
            face = np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)], np.float64)
            turned_back = transform(undo, face)
            middle = turned_back.mean(0)
            yield _face(np.array([middle - side / 2, middle + side / 2]), transform(undo, landmarks), score, back)

    def _eye_pair(self, face: RGB8) -> tuple[Matrix, bool]:
        """The two eyes of an upright square face, left first, and whether both were seen."""
        side = face.shape[0]
        enlarge = max(1.0, 160 / side)
        upper = face[: round(0.62 * side)]
        upper = cv2.resize(upper, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)
        least = round(0.14 * side * enlarge)
        found = self._eyes.detectMultiScale(upper, 1.06, 3, minSize=(least, least))
        centres = [np.array([x + w / 2, y + h / 2]) / (side * enlarge) for x, y, w, h in found]
        supposed = np.array([(0.31, 0.40), (0.69, 0.40)])
        pair = []
        for expected in supposed:
            near = sorted((float(np.hypot(*(centre - expected))), tuple(centre)) for centre in centres)
            if near and near[0][0] < 0.13:
                pair.append(np.array(near[0][1]))
        if len(pair) == 2:
            return np.array(pair) * side, True
        return supposed * side, False


def _cascade(name: str) -> Any:
    """A `cv2.CascadeClassifier`. Raises MissingDependency and InputNotFound."""
    if not hasattr(cv2, "CascadeClassifier"):
        raise MissingDependency(
            f"OpenCV {cv2.__version__} has no face detector of its own, only 4.x has: run `bfr fetch yunet`"
        )
    folder = Path(cv2.data.haarcascades)  # type: ignore[attr-defined]
    cascade = cv2.CascadeClassifier(str(folder / name))
    if cascade.empty():
        raise InputNotFound(f"OpenCV came without {name}: run `bfr fetch yunet`, or reinstall OpenCV 4.x")
    return cascade


def _from_eyes(eyes: NDArray[Any]) -> NDArray[np.float64]:
    """Five landmarks from two: the template, moved so that its eyes lie on these."""
    points = template(512)
    source, target = points[:2], np.asarray(eyes, np.float64)
    # A similarity of the plane is a complex multiplication and an addition.
    from_, to = source @ (1, 1j), target @ (1, 1j)
    factor = (to[1] - to[0]) / (from_[1] - from_[0])
    moved = (points @ (1, 1j) - from_[0]) * factor + to[0]
    return np.stack([moved.real, moved.imag], axis=1)


def _face(corners: NDArray[Any], landmarks: NDArray[Any], score: float, back: Matrix) -> Face:
    box = transform(back, corners).astype(np.float32).ravel()
    return Face(box, transform(back, landmarks).astype(np.float32), min(max(score, 0.0), 1.0))
