"""The mask: face and hair of a drawn head, without its wall, whatever the colours."""

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import template
from bfr.runtime.faces.mask import SIDE, head_mask

Array = NDArray[Any]
SIZE = 256
SKIN, HAIR, WALL = (205, 150, 125), (70, 45, 30), (150, 165, 185)


def head(wall: tuple[int, int, int] = WALL, hair: tuple[int, int, int] = HAIR, shift: int = 0) -> tuple[Array, Array]:
    """A drawn head of SIZE, and where it is: hair around and above the face. shift: of the hair, to the right."""
    pixels = np.empty((SIZE, SIZE, 3), np.uint8)
    pixels[...] = wall
    where = np.zeros((SIZE, SIZE), np.uint8)
    middle = (128 + shift, 115)
    cv2.ellipse(pixels, middle, (84, 84), 0, 0, 360, hair, -1)
    cv2.ellipse(where, middle, (84, 84), 0, 0, 360, 1, -1)
    cv2.ellipse(pixels, (128, 145), (60, 82), 0, 0, 360, SKIN, -1)
    cv2.ellipse(where, (128, 145), (60, 82), 0, 0, 360, 1, -1)
    noise = np.random.default_rng(0).normal(0, 2, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8), where.astype(bool)


def grown(where: Array, pixels: int) -> Array:
    """A region and what is near it; shrunk where `pixels` is negative."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(pixels) + 1,) * 2)
    change = cv2.dilate if pixels > 0 else cv2.erode
    return np.asarray(change(where.astype(np.uint8), kernel)).astype(bool)


def enlarged(mask: Array) -> Array:
    return cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


class TestHead:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("wall", [WALL, (20, 90, 40), (250, 250, 250)])
    def test_face_and_hair_are_in_it_and_the_wall_is_not(self, wall: tuple[int, int, int], dtype: type) -> None:
        pixels, where = head(wall)
        pixels = pixels.astype(dtype) * dtype(np.iinfo(dtype).max // 255)
        mask = head_mask(pixels, pixels)[0]
        assert mask.shape == (SIDE, SIDE)
        assert mask.dtype == np.float32
        full, inner = enlarged(mask), (slice(30, 226), slice(30, 226))  # it fades towards the crop's edge
        assert full[inner][grown(where, -6)[inner]].min() > 0.9
        assert full[~grown(where, 26)].max() < 0.05
        assert full[~where].mean() < 0.2

    def test_the_face_is_in_it_whatever_its_colours(self) -> None:
        """A face of the wall's colour."""
        pixels = head(SKIN)[0]
        mask = head_mask(pixels, pixels)[0]
        y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
        face = ((x - 0.5) / 0.22) ** 2 + ((y - 0.56) / 0.3) ** 2 < 1
        assert mask[face].min() > 0.9

    def test_it_ends_inside_the_crop(self) -> None:
        pixels = np.full((SIZE, SIZE, 3), SKIN, np.uint8)  # all is like the face
        mask = head_mask(pixels, pixels)[0]
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.max() == 0

    def test_it_has_no_hard_edge(self) -> None:
        pixels = head()[0]
        mask = head_mask(pixels, pixels)[0]
        assert max(np.abs(np.diff(mask, axis=axis)).max() for axis in (0, 1)) < 0.6

    def test_a_small_change_of_the_picture_is_a_small_change_of_the_mask(self) -> None:
        """Else a video would flicker."""
        pixels = head()[0]
        noise = np.random.default_rng(1).normal(0, 3, pixels.shape)
        other = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        assert np.abs(head_mask(pixels, pixels)[0] - head_mask(other, other)[0]).mean() < 0.01

    def test_a_turned_head_reaches_behind_the_face(self) -> None:
        """Hair that the mask would lose at the prior's edge is kept where the nose points the other way."""
        pixels, _ = head(wall=(90, 70, 60), shift=30)
        points = template(SIZE)
        points[2, 0] -= 26
        straight, turned = head_mask(pixels, pixels)[0], head_mask(pixels, pixels, points)[0]
        right = (slice(40, 80), slice(96, 118))
        assert turned[right].sum() > 1.03 * straight[right].sum()

    @pytest.mark.parametrize("size", [1, 2, 8, 32, 512])
    def test_crops_of_any_size(self, size: int) -> None:
        pixels = cv2.resize(head()[0], (size, size), interpolation=cv2.INTER_AREA).reshape(size, size, 3)
        mask = head_mask(pixels, pixels)[0]
        assert mask.shape == (SIDE, SIDE)
        assert np.isfinite(mask).all()
        assert 0 <= mask.min() <= mask.max() <= 1


class TestFringe:
    def test_what_a_blur_has_carried_past_the_head_is_in_it(self) -> None:
        """Its strongest places the most, so that what stays of it is nowhere strong, and no ring shows."""
        sharp, where = head()
        blurred = cv2.GaussianBlur(sharp, (0, 0), 10)
        ring = grown(where, 14) & ~grown(where, 4)
        ring[:40] = ring[-40:] = False
        with_fringe, without = (enlarged(head_mask(crop, sharp)[0]) for crop in (blurred, sharp))
        assert with_fringe[ring].mean() > without[ring].mean() + 0.1
        change = np.abs(blurred.astype(float) - sharp).mean(axis=2)
        assert (change * (1 - with_fringe))[ring].max() < 0.6 * (change * (1 - without))[ring].max()

    @pytest.mark.parametrize("blur", [10, 16, 24])
    @pytest.mark.parametrize("wall", [WALL, (250, 250, 250)])
    def test_the_surroundings_hardly_change(self, wall: tuple[int, int, int], blur: int) -> None:
        sharp, _ = head(wall)
        blurred = cv2.GaussianBlur(sharp, (0, 0), blur)
        change = np.abs(blurred.astype(float) - sharp).mean(axis=2)
        mask, around = enlarged(head_mask(blurred, sharp)[0]), enlarged(head_mask(sharp, sharp)[0]) < 0.5
        assert change[around].mean() > 2  # of a square mask
        assert (change * mask)[around].mean() < 1

    def test_noise_that_went_is_no_reason(self) -> None:
        sharp, where = head()
        noise = np.random.default_rng(2).normal(0, 16, sharp.shape)
        noisy = np.clip(sharp + noise, 0, 255).astype(np.uint8)
        far = ~grown(where, 26)
        assert enlarged(head_mask(noisy, sharp)[0])[far].max() < 0.1
