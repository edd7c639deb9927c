"""LaMa: its Fourier transforms against torch's, and its options."""

from typing import Any

import pytest
import torch
from near import assert_near
from published import golden, seeded
from torch import Tensor

from bfr.models.networks.lama import LaMa, RealDft2d


def ratios(gin: float, gout: float, **others: Any) -> dict[str, Any]:
    return {"ratio_gin": gin, "ratio_gout": gout, "enable_lfu": False, **others}


def complex_spectrum(stacked: Tensor) -> Tensor:
    return torch.complex(*stacked.chunk(2, dim=-2))


@pytest.fixture(scope="module")
def tiny() -> Any:
    return seeded("tiny_lama")


@pytest.mark.parametrize("size", [2, 8, 16, 30, 32, 64])
def test_products_equal_the_fourier_transform_and_its_inverse(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    dft = RealDft2d(size)
    x = torch.randn(2, 3, size, size, generator=generator)
    spectrum = dft(x)
    expected = torch.fft.rfft2(x.double(), norm="ortho").to(torch.complex64)
    assert spectrum.shape == (2, 3, 2 * size, size // 2 + 1)
    assert_near(complex_spectrum(spectrum), expected)
    assert_near(dft.inverse(spectrum), x)


@pytest.mark.parametrize("size", [2, 8, 30, 32])
def test_inverse_of_a_spectrum_that_no_real_image_has(size: int) -> None:
    shape = (2, 3, 2 * size, size // 2 + 1)
    spectrum = torch.randn(shape, generator=torch.Generator().manual_seed(size))
    result = RealDft2d(size).inverse(spectrum)
    whole = complex_spectrum(spectrum)
    assert_near(result, torch.fft.irfft2(whole, (size, size), norm="ortho"))
    # what the row transform must ignore: the imaginary part, after the columns', of frequencies 0 and size / 2
    real = torch.fft.ifft(whole, dim=-2, norm="ortho")
    real[..., [0, -1]] = real[..., [0, -1]].real.to(real.dtype)
    assert_near(result, torch.fft.irfft(real, size, norm="ortho"))


def test_transforms_are_shared_and_outside_the_state_dict(tiny: LaMa) -> None:
    transforms = [module for module in tiny.modules() if isinstance(module, RealDft2d)]
    assert {16} == {transform.size for transform in transforms}
    assert len(transforms) == 1
    assert all(buffer.dtype == torch.float32 for buffer in transforms[0].buffers())
    assert not any("dft" in key for key in tiny.state_dict())


def test_the_global_stream_may_begin_with_the_image() -> None:
    shares = {"init_conv_kwargs": ratios(0, 0.5), "downsample_conv_kwargs": ratios(0.5, 0.5)}
    network = seeded("tiny_lama", **shares, n_blocks=1, add_out_act="tanh")
    sizes = {module.size for module in network.modules() if isinstance(module, RealDft2d)}
    assert sizes == {32, 16}
    with torch.no_grad():
        y = network(golden("tiny_lama")[0])
    assert y.shape == (2, 3, 64, 64)
    assert y.min() < 0


def test_without_a_global_stream_the_network_is_an_ordinary_one() -> None:
    network = seeded("tiny_lama", resnet_conv_kwargs=ratios(0, 0), add_out_act=False)
    assert not any("convg" in key or "bn_g" in key for key in network.state_dict())
    with torch.no_grad():
        assert network(golden("tiny_lama")[0]).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("shape", [(1, 4, 32, 32), (1, 4, 64, 32), (1, 3, 64, 64), (1, 4, 128, 128)])
def test_another_size_is_refused(tiny: LaMa, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(4, 64, 64\).*resize"):
        tiny(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 66}, "cannot be halved"),
        ({"add_out_act": "relu"}, "add_out_act"),
        ({"resnet_conv_kwargs": ratios(0.75, 0.75) | {"enable_lfu": True}}, "local Fourier units"),
        ({"resnet_conv_kwargs": {"ratio_gin": 0.75, "ratio_gout": 0.75}}, "local Fourier units"),
        ({"resnet_conv_kwargs": ratios(0.75, 0.75, groups=2)}, "groups"),
        ({"resnet_conv_kwargs": ratios(0.75, 0.5)}, "equal"),
        ({"resnet_conv_kwargs": ratios(1, 1)}, r"\[0, 1\)"),
        ({"init_conv_kwargs": ratios(0.5, 0)}, "no global channels"),
        ({"init_conv_kwargs": ratios(0, 0.5)}, "must be equal"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seeded("tiny_lama", **changes)
