"""YuNet, OpenCV's face detector (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023), decoded here."""

import os
import threading
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import (
    Face,
    Matrix,
    alignment,
    compose,
    inverse,
    rectangle,
    resized,
    resizing,
    scale_of,
    transform,
    warp,
)
from bfr.runtime.faces.suppression import without_repeats

RGB8 = NDArray[Any]  # uint8
Float32 = NDArray[np.float32]
Network = Callable[[Float32], Mapping[str, Float32]]
"""(1, 3, H, W) BGR in [0, 255], H and W multiples of 32 -> HEADS, (1, cells, channels) each, cells in rows."""

MODEL = Path(__file__).with_name("yunet.onnx")
"""OpenCV Zoo's face_detection_yunet_2023mar.onnx, see yunet.LICENSE."""
STRIDES = (8, 16, 32)  # pixels of a head's cell
HEADS = tuple(f"{name}_{stride}" for name in ("cls", "obj", "bbox", "kps") for stride in STRIDES)
SCORE = 0.6  # least
CANDIDATES = 5000  # of one pass
SMALL = 512 * 512  # pixels of a pass up to which a second thread saves no time
# The published graph is fixed to 640 x 640, though no node of it depends on that. In its only input, a `Dimension` with
# the value 640 becomes one with a name, of as many bytes.
_FIXED, _HEIGHT, _WIDTH = b"\x0a\x03\x08\x80\x05", b"\x0a\x03\x12\x01H", b"\x0a\x03\x12\x01W"


class YuNet:
    """Faces at several scales.

    YuNet detects faces of about 10 to 300 pixels. So it runs on the picture at FINE pixels, for small faces, and again
    at COARSE, for large ones. A picture smaller than ENLARGED is enlarged by up to MOST_ENLARGED, to detect faces of 5
    to 8 pixels between the eyes; more enlargement detects no further faces. Landmarks of small faces are off by an
    eighth of the eye distance; `refine` runs YuNet again on the upright face, at the size that suits it best.
    """

    name = "yunet"
    FINE, COARSE = 1920, (480, 240)  # pixels of the longest side
    ENLARGED, MOST_ENLARGED = 1280, 1.5
    APART = 1.4  # least ratio of two sizes: a coarse pass nearer to the fine one detects no further faces
    CLOSE, SHARE = 256, 0.9  # side of the second pass in pixels, and the share of it that an aligned crop fills

    def __init__(self) -> None:
        self._network = open_network(MODEL.read_bytes())

    def detect(self, pixels: RGB8) -> list[Face]:
        """See `Detector`."""
        found, smaller, back = [], pixels, resizing((1, 1), (1, 1))
        for side in self.sides(max(pixels.shape[:2])):
            smaller, step = resized(smaller, side / max(smaller.shape[:2]))
            back = compose(back, step)
            found += self._look(smaller, back)
        return without_repeats(found)

    def refine(self, pixels: RGB8, face: Face) -> Face:
        """See `Detector`."""
        inner = round(self.CLOSE * self.SHARE)
        matrix = alignment(face.landmarks, inner)
        if matrix is None:
            return face
        matrix[:, 2] += (self.CLOSE - inner) / 2
        crop = _upright(pixels, matrix, self.CLOSE)
        expected = transform(matrix, face.landmarks)
        eyes = float(np.hypot(*(expected[1] - expected[0])))
        looks = without_repeats(self._look(crop, resizing((1, 1), (1, 1))))
        found = [(float(np.hypot(*(look.landmarks - expected).mean(0))), look) for look in looks]
        distance, nearest = min(found, key=lambda pair: pair[0], default=(eyes, face))
        if distance > 0.5 * eyes:
            return face
        return Face(face.box, transform(inverse(matrix), nearest.landmarks).astype(np.float32), face.score)

    @classmethod
    def sides(cls, longest: int) -> list[int]:
        """The longest sides of the passes over a picture of `longest` pixels, the fine one first."""
        fine = max(min(longest, cls.FINE), min(round(cls.MOST_ENLARGED * longest), cls.ENLARGED))
        return [fine, *(side for side in cls.COARSE if side * cls.APART <= fine)]

    def _look(self, pixels: RGB8, back: Matrix) -> list[Face]:
        """Detect faces in one pass; `back` transforms them to the pixels of the result."""
        height, width = pixels.shape[:2]
        padded = cv2.copyMakeBorder(pixels, 0, -height % 32, 0, -width % 32, cv2.BORDER_CONSTANT)
        blob = padded.transpose(2, 0, 1)[None, ::-1].astype(np.float32, order="C")  # blue first
        rows = decode(self._network(blob), padded.shape[1])
        boxes = transform(back, rows[:, :4].reshape(-1, 2)).astype(np.float32).reshape(-1, 4)
        landmarks = transform(back, rows[:, 4:14].reshape(-1, 2)).astype(np.float32).reshape(-1, 5, 2)
        return [Face(*each) for each in zip(boxes, landmarks, rows[:, 14].tolist(), strict=True)]


def _upright(pixels: RGB8, matrix: Matrix, size: int) -> RGB8:
    """A crop that is black outside the photograph: mirroring would complete half a face."""
    left, top, right, bottom = rectangle(matrix, size, pixels.shape)
    margin = ceil(3 / min(scale_of(matrix), 1.0))  # for the interpolation
    left, top = max(left - margin, 0), max(top - margin, 0)
    part = pixels[top : bottom + margin, left : right + margin]
    if part.size == 0:
        return np.zeros((size, size, 3), np.uint8)
    shifted = compose(matrix, np.array([[1.0, 0, left], [0, 1.0, top]]))
    return np.asarray(warp(part, shifted, (size, size), cv2.BORDER_CONSTANT), np.uint8)


def decode(heads: Mapping[str, Float32], width: int) -> Float32:
    """Decode the network's heads, as OpenCV's `FaceDetectorYN` does, before suppression.

    Args:
        heads: HEADS by name.
        width: Width of the padded picture, pixels.

    Returns:
        (N, 15) by score: left, top, right, bottom; x and y of the landmarks; score, SCORE to 1. The network's right eye
        is the person's own: the left one of the picture, which comes first.
    """
    found = []
    for stride in STRIDES:
        sure = heads[f"cls_{stride}"].ravel().clip(0, 1) * heads[f"obj_{stride}"].ravel().clip(0, 1)
        scores = np.sqrt(sure)
        cells = np.flatnonzero(scores >= SCORE)
        corner = np.stack([cells % (width // stride), cells // (width // stride)], axis=1).astype(np.float32)
        box, points = heads[f"bbox_{stride}"][0, cells], heads[f"kps_{stride}"][0, cells].reshape(-1, 5, 2)
        middle, half = (corner + box[:, :2]) * stride, np.exp(box[:, 2:]) * (stride / 2)
        landmarks = ((points + corner[:, None]) * stride).reshape(-1, 10)
        found.append(np.concatenate([middle - half, middle + half, landmarks, scores[cells, None]], axis=1))
    rows = np.concatenate(found).astype(np.float32)
    rows = rows[np.isfinite(rows).all(axis=1)]
    return rows[np.argsort(-rows[:, 14], kind="stable")[:CANDIDATES]]


def open_network(model: bytes) -> Network:
    """Open the network in ONNX Runtime, which is three times as fast as OpenCV; without ONNX Runtime, in OpenCV."""
    try:
        import onnxruntime as ort
    except ImportError:
        net, alone = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8)), threading.Lock()

        def by_opencv(blob: Float32) -> Mapping[str, Float32]:
            with alone:
                net.setInput(blob)
                return dict(zip(HEADS, (np.array(head, np.float32) for head in net.forward(HEADS)), strict=True))

        return by_opencv
    free = model.replace(_FIXED, _HEIGHT, 1).replace(_FIXED, _WIDTH, 1)
    sessions = []
    for threads in (1, min(4, os.cpu_count() or 1)):
        options = ort.SessionOptions()
        options.log_severity_level = 3  # it would warn of every size but 640
        options.intra_op_num_threads = threads
        options.enable_mem_pattern = False  # for each size it would keep as much memory again: 80 MB of 12 megapixels
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the networks run beside it
        sessions.append(ort.InferenceSession(free, options, providers=["CPUExecutionProvider"]))

    def by_onnxruntime(blob: Float32) -> Mapping[str, Float32]:
        session = sessions[blob[0, 0].size > SMALL]
        return dict(zip(HEADS, session.run(HEADS, {"input": blob}), strict=True))

    return by_onnxruntime
