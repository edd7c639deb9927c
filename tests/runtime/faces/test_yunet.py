"""YuNet around a stand-in for its network that sees coloured discs; its decoding beside OpenCV's; the real network."""

import hashlib
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.faces import yunet as module
from bfr.runtime.faces.geometry import Face, resizing, template, transform
from bfr.runtime.faces.yunet import HEADS, MODEL, SCORE, YuNet, decode, open_network
from bfr.runtime.images.decode import read_image

Array = NDArray[Any]
Opened = Callable[["Seer"], YuNet]
ASTRONAUT = Path(__file__).parents[3] / "docs/images/astronaut.png"  # 256 x 256
EYES_NOSE_MOUTH = np.array([(100.0, 123.3), (163.7, 122.3), (132.5, 158.8), (104.2, 179.7), (163.3, 177.5)])  # hers
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
    """Left, top, right, bottom of the box; x and y of the landmarks; score."""
    low, high = landmarks.min(0), landmarks.max(0)
    margin = (high - low).max() / 2
    return np.concatenate([low - margin, high + margin, landmarks.ravel(), [score]]).astype(np.float32)


def rough(landmarks: Array = POINTS) -> Face:
    """A face as a look from afar finds it: its landmarks are a sixth of the eye distance off."""
    off = EYES / 6 * np.array([(1, 0), (0, 1), (1, 0), (0.7, 0.7), (1, 0.2)])
    return Face(np.array([280, 150, 380, 300], np.float32), (landmarks + off).astype(np.float32), 0.7)


def heads(rows: list[Array], width: int, height: int) -> Mapping[str, Array]:
    """What the network gives for a picture whose sides are multiples of 32: each row in a cell of the finest head."""
    found = {name: np.zeros((1, 0, 1), np.float32) for name in HEADS}
    channels = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
    for name in HEADS:
        kind, stride = name.split("_")
        found[name] = np.zeros((1, (width // int(stride)) * (height // int(stride)), channels[kind]), np.float32)
    for at, one in enumerate(rows):
        corner = np.array([at, 0])
        middle, size = (one[:2] + one[2:4]) / 2, one[2:4] - one[:2]
        found["cls_8"][0, at] = one[14]
        found["obj_8"][0, at] = one[14]
        found["bbox_8"][0, at] = [*(middle / 8 - corner), *np.log(size / 8)]
        found["kps_8"][0, at] = (one[4:14].reshape(5, 2) / 8 - corner).ravel()
    return found


class Seer:
    """Stands in for the network: one face, of the five colours that it expects in BGR order."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, blob: Array) -> Mapping[str, Array]:
        assert blob.dtype == np.float32
        height, width = blob.shape[2:]
        assert blob.shape == (1, 3, height, width)
        assert width % 32 == height % 32 == 0
        self.sizes.append((width, height))
        return heads(self.rows(blob[0].transpose(1, 2, 0).astype(np.uint8)), width, height)

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
    """Gives rows that depend on the width of the padded image alone."""

    def __init__(self, rows_at: dict[int, list[Array]]) -> None:
        super().__init__()
        self.rows_at = rows_at

    def rows(self, image: Array) -> list[Array]:
        return self.rows_at.get(image.shape[1], [])


@pytest.fixture
def yunet(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens YuNet around a stand-in."""

    def opened(seer: Seer) -> YuNet:
        monkeypatch.setattr(module, "open_network", lambda _model: seer)
        return YuNet()

    return opened


class TestYuNet:
    @pytest.mark.parametrize("scale", [0.25, 1, 3])
    def test_landmarks_come_back_in_the_photographs_pixels(self, yunet: Opened, scale: float) -> None:
        """Red is the eye on the left of the picture: a wrong order of colours or of landmarks exchanges discs."""
        landmarks = POINTS * scale
        shape = (round(500 * scale), round(700 * scale))
        (found,) = yunet(Seer()).detect(discs(shape, landmarks, 9 * max(scale, 0.5)))
        assert np.abs(found.landmarks - landmarks).max() < 0.4 * max(scale, 1)
        assert found.landmarks.dtype == found.box.dtype == np.float32
        assert np.abs(found.box - row(landmarks)[:4]).max() < max(scale, 1)
        assert found.score == pytest.approx(0.9)

    @pytest.mark.parametrize(
        ("shape", "sizes"),
        [
            ((600, 4000, 3), [(1920, 288), (480, 96), (256, 64)]),
            ((720, 1280, 3), [(1280, 736), (480, 288), (256, 160)]),
            ((500, 1000, 3), [(1280, 640), (480, 256), (256, 128)]),
            ((300, 400, 3), [(608, 480), (256, 192)]),  # 480 would show what 600 shows
            ((50, 100, 3), [(160, 96)]),
        ],
    )
    def test_looks_are_chosen_by_the_photographs_size(
        self, yunet: Opened, shape: tuple[int, ...], sizes: list[tuple[int, int]]
    ) -> None:
        """One for small faces, where the photograph is small enlarged by half at most, and others for large ones."""
        seer = Seer()
        yunet(seer).detect(np.zeros(shape, np.uint8))
        assert seer.sizes == sizes

    def test_a_narrow_photograph_goes_on_in_black(self, yunet: Opened) -> None:
        landmarks = POINTS / 6 - np.array([30, 28])
        seer = Seer()
        (found,) = yunet(seer).detect(discs((26, 70), landmarks, 3))
        assert seer.sizes == [(128, 64)]
        assert np.abs(found.landmarks - landmarks).max() < 0.4

    def test_each_look_adds_its_faces_and_the_better_of_one_face_is_kept(self, yunet: Opened) -> None:
        """A photograph of 960 x 600: 1280 pixels wide for the small faces, half for the large."""
        small, both, large = (POINTS / 6 + offset for offset in ((500, 100), (100, 300), (700, 400)))
        fine, coarse = (transform(resizing((960, 600), size), both) for size in ((1280, 800), (480, 300)))
        seer = Script(
            {
                1280: [row(transform(resizing((960, 600), (1280, 800)), small), 0.7), row(fine, 0.8)],
                480: [row(transform(resizing((960, 600), (480, 300)), large), 0.95), row(coarse + 0.3, 0.9)],
            }
        )
        found = yunet(seer).detect(np.zeros((600, 960, 3), np.uint8))
        assert [round(face.score, 2) for face in found] == [0.95, 0.9, 0.7]
        for face, expected, error in zip(found, (large, both, small), (0.01, 0.7, 0.01), strict=True):
            assert np.abs(face.landmarks - expected).max() < error

    def test_the_score_is_between_0_and_1(self, yunet: Opened) -> None:
        seer = Script({1056: [row(POINTS, 1.0001)]})
        (found,) = yunet(seer).detect(np.zeros((500, 700, 3), np.uint8))
        assert found.score == 1.0

    @pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9000, 3), (9000, 1, 3), (400, 400, 3)])
    def test_no_face(self, yunet: Opened, shape: tuple[int, int, int]) -> None:
        seer = Seer()
        assert yunet(seer).detect(np.full(shape, 128, np.uint8)) == []
        assert max(max(size) for size in seer.sizes) <= 1920

    def test_half_faces_inside_a_face_are_not_faces(self, yunet: Opened) -> None:
        """In a picture that it looks at too closely, it takes halves of a face for faces."""
        whole = row(POINTS, 0.95)
        left, upper, right, lower = whole[:4]
        half = row(POINTS * [0.4, 0.7] + [190, 60], 0.65)
        half[:4] = [left - 6, upper, (left + right) / 2, (upper + lower) / 2]
        large = transform(resizing((700, 500), (480, 343)), POINTS)
        half[:14] *= 1.5
        seer = Script({1056: [row(POINTS * 1.5 + 0.25, 0.95), half], 480: [row(large, 0.9)]})
        (found,) = yunet(seer).detect(np.zeros((500, 700, 3), np.uint8))
        assert np.abs(found.landmarks - POINTS).max() < 1


class TestRefine:
    @pytest.mark.parametrize("degrees", [0, 40, -90, 180])
    @pytest.mark.parametrize("scale", [0.5, 1, 2])
    def test_landmarks_are_those_of_a_closer_look(self, yunet: Opened, degrees: float, scale: float) -> None:
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
        assert seer.sizes == [(256, 256)]

    def test_the_closer_look_has_the_face_upright_with_a_margin(self, yunet: Opened) -> None:
        """What is looked at is the aligned crop, nine tenths of 256 wide, in its middle."""
        turn = np.array(cv2.getRotationMatrix2D((330, 235), 70, 1.0))
        landmarks = transform(turn, POINTS)
        looks: list[Array] = []

        class Recorder(Seer):
            def rows(self, image: Array) -> list[Array]:
                rows = super().rows(image)
                looks.append(rows[0][4:14].reshape(5, 2))
                return rows

        yunet(Recorder()).refine(discs((500, 700), landmarks), Face(np.zeros(4, np.float32), landmarks, 1.0))
        expected = np.array([(192.98, 239.95), (318.90, 240.19)]) / 512 * 230 + 13
        assert np.abs(looks[0][:2] - expected).max() < 12  # the discs are not quite the template

    def test_nothing_is_seen_from_near(self, yunet: Opened) -> None:
        face = rough()
        assert yunet(Seer()).refine(np.zeros((500, 700, 3), np.uint8), face) is face

    def test_another_face_is_not_taken_for_this_one(self, yunet: Opened) -> None:
        face = rough()
        pixels = discs((500, 700), POINTS + np.array([0.8 * EYES, 0]))
        assert yunet(Seer()).refine(pixels, face) is face

    def test_of_several_the_nearest_is_taken(self, yunet: Opened) -> None:
        near, far = (template(512) / 512 * 230 + 13 + offset for offset in (3, 150))
        seer = Script({256: [row(far, 0.99), row(near, 0.6)]})
        face = Face(np.zeros(4, np.float32), POINTS.astype(np.float32), 0.7)
        moved = yunet(seer).refine(np.zeros((500, 700, 3), np.uint8), face).landmarks - POINTS
        assert 2 < np.hypot(*moved.mean(0)) < 6  # 3 pixels of the closer look right and down

    @pytest.mark.parametrize("value", [7.0, np.nan])
    def test_landmarks_of_no_face_stay(self, yunet: Opened, value: float) -> None:
        face = Face(np.zeros(4, np.float32), np.full((5, 2), value, np.float32), 0.7)
        seer = Seer()
        assert yunet(seer).refine(discs((500, 700), POINTS), face) is face
        assert not seer.sizes

    def test_a_face_at_the_border(self, yunet: Opened) -> None:
        landmarks = POINTS - np.array([288, 150])
        face = yunet(Seer()).refine(discs((140, 90), landmarks), rough(landmarks))
        assert np.abs(face.landmarks - landmarks).max() < 0.6


@pytest.fixture(scope="module")
def astronaut() -> Array:
    return np.asarray(read_image(ASTRONAUT).pixels)


def resized(pixels: Array, scale: float) -> tuple[Array, Array]:
    """The photograph at another scale, and her landmarks there."""
    side = round(256 * scale)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    landmarks = transform(resizing((256, 256), (side, side)), EYES_NOSE_MOUTH)
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=method)), landmarks


def error(face: Face, landmarks: Array) -> float:
    """Mean over the landmarks, in eye distances."""
    return float(np.hypot(*(face.landmarks - landmarks).T).mean() / np.hypot(*(landmarks[1] - landmarks[0])))


class TestNetwork:
    def test_the_file_is_the_published_one(self) -> None:
        """Its hash in OpenCV Zoo, which keeps it with Git LFS."""
        published = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
        assert hashlib.sha256(MODEL.read_bytes()).hexdigest() == published

    @pytest.mark.parametrize("scale", [0.25, 1, 4])
    def test_a_face_is_found_once_at_any_scale(self, astronaut: Array, scale: float) -> None:
        pixels, landmarks = resized(astronaut, scale)
        before, detector = pixels.copy(), YuNet()
        [face] = detector.detect(pixels)
        left, top, right, bottom = face.box
        assert left < landmarks[:, 0].min() < landmarks[:, 0].max() < right
        assert top < landmarks[:, 1].min() < landmarks[:, 1].max() < bottom
        assert error(detector.refine(pixels, face), landmarks) < 0.15
        assert np.array_equal(pixels, before)

    def test_several_threads_may_use_it(self, astronaut: Array) -> None:
        detector, pixels = YuNet(), resized(astronaut, 0.5)[0]
        [alone] = detector.detect(pixels)
        with ThreadPoolExecutor(3) as pool:
            for [face] in pool.map(detector.detect, [pixels] * 6):
                np.testing.assert_array_equal(face.landmarks, alone.landmarks)

    @pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 1, 3), (16, 500, 3), (500, 3, 3)])
    def test_no_face_and_no_crash(self, shape: tuple[int, int, int]) -> None:
        assert YuNet().detect(np.full(shape, 200, np.uint8)) == []

    def test_decoded_as_opencv_does(self, astronaut: Array) -> None:
        pixels = np.ascontiguousarray(astronaut[:, :, ::-1])
        theirs = cv2.FaceDetectorYN.create(str(MODEL), "", (256, 256), SCORE, 1.0, 5000)  # no suppression
        rows = np.asarray(theirs.detect(pixels)[1])
        rows = rows[np.argsort(-rows[:, 14], kind="stable")]
        rows[:, 2:4] += rows[:, :2]
        ours = decode(open_network(MODEL.read_bytes())(cv2.dnn.blobFromImage(pixels)), 256)
        assert len(ours) > 3
        np.testing.assert_allclose(ours, rows, rtol=1e-3, atol=0.01)

    def test_without_onnx_runtime_opencv_runs_it(self, astronaut: Array, monkeypatch: pytest.MonkeyPatch) -> None:
        pixels, _ = resized(astronaut, 0.5)
        [expected] = YuNet().detect(pixels)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        [face] = YuNet().detect(pixels)
        np.testing.assert_allclose(face.landmarks, expected.landmarks, atol=0.1)  # pixels
        assert face.score == pytest.approx(expected.score, abs=0.01)


class TestDecoding:
    def test_small_looks_have_one_thread_and_large_ones_have_several(self, monkeypatch: pytest.MonkeyPatch) -> None:
        used = []

        class Session:
            def __init__(self, _model: bytes, options: Any, providers: list[str]) -> None:
                assert providers == ["CPUExecutionProvider"]
                self.threads = options.intra_op_num_threads

            def run(self, names: tuple[str, ...], _inputs: Mapping[str, Array]) -> list[Array]:
                used.append(self.threads)
                return [np.zeros(1)] * len(names)

        monkeypatch.setattr("onnxruntime.InferenceSession", Session)
        monkeypatch.setattr(module.os, "cpu_count", lambda: 3)
        network = open_network(b"")
        for side in (YuNet.CLOSE, 480, 640):
            network(np.zeros((1, 3, side, side), np.float32))
        assert used == [1, 1, 3]

    def test_values_that_are_no_numbers_are_no_faces(self) -> None:
        rows = heads([row(POINTS, 0.9), row(POINTS + 90, 0.8)], 704, 512)
        rows["kps_8"][0, 0, 3] = np.nan
        assert decode(rows, 704)[:, 14] == pytest.approx(0.8)

    def test_of_very_many_the_best_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "CANDIDATES", 3)
        rows = decode(heads([row(POINTS, 0.6 + k / 100) for k in range(9)], 704, 512), 704)
        assert rows[:, 14] == pytest.approx([0.68, 0.67, 0.66])
