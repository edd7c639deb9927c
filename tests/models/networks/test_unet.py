"""The UNet: its attention, its half mode, its conditioning and its options."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from published import build, golden, seeded
from torch import Tensor, nn

from bfr.models.networks.blocks import AttentionBlock, GroupNorm32
from bfr.models.networks.unet import UNet
from bfr.models.weights.seeded import LOOP_SCALE, seed_weights, seeded_array


@pytest.fixture(scope="module")
def tiny() -> Any:
    return seeded("tiny_unet")


def test_the_two_orders_of_qkv_are_permutations_of_each_other() -> None:
    heads, head = 2, 16
    old, new = AttentionBlock(32, heads, False), AttentionBlock(32, heads, True)
    seed_weights(old)
    seed_weights(new)
    x = torch.randn(1, 32, 3, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (old(x) - new(x)).abs().max() > 1e-2
        for tensor in new.qkv.parameters():
            tensor.copy_(tensor.reshape(heads, 3, head, -1).transpose(0, 1).reshape(tensor.shape))
        torch.testing.assert_close(new(x), old(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_mode_casts_the_torso_alone(tiny: UNet, dtype: torch.dtype) -> None:
    network = copy.deepcopy(tiny)
    assert network.cast_torso(dtype) is network
    assert network.torso_dtype == dtype
    torso = list(network.torso())
    assert any(isinstance(module, nn.Conv1d) for module in torso)
    for module in torso:
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            assert module.weight.dtype == dtype
        elif isinstance(module, GroupNorm32 | nn.Linear):
            assert module.weight.dtype == torch.float32
    for part in (network.time_embed, network.out):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    x, t, y = golden("tiny_unet")
    with torch.no_grad():
        output = network(x[:1], t[:1])
    assert output.dtype == torch.float32
    assert 1e-5 < (output - y[:1]).abs().mean() < 0.05 * y.std()  # rounded, and not more than that


def test_group_norm_survives_values_whose_squares_leave_float16() -> None:
    x = 3000 * torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    norm = GroupNorm32(64)
    torch.testing.assert_close(norm(x.half()).float(), norm(x), rtol=2e-3, atol=2e-3)


def test_unshuffled_denoiser_keeps_the_image_size(tiny: UNet) -> None:
    network = build("tiny_unet", image_size=64, unshuffle=2)
    assert network.state_dict()["input_blocks.0.0.weight"].shape[1] == 3 * 2**2
    # The attention resolutions are those of the rearranged image: the same blocks as at half the size.
    assert [*network.state_dict()] == [*tiny.state_dict()]
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64), torch.tensor([4.0])).shape == (1, 6, 64, 64)


def test_without_time_it_is_a_residual_image_network(tiny: UNet) -> None:
    options = {"out_channels": 3, "use_scale_shift_norm": False, "residual": True}
    network = build("tiny_unet", time_conditioned=False, **options)
    assert not any("emb" in key for key in network.state_dict())
    x = golden("tiny_unet")[0]
    with torch.no_grad():
        for key in ("out.2.weight", "out.2.bias"):
            network.state_dict()[key].zero_()
        torch.testing.assert_close(network(x), x)
    with pytest.raises(TypeError, match="timesteps"):
        tiny(x)


def test_seeding_is_a_function_of_the_name_and_scales_by_name() -> None:
    module, scaled = (nn.ModuleDict({"out": nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(4, 3))}) for _ in range(2))
    seed_weights(module)
    seed_weights(scaled, LOOP_SCALE)
    for key, value in scaled.state_dict().items():
        assert torch.equal(value, module.state_dict()[key] * 0.3), key
    assert not np.array_equal(seeded_array("a.bias", (8,)), seeded_array("b.bias", (8,)))
    with pytest.raises(KeyError):
        seed_weights(module, {"no.such.weight": 0.3})


@pytest.mark.parametrize(
    ("name", "shape", "mean", "deviation"),
    [
        ("a.weight", (200, 100, 1, 1), 0.0, 0.1),
        ("a.relative_position_bias_table", (2000, 8), 0.0, 0.02),
        ("a.weight", (20000,), 1.0, 0.1),
        ("a.bias", (20000,), 0.0, 0.1),
        ("a.running_mean", (20000,), 0.0, 0.1),
        ("a.running_var", (20000,), 1 + 0.1 * (2 / np.pi) ** 0.5, 0.1 * (1 - 2 / np.pi) ** 0.5),
    ],
)
def test_seeded_scale(name: str, shape: tuple[int, ...], mean: float, deviation: float) -> None:
    weights = seeded_array(name, shape)
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(mean, abs=0.05 * deviation)
    assert weights.std() == pytest.approx(deviation, rel=0.05)


def test_with_time_the_input_is_added_times_a_gain_that_depends_on_time() -> None:
    network = build("tiny_unet", out_channels=3, residual=True)
    x, t, _ = golden("tiny_unet")
    with torch.no_grad():
        for key in ("out.2.weight", "out.2.bias"):
            network.state_dict()[key].zero_()
        gains = [(network(x, t + shift) / x).median(-1).values.median(-1).values for shift in (0, 100)]
        torch.testing.assert_close(network(x, t), gains[0][:, :, None, None] * x, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(gains[0], gains[1], rtol=1e-3)


def test_conditioning_may_be_computed_beforehand() -> None:
    """As the time table of an exported bundle is; for a plain network, and for one whose gain depends on time."""
    from bfr.models.stages.step import ConditionerStage

    t = torch.tensor([3.0, 700.0])
    for residual in (False, True):
        network = build("tiny_unet", residual=residual, out_channels=3)
        seed_weights(network)
        stage = ConditionerStage(network)
        x = torch.rand(2, network.in_channels, network.image_size, network.image_size)
        with torch.no_grad():
            conditioning = stage(t)
            assert conditioning.shape == (2, stage.features)
            assert torch.equal(network(x, conditioning), network(x, t))
            assert not torch.equal(network(x, conditioning.flip(0)), network(x, t))


def published_attention(block: AttentionBlock, x: Tensor) -> Tensor:
    """The block as published: convolutions of (B, C, H*W), a product of q and k, softmax, a product with v."""
    batch, channels = x.shape[:2]
    qkv = block.qkv(block.norm(x).reshape(batch, channels, -1))
    if block.use_new_attention_order:
        q, k, v = (part.reshape(batch * block.num_heads, -1, part.shape[2]) for part in qkv.chunk(3, dim=1))
    else:
        q, k, v = qkv.reshape(batch * block.num_heads, -1, qkv.shape[2]).chunk(3, dim=1)
    weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / q.shape[1] ** 0.5, dim=-1)
    h = torch.einsum("bts,bcs->bct", weight, v).reshape(batch, channels, -1)
    return torch.add(x, block.proj_out(h).reshape(x.shape))


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("new_order", [False, True])
def test_attention_is_the_published_function(new_order: bool, explicit: bool) -> None:
    block = AttentionBlock(64, 2, new_order).eval()
    seed_weights(block)
    x = torch.randn(2, 64, 6, 5, generator=torch.Generator().manual_seed(0))
    block.explicit = explicit
    with torch.no_grad():
        expected = published_attention(block, x)
        for image in (x, x.to(memory_format=torch.channels_last)):
            assert (block(image) - expected).norm() < 1e-6 * expected.norm()


def test_attention_makes_no_convolutions_and_no_copies_of_channels_last_images() -> None:
    """What it costs a GPU: Conv1d is a call of cuDNN between two changes of layout."""
    from torch.utils._python_dispatch import TorchDispatchMode

    called = []

    class Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func))
            return func(*args, **(kwargs or {}))

    block = AttentionBlock(64, 2, False).eval()
    block.norm = nn.Identity()  # type: ignore[assignment]
    x = torch.randn(2, 64, 6, 5).to(memory_format=torch.channels_last)
    with torch.no_grad(), Names():  # type: ignore[no-untyped-call]
        out = block(x)
    assert not {"convolution", "clone", "contiguous"} & set(called), called
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_normalization_in_half_keeps_its_statistics_in_float32() -> None:
    """As it is exported where the opset's operator does that: values whose squares leave float16."""
    x = (3000 * torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(0))).half()
    norm = GroupNorm32(64)
    seed_weights(norm)
    with torch.no_grad():
        expected = norm(x)
        norm.narrow = True
        found = norm(x)
        norm.narrow = False
    assert found.dtype == expected.dtype == torch.float16
    assert (found.float() - expected.float()).norm() < 2e-3 * expected.float().norm()
