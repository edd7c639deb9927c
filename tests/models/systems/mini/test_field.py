import cv2
import numpy as np
import pytest

from bfr.models.systems.mini import field


@pytest.fixture(scope="module")
def face() -> field.UInt8:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 3), dtype=np.uint8)


def test_a_pair_is_a_function_of_its_generator(face: field.UInt8) -> None:
    first, again = (field.pair(face, np.random.default_rng(7)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_of_many_pairs_some_are_untouched_and_most_are_degraded(face: field.UInt8) -> None:
    rng = np.random.default_rng(1)
    pairs = [field.pair(face, rng) for _ in range(200)]
    assert all(image.shape == face.shape and image.dtype == np.uint8 for pair in pairs for image in pair)
    untouched = sum(np.array_equal(*pair) for pair in pairs)
    assert 5 <= untouched <= 50
    assert 10 <= sum(not np.array_equal(clean, face) for clean, _ in pairs) <= 80  # the tone is part of the truth


def test_grey_faces_are_grey_before_they_are_degraded(face: field.UInt8) -> None:
    rng = np.random.default_rng(2)
    toned = [field.tone(face, rng) for _ in range(100)]
    grey = [image for image in toned if (image == image[:, :, :1]).all()]
    assert grey


@pytest.mark.parametrize("change", [field.noise, field.compress, field.sharpen, field.interlace, field.scratch])
def test_each_degradation_changes_an_image_and_keeps_its_shape(face: field.UInt8, change: object) -> None:
    x = face.astype(np.float32) / np.float32(255.0)
    before, rng = x.copy(), np.random.default_rng(3)
    results = [change(x, rng) for _ in range(4)]  # type: ignore[operator]
    np.testing.assert_array_equal(x, before)
    assert all(result.shape == x.shape and result.dtype == np.float32 for result in results)
    assert any(np.abs(result - x).max() > 1 / 255 for result in results)


@pytest.mark.parametrize("seed", range(8))
def test_a_blur_keeps_the_light(seed: int) -> None:
    flat = np.full((32, 32, 3), 0.5, np.float32)
    np.testing.assert_allclose(field.blur(flat, np.random.default_rng(seed), 4.0), flat, rtol=1e-5)
