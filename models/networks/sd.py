"""Stable Diffusion's networks, made by diffusers from plain parameters, and low-rank updates merged into them.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752). diffusers is needed
where networks are exported or compared with their export, never where they run. The names of weights are those of the
files that are published in diffusers' layout.
"""

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from bfr.models.networks.blocks import WideGroupNorm, WideLayerNorm
from bfr.runtime.errors import InvalidCheckpoint, MissingDependency
from bfr.runtime.install import install_command
from bfr.runtime.text import listed

SD21_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],  # diffusers' name; it counts heads, of 64 channels each
    "use_linear_projection": True,
    "upcast_attention": False,
}
"""Parameters of Stable Diffusion 2.1-base's denoiser, which predicts eps: `unet/config.json`."""

SD21_VAE: dict[str, Any] = {
    "sample_size": 768,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
"""Parameters of Stable Diffusion 2.1-base's autoencoder: `vae/config.json`."""

# Names of a pair's halves as PEFT, diffusers and older trainers write them: down projects to the rank, up from it.
_HALF = re.compile(r"\.(?:(lora_A|lora\.down|lora_down)|lora_B|lora\.up|lora_up)\.weight$")


def unet(**config: Any) -> nn.Module:
    """Build a denoiser, called as `module(x, t, context)`; it returns eps (B, out_channels, h, w), float32.

    It reads x (B, in_channels, h, w), t (B,) timesteps and context (B, tokens, cross_attention_dim).

    Args:
        **config: Options of UNet2DConditionModel, see `SD21_UNET`.

    Raises:
        MissingDependency: diffusers is not installed.
    """
    base: Any = _diffusers().UNet2DConditionModel

    # A subclass, not a module around it: the names of weights stay those of the published file.
    class Denoiser(base):  # type: ignore[misc]
        def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            dtype = self.conv_in.weight.dtype
            return cast(Tensor, super().forward(x.to(dtype), t, context.to(dtype), return_dict=False)[0]).float()

        def cast_torso(self, dtype: torch.dtype) -> "Denoiser":
            """Cast all but the norms to `dtype`; the published half mode casts those too. Returns itself."""
            nn.Module.to(self, dtype)  # not their own `to`, which warns of modules that are kept in float32: none are
            for module in self.modules():
                for plain, wide in ((nn.GroupNorm, WideGroupNorm), (nn.LayerNorm, WideLayerNorm)):
                    if isinstance(module, plain):
                        module.float().__class__ = wide
            return self

    return cast(nn.Module, Denoiser(**config))


class VaeEncoder(nn.Module):
    """image (B, 3, S, S) in [-1, 1] -> latent (B, C, S / factor, S / factor): the mean, scaled to about unit size.

    OSDFace's published code draws from the normal distribution around that mean, which makes a restoration depend on
    a seed. The mean is that distribution's most likely value, and the same every time. The weights are `encoder.*` and
    `quant_conv.*` of an AutoencoderKL.
    """

    def __init__(self, **config: Any) -> None:
        """Build the encoder.

        Args:
            **config: Options of AutoencoderKL, see `SD21_VAE`.

        Raises:
            MissingDependency: diffusers is not installed.
        """
        super().__init__()
        autoencoder = _diffusers().AutoencoderKL(**config)
        self.encoder, self.quant_conv = autoencoder.encoder, autoencoder.quant_conv
        self.scale = float(autoencoder.config.scaling_factor)

    def forward(self, image: Tensor) -> Tensor:
        mean, _ = torch.chunk(self.quant_conv(self.encoder(image)), 2, dim=1)
        return mean * self.scale


class VaeDecoder(nn.Module):
    """latent (B, channels, s, s), scaled as VaeEncoder does -> image (B, 3, s * factor, s * factor), not clipped.

    The weights are `post_quant_conv.*` and `decoder.*` of an AutoencoderKL.
    """

    def __init__(self, **config: Any) -> None:
        """Build the decoder.

        Args:
            **config: Options of AutoencoderKL, see `SD21_VAE`.

        Raises:
            MissingDependency: diffusers is not installed.
        """
        super().__init__()
        autoencoder = _diffusers().AutoencoderKL(**config)
        self.post_quant_conv, self.decoder = autoencoder.post_quant_conv, autoencoder.decoder
        self.scale = float(autoencoder.config.scaling_factor)
        self.channels = int(autoencoder.config.latent_channels)
        self.factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)

    def forward(self, latent: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(self.post_quant_conv(latent / self.scale)))


def merge_lora(
    unet_state: Mapping[str, Tensor], lora_state: Mapping[str, Tensor], alpha: float, rank: int
) -> dict[str, Tensor]:
    """The weights of a denoiser with low-rank updates in them: W + alpha / rank * B A, float32.

    Hu et al., "LoRA" (arXiv 2106.09685), equation 3. B is (out, rank), A (rank, in); of a convolution A is
    (rank, in, kh, kw), itself a convolution, and B (out, rank, 1, 1).

    Args:
        unet_state: The denoiser's weights by name. Those without an update are returned as they are.
        lora_state: The updates' halves; their names may start with `unet.`.
        alpha: Scale of the updates, times `rank`.
        rank: Rank of the updates.

    Raises:
        InvalidCheckpoint: A tensor of `lora_state` belongs to no weight, or fits none.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in lora_state.items():
        half, name = _HALF.search(key), _HALF.sub(".weight", key).removeprefix("unet.")
        if half is None or name not in unet_state:
            unknown.append(key)
        else:
            pairs.setdefault(name, {})["down" if half[1] else "up"] = tensor
    unknown += [name for name, pair in pairs.items() if len(pair) != 2]
    if unknown or not pairs:
        raise InvalidCheckpoint(
            f"the low-rank weights do not belong to this denoiser: {listed(unknown) or 'there are none'}. Each layer "
            "needs both lora_A (or lora.down) and lora_B (or lora.up) under its own name: choose the file that was "
            "made for it"
        )
    merged = dict(unet_state)
    for name, pair in pairs.items():
        weight, down, up = unet_state[name], pair["down"], pair["up"]
        if down.shape != (rank, *weight.shape[1:]) or up.flatten(1).shape != (weight.shape[0], rank):
            raise InvalidCheckpoint(
                f"{name} is {tuple(weight.shape)}; low-rank weights {tuple(up.shape)} and {tuple(down.shape)} do not "
                f"update it at rank {rank}: choose the file that was made for this denoiser, and its own rank"
            )
        update = (up.float().flatten(1) @ down.float().flatten(1)).reshape(weight.shape)
        merged[name] = weight.float() + (alpha / rank) * update
    return merged


def _diffusers() -> ModuleType:
    try:
        import diffusers
    except ImportError as error:
        raise MissingDependency(
            f"Stable Diffusion's networks need diffusers, which cannot be imported ({error}): {install_command('sd')}"
        ) from error
    return diffusers


ARCHITECTURES = {"vae-encoder": VaeEncoder, "vae-decoder": VaeDecoder, "sd-unet": unet}
