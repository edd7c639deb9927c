"""The UNet of guided diffusion, key-compatible with the published DifFace checkpoints.

Architecture: Dhariwal & Nichol, "Diffusion Models Beat GANs" (arXiv 2105.05233), in the variants that DifFace's
configurations use. Convolutions follow the dtype of their weights; GroupNorm, softmax and the time embedding always
compute in float32, so casting the convolutions to half gives the mixed precision of the published code.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bfr.models.networks.blocks import (
    AttentionBlock,
    Downsample,
    GroupNorm32,
    ResBlock,
    Stage,
    Upsample,
    timestep_embedding,
)


def condition(
    timesteps: Tensor, channels: int, time_embed: nn.Module, layers: Iterable[nn.Module]
) -> tuple[Tensor, ...]:
    """(B,) timesteps -> for each of `layers` (B, its features) float32: what it makes of the time embedding."""
    emb = time_embed(timestep_embedding(timesteps, channels))
    return tuple(layer(emb) for layer in layers)


class UNet(nn.Module):
    """Denoiser `(x, timesteps) -> out`: `x` (B, in_channels, S, S), `timesteps` (B,), `out` (B, out_channels, S, S).

    In the place of timesteps it takes what `condition` makes of them, side by side, (B, features): the same for every
    image and every run, it can be computed once.

    The parameters carry the names of the published configurations. Three are ours, for small networks: `unshuffle` > 1
    computes on the image rearranged into S/unshuffle squares of more channels; `time_conditioned=False` makes a plain
    image-to-image network, called with `x` alone; `residual` adds the input to the output, times a learnt gain that
    depends on time where there is time: few channels need not carry the whole image then.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int],
        dropout: float = 0.0,
        conv_resample: bool = True,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        unshuffle: int = 1,
        time_conditioned: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        levels = len(channel_mult)
        blocks = [num_res_blocks] * levels if isinstance(num_res_blocks, int) else list(num_res_blocks)
        if len(blocks) != levels:
            raise ValueError(
                f"num_res_blocks has {len(blocks)} levels and channel_mult {levels}: give both the same number"
            )
        self.in_channels, self.image_size, self.model_channels = in_channels, image_size, model_channels
        self.unshuffle, self.time_conditioned, self.residual = unshuffle, time_conditioned, residual
        widths = [int(mult * model_channels) for mult in channel_mult]
        emb_channels = 4 * model_channels if time_conditioned else None
        if emb_channels is not None:
            self.time_embed = nn.Sequential(
                nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
            )
            if residual:
                self.gain = nn.Linear(emb_channels, out_channels)

        def res(channels: int, out: int, resample: type[Upsample] | type[Downsample] | None = None) -> ResBlock:
            return ResBlock(
                channels,
                out,
                emb_channels,
                dropout=dropout,
                use_scale_shift_norm=use_scale_shift_norm,
                resample=resample,
            )

        def attention(channels: int) -> AttentionBlock:
            heads = num_heads if num_head_channels == -1 else channels // num_head_channels
            return AttentionBlock(channels, heads, use_new_attention_order)

        def resampler(kind: type[Upsample] | type[Downsample], channels: int) -> nn.Module:
            return res(channels, channels, kind) if resblock_updown else kind(channels, conv_resample)

        first, resolution = widths[0], image_size // unshuffle
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(in_channels * unshuffle**2, first, 3, padding=1))])
        skips, channels = [first], first
        for level, width in enumerate(widths):
            for _ in range(blocks[level]):
                layers: list[nn.Module] = [res(channels, width)]
                channels = width
                if resolution in attention_resolutions:
                    layers.append(attention(channels))
                self.input_blocks.append(Stage(*layers))
                skips.append(channels)
            if level < levels - 1:
                self.input_blocks.append(Stage(resampler(Downsample, channels)))
                skips.append(channels)
                resolution //= 2

        self.middle_block = Stage(res(channels, channels), attention(channels), res(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for block in range(blocks[level] + 1):
                layers = [res(channels + skips.pop(), width)]
                channels = width
                if resolution in attention_resolutions:
                    layers.append(attention(channels))
                if level and block == blocks[level]:
                    layers.append(resampler(Upsample, channels))
                    resolution *= 2
                self.output_blocks.append(Stage(*layers))

        self.out = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels * unshuffle**2, 3, padding=1)
        )

    def forward(self, x: Tensor, timesteps: Tensor | None = None) -> Tensor:
        gain: Tensor | None = None
        conditionings: Iterator[Tensor | None] = itertools.repeat(None)
        if self.time_conditioned:
            if timesteps is None:
                raise TypeError("this UNet is conditioned on time: call it with (x, timesteps)")
            parts: tuple[Tensor, ...]
            if timesteps.ndim == 2:  # cast whole, not part by part; the gain stays in float32
                parts = torch.split(timesteps.to(self.torso_dtype), self.conditioning_sizes, dim=1)
                gain = timesteps[:, -self.gain.out_features :] if self.residual else None
            else:
                parts = condition(timesteps, self.model_channels, self.time_embed, self.conditioning_layers())
                gain = parts[-1] if self.residual else None
            conditionings = iter(parts)
        h = F.pixel_unshuffle(x, self.unshuffle) if self.unshuffle > 1 else x
        h = h.to(self.torso_dtype)
        skips = []
        for stage in self.input_blocks:
            h = stage(h, conditionings)
            skips.append(h)
        h = self.middle_block(h, conditionings)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), conditionings)
        h = self.out(h.to(x.dtype))
        h = F.pixel_shuffle(h, self.unshuffle) if self.unshuffle > 1 else h
        if not self.residual:
            return h
        return h + (x if gain is None else gain[:, :, None, None] * x)

    def conditioning_layers(self) -> list[nn.Module]:
        """What reads the time embedding: a layer of each residual block, and the gain's."""
        layers: list[nn.Module] = [block.emb_layers for block in self.torso() if isinstance(block, ResBlock)]
        return [*layers, self.gain] if self.residual else layers

    @property
    def conditioning_sizes(self) -> list[int]:
        """Features of each of the conditioning layers."""
        return [next(layer.parameters()).shape[0] for layer in self.conditioning_layers()]  # rows of its matrix

    @property
    def torso_dtype(self) -> torch.dtype:
        """The dtype that the blocks between first and last layer compute in."""
        return next(self.input_blocks.parameters()).dtype

    def cast_torso(self, dtype: torch.dtype) -> "UNet":
        """Cast the torso's convolutions, and nothing else, to `dtype`: the published half mode. Returns itself."""
        for module in self.torso():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                module.to(dtype)
        return self

    def torso(self) -> Iterator[nn.Module]:
        for part in (self.input_blocks, self.middle_block, self.output_blocks):
            yield from part.modules()


ARCHITECTURES = {"unet": UNet}
