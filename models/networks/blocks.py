"""The blocks of guided diffusion's UNet (arXiv 2105.05233): residual, attention, resampling, the timestep's embedding.

Convolutions follow the dtype of their weights; normalization and softmax compute in float32.
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32


class WideLayerNorm(nn.LayerNorm):
    """LayerNorm that computes in float32; its output has the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name in torch)
        return super().forward(input.float()).to(input.dtype)


class WideGroupNorm(nn.GroupNorm):
    """GroupNorm that computes in float32; its output has the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name in torch)
        return super().forward(input.float()).to(input.dtype)


class GroupNorm32(WideGroupNorm):
    """WideGroupNorm over 32 groups.

    narrow: compute in the input's dtype, with weight and bias rounded to it. For graphs whose operator keeps the
    statistics in float32 by itself: ONNX's GroupNormalization from opset 21 on.
    """

    narrow = False

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name in torch)
        if self.narrow:
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)
        return super().forward(input)


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
