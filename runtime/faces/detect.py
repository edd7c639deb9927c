"""Face detectors: OpenCV's YuNet where it was fetched, else the cascades that come inside OpenCV."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import BundleCorrupt, InputNotFound, InvalidOption
from bfr.runtime.faces.geometry import (
    Face,
    Matrix,
    alignment,
    crop_face,
    inverse,
    resizing,
    template,
    transform,
    without_repeats,
)
from bfr.runtime.faces.options import DetectorName
from bfr.runtime.files import cache_folder, sha256_file

RGB8 = NDArray[Any]  # uint8
DETECTORS: tuple[str, ...] = get_args(DetectorName)
YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_URL = f"https://huggingface.co/opencv/face_detection_yunet/resolve/main/{YUNET_FILE}"
YUNET_BYTES = 232_589
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
_log = logging.getLogger(__name__)


class Detector(Protocol):
    """Finds faces. Not thread-safe: a thread opens its own."""

    name: str

    def detect(self, pixels: RGB8) -> list[Face]:
        """The faces of an (H, W, 3) uint8 RGB image, best first, in its pixels."""
        ...

    def refine(self, pixels: RGB8, face: Face) -> Face:
        """The same face with landmarks from a closer look, where the detector knows one."""
        ...


def open_detector(name: str = "auto", *, folder: Path | None = None) -> Detector:
    """Open a detector, one of DETECTORS; `auto` is YuNet where `bfr fetch yunet` has been run, else the cascades.

    folder: where YuNet is, instead of the cache. Raises InvalidOption for another name, InputNotFound where YuNet was
    asked for and is not there, BundleCorrupt where its file is not the published one.
    """
    if name not in DETECTORS:
        raise InvalidOption(f"detector {name!r} is unknown: choose one of {', '.join(DETECTORS)}")
    if name == "haar":
        return Haar()
    path = (folder or cache_folder() / "yunet") / YUNET_FILE
    if name == "auto" and not path.is_file():
        _log.warning(
            "faces are found with the cascades inside OpenCV, which miss small, turned and rotated ones: "
            "`bfr fetch yunet` brings a better detector (230 kB)"
        )
        return Haar()
    if not path.is_file():
        raise InputNotFound(f"{path} does not exist: `bfr fetch yunet` downloads it")
    return YuNet(path)


class YuNet:
    """OpenCV's YuNet (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023), at two scales.

    It knows faces of about 10 to 300 pixels, so that the photograph is looked at twice: longest side SIDES[0] for the
    small faces and SIDES[1] for the large. Small photographs are enlarged, at most twice. Landmarks of small faces are
    an eighth of the eye distance off; `refine` looks again at the face upright and at the size that it knows best.
    """

    name = "yunet"
    SIDES, LEAST = (1920, 480), 64  # pixels, of the longest side and of each
    CLOSE, SHARE = 320, 0.9  # side of the closer look in pixels, and the share of it that an aligned crop fills
    SCORE, NMS, MOST = 0.6, 0.3, 5000

    def __init__(self, path: Path) -> None:
        """Check and load the model file. Raises BundleCorrupt where it is not the published one."""
        if (found := sha256_file(path)) != YUNET_SHA256:
            raise BundleCorrupt(
                f"{path} has sha256 {found}, the published file {YUNET_SHA256}: delete it and run `bfr fetch yunet`"
            )
        self._network = cv2.FaceDetectorYN.create(str(path), "", (320, 320), self.SCORE, self.NMS, self.MOST)

    def detect(self, pixels: RGB8) -> list[Face]:
        """See `Detector`."""
        longest = max(pixels.shape[:2])
        sides = sorted({min(side, 2 * longest) for side in self.SIDES})
        return without_repeats([face for side in sides for face in self._at(pixels, side / longest)])

    def refine(self, pixels: RGB8, face: Face) -> Face:
        """See `Detector`."""
        inner = round(self.CLOSE * self.SHARE)
        matrix = alignment(face.landmarks, inner)
        if matrix is None:
            return face
        matrix[:, 2] += (self.CLOSE - inner) / 2
        crop = np.asarray(crop_face(pixels, matrix, self.CLOSE), np.uint8)
        expected = transform(matrix, face.landmarks)
        eyes = float(np.hypot(*(expected[1] - expected[0])))
        found = [(float(np.hypot(*(look.landmarks - expected).mean(0))), look) for look in self._at(crop, 1.0)]
        distance, nearest = min(found, key=lambda pair: pair[0], default=(eyes, face))
        if distance > 0.5 * eyes:
            return face
        return Face(face.box, transform(inverse(matrix), nearest.landmarks).astype(np.float32), face.score)

    def _at(self, pixels: RGB8, scale: float) -> Iterator[Face]:
        smaller, back = _resized(pixels, scale)
        # Where a side is 32 or less, OpenCV's rows hold values that nobody computed.
        right, below = max(0, self.LEAST - smaller.shape[1]), max(0, self.LEAST - smaller.shape[0])
        smaller = cv2.copyMakeBorder(smaller, 0, below, 0, right, cv2.BORDER_CONSTANT)
        self._network.setInputSize((smaller.shape[1], smaller.shape[0]))
        _, rows = self._network.detect(cv2.cvtColor(smaller, cv2.COLOR_RGB2BGR))
        for row in rows if rows is not None else ():
            corners = np.array([row[:2], row[:2] + row[2:4]])
            # The network's right eye is the person's own: the left one of the picture, which comes first.
            yield _face(corners, row[4:14].reshape(5, 2), float(row[14]), back)


class Haar:
    """The cascades inside OpenCV (Viola and Jones, 2001), for upright faces and heads turned by TURNS.

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

    def detect(self, pixels: RGB8) -> list[Face]:
        """See `Detector`."""
        scale = min(self.SIDE, 2 * max(pixels.shape[:2])) / max(pixels.shape[:2])
        smaller, back = _resized(pixels, scale)
        grey = cv2.equalizeHist(cv2.cvtColor(smaller, cv2.COLOR_RGB2GRAY))
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


def _cascade(name: str) -> cv2.CascadeClassifier:
    folder = Path(cv2.data.haarcascades)  # type: ignore[attr-defined]
    cascade = cv2.CascadeClassifier(str(folder / name))
    if cascade.empty():
        raise InputNotFound(f"OpenCV came without {name}: reinstall opencv-python-headless 4.x, or `bfr fetch yunet`")
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


def _resized(pixels: RGB8, scale: float) -> tuple[RGB8, Matrix]:
    """The image at another scale, and the transform back."""
    height, width = pixels.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return pixels, resizing(size, size)
    # Averaging by a whole number first is quicker than by any other at once.
    whole = next((k for k in range(int(1 / scale), 1, -1) if width % k == height % k == 0), 1)
    if whole > 1:
        pixels = cv2.resize(pixels, (width // whole, height // whole), interpolation=cv2.INTER_AREA)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, size, interpolation=method), np.uint8), resizing(size, (width, height))


def _face(corners: NDArray[Any], landmarks: NDArray[Any], score: float, back: Matrix) -> Face:
    box = transform(back, corners).astype(np.float32).ravel()
    return Face(box, transform(back, landmarks).astype(np.float32), min(max(score, 0.0), 1.0))
