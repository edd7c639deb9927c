"""SwinIR: its windows, its half mode and its options."""

import copy
from typing import Any

import pytest
import torch
from published import golden, seeded
from torch import Tensor

from bfr.models.networks.swinir import (
    SwinIR,
    WideLayerNorm,
    relative_position_index,
    shift_mask,
    window_partition,
    window_reverse,
)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return seeded("tiny_swinir")


def test_pixelshuffledirect() -> None:
    network = seeded("tiny_swinir", upsampler="pixelshuffledirect", sf=2, unshuffle=False)
    keys = set(network.state_dict())
    assert {"conv_first.weight", "upsample.0.weight"} < keys
    assert not any(key.startswith(("conv_up", "conv_before", "conv_hr", "conv_last")) for key in keys)
    assert network.state_dict()["upsample.0.weight"].shape == (12, 24, 3, 3)
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert network(x).shape == (2, 3, 16, 16)
        for parameter in network.upsample.parameters():
            parameter.zero_()
        means = network(x).mean(dim=(0, 2, 3))
    torch.testing.assert_close(means, torch.tensor([0.4488, 0.4371, 0.4040]))


def test_three_convolutions_close_a_group() -> None:
    network = seeded("tiny_swinir", resi_connection="3conv")
    keys = set(network.state_dict())
    assert {f"{place}.{i}.weight" for place in ("layers.1.conv", "conv_after_body") for i in (0, 2, 4)} < keys
    with torch.no_grad():
        assert network(golden("tiny_swinir")[0]).isfinite().all()


def test_sf_8_doubles_three_times() -> None:
    with torch.no_grad():
        assert seeded("tiny_swinir", sf=8)(golden("tiny_swinir")[0]).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("shape", [(1, 3, 40, 40), (1, 3, 32, 40), (1, 1, 32, 32), (1, 3, 8, 8)])
def test_another_size_is_refused(tiny: SwinIR, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*resize"):
        tiny(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": 10}, "multiple of window_size"),
        ({"sf": 3}, "must be 4 or 8"),
        ({"upsampler": "bicubic"}, "upsampler"),
        ({"resi_connection": "2conv"}, "resi_connection"),
        ({"patch_size": 4}, "patch_size"),
        ({"num_heads": [2]}, "num_heads"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seeded("tiny_swinir", **changes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_mode_keeps_norms_bias_tables_and_the_last_convolution_in_float32(
    tiny: SwinIR, dtype: torch.dtype
) -> None:
    network, (x, y) = copy.deepcopy(tiny), golden("tiny_swinir")
    assert network.cast_torso(dtype) is network
    assert network.torso_dtype == dtype
    for name, parameter in network.named_parameters():
        single = "norm" in name or "bias_table" in name or name.startswith("conv_last")
        assert parameter.dtype == (torch.float32 if single else dtype), name
    streams: list[Tensor] = []
    network.layers.register_forward_hook(lambda _module, _inputs, output: streams.append(output))
    with torch.no_grad():
        output = network(x)
    assert streams[0].dtype == dtype
    assert output.dtype == torch.float32
    assert 1e-6 < (output - y).abs().mean() < 0.05 * y.std()  # rounded, and not more than that


def test_layer_norm_survives_values_whose_squares_leave_float16() -> None:
    x = 3000 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    norm = WideLayerNorm(64)
    torch.testing.assert_close(norm(x.half()).float(), norm(x), rtol=2e-3, atol=2e-3)


def test_windows_are_cut_and_put_back() -> None:
    x = torch.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    windows = window_partition(x, 4)
    assert windows.shape == (2 * 2 * 3, 16, 3)
    torch.testing.assert_close(windows[1].reshape(4, 4, 3), x[0, :4, 4:8])
    torch.testing.assert_close(window_reverse(windows, 4, 8, 12), x)


def test_relative_positions_share_a_row_exactly_when_they_are_equal() -> None:
    index = relative_position_index(3)
    rows: dict[int, tuple[int, int]] = {}
    for a in range(9):
        for b in range(9):
            offset = (a // 3 - b // 3, a % 3 - b % 3)
            assert rows.setdefault(int(index[a, b]), offset) == offset
    assert sorted(rows) == list(range(25))


def test_mask_separates_what_the_shift_made_neighbours() -> None:
    size, window, shift = 8, 4, 2
    place = torch.arange(size * size).reshape(1, size, size, 1)
    rolled = window_partition(torch.roll(place, (-shift, -shift), (1, 2)), window).squeeze(-1)
    rows, columns = rolled // size, rolled % size
    near = ((rows[:, :, None] - rows[:, None, :]).abs() < window) & (
        (columns[:, :, None] - columns[:, None, :]).abs() < window
    )
    torch.testing.assert_close(shift_mask(size, window, shift), torch.where(near, 0.0, -100.0))


def test_one_window_over_the_whole_image_is_not_shifted() -> None:
    network = seeded("tiny_swinir", img_size=4, window_size=8)
    assert not any("attn_mask" in key for key in network.state_dict())
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)
