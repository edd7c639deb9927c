"""The cascades of OpenCV 4, and YuNet where it was fetched, on a photograph."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.errors import InputNotFound, MissingDependency
from bfr.runtime.faces.detect import YUNET_FILE, open_detector
from bfr.runtime.faces.geometry import Face, resizing, transform
from bfr.runtime.faces.haar import Haar
from bfr.runtime.files import cache_folder

Array = NDArray[Any]
FETCHED = cache_folder() / "yunet" / YUNET_FILE  # by the user; tests have a cache folder of their own
without_cascades = pytest.mark.skipif(not hasattr(cv2, "CascadeClassifier"), reason="OpenCV 5 has no cascades")


def test_an_opencv_without_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip("OpenCV 5 has no cascades")
    monkeypatch.setattr(cv2.data, "haarcascades", str(tmp_path))  # type: ignore[attr-defined]
    with pytest.raises(InputNotFound, match=r"haarcascade_.*bfr fetch yunet"):
        Haar()


def test_an_opencv_without_cascades(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "CascadeClassifier", raising=False)
    with pytest.raises(MissingDependency, match=r"OpenCV \d.* bfr fetch yunet|`bfr fetch yunet`"):
        Haar()


ASTRONAUT = np.array([(202.7, 100.5), (244.8, 105.8), (218.6, 126.4), (199.3, 139.5), (238.2, 144.0)])
"""Where she has eyes, nose and mouth in scikit-image's photograph, (512, 512, 3)."""


@pytest.fixture(scope="module")
def astronaut() -> Array:
    data = pytest.importorskip("skimage.data")
    return np.asarray(data.astronaut())


def resized(pixels: Array, scale: float) -> tuple[Array, Array]:
    """The photograph at another scale, and her landmarks there."""
    side = round(512 * scale)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    landmarks = transform(resizing((512, 512), (side, side)), ASTRONAUT)
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=method)), landmarks


def errors(face: Face, landmarks: Array) -> Array:
    """Of each landmark, in eye distances."""
    return np.hypot(*(face.landmarks - landmarks).T) / np.hypot(*(landmarks[1] - landmarks[0]))


@pytest.fixture(scope="module")
def haar() -> Haar:
    return Haar()


@without_cascades
class TestHaar:
    def test_threads_take_turns(self, haar: Haar, astronaut: Array) -> None:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(haar.detect, [astronaut] * 6))
        assert [len(faces) for faces in found] == [1] * 6

    def test_folds_and_walls_are_no_faces(self, haar: Haar, astronaut: Array) -> None:
        """The cascade alone answers six times here; eyes are seen, and windows agree, at her face only."""
        assert len(haar.detect(astronaut)) == 1

    @pytest.mark.parametrize("scale", [0.5, 4])
    def test_a_face_is_found_at_any_scale(self, haar: Haar, astronaut: Array, scale: float) -> None:
        pixels, landmarks = resized(astronaut, scale)
        before = pixels.copy()
        faces = haar.detect(pixels)
        best = faces[0]
        assert errors(best, landmarks)[:2].max() < 0.12  # the eyes
        assert errors(best, landmarks).max() < 0.3
        left, top, right, bottom = best.box
        assert left < landmarks[:, 0].min() < landmarks[:, 0].max() < right
        assert top < landmarks[:, 1].min() < landmarks[:, 1].max() < bottom
        assert best.box.dtype == best.landmarks.dtype == np.float32
        assert 0.5 < best.score <= 1
        assert haar.refine(pixels, best) is best
        assert np.array_equal(pixels, before)
        assert all(face.score <= best.score for face in faces)
        assert all(errors(face, landmarks).max() > 1 for face in faces[1:])  # she is found once

    @pytest.mark.parametrize("degrees", [-20, 20])
    def test_a_tilted_face_is_found(self, haar: Haar, astronaut: Array, degrees: float) -> None:
        half, landmarks = resized(astronaut, 0.5)
        turn = np.asarray(cv2.getRotationMatrix2D((127.5, 127.5), degrees, 1.0))
        best = haar.detect(np.asarray(cv2.warpAffine(half, turn, (256, 256))))[0]
        assert errors(best, transform(turn, landmarks))[:2].max() < 0.12
        assert errors(best, transform(turn, landmarks)).max() < 0.3

    @pytest.mark.parametrize(
        "shape", [(1, 1, 3), (1, 700, 3), (700, 1, 3), (2, 3, 3), (300, 300, 3), (1, 100_000, 3), (100_000, 1, 3)]
    )
    def test_no_face_and_no_crash(self, haar: Haar, shape: tuple[int, int, int]) -> None:
        for level in (0, 128, 255):
            assert haar.detect(np.full(shape, level, np.uint8)) == []


def test_the_published_model(
    astronaut: Array, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has been fetched."""
    if not FETCHED.is_file():
        pytest.skip("`bfr fetch yunet` has not been run")
    monkeypatch.setenv("BFR_HOME", str(FETCHED.parents[1]))
    detector = open_detector()
    for scale in (0.5, 2):
        pixels, landmarks = resized(astronaut, scale)
        face = detector.detect(pixels)[0]
        assert errors(detector.refine(pixels, face), landmarks).max() < 0.1
    for shape in ((1, 1, 3), (1, 500, 3), (500, 1, 3), (16, 500, 3), (500, 3, 3)):
        assert detector.detect(np.full(shape, 200, np.uint8)) == []
    assert not caplog.records
