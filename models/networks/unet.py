"""The UNet of guided diffusion, key-compatible with the published DifFace checkpoints.

Architecture: Dhariwal & Nichol, "Diffusion Models Beat GANs" (arXiv 2105.05233), in the variants that DifFace's
configurations use. Convolutions follow the dtype of their weights; GroupNorm, softmax and the time embedding always
compute in float32, so casting the convolutions to half gives the mixed precision of the published code.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32


class GroupNorm32(nn.GroupNorm):
    """GroupNorm over 32 groups whose statistics are float32 whatever the input's dtype.

    Attributes:
        narrow: Hand the input over in its own dtype, with weight and bias rounded to it, instead of widened. For graphs
            whose operator keeps the statistics in float32 by itself: ONNX's GroupNormalization from opset 21 on.
    """

    narrow = False

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name in torch)
        if self.narrow:
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)
        return super().forward(input.float()).to(input.dtype)


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): nearest neighbour, then a 3x3 convolution if `use_conv`."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        if use_conv:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.use_conv = use_conv

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x) if self.use_conv else x


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2): a strided 3x3 convolution if `use_conv`, else the mean of 2x2."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op: nn.Module = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.op(x))


class ResBlock(nn.Module):
    """Residual block, conditioned on the time embedding by shift or by scale and shift; may resample by 2."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        emb_channels: int | None,
        *,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = False,
        resample: type[Upsample] | type[Downsample] | None = None,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample: nn.Module = resample(channels, use_conv=False) if resample else nn.Identity()
        if emb_channels is not None:
            features = 2 * out_channels if use_scale_shift_norm else out_channels
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, features))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection: nn.Module = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, conditioning: Tensor | None) -> Tensor:
        """`conditioning` (B, features) is what `emb_layers` made of the time embedding."""
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        x = self.resample(x)
        norm, *rest = self.out_layers
        if conditioning is None:
            h = norm(h)
        else:
            conditioning = conditioning.to(h.dtype)[:, :, None, None]
            if self.use_scale_shift_norm:
                scale, shift = conditioning.chunk(2, dim=1)
                h = norm(h) * (1 + scale) + shift
            else:
                h = norm(h + conditioning)
        for layer in rest:
            h = layer(h)
        return cast(Tensor, self.skip_connection(x) + h)


class AttentionBlock(nn.Module):
    """Residual self-attention over the H*W positions.

    The published networks order the channels of `qkv` head by head (each head's q, k, v together);
    `use_new_attention_order` puts all heads' q first, then k, then v. The projections keep the published layout of
    their weights, (out, in, 1), and are computed as products of (B, H*W, C), which is how channels-last images lie.

    Attributes:
        explicit: Compute with convolutions, matrix products and a softmax in float32 instead of PyTorch's attention.
            For graphs of opsets that have no operator for it.
    """

    explicit = False

    def __init__(self, channels: int, num_heads: int, use_new_attention_order: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.use_new_attention_order = use_new_attention_order
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        h = self.norm(x).flatten(2)  # (B, C, H*W)
        h = self._convolved(h) if self.explicit else self._linear(h.transpose(1, 2)).transpose(1, 2)
        return x + h.reshape(-1, channels, height, width)

    def _linear(self, h: Tensor) -> Tensor:
        """(B, H*W, C) -> (B, H*W, C)."""
        _, positions, channels = h.shape
        head = channels // self.num_heads
        qkv = F.linear(h, self.qkv.weight.squeeze(2), self.qkv.bias)
        if self.use_new_attention_order:
            parts = qkv.reshape(-1, positions, 3, self.num_heads, head).permute(2, 0, 3, 1, 4)
        else:
            parts = qkv.reshape(-1, positions, self.num_heads, 3, head).permute(3, 0, 2, 1, 4)
        q, k, v = parts.unbind(0)  # (B, heads, H*W, head) each
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, positions, channels)
        return F.linear(attended, self.proj_out.weight.squeeze(2), self.proj_out.bias)

    def _convolved(self, h: Tensor) -> Tensor:
        """(B, C, H*W) -> (B, C, H*W)."""
        _, channels, positions = h.shape
        head = channels // self.num_heads
        qkv = self.qkv(h)
        if self.use_new_attention_order:
            q, k, v = qkv.reshape(-1, 3, self.num_heads, head, positions).unbind(1)
        else:
            q, k, v = qkv.reshape(-1, self.num_heads, 3, head, positions).unbind(2)
        scale = head**-0.25  # on q and k each: the product then stays in half's range
        weight = torch.softmax(((q * scale).transpose(2, 3) @ (k * scale)).float(), dim=-1).to(v.dtype)
        return cast(Tensor, self.proj_out((v @ weight.transpose(2, 3)).reshape(-1, channels, positions)))


class Stage(nn.Sequential):
    """Layers in order; those that are conditioned on time are given the next of the conditionings."""

    def forward(self, x: Tensor, conditionings: Iterator[Tensor | None]) -> Tensor:  # type: ignore[override]  # nn's: x
        for layer in self:
            x = layer(x, next(conditionings)) if isinstance(layer, ResBlock) else layer(x)
        return x


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding, cosines first: `(B,)` timesteps -> `(B, channels)` float32."""
    half = channels // 2
    position = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(10000.0) * position / half)
    angles = timesteps.float()[:, None] * frequencies[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, channels % 2))


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
            raise ValueError(f"num_res_blocks names {len(blocks)} levels, channel_mult {levels}")
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
        layers: list[nn.Module] = [block.emb_layers for block in self.conditioned_blocks()]
        return [*layers, self.gain] if self.residual else layers

    def conditioned_blocks(self) -> Iterator[ResBlock]:
        """The residual blocks in the order of the computation."""
        yield from (module for module in self.torso() if isinstance(module, ResBlock))

    @property
    def conditioning_sizes(self) -> list[int]:
        """Features of each of the conditioning layers."""
        sizes = [cast(nn.Linear, block.emb_layers[1]).out_features for block in self.conditioned_blocks()]
        return [*sizes, self.gain.out_features] if self.residual else sizes

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
