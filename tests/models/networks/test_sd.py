"""Stable Diffusion's networks against diffusers' own, and low-rank updates against their definition."""

import re
import sys
from typing import Any

import pytest
import torch
from near import assert_near
from torch import Tensor

from bfr.models.networks.sd import SD21_UNET, SD21_VAE, VaeDecoder, VaeEncoder, merge_lora, unet
from bfr.models.systems.osdface import OSDFACE
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.diffusion.schedule import scaled_linear_schedule
from bfr.runtime.errors import InvalidCheckpoint, MissingDependency
from bfr.runtime.install import install_command

TINY_UNET: dict[str, Any] = {
    **SD21_UNET,
    "sample_size": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": [2, 4],
}
TINY_VAE: dict[str, Any] = {
    **SD21_VAE,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def diffusers() -> Any:
    import diffusers

    return diffusers


@pytest.fixture(scope="module")
def autoencoder(diffusers: Any) -> Any:
    module = diffusers.AutoencoderKL(**TINY_VAE).eval()
    seed_weights(module)
    return module


def test_full_size_layouts_are_diffusers_own(diffusers: Any) -> None:
    with torch.device("meta"):
        whole, vae = shapes(diffusers.UNet2DConditionModel(**SD21_UNET)), shapes(diffusers.AutoencoderKL(**SD21_VAE))
        denoiser, encoder, decoder = unet(**SD21_UNET), VaeEncoder(**SD21_VAE), VaeDecoder(**SD21_VAE)
    assert shapes(denoiser) == whole
    assert shapes(encoder) | shapes(decoder) == vae
    assert not shapes(encoder).keys() & shapes(decoder).keys()
    assert sum(p.numel() for p in denoiser.parameters()) == 865_910_724  # the published sizes
    assert sum(p.numel() for p in encoder.parameters()) == 34_163_664
    assert sum(p.numel() for p in decoder.parameters()) == 49_490_199
    assert whole["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] == (320, 1024)
    assert (decoder.factor, decoder.channels) == (8, 4)


def test_denoiser_equals_diffusers_own(diffusers: Any) -> None:
    ours, theirs = unet(**TINY_UNET).eval(), diffusers.UNet2DConditionModel(**TINY_UNET).eval()
    seed_weights(ours)
    theirs.load_state_dict(ours.state_dict())
    x, context = normal(3, 4, 8, 8), normal(3, 7, 24, seed=1)
    with torch.no_grad():
        eps = ours(x, torch.full((3,), 399.0), context)
        assert_near(eps, theirs(x, 399, encoder_hidden_states=context).sample)
        other = ours(x, torch.tensor([399.0, 200.0, 399.0]), context)
    assert eps.shape == (3, 4, 8, 8)
    assert_near(other[[0, 2]], eps[[0, 2]])
    assert (other[1] - eps[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float16, 1e-5, 3e-3), (torch.bfloat16, 1e-4, 3e-2)])
def test_torso_in_half(dtype: torch.dtype, least: float, most: float) -> None:
    network = unet(**TINY_UNET).eval()
    seed_weights(network)
    x, t, context = normal(3, 4, 8, 8), torch.full((3,), 399.0), normal(3, 7, 24, seed=1)
    with torch.no_grad():
        expected = network(x, t, context)
        assert network.cast_torso(dtype).cast_torso(dtype) is network
        eps = network(x, t, context)
    assert eps.dtype == torch.float32
    assert least < (eps - expected).norm() / expected.norm() < most
    kinds = {"norm" in name.split(".")[-2]: set[torch.dtype]() for name in network.state_dict()}
    for name, value in network.state_dict().items():
        kinds["norm" in name.split(".")[-2]].add(value.dtype)
    assert kinds == {True: {torch.float32}, False: {dtype}}


def test_encoder_gives_the_scaled_mean(autoencoder: Any) -> None:
    ours = VaeEncoder(**TINY_VAE).eval()
    ours.load_state_dict({key: value for key, value in autoencoder.state_dict().items() if key in ours.state_dict()})
    image = normal(2, 3, 32, 32).clamp(-1, 1)
    with torch.no_grad():
        latent, expected = ours(image), autoencoder.encode(image).latent_dist
    torch.testing.assert_close(latent, expected.mean * 0.18215, rtol=1e-6, atol=1e-7)
    assert latent.shape == (2, 4, 16, 16)
    assert (expected.sample() * 0.18215 - latent).abs().max() > 1e-2  # what is left out is there to be left out


def test_decoder_takes_scaled_latents(autoencoder: Any) -> None:
    ours = VaeDecoder(**TINY_VAE).eval()
    ours.load_state_dict({key: value for key, value in autoencoder.state_dict().items() if key in ours.state_dict()})
    latent = normal(2, 4, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(latent), autoencoder.decode(latent / 0.18215).sample, rtol=1e-6, atol=1e-6)
    assert ours.factor == 2


def weights() -> dict[str, Tensor]:
    return {
        "mid.to_q.weight": normal(6, 5),
        "mid.conv.weight": normal(6, 4, 3, 3),
        "mid.one.weight": normal(6, 4, 1, 1),
    }


def low_rank(style: tuple[str, str], prefix: str, rank: int = 2) -> dict[str, Tensor]:
    down, up = style
    return {
        f"{prefix}mid.to_q{down}.weight": normal(rank, 5, seed=1),
        f"{prefix}mid.to_q{up}.weight": normal(6, rank, seed=2),
        f"{prefix}mid.conv{down}.weight": normal(rank, 4, 3, 3, seed=3),
        f"{prefix}mid.conv{up}.weight": normal(6, rank, 1, 1, seed=4),
    }


@pytest.mark.parametrize(
    ("style", "prefix"),
    [((".lora_A", ".lora_B"), "unet."), ((".lora.down", ".lora.up"), ""), ((".lora_down", ".lora_up"), "unet.")],
)
@pytest.mark.parametrize("alpha", [2.0, 16.0])
def test_merged_weights_compute_what_layer_and_update_compute(
    style: tuple[str, str], prefix: str, alpha: float
) -> None:
    plain, update = weights(), low_rank(style, prefix)
    merged = merge_lora(plain, update, alpha, rank=2)
    linear, conv = (merged[f"mid.{name}.weight"].double() for name in ("to_q", "conv"))
    a, b, a_conv, b_conv = (tensor.double() for tensor in update.values())
    torch.testing.assert_close(linear, plain["mid.to_q.weight"].double() + alpha / 2 * b @ a, rtol=1e-5, atol=1e-5)
    # Of convolutions the definition is what they compute: the update is one convolution after the other.
    x = normal(2, 4, 7, 7, seed=5).double()
    expected = torch.conv2d(x, plain["mid.conv.weight"].double(), padding=1)
    expected = expected + alpha / 2 * torch.conv2d(torch.conv2d(x, a_conv, padding=1), b_conv)
    torch.testing.assert_close(torch.conv2d(x, conv, padding=1), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(merged["mid.one.weight"], plain["mid.one.weight"])
    assert torch.equal(plain["mid.to_q.weight"], weights()["mid.to_q.weight"])  # the caller's stay as they are


def test_pointwise_convolutions_and_half_precision() -> None:
    update = {"mid.one.lora_A.weight": normal(2, 4, 1, 1).half(), "mid.one.lora_B.weight": normal(6, 2, 1, 1).half()}
    plain = {"mid.one.weight": normal(6, 4, 1, 1).half()}
    merged = merge_lora(plain, update, 1.0, 2)["mid.one.weight"]
    a, b = (tensor.double().flatten(1) for tensor in update.values())
    assert merged.dtype == torch.float32
    expected = plain["mid.one.weight"].double().flatten(1) + 0.5 * b @ a
    torch.testing.assert_close(merged.double().flatten(1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet.mid.to_k.lora_A.weight": normal(2, 5)}, r"unet\.mid\.to_k\.lora_A\.weight"),
        ({"text_encoder.mid.to_q.lora_A.weight": normal(2, 5)}, "text_encoder"),
        ({"unet.mid.to_q.alpha": normal(1)}, r"mid\.to_q\.alpha"),
        ({"unet.mid.one.lora_A.weight": normal(2, 4, 1, 1)}, r"mid\.one\.weight.*both"),
        ({"unet.mid.to_q.lora_A.weight": normal(2, 4)}, r"\(6, 5\).*\(2, 4\)"),
        ({"unet.mid.to_q.lora_B.weight": normal(6, 3)}, r"\(6, 3\).*rank 2"),
        ({"unet.mid.conv.lora_A.weight": normal(2, 4, 1, 1)}, r"\(2, 4, 1, 1\)"),
    ],
)
def test_low_rank_weights_of_something_else_are_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=message):
        merge_lora(weights(), low_rank((".lora_A", ".lora_B"), "unet.") | change, 2.0, 2)


def test_no_low_rank_weights_at_all_are_refused() -> None:
    with pytest.raises(InvalidCheckpoint, match="none"):
        merge_lora(weights(), {}, 2.0, 2)


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for make in (unet, VaeEncoder, VaeDecoder):
        with pytest.raises(MissingDependency, match=re.escape(install_command("sd"))):
            make()


def test_the_schedule_is_the_one_that_the_networks_were_trained_with(diffusers: Any) -> None:
    """0.00085 to 0.012, even in their square roots, 1000 steps: diffusers' `scaled_linear`."""
    theirs = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    chosen = OSDFACE.schedule
    ours = scaled_linear_schedule(chosen.timesteps, chosen.beta_start, chosen.beta_end).alpha_bar
    assert chosen.betas == "scaled-linear"
    torch.testing.assert_close(theirs.double(), torch.from_numpy(ours), rtol=1e-5, atol=1e-7)
