"""Alignment against known similarities, crops against analytic images, and the choice of faces."""

from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from face_geometry import PUBLISHED, face, similarity, undone
from numpy.typing import NDArray
from pairs import pairwise

from bfr.runtime.faces.geometry import (
    Face,
    alignment,
    compose,
    crop_face,
    inverse,
    rectangle,
    resizing,
    scale_of,
    select_faces,
    template,
    transform,
    warp,
    warp_back,
)

Array = NDArray[Any]
DEGREES = [0, 20, -45, 90, 180]


def smooth(x: Array, y: Array, period: float) -> Array:
    """A colour image that is known at every point, 0 to 255, slow against `period` pixels."""
    k = 2 * np.pi / period
    red, green = np.sin(k * x + 0.3) * np.cos(0.7 * k * y), np.sin(0.8 * k * y + 1)
    return np.stack([128 + 80 * red, 128 + 60 * green + 20 * np.cos(k * x), 128 + 70 * np.cos(k * (x - y))], -1)


def sampled(shape: tuple[int, int], period: float, matrix: Array | None = None) -> Array:
    """The smooth image at the pixels of an image, or at those of a crop with `matrix`: photograph -> crop."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    points = np.stack([x.ravel(), y.ravel()], 1)
    if matrix is not None:
        points = undone(matrix, points)
    return smooth(*points.T, period).reshape(*shape, 3)


@cache
def smooth_photograph(side: int, period: float) -> Array:
    return np.rint(sampled((side, side), period) * 257).astype(np.uint16)


class TestTransforms:
    @pytest.mark.parametrize("scale", [0.01, 0.3, 1, 30])
    def test_there_and_back(self, scale: float) -> None:
        matrix = similarity(scale, 33, (12, -40), 512)
        points = np.array([(0.0, 0), (3, 4), (-100, 77)])
        assert np.allclose(transform(inverse(matrix), transform(matrix, points)), points, atol=1e-9)
        assert np.allclose(transform(inverse(matrix), points), undone(matrix, points), atol=1e-9)
        assert scale_of(matrix) == pytest.approx(scale)

    def test_the_first_of_two_comes_first(self) -> None:
        first, second = similarity(2, 90, (5, 1), 11), similarity(0.5, -30, (0, 7), 64)
        points = np.array([(0.0, 0), (3, 4), (-1, 7)])
        assert np.allclose(transform(compose(second, first), points), transform(second, transform(first, points)))

    def test_a_resize_keeps_the_corners_of_pixels_not_their_middles(self) -> None:
        corners = np.array([(-0.5, -0.5), (39.5, 29.5)])
        assert np.allclose(transform(resizing((40, 30), (160, 15)), corners), [(-0.5, -0.5), (159.5, 14.5)])

    def test_the_rectangle_of_a_crop(self) -> None:
        matrix = similarity(2, 0, (50, 40), 64)  # covers 34 .. 66 and 24 .. 56, edges of pixels at -0.5 + integers
        left, top, right, bottom = rectangle(matrix, 64, (100, 100, 3))
        assert 33 <= left <= 34
        assert 23 <= top <= 24
        assert 66 <= right - 1 <= 67
        assert 56 <= bottom - 1 <= 57
        assert rectangle(similarity(2, 0, (0, 99), 64), 64, (100, 100, 3))[::3] == (0, 100)

    @pytest.mark.parametrize("centre", [(-300, 50), (50, -300), (400, 50), (50, 400), (400, -400)])
    def test_the_rectangle_of_a_crop_outside_is_empty(self, centre: tuple[float, float]) -> None:
        left, top, right, bottom = rectangle(similarity(1, 30, centre, 64), 64, (100, 90, 3))
        assert 0 <= left <= right <= 90
        assert 0 <= top <= bottom <= 100
        assert left == right or top == bottom


class TestAlignment:
    def test_the_template_is_the_published_one(self) -> None:
        assert np.array_equal(template(512), PUBLISHED)

    def test_a_smaller_crop_is_the_larger_one_resized(self) -> None:
        """Pixel i of the half lies between pixels 2i and 2i + 1 of the whole."""
        assert np.allclose(template(256) * 2 + 0.5, PUBLISHED, atol=1e-12)
        assert np.allclose(transform(resizing((512, 512), (256, 256)), template(512)), template(256))

    @pairwise(scale=[0.3, 1, 3], degrees=DEGREES, size=[256, 512])
    def test_a_known_similarity_is_found(self, scale: float, degrees: float, size: int) -> None:
        matrix = similarity(scale, degrees, (300, 200), size)
        landmarks = undone(matrix, template(size))
        found = alignment(landmarks, size)
        assert found is not None
        assert np.abs(found[:, :2] - matrix[:, :2]).max() < 1e-6 * max(scale, 1)
        assert np.abs(transform(found, landmarks) - template(size)).max() < 5e-5  # landmarks are rounded to float32

    @pytest.mark.parametrize("wrong", range(5))
    @pytest.mark.parametrize("error", [(60, 0), (0, -90), (-400, 250)])
    def test_one_wrong_landmark_does_no_harm(self, wrong: int, error: tuple[float, float]) -> None:
        matrix = similarity(1.3, 15, (300, 200), 512)
        landmarks = undone(matrix, template(512))
        seen = landmarks.copy()
        seen[wrong] += error
        found = alignment(seen, 512)
        assert found is not None
        assert np.abs(transform(found, landmarks) - template(512)).max() < 0.01

    def test_small_errors_of_all_landmarks_move_the_crop_as_little(self) -> None:
        rng = np.random.default_rng(3)
        for degrees in DEGREES:
            landmarks = undone(similarity(1, degrees, (300, 200), 512), template(512))
            found = alignment(landmarks + rng.normal(0, 2, (5, 2)), 512)
            assert found is not None
            assert np.abs(transform(found, landmarks) - template(512)).max() < 15

    @pytest.mark.parametrize(
        "landmarks",
        [
            np.zeros((5, 2)),
            np.full((5, 2), 77.0),
            np.full((5, 2), np.nan),
            np.full((5, 2), np.inf),
            np.full((5, 2), 1e30),
            np.array(PUBLISHED) * 1e-6,
            np.array(PUBLISHED) * 1e6,
        ],
        ids=["zero", "equal", "nan", "inf", "far", "tiny", "huge"],
    )
    def test_landmarks_of_no_face(self, landmarks: Array) -> None:
        assert alignment(landmarks.astype(np.float32), 512) is None

    def test_a_landmark_that_is_not_a_number_counts_as_wrong(self) -> None:
        landmarks = np.array(PUBLISHED)
        landmarks[3] = np.nan
        found = alignment(landmarks, 512)
        assert found is None or np.allclose(found, np.eye(2, 3), atol=1e-4)


class TestCrop:
    @pytest.mark.parametrize("degrees", [0, 20, 90, -45])
    @pytest.mark.parametrize("scale", [0.07, 0.3, 0.9, 1, 3])
    def test_it_is_the_photograph_sampled_at_the_transformed_pixels(self, scale: float, degrees: float) -> None:
        """In 16 bits, so that rounding hides nothing; to the very edge, so that nothing from outside leaks in."""
        size = 64
        side, period = int(1.5 * size / scale) + 30, max(300.0, 60 / scale)
        matrix = similarity(scale, degrees, (side / 2 + 0.3, side / 2 - 0.7), size)
        photograph = smooth_photograph(side, period)
        expected = sampled((size, size), period, matrix)
        crop = crop_face(photograph, matrix, size)
        assert crop.dtype == np.uint16
        assert np.abs(crop / 257 - expected).max() < 1
        coarse = crop_face((photograph // 257).astype(np.uint8), matrix, size)
        assert coarse.dtype == np.uint8
        assert np.abs(coarse + 0.5 - expected).max() < 2.5  # three roundings more
        assert abs((coarse + 0.5 - expected).mean()) < 0.3

    @pytest.mark.parametrize("degrees", [0, 20, 45])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_detail_too_fine_for_the_crop_becomes_grey(self, degrees: float, dtype: type) -> None:
        white = np.iinfo(dtype).max
        board = np.repeat(((np.indices((400, 400)).sum(0) % 2) * white).astype(dtype)[..., None], 3, axis=2)
        crop = crop_face(board, similarity(0.25, degrees, (200, 200), 64), 64)
        assert np.ptp(crop) <= 0.02 * white
        assert abs(crop.mean() - white / 2) <= 0.01 * white

    @pytest.mark.parametrize("scale", [0.3, 1, 3])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_outside_the_photograph_there_is_no_edge(self, scale: float, dtype: type) -> None:
        """A network would sharpen it, and pasting carry it into the photograph's last columns."""
        photograph = np.full((300, 300, 3), 7, dtype)
        crop = crop_face(photograph, similarity(scale, 0, (0, 150), 64), 64)  # its left half lies outside
        assert (crop == 7).all()

    @pytest.mark.parametrize("degrees", [0, 30])
    @pytest.mark.parametrize("centre", [(0, 0), (79, 3), (40, 62), (-15, 30)])
    def test_at_the_border_it_is_as_if_the_photograph_went_on_mirrored(
        self, centre: tuple[float, float], degrees: float
    ) -> None:
        photograph = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        wide = np.pad(photograph, ((100, 100), (100, 100), (0, 0)), mode="reflect")
        crop = crop_face(photograph, similarity(1.5, degrees, centre, 64), 64)
        expected = crop_face(wide, similarity(1.5, degrees, (centre[0] + 100, centre[1] + 100), 64), 64)
        difference = np.abs(crop.astype(int) - expected)
        assert difference.max() <= 12  # positions are rounded to a thirty-second of a pixel, and this is noise
        assert difference.mean() < 0.3

    def test_wholly_outside(self) -> None:
        crop = crop_face(np.zeros((20, 20, 3), np.uint16), similarity(1, 10, (500, 500), 64), 64)
        assert np.array_equal(np.unique(crop.reshape(-1, 3), axis=0), [[132 * 257, 133 * 257, 135 * 257]])

    @pytest.mark.parametrize("scale", [0.2, 1, 2])
    def test_red_stays_red(self, scale: float) -> None:
        photograph = np.zeros((400, 400, 3), np.uint8)
        photograph[...] = (200, 30, 5)
        crop = crop_face(photograph, similarity(scale, 25, (200, 200), 32), 32)
        assert np.array_equal(np.unique(crop.reshape(-1, 3), axis=0), [[200, 30, 5]])

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_without_a_transform_every_level_is_kept(self, dtype: type) -> None:
        photograph = np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, (70, 90, 3), dtype)
        shift = np.array([[1.0, 0, -11], [0, 1.0, -3]])
        assert np.array_equal(crop_face(photograph, shift, 32), photograph[3:35, 11:43])

    def test_16_bits_are_8_bits_with_more_levels(self) -> None:
        photograph = np.random.default_rng(2).integers(0, 256, (90, 90, 3), np.uint8)
        matrix = similarity(1.7, 12, (45, 45), 64)
        fine = crop_face(photograph.astype(np.uint16) * 257, matrix, 64)
        assert np.abs(fine / 257 - crop_face(photograph, matrix, 64)).max() < 0.6
        assert (fine % 257).any()

    @pytest.mark.parametrize("shape", [(1, 1, 3), (1, 400, 3), (400, 1, 3)])
    @pytest.mark.parametrize("scale", [0.1, 1, 40])
    def test_thin_photographs(self, shape: tuple[int, int, int], scale: float) -> None:
        crop = crop_face(np.full(shape, 9, np.uint8), similarity(scale, 0, (0, 0), 32), 32)
        assert crop.shape == (32, 32, 3)
        if scale == 40:
            assert (crop[15:17, 15:17] == 9).all()  # in the middle of the one pixel


class TestChoice:
    SMALL, LARGE, MIDDLE = face((200, 0, 240, 50)), face((10, 10, 110, 130)), face((120, 60, 180, 130))

    def chosen(self, which: Any, least: float = 0.0) -> list[Face]:
        faces = [self.SMALL, self.MIDDLE, self.LARGE]
        return select_faces(faces, which, width=300, height=200, min_eye_distance=least)

    def test_all_come_from_left_to_right(self) -> None:
        assert self.chosen("all") == [self.LARGE, self.MIDDLE, self.SMALL]

    def test_the_largest(self) -> None:
        assert self.chosen("largest") == [self.LARGE]

    def test_the_one_in_the_middle(self) -> None:
        assert self.chosen("centre") == [self.MIDDLE]

    def test_too_small_faces_are_dropped_before_the_choice(self) -> None:
        limit = self.MIDDLE.eye_distance
        assert self.chosen("all", limit) == [self.LARGE, self.MIDDLE]
        assert self.chosen("all", limit + 0.01) == [self.LARGE]
        assert self.chosen("centre", limit + 0.01) == [self.LARGE]
        assert self.chosen("largest", 1000) == []

    def test_of_more_the_surest_are_taken_and_it_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        faces = [face((100 * k, 0, 100 * k + 90, 90), score=score) for k, score in enumerate((0.7, 0.9, 0.8))]
        chosen = select_faces(faces, "all", width=300, height=90, min_eye_distance=0, most=2)
        assert chosen == faces[1:]
        assert "3 faces" in caplog.text
        assert "--max-faces" in caplog.text
        caplog.clear()
        assert select_faces(faces, "all", width=300, height=90, min_eye_distance=0, most=3) == faces
        assert not caplog.records

    def test_none(self) -> None:
        assert select_faces([], "centre", width=1, height=1, min_eye_distance=0) == []

    def test_eyes_that_are_not_numbers_are_no_face(self) -> None:
        broken = face((0, 0, 10, 10))
        broken.landmarks[0] = np.nan
        assert select_faces([broken], "all", width=9, height=9, min_eye_distance=0) == []

    def test_measures(self) -> None:
        one = Face(np.array([10, 20, 40, 60], np.float32), np.array([(0, 0), (3, 4)] + [(0, 0)] * 3, np.float32), 1.0)
        assert one.eye_distance == 5
        assert one.area == 1200
        assert face((40, 20, 10, 60)).area == 0


class TestWarpBack:
    """From a crop that is finer than the photograph."""

    def test_what_the_crop_enlarged_comes_back(self) -> None:
        rng = np.random.default_rng(3)
        photograph = np.clip(cv2.GaussianBlur(rng.normal(128, 120, (80, 90)), (0, 0), 0.8), 0, 255).astype(np.uint8)
        matrix = np.array([[3.9, 0.4, -20], [-0.4, 3.9, 10]])
        crop = crop_face(photograph, matrix, 256).astype(np.float32)
        back, size = inverse(matrix), (90, 80)
        ways = (warp_back(crop, back, size), warp(crop, back, size, cv2.BORDER_REPLICATE))
        errors = [float(np.abs(way - photograph)[20:55, 20:60].mean()) for way in ways]
        assert errors[0] < 0.35 * errors[1]

    def test_what_is_too_fine_for_the_photograph_goes(self) -> None:
        """Lines of two pixels of the crop, at four for one of the photograph."""
        lines = np.tile(np.array([0, 200], np.float32), (256, 128))
        smaller = warp_back(lines, np.array([[0.25, 0, 0.1], [0, 0.25, 0.1]]), (64, 64))
        assert np.abs(smaller - 100)[4:-4, 4:-4].max() < 4

    def test_noise_keeps_its_power(self) -> None:
        noise = np.random.default_rng(4).normal(0, 10, (512, 512)).astype(np.float32)
        for scale in (0.5, 0.3):
            smaller = warp_back(noise, np.array([[scale, 0, 0.1], [0, scale, 0.1]]), (150, 150))
            assert smaller.std() == pytest.approx(10 * scale, rel=0.1)
