"""What rests in a face does not change; what moves is not held back."""

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import alignment, compose, crop_face, template
from bfr.runtime.video.steady import KEPT
from bfr.runtime.video.steady import Steady as Filter

Array = NDArray[Any]
SIZE = 128


POINTS = template(SIZE) * 2 + 30  # in the frame
MATRIX = alignment(POINTS, SIZE)


class Steady(Filter):
    """Of a face at rest in the frame, where nothing else is said."""

    def apply(self, track: int, frame: int, seen: Array, restored: Array, **where: Any) -> Array:
        return super().apply(track, frame, seen, restored, **{"matrix": MATRIX, "landmarks": POINTS} | where)


def picture() -> Array:
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([128 + 80 * np.sin(x / 9), 128 + 60 * np.cos(y / 7), 100 + x / 2], axis=-1)


def noisy(base: Array, sigma: float, seed: int) -> Array:
    return np.clip(np.rint(base + np.random.default_rng(seed).normal(0, sigma, base.shape)), 0, 255).astype(np.uint8)


def flicker(frames: list[Array]) -> float:
    return float(np.abs(np.diff(np.array(frames[5:], np.float64), axis=0)).mean())


@pytest.mark.parametrize("sigma", [0.0, 2.0, 4.0])
def test_a_face_at_rest_boils_half_as_much_whatever_its_noise(sigma: float) -> None:
    steady, base = Steady(), picture()
    restored = [noisy(base, 5, 100 + i) for i in range(30)]
    shown = [steady.apply(0, i, noisy(base, sigma, i), one) for i, one in enumerate(restored)]
    assert flicker(shown) < 0.5 * flicker(restored)
    assert np.abs(np.mean(shown[5:], axis=0) - base).mean() < 1.5
    assert shown[0].dtype == np.uint8


@pytest.mark.parametrize("trail", [0.0, 6.0])
def test_a_face_that_moves_boils_as_little(trail: float) -> None:
    """Its landmarks are followed; the crop may trail behind by some pixels of the frame."""
    y, x = np.mgrid[:400, :500]
    wide = np.stack([128 + 80 * np.sin(x / 11), 128 + 60 * np.cos(y / 9), 100 + x / 4], axis=-1)
    steady = Steady()
    kept, boiling = [], []
    for i in range(20):
        dx, dy = 5 * i, round(20 * np.sin(i / 3))
        frame = wide[dy + 40 : dy + 340, dx + 10 : dx + 360]
        landmarks = POINTS + np.array([90 - dx, 60 - dy])
        matrix = alignment(landmarks + trail * np.sin(i), SIZE)
        assert matrix is not None
        seen = crop_face(noisy(frame, 2, i), matrix, SIZE)
        restored = noisy(seen, 5, 50 + i)
        shown = steady.apply(0, i, seen, restored, matrix=matrix, landmarks=landmarks)
        # What was done to the crop, as seen from the face.
        for list_, one in ((kept, shown), (boiling, restored)):
            straight = compose(MATRIX, np.array([[1.0, 0, dx - 90], [0, 1.0, dy - 60]]))
            back = compose(straight, cv2.invertAffineTransform(matrix))
            done = one.astype(np.float32) - crop_face(np.rint(frame).astype(np.uint8), matrix, SIZE)
            list_.append(cv2.warpAffine(done, back, (SIZE, SIZE))[20:-20, 20:-20])
    assert flicker(kept) < 0.6 * flicker(boiling)


def test_what_moves_is_shown_as_it_is() -> None:
    steady, base = Steady(), picture()
    other = base.copy()
    other[40:100, 20:110] = 255 - other[40:100, 20:110]
    steady.apply(0, 0, noisy(base, 2, 0), noisy(base, 5, 10))
    restored = noisy(other, 5, 11)
    shown = steady.apply(0, 1, noisy(other, 2, 1), restored)
    assert np.array_equal(shown[45:95, 25:105], restored[45:95, 25:105])
    assert not np.array_equal(shown[:30], restored[:30])


def test_a_crop_that_moves_as_a_whole_is_shown_as_it_is() -> None:
    steady, base = Steady(), noisy(picture(), 40, 0)
    steady.apply(0, 0, base, base)
    restored = np.roll(base, 9, axis=1)
    assert np.array_equal(steady.apply(0, 1, restored, restored), restored)


def test_a_slow_change_of_light_trails_by_little() -> None:
    steady = Steady()
    light = [np.full((SIZE, SIZE, 3), 60 + i, np.uint8) for i in range(30)]  # a level a frame
    shown = [steady.apply(0, i, one, one) for i, one in enumerate(light)]
    assert np.abs(shown[-1].astype(int) - light[-1]).max() <= round(KEPT / (1 - KEPT)) + 1


@pytest.mark.parametrize(("track", "frame"), [(0, 2), (1, 1), (0, 0)])
def test_at_the_begin_of_a_track_and_after_a_gap_nothing_is_held(track: int, frame: int) -> None:
    steady, base = Steady(), picture()
    steady.apply(0, 0, noisy(base, 1, 0), noisy(base, 5, 1))
    restored = noisy(base, 5, 2)
    assert np.array_equal(steady.apply(track, frame, noisy(base, 1, 3), restored), restored)


def test_tracks_that_ended_are_forgotten() -> None:
    steady, crop = Steady(), np.zeros((8, 8, 3), np.uint8)
    for frame in range(50):
        steady.apply(frame, frame, crop, crop)
    assert len(steady._tracks) <= 2


def test_16_bits_are_8_bits_with_more_levels() -> None:
    base = picture()
    pairs = [(noisy(base, 2, i), noisy(base, 5, 50 + i)) for i in range(4)]
    eight, sixteen = Steady(), Steady()
    for i, (seen, restored) in enumerate(pairs):
        coarse = eight.apply(0, i, seen, restored)
        fine = sixteen.apply(0, i, seen.astype(np.uint16) * 257, restored.astype(np.uint16) * 257)
    assert fine.dtype == np.uint16
    assert np.abs(fine / 257 - coarse).max() < 0.51
