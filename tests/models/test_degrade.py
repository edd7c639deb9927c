import dataclasses

import cv2
import numpy as np
import pytest

from bfr.models.mini.degrade import Degradation, draw, gaussian_kernel

RNG = np.random.default_rng
FACE = cv2.GaussianBlur(RNG(0).integers(0, 256, (96, 96, 3), dtype=np.uint8), (0, 0), 2)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_a_kernel_is_a_turned_gaussian() -> None:
    kernel = gaussian_kernel(3.0, 1.0, 0.0)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    grid = np.arange(41) - 20
    assert np.sqrt((kernel.sum(axis=0) * grid**2).sum()) == pytest.approx(3, abs=1e-3)
    assert np.sqrt((kernel.sum(axis=1) * grid**2).sum()) == pytest.approx(1, abs=1e-3)
    assert np.allclose(gaussian_kernel(3.0, 1.0, np.pi / 2), kernel.T, atol=1e-6)


def test_nothing_asked_nothing_changed() -> None:
    assert np.array_equal(Degradation().apply(FACE, RNG(0)), FACE)


@pytest.mark.parametrize(
    "change", [{"blur": (2.0, 2.0)}, {"downsample": 4.0}, {"noise": 10.0}, {"jpeg": 30}, {"grey": True}]
)
def test_each_part_degrades_and_keeps_the_form(change: dict[str, object]) -> None:
    result = Degradation(**change).apply(FACE, RNG(0))  # type: ignore[arg-type]
    assert (result.shape, result.dtype) == (FACE.shape, np.uint8)
    assert psnr(result, FACE) < 45


def test_noise_has_the_deviation_that_was_asked() -> None:
    flat = np.full((128, 128, 3), 128, np.uint8)
    assert Degradation(noise=10.0).apply(flat, RNG(0)).std() == pytest.approx(10, rel=0.03)


def test_grey_is_grey_and_red_stays_red() -> None:
    assert np.ptp(Degradation(grey=True).apply(FACE, RNG(0)), axis=2).max() == 0
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 220
    result = Degradation(blur=(1.0, 1.0), downsample=2.0, jpeg=80).apply(red, RNG(0)).reshape(-1, 3).mean(axis=0)
    assert result[0] > 200
    assert result[1:].max() < 20


def test_the_same_seed_gives_the_same_degradation() -> None:
    degradation = draw(RNG(3))
    assert degradation == draw(RNG(3))
    assert np.array_equal(degradation.apply(FACE, RNG(1)), degradation.apply(FACE, RNG(1)))


def test_draws_stay_in_their_ranges_and_fill_them() -> None:
    draws = [draw(RNG(i)) for i in range(2000)]
    table = {field.name: [getattr(d, field.name) for d in draws] for field in dataclasses.fields(Degradation)}
    assert 0.1 <= np.min(table["blur"]) < 0.2
    assert 7.3 < np.max(table["blur"]) <= 7.5
    assert 0.8 <= min(table["downsample"]) < 0.9
    assert 14 < max(table["downsample"]) <= 16
    assert min(table["jpeg"]) == 30
    assert max(table["jpeg"]) == 100
    assert 0.002 < np.mean(table["grey"]) < 0.03
    assert 0.4 < np.mean([d.blur[0] == d.blur[1] for d in draws]) < 0.6
