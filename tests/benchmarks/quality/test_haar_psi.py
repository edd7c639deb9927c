"""HaarPSI."""

import cv2
import numpy as np
import pytest

from bfr.benchmarks.quality.metrics import haar_psi

Y, X = np.mgrid[:64, :64]
PICTURE = np.stack([(X * 4) % 256, (Y * 4) % 256, (X * Y) // 16 % 256], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (255 - PICTURE, 0.6565739903572032),
        (np.roll(PICTURE, 3, axis=1), 0.7369694912546755),
        (np.ascontiguousarray(PICTURE[..., ::-1]), 0.8765374196278172),
        (PICTURE // 48 * 48, 0.45280902493393366),
    ],
)
def test_it_agrees_with_another_implementation(image: np.ndarray, expected: float) -> None:
    """The values are those of piq 0.8.0's `haarpsi` (float64, data_range 255) for the same pictures."""
    assert haar_psi(image, PICTURE) == pytest.approx(expected, abs=1e-9)


def test_equal_pictures_have_1_and_order_does_not_matter() -> None:
    assert haar_psi(PICTURE, PICTURE) == pytest.approx(1.0, abs=1e-12)
    black = np.zeros_like(PICTURE)
    assert haar_psi(black, black) == 1.0
    other = np.rot90(PICTURE).copy()
    assert haar_psi(PICTURE, other) == pytest.approx(haar_psi(other, PICTURE), abs=1e-12)
    assert 0.0 <= haar_psi(black, PICTURE) < 0.5


def test_it_falls_with_blur_and_with_noise() -> None:
    blurred = [haar_psi(cv2.GaussianBlur(PICTURE, (0, 0), sigma), PICTURE) for sigma in (0.8, 1.6, 3.2, 6.4)]
    noise = np.random.default_rng(0).normal(0, 1, PICTURE.shape)
    noisy = [haar_psi(np.clip(PICTURE + s * noise, 0, 255).astype(np.uint8), PICTURE) for s in (5, 10, 20, 40)]
    for values in (blurred, noisy):
        assert values == sorted(values, reverse=True)
        assert 1.0 > values[0] > values[-1] + 0.1


def test_colour_counts_and_odd_sizes_work() -> None:
    grey = np.repeat(cv2.cvtColor(PICTURE, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    assert haar_psi(grey, PICTURE) < 0.99
    assert haar_psi(PICTURE[:63, :61], PICTURE[:63, :61]) == pytest.approx(1.0)
