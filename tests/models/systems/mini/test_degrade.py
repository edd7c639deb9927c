import cv2
import numpy as np
import pytest

from bfr.models.systems.mini.degrade import BLUR_SIZE, Degradation, draw, gaussian_kernel

Image = np.ndarray


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture(scope="module")
def image() -> Image:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(("sigma", "angle"), [((0.1, 0.1), 0.0), ((2.0, 5.0), 0.7), ((15.0, 15.0), 3.0)])
def test_kernel_sums_to_one_and_has_the_size(sigma: tuple[float, float], angle: float) -> None:
    kernel = gaussian_kernel(*sigma, angle)
    assert kernel.shape == (BLUR_SIZE, BLUR_SIZE)
    assert kernel.dtype == np.float32
    assert kernel.sum(dtype=np.float64) == pytest.approx(1.0, abs=1e-6)
    assert np.array_equal(kernel, kernel[::-1, ::-1])  # symmetrical about its centre, so that it shifts nothing


def test_kernel_has_the_variances_along_its_turned_axes() -> None:
    grid = np.arange(BLUR_SIZE) - BLUR_SIZE // 2
    x, y = np.meshgrid(grid, grid)
    angle = np.pi / 6
    kernel = gaussian_kernel(4.0, 2.0, angle).astype(np.float64)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    assert np.sum(kernel * along**2) == pytest.approx(16.0, rel=1e-3)
    assert np.sum(kernel * across**2) == pytest.approx(4.0, rel=1e-3)


def test_a_quarter_turn_swaps_the_axes_and_an_even_kernel_has_no_direction() -> None:
    turned = gaussian_kernel(4.0, 2.0, np.pi / 2)
    np.testing.assert_allclose(turned, gaussian_kernel(2.0, 4.0, 0.0), atol=1e-8)
    np.testing.assert_allclose(turned, gaussian_kernel(4.0, 2.0, 0.0).T, atol=1e-8)
    np.testing.assert_allclose(gaussian_kernel(3.0, 3.0, 1.1), gaussian_kernel(3.0, 3.0, 0.0), atol=1e-8)


def test_nothing_to_do_changes_nothing(image: Image) -> None:
    result = Degradation().apply(image, rng())
    assert np.array_equal(result, image)
    assert result is not image


@pytest.mark.parametrize("downsample", [0.8, 1.0, 2.0, 3.7, 16.0, 1000.0])
@pytest.mark.parametrize("shape", [(48, 64, 3), (33, 31, 3)])
def test_size_and_dtype_are_kept(shape: tuple[int, int, int], downsample: float) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    result = Degradation((2.0, 1.0), 0.3, downsample, 10.0, 50).apply(image, rng())
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous


def test_blur_keeps_the_mean_and_lowers_the_variance(image: Image) -> None:
    result = Degradation(blur=(2.0, 2.0)).apply(image, rng())
    assert result.mean() == pytest.approx(image.mean(), abs=1.5)
    assert result.std() < 0.3 * image.std()


def test_noise_has_its_standard_deviation_and_is_seeded() -> None:
    grey = np.full((128, 128, 3), 128, np.uint8)
    noise = Degradation(noise=10.0)
    result = noise.apply(grey, rng())
    assert result.std() == pytest.approx(10.0, rel=0.02)
    assert result.mean() == pytest.approx(128.0, abs=0.2)
    assert np.array_equal(result, noise.apply(grey, rng()))
    assert not np.array_equal(result, noise.apply(grey, np.random.default_rng(4)))


def test_clipping_does_not_wrap_round() -> None:
    white, black = np.full((32, 32, 3), 255, np.uint8), np.zeros((32, 32, 3), np.uint8)
    noise = Degradation(noise=20.0)
    assert noise.apply(white, rng()).min() > 128
    assert noise.apply(black, rng()).max() < 128


def test_jpeg_is_that_of_opencv_in_the_right_channel_order(image: Image) -> None:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 40])
    expected = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.array_equal(Degradation(jpeg=40).apply(image, rng()), expected)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    assert Degradation(jpeg=90).apply(red, rng()).mean((0, 1)) == pytest.approx([255, 0, 0], abs=2)


def test_lower_jpeg_quality_is_farther_from_the_picture(image: Image) -> None:
    errors = [np.abs(Degradation(jpeg=q).apply(image, rng()).astype(int) - image).mean() for q in (95, 60, 20)]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1]


def test_grey_comes_last_and_is_rec_601_luma(image: Image) -> None:
    result = Degradation(noise=20.0, grey=True).apply(image, rng())
    assert np.array_equal(result[..., 0], result[..., 1])
    assert np.array_equal(result[..., 0], result[..., 2])
    coloured = Degradation(noise=20.0).apply(image, rng())
    luma = coloured @ np.array([0.299, 0.587, 0.114])
    assert np.abs(result[..., 0] - luma).max() <= 1.0


def test_order_is_blur_downsample_noise_jpeg_upsample(image: Image) -> None:
    """Step by step, in OpenCV: another order gives another picture."""
    settings = Degradation((1.5, 3.0), 0.5, 2.0, 12.0, 55)
    x = cv2.filter2D(image / np.float32(255), -1, gaussian_kernel(1.5, 3.0, 0.5), borderType=cv2.BORDER_REFLECT_101)
    x = cv2.resize(x, (32, 24), interpolation=cv2.INTER_LINEAR)
    x = x + rng().normal(0.0, 12.0 / 255, (24, 32, 3)).astype(np.float32)
    small = Degradation(jpeg=55).apply(np.clip(np.rint(x * 255), 0, 255).astype(np.uint8), rng())
    expected = cv2.resize(small, (64, 48), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(settings.apply(image, rng()), expected)


@pytest.mark.parametrize(("severity", "lowest_quality"), [(1.0, 30), (0.6, 58)])
def test_drawn_degradations_are_seeded_and_within_the_published_ranges(severity: float, lowest_quality: int) -> None:
    generator, again = rng(), rng()
    drawn = [draw(generator, severity) for _ in range(2000)]
    assert drawn == [draw(again, severity) for _ in range(2000)]
    assert all(0.1 <= sigma <= 7.5 * severity for d in drawn for sigma in d.blur)
    assert all(0.0 <= d.angle <= np.pi for d in drawn)
    assert all(0.8 <= d.downsample <= 16.0 * severity for d in drawn)
    assert all(0.0 <= d.noise <= 20.0 * severity for d in drawn)
    qualities = {d.jpeg for d in drawn}
    assert min(q for q in qualities if q is not None) == lowest_quality
    assert max(q for q in qualities if q is not None) == 100
    assert np.mean([d.blur[0] == d.blur[1] for d in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([d.grey for d in drawn]) == pytest.approx(0.01, abs=0.01)
    # Evenly in the logarithm: as many below the geometric mean of the range as above it.
    assert np.median([d.downsample for d in drawn]) == pytest.approx(np.sqrt(0.8 * 16.0 * severity), rel=0.1)
