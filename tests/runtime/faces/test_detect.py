"""Detectors: YuNet around a stand-in that sees coloured discs, and the cascades on a photograph."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.errors import BundleCorrupt, InputNotFound, InvalidOption
from bfr.runtime.faces import detect
from bfr.runtime.faces.detect import YUNET_FILE, Haar, YuNet, open_detector
from bfr.runtime.faces.geometry import Face, resizing, template, transform
from bfr.runtime.files import cache_folder

Array = NDArray[Any]
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))  # RGB, one of each landmark
POINTS = np.array([(300.0, 200), (360, 204), (328, 240), (303, 270), (355, 273)])
EYES = 60.0


def discs(shape: tuple[int, int], landmarks: Array, radius: float = 9.0) -> Array:
    """A black photograph with a disc of its own colour at each landmark, smooth at its edge: its middle is exact."""
    pixels = np.zeros((*shape, 3), np.uint8)
    reach = int(radius) + 2
    for colour, (px, py) in zip(COLOURS, landmarks, strict=True):
        left, top = max(int(px) - reach, 0), max(int(py) - reach, 0)
        part = pixels[top : int(py) + reach + 1, left : int(px) + reach + 1]
        y, x = np.mgrid[top : top + part.shape[0], left : left + part.shape[1]]
        disc = np.rint(np.clip(radius + 0.5 - np.hypot(x - px, y - py), 0, 1)[..., None] * colour)
        part[...] = np.maximum(part, disc)
    return pixels


def row(landmarks: Array, score: float = 0.9) -> Array:
    """A row as OpenCV gives it: left, top, width and height of the box, x and y of the landmarks, score."""
    low, high = landmarks.min(0), landmarks.max(0)
    margin = (high - low).max() / 2
    return np.concatenate([low - margin, high - low + 2 * margin, landmarks.ravel(), [score]]).astype(np.float32)


def rough(landmarks: Array = POINTS) -> Face:
    """A face as a look from afar finds it: its landmarks are a sixth of the eye distance off."""
    off = EYES / 6 * np.array([(1, 0), (0, 1), (1, 0), (0.7, 0.7), (1, 0.2)])
    return Face(np.array([280, 150, 380, 300], np.float32), (landmarks + off).astype(np.float32), 0.7)


class Seer:
    """Stands in for cv2.FaceDetectorYN: one face, of the five colours that it expects in BGR order."""

    def __init__(self) -> None:
        self.size = (0, 0)
        self.sizes: list[tuple[int, int]] = []
        self.made: tuple[Any, ...] = ()

    def setInputSize(self, size: tuple[int, int]) -> None:  # noqa: N802
        self.size = size

    def detect(self, image: Array) -> tuple[int, Array | None]:
        assert image.flags.c_contiguous
        assert image.dtype == np.uint8
        assert image.shape == (self.size[1], self.size[0], 3)
        self.sizes.append(self.size)
        rows = self.rows(image)
        return (1, np.array(rows, np.float32)) if rows else (1, None)

    def rows(self, image: Array) -> list[Array]:
        bits = np.array([1, 2, 4])
        seen = cv2.threshold(image, 150, 1, cv2.THRESH_BINARY)[1] @ bits  # brighter than what lies outside
        middles = []
        for colour in COLOURS:
            y, x = np.nonzero(seen == (np.array(colour[::-1]) > 150) @ bits)
            if len(x) == 0:
                return []
            middles.append((x.mean(), y.mean()))
        return [row(np.array(middles))]


class Script(Seer):
    """Gives rows that depend on the width of the image alone."""

    def __init__(self, rows_at: dict[int, list[Array]]) -> None:
        super().__init__()
        self.rows_at = rows_at

    def rows(self, image: Array) -> list[Array]:
        return self.rows_at.get(image.shape[1], [])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model file that is taken for the published one."""
    (tmp_path / YUNET_FILE).write_bytes(b"model")
    monkeypatch.setattr(detect, "YUNET_SHA256", hashlib.sha256(b"model").hexdigest())
    return tmp_path


@pytest.fixture
def yunet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Seer], YuNet]:
    """Opens YuNet around a stand-in."""

    def opened(seer: Seer) -> YuNet:
        def create(*arguments: Any) -> Seer:
            seer.made = arguments
            return seer

        monkeypatch.setattr(cv2.FaceDetectorYN, "create", create)
        return YuNet(folder / YUNET_FILE)

    return opened


class TestOpen:
    def test_an_unknown_name_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(InvalidOption, match="'mtcnn' is unknown: choose one of auto, yunet, haar"):
            open_detector("mtcnn")

    def test_auto_without_yunet_is_the_cascades_and_says_so_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            detector = open_detector(folder=tmp_path)
        assert isinstance(detector, Haar)
        assert detector.name == "haar"
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "`bfr fetch yunet`" in caplog.text

    def test_who_asks_for_the_cascades_is_not_warned(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert isinstance(open_detector("haar", folder=folder), Haar)
        assert not caplog.records

    def test_yunet_is_asked_for_and_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputNotFound, match="bfr fetch yunet") as caught:
            open_detector("yunet", folder=tmp_path)
        assert str(tmp_path / YUNET_FILE) in str(caught.value)

    @pytest.mark.parametrize("name", ["auto", "yunet"])
    def test_yunet_where_it_is(
        self,
        name: str,
        folder: Path,
        yunet: Callable[[Seer], YuNet],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        seer = Seer()
        yunet(seer)
        assert open_detector(name, folder=folder).name == "yunet"
        assert seer.made[0] == str(folder / YUNET_FILE)
        cache = folder / "cache"
        (cache / "yunet").mkdir(parents=True)
        (folder / YUNET_FILE).rename(cache / "yunet" / YUNET_FILE)
        monkeypatch.setenv("BFR_HOME", str(cache))
        assert open_detector(name).name == "yunet"
        assert not caplog.records

    @pytest.mark.parametrize("name", ["auto", "yunet"])
    @pytest.mark.parametrize("content", [b"Model", b"mode", b"model ", b""])
    def test_a_changed_file_never_reaches_opencv(
        self, name: str, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_: pytest.fail("the file was opened"))
        (folder / YUNET_FILE).write_bytes(content)
        found, published = hashlib.sha256(content).hexdigest(), detect.YUNET_SHA256
        with pytest.raises(BundleCorrupt, match=f"{found}.*{published}.*bfr fetch yunet"):
            open_detector(name, folder=folder)

    def test_an_opencv_without_cascades(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cv2.data, "haarcascades", str(tmp_path))  # type: ignore[attr-defined]
        with pytest.raises(InputNotFound, match=r"haarcascade_.*bfr fetch yunet"):
            Haar()


class TestYuNet:
    @pytest.mark.parametrize("scale", [0.25, 1, 3])
    def test_landmarks_come_back_in_the_photographs_pixels(self, yunet: Callable[[Seer], YuNet], scale: float) -> None:
        """Red is the eye on the left of the picture: a wrong order of colours or of landmarks exchanges discs."""
        landmarks = POINTS * scale
        shape = (round(500 * scale), round(700 * scale))
        (found,) = yunet(Seer()).detect(discs(shape, landmarks, 9 * max(scale, 0.5)))
        assert np.abs(found.landmarks - landmarks).max() < 0.4 * max(scale, 1)
        assert found.landmarks.dtype == found.box.dtype == np.float32
        expected = row(landmarks)[:4]
        assert np.abs(found.box - [*expected[:2], *(expected[:2] + expected[2:])]).max() < max(scale, 1)
        assert found.score == pytest.approx(0.9)

    def test_one_look_for_small_faces_and_one_for_large(self, yunet: Callable[[Seer], YuNet]) -> None:
        seer = Seer()
        detector = yunet(seer)
        detector.detect(np.zeros((600, 4000, 3), np.uint8))
        assert sorted(seer.sizes) == [(480, 72), (1920, 288)]

    def test_small_photographs_are_enlarged_twice_at_most(self, yunet: Callable[[Seer], YuNet]) -> None:
        seer = Seer()
        detector = yunet(seer)
        detector.detect(np.zeros((50, 100, 3), np.uint8))
        assert seer.sizes == [(200, 100)]

    def test_a_narrow_photograph_goes_on_in_black(self, yunet: Callable[[Seer], YuNet]) -> None:
        landmarks = POINTS / 6 - np.array([30, 28])
        seer = Seer()
        (found,) = yunet(seer).detect(discs((26, 70), landmarks, 3))
        assert seer.sizes == [(140, 64)]
        assert np.abs(found.landmarks - landmarks).max() < 0.4

    def test_each_look_adds_its_faces_and_the_better_of_one_face_is_kept(self, yunet: Callable[[Seer], YuNet]) -> None:
        """A photograph of 960 x 600: twice as wide for the small faces, half for the large."""
        small, both, large = (POINTS / 6 + offset for offset in ((500, 100), (100, 300), (700, 400)))
        fine, coarse = (transform(resizing((960, 600), size), both) for size in ((1920, 1200), (480, 300)))
        seer = Script(
            {
                1920: [row(transform(resizing((960, 600), (1920, 1200)), small), 0.7), row(fine, 0.8)],
                480: [row(transform(resizing((960, 600), (480, 300)), large), 0.95), row(coarse + 0.3, 0.9)],
            }
        )
        found = yunet(seer).detect(np.zeros((600, 960, 3), np.uint8))
        assert [round(face.score, 2) for face in found] == [0.95, 0.9, 0.7]
        for face, expected, error in zip(found, (large, both, small), (0.01, 0.7, 0.01), strict=True):
            assert np.abs(face.landmarks - expected).max() < error

    def test_the_score_is_between_0_and_1(self, yunet: Callable[[Seer], YuNet]) -> None:
        seer = Script({1400: [row(POINTS, 1.0001)]})
        (found,) = yunet(seer).detect(np.zeros((500, 700, 3), np.uint8))
        assert found.score == 1.0

    @pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9000, 3), (9000, 1, 3), (400, 400, 3)])
    def test_no_face(self, yunet: Callable[[Seer], YuNet], shape: tuple[int, int, int]) -> None:
        seer = Seer()
        assert yunet(seer).detect(np.full(shape, 128, np.uint8)) == []
        assert max(max(size) for size in seer.sizes) <= 1920
        assert min(min(size) for size in seer.sizes) > 32  # below, OpenCV gives rows of chance values


class TestRefine:
    @pytest.mark.parametrize("degrees", [0, 40, -90, 180])
    @pytest.mark.parametrize("scale", [0.5, 1, 2])
    def test_landmarks_are_those_of_a_closer_look(
        self, yunet: Callable[[Seer], YuNet], degrees: float, scale: float
    ) -> None:
        turn = np.array(cv2.getRotationMatrix2D((330, 235), degrees, 1.0))
        landmarks = transform(turn, POINTS) * scale
        shape = (round(500 * scale), round(700 * scale))
        seen = rough(transform(turn, POINTS))
        seen = Face(seen.box * np.float32(scale), seen.landmarks * np.float32(scale), seen.score)
        seer = Seer()
        face = yunet(seer).refine(discs(shape, landmarks, 9 * scale), seen)
        assert np.abs(face.landmarks - landmarks).max() < 0.6 * scale  # of 60 between the eyes; 10 before
        assert np.array_equal(face.box, seen.box)
        assert face.score == seen.score
        assert face.landmarks.dtype == np.float32
        assert seer.sizes == [(320, 320)]

    def test_the_closer_look_has_the_face_upright_with_a_margin(self, yunet: Callable[[Seer], YuNet]) -> None:
        """What is looked at is the aligned crop, nine tenths of 320 wide, in its middle."""
        turn = np.array(cv2.getRotationMatrix2D((330, 235), 70, 1.0))
        landmarks = transform(turn, POINTS)
        looks: list[Array] = []

        class Recorder(Seer):
            def rows(self, image: Array) -> list[Array]:
                rows = super().rows(image)
                looks.append(rows[0][4:14].reshape(5, 2))
                return rows

        yunet(Recorder()).refine(discs((500, 700), landmarks), Face(np.zeros(4, np.float32), landmarks, 1.0))
        expected = np.array([(192.98, 239.95), (318.90, 240.19)]) / 512 * 288 + 16
        assert np.abs(looks[0][:2] - expected).max() < 12  # the discs are not quite the template

    def test_nothing_is_seen_from_near(self, yunet: Callable[[Seer], YuNet]) -> None:
        face = rough()
        assert yunet(Seer()).refine(np.zeros((500, 700, 3), np.uint8), face) is face

    def test_another_face_is_not_taken_for_this_one(self, yunet: Callable[[Seer], YuNet]) -> None:
        face = rough()
        pixels = discs((500, 700), POINTS + np.array([0.8 * EYES, 0]))
        assert yunet(Seer()).refine(pixels, face) is face

    def test_of_several_the_nearest_is_taken(self, yunet: Callable[[Seer], YuNet]) -> None:
        near, far = (template(512) / 512 * 288 + 16 + offset for offset in (3, 25))
        seer = Script({320: [row(far, 0.99), row(near, 0.6)]})
        face = Face(np.zeros(4, np.float32), POINTS.astype(np.float32), 0.7)
        moved = yunet(seer).refine(np.zeros((500, 700, 3), np.uint8), face).landmarks - POINTS
        assert 2 < np.hypot(*moved.mean(0)) < 6  # 3 pixels of the closer look right and down

    @pytest.mark.parametrize("value", [7.0, np.nan])
    def test_landmarks_of_no_face_stay(self, yunet: Callable[[Seer], YuNet], value: float) -> None:
        face = Face(np.zeros(4, np.float32), np.full((5, 2), value, np.float32), 0.7)
        seer = Seer()
        assert yunet(seer).refine(discs((500, 700), POINTS), face) is face
        assert not seer.sizes

    def test_a_face_at_the_border(self, yunet: Callable[[Seer], YuNet]) -> None:
        landmarks = POINTS - np.array([288, 150])
        face = yunet(Seer()).refine(discs((140, 90), landmarks), rough(landmarks))
        assert np.abs(face.landmarks - landmarks).max() < 0.6


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


class TestHaar:
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


def test_the_published_model(astronaut: Array, caplog: pytest.LogCaptureFixture) -> None:
    """Where it has been fetched."""
    if not (cache_folder() / "yunet" / YUNET_FILE).is_file():
        pytest.skip("`bfr fetch yunet` has not been run")
    detector = open_detector()
    for scale in (0.5, 2):
        pixels, landmarks = resized(astronaut, scale)
        face = detector.detect(pixels)[0]
        assert errors(detector.refine(pixels, face), landmarks).max() < 0.1
    for shape in ((1, 1, 3), (1, 500, 3), (500, 1, 3), (16, 500, 3), (500, 3, 3)):
        assert detector.detect(np.full(shape, 200, np.uint8)) == []
    assert not caplog.records
