"""What is measured of a face: sharpness at the crop's scale whatever the noise, noise, and JPEG's blocks."""

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.faces.condition import BLOCKS, GRAIN, NOISE, SHARP, Condition, measure_condition
from bfr.runtime.faces.geometry import crop_face

Array = NDArray[Any]
SIZE = 256
SAME = np.array([[1.0, 0, 0], [0, 1.0, 0]])


def drawn(size: int = SIZE, contrast: float = 1.0) -> Array:
    """Smooth light with discs that have sharp edges, (size, size, 3) uint8."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:size, :size] / size
    light = 120 + 30 * np.sin(3 * x + 2 * y)
    for cx, cy, radius, level in rng.uniform([0.2, 0.2, 0.03, -90], [0.8, 0.9, 0.12, 90], (25, 4)):
        light += level * (np.hypot(x - cx, y - cy) < radius)
    levels = cv2.GaussianBlur(128 + contrast * (light - 128), (0, 0), 0.4 * size / SIZE)
    return np.repeat(np.clip(np.rint(levels), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def noisy(pixels: Array, strength: float) -> Array:
    noise = np.random.default_rng(5).normal(0, strength, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def blurred(pixels: Array, sigma: float) -> Array:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), np.uint8)


def as_jpeg(pixels: Array, quality: int) -> Array:
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def measured(pixels: Array, matrix: Array = SAME) -> Condition:
    return measure_condition(crop_face(pixels, matrix, SIZE), matrix, pixels)


class TestSharpness:
    def test_a_clean_face_with_sharp_edges_is_sharp(self) -> None:
        assert measured(drawn()).sharp

    @pytest.mark.parametrize(("contrast", "strength"), [(0.3, 0), (0.3, 4), (1, 0), (1, 4), (1, 10)])
    def test_a_blurred_one_is_not_and_noise_does_not_make_it_so(self, strength: float, contrast: float) -> None:
        condition = measured(noisy(blurred(drawn(contrast=contrast), 1.6), strength))
        assert condition.acuity < SHARP
        assert not condition.sharp

    def test_it_falls_with_the_blur(self) -> None:
        found = [measured(blurred(drawn(), sigma)).acuity for sigma in (0.5, 1, 1.5, 2.5)]
        assert found == sorted(found, reverse=True)
        assert found[-1] == pytest.approx(0.27, abs=0.03)

    @pytest.mark.parametrize("colours", [3, 16, 32])
    def test_steps_of_few_colours_are_no_sharpness(self, colours: int) -> None:
        step = 256 // colours
        condition = measured(blurred(drawn(), 1.6) // step * step)
        assert condition.acuity > 0.3
        assert 1 < condition.colours <= colours + 1
        assert not condition.sharp

    def test_it_does_not_depend_on_contrast_or_depth(self) -> None:
        full, faint = measured(drawn()).acuity, measured(drawn(contrast=0.4)).acuity
        assert faint == pytest.approx(full, rel=0.05)
        deep = drawn().astype(np.uint16) * np.uint16(257)
        assert measured(deep).acuity == pytest.approx(full, rel=0.01)
        assert measured(deep).noise == pytest.approx(measured(drawn()).noise, abs=0.1)

    def test_of_a_large_face_what_the_crop_can_hold_counts(self) -> None:
        """Blurred by a pixel in a photograph four times as large as the crop."""
        large = blurred(drawn(4 * SIZE), 1.0)
        quarter = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]])
        assert measured(large, quarter).sharp
        assert not measured(blurred(large, 8), quarter).sharp

    def test_a_face_smaller_than_the_crop_is_not_sharp(self) -> None:
        double = np.array([[2.0, 0, 0.5], [0, 2.0, 0.5]])
        assert not measured(drawn(SIZE // 2), double).sharp

    def test_a_flat_face_and_one_of_noise_alone_are_not_sharp(self) -> None:
        flat = np.full((SIZE, SIZE, 3), 90, np.uint8)
        assert not measured(flat).sharp
        assert measured(flat).acuity == 0
        assert not measured(noisy(flat, 6)).sharp

    @pytest.mark.parametrize("size", [1, 2, 8, 32])
    def test_small_crops(self, size: int) -> None:
        pixels = np.full((size, size, 3), 90, np.uint8)
        assert not measure_condition(pixels, SAME, pixels).sharp


class TestNoise:
    @pytest.mark.parametrize("strength", [2, 6, 12])
    def test_it_is_its_standard_deviation(self, strength: float) -> None:
        grey_noise = np.random.default_rng(5).normal(0, strength, (SIZE, SIZE, 1))
        pixels = np.clip(np.rint(drawn() + grey_noise), 0, 255).astype(np.uint8)
        assert measured(pixels).noise == pytest.approx(strength, rel=0.2)

    def test_a_noisy_face_is_not_sharp_already(self) -> None:
        assert measured(noisy(drawn(), 14)).noise > NOISE
        assert not measured(noisy(drawn(), 14)).sharp

    def test_noise_counts_where_it_is_seen(self) -> None:
        """In a photograph four times as large as the crop, in which it is averaged away."""
        quarter = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]])
        clean, grainy = drawn(4 * SIZE), noisy(drawn(4 * SIZE), 14)
        assert measured(clean, quarter).sharp
        assert not measured(grainy, quarter).sharp
        assert measure_condition(crop_face(grainy, quarter, SIZE), quarter).noise < NOISE


def grainy(pixels: Array, strength: float, width: float) -> Array:
    """With film grain: noise of grains `width` pixels wide."""
    grain = cv2.GaussianBlur(np.random.default_rng(7).normal(size=pixels.shape[:2]), (0, 0), width)
    return np.clip(np.rint(pixels + (strength / grain.std() * grain)[..., None]), 0, 255).astype(np.uint8)


def printed(pixels: Array, period: float, strength: float = 0.3) -> Array:
    """As a halftone: a screen of dots `period` pixels apart at 45 degrees."""
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]] * (2 * np.pi / period / np.sqrt(2))
    screen = 128 + 63.5 * (np.cos(x + y) + np.cos(x - y))[..., None]
    dots = cv2.GaussianBlur(np.clip(4.0 * (pixels - screen) + 128, 0, 255), (0, 0), period / 5)
    return np.clip(np.rint(pixels + strength * (dots - pixels)), 0, 255).astype(np.uint8)


class TestGrain:
    @pytest.mark.parametrize(("strength", "width"), [(6, 0.7), (6, 1.2), (14, 1.6)])
    def test_a_grainy_print_is_not_sharp_already(self, strength: float, width: float) -> None:
        condition = measured(grainy(drawn(), strength, width))
        assert condition.grain > GRAIN
        assert condition.noise < NOISE  # grain is not white: neighbours are alike
        assert not condition.sharp

    @pytest.mark.parametrize("period", [3, 4.5, 6, 9])
    def test_nor_is_a_halftone(self, period: float) -> None:
        condition = measured(printed(drawn(), period))
        assert condition.grain > GRAIN
        assert not condition.sharp

    def test_nor_is_one_whose_screen_the_crop_hides(self) -> None:
        quarter = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]])
        halftone = printed(drawn(4 * SIZE), 3)
        assert not measured(halftone, quarter).sharp
        assert measure_condition(crop_face(halftone, quarter, SIZE), quarter).sharp

    def test_texture_in_some_places_is_none(self) -> None:
        """Grass behind a face, hair, a knitted cap: much of the picture, but not all."""
        pixels = grainy(drawn(), 12, 0.8)
        pixels[SIZE // 4 :, SIZE // 4 : -SIZE // 4] = drawn()[SIZE // 4 :, SIZE // 4 : -SIZE // 4]
        assert measured(pixels).grain < GRAIN
        assert measured(pixels).sharp

    def test_where_white_and_black_hide_it_nothing_is_judged(self) -> None:
        """An engraving on white paper."""
        light = np.where(drawn() < 120, drawn(), 255).astype(np.uint8)
        pixels = np.where(light < 255, grainy(light, 10, 1), 255).astype(np.uint8)
        assert measured(pixels).grain > GRAIN


class TestBlocks:
    def test_a_poor_jpeg_is_not_sharp_already(self) -> None:
        textured = noisy(drawn(), 3)
        poor, good = (measured(as_jpeg(textured, quality)) for quality in (15, 95))
        assert poor.blocks > BLOCKS
        assert not poor.sharp
        assert good.blocks < BLOCKS
        assert good.sharp

    def test_wherever_the_grid_begins(self) -> None:
        poor = as_jpeg(noisy(drawn(SIZE + 16), 3), 15)
        found = [measured(np.ascontiguousarray(poor[k : k + SIZE, 2 * k : 2 * k + SIZE])).blocks for k in (0, 3, 5)]
        assert min(found) > 0.8 * max(found)

    def test_without_the_photograph_they_are_not_looked_for(self) -> None:
        poor = as_jpeg(noisy(drawn(), 3), 15)
        assert measure_condition(poor, SAME).blocks == 0
