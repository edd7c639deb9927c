"""SwinIR, key-compatible with the published DifFace estimator.

Architecture: Liang et al., "SwinIR: Image Restoration Using Swin Transformer" (arXiv 2108.10257). The size of the
image is fixed when the network is built: the attention masks belong to it, and an exported graph is then free of
shape arithmetic (only the batch is dynamic, and every reshape infers it by -1). Between the convolutions the residual
stream is kept as (B, H, W, C).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bfr.models.networks.blocks import WideLayerNorm

RGB_MEAN = (0.4488, 0.4371, 0.4040)
UPSAMPLE_CHANNELS = 64
MASKED = -100.0  # added to the score of two positions that only the cyclic shift made neighbours


def window_partition(x: Tensor, window: int) -> Tensor:
    """Cut (B, H, W, C) into windows: (B * H/window * W/window, window**2, C), row by row."""
    _, height, width, channels = x.shape
    x = x.reshape(-1, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def window_reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo `window_partition`: -> (B, height, width, C)."""
    channels = windows.shape[-1]
    x = windows.reshape(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of positions in a window: (window**2, window**2) int64."""
    position = torch.arange(window * window)
    rows = position // window
    columns = position % window
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right


def shift_mask(size: int, window: int, shift: int) -> Tensor:
    """What to add to the scores after a cyclic shift: (windows, window**2, window**2) float32, 0 or -100.

    The shift brings opposite borders of the image into one window; positions from different regions must not attend
    to each other.
    """
    band = torch.zeros(size, dtype=torch.int64)
    band[size - window :] = 1
    band[size - shift :] = 2
    region = 3 * band[:, None] + band[None, :]
    region = window_partition(region[None, :, :, None], window).squeeze(-1)
    foreign = region[:, :, None] != region[:, None, :]
    return torch.zeros(foreign.shape).masked_fill(foreign, MASKED)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, window: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """`windows` (B*n, N, C) and `mask` (n, N, N) or none -> (B*n, N, C)."""
        _, positions, channels = windows.shape
        qkv = self.qkv(windows).reshape(-1, positions, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = ((q * self.scale) @ k.transpose(2, 3)).float()
        bias = self.relative_position_bias_table[self.relative_position_index.reshape(-1)]
        scores = scores + bias.float().reshape(positions, positions, self.num_heads).permute(2, 0, 1)
        if mask is not None:
            count = mask.shape[0]
            scores = scores.reshape(-1, count, self.num_heads, positions, positions) + mask[:, None]
            scores = scores.reshape(-1, self.num_heads, positions, positions)
        h = torch.softmax(scores, dim=-1).to(v.dtype) @ v
        return cast(Tensor, self.proj(h.transpose(1, 2).reshape(-1, positions, channels)))


class SwinBlock(nn.Module):
    """Window attention, cyclically shifted by `shift`, then a GELU perceptron; both residual, both pre-norm."""

    attn_mask: Tensor | None

    def __init__(self, channels: int, size: int, num_heads: int, *, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.register_buffer("attn_mask", shift_mask(size, window, shift) if shift else None)
        self.norm1 = WideLayerNorm(channels)
        self.attn = WindowAttention(channels, window, num_heads)
        self.norm2 = WideLayerNorm(channels)
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(channels, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        h = self.norm1(x)
        if self.shift:
            h = torch.roll(h, (-self.shift, -self.shift), (1, 2))
        h = self.attn(window_partition(h, self.window), self.attn_mask)
        h = window_reverse(h, self.window, height, width)
        if self.shift:
            h = torch.roll(h, (self.shift, self.shift), (1, 2))
        x = x + h
        return cast(Tensor, x + self.mlp(self.norm2(x)))


def residual_conv(channels: int, kind: str) -> nn.Module:
    """The convolution that closes a residual group: one 3x3 (`1conv`), or a bottleneck of three (`3conv`)."""
    if kind == "1conv":
        return nn.Conv2d(channels, channels, 3, padding=1)
    if kind == "3conv":
        quarter = channels // 4
        return nn.Sequential(
            nn.Conv2d(channels, quarter, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(quarter, quarter, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(quarter, channels, 3, padding=1),
        )
    raise ValueError(f"resi_connection is {kind!r}; it must be '1conv' or '3conv'")


class ResidualGroup(nn.Module):
    """Swin blocks, then a convolution, around a residual connection (RSTB in the paper)."""

    def __init__(self, blocks: Sequence[SwinBlock], conv: nn.Module) -> None:
        super().__init__()
        self.residual_group = nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        h = self.residual_group(x).permute(0, 3, 1, 2)
        return cast(Tensor, x + self.conv(h).permute(0, 2, 3, 1))


class SwinIR(nn.Module):
    """Estimator `x` (B, in_chans, S, S) in [0, 1] -> (B, in_chans, T, T), about [0, 1] but not clamped; both float32.

    The parameters carry the names of the published configurations. `img_size` is the side that the transformer sees;
    S is `img_size`, times `unshuffle_scale` where `unshuffle` is on, and T is `img_size * sf`. An input of another
    size raises ValueError.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        img_size: int,
        in_chans: int = 3,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        mlp_ratio: float = 2.0,
        sf: int,
        img_range: float = 1.0,
        upsampler: str = "nearest+conv",
        resi_connection: str = "1conv",
        unshuffle: bool = False,
        unshuffle_scale: int = 1,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        if patch_size != 1:
            raise ValueError(f"patch_size is {patch_size}; SwinIR's patches are single pixels")
        if len(depths) != len(num_heads):
            raise ValueError(
                f"depths has {len(depths)} groups and num_heads {len(num_heads)}: give both the same number"
            )
        if img_size > window_size and img_size % window_size:
            raise ValueError(f"img_size {img_size} is not a multiple of window_size {window_size}")
        scale = unshuffle_scale if unshuffle else 1
        self.in_chans, self.img_range, self.upsampler = in_chans, img_range, upsampler
        self.image_size = img_size * scale
        mean = torch.tensor(RGB_MEAN) if in_chans == len(RGB_MEAN) else torch.zeros(1)
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1), persistent=False)

        first = nn.Conv2d(in_chans * scale**2, embed_dim, 3, padding=1)
        self.conv_first: nn.Module = nn.Sequential(nn.PixelUnshuffle(scale), first) if unshuffle else first
        self.patch_embed = nn.Sequential(OrderedDict(norm=WideLayerNorm(embed_dim)))
        self.layers = nn.Sequential()
        window = min(window_size, img_size)
        shift = window // 2 if img_size > window else 0  # one window that covers the image has nothing to shift
        for depth, heads in zip(depths, num_heads, strict=True):
            blocks = [
                SwinBlock(embed_dim, img_size, heads, window=window, shift=shift * (index % 2), mlp_ratio=mlp_ratio)
                for index in range(depth)
            ]
            self.layers.append(ResidualGroup(blocks, residual_conv(embed_dim, resi_connection)))
        self.norm = WideLayerNorm(embed_dim)
        self.conv_after_body = residual_conv(embed_dim, resi_connection)

        if upsampler == "nearest+conv":
            if sf not in {4, 8}:
                raise ValueError(f"sf is {sf}; with upsampler 'nearest+conv' it must be 4 or 8")
            width = UPSAMPLE_CHANNELS
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, width, 3, padding=1), nn.LeakyReLU())
            self.conv_up1 = nn.Conv2d(width, width, 3, padding=1)
            self.conv_up2 = nn.Conv2d(width, width, 3, padding=1)
            self.conv_up3 = nn.Conv2d(width, width, 3, padding=1) if sf == 8 else None
            self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
            self.conv_last = nn.Conv2d(width, in_chans, 3, padding=1)
        elif upsampler == "pixelshuffledirect":
            last = nn.Conv2d(embed_dim, in_chans * sf**2, 3, padding=1)
            self.upsample = nn.Sequential(last, nn.PixelShuffle(sf))
        else:
            raise ValueError(f"upsampler is {upsampler!r}; it must be 'nearest+conv' or 'pixelshuffledirect'")

    def forward(self, x: Tensor) -> Tensor:
        expected = (self.in_chans, self.image_size, self.image_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"this SwinIR takes images of shape {expected}, fixed when it is built: resize the input")
        h = self.conv_first(((x - self.mean) * self.img_range).to(self.torso_dtype))
        features = self.norm(self.layers(self.patch_embed(h.permute(0, 2, 3, 1))))
        h = h + self.conv_after_body(features.permute(0, 3, 1, 2))
        if self.upsampler == "nearest+conv":
            h = self.conv_before_upsample(h)
            for conv in (self.conv_up1, self.conv_up2, self.conv_up3):
                if conv is not None:
                    h = F.leaky_relu(conv(F.interpolate(h, scale_factor=2.0, mode="nearest")), 0.2)
            h = self.conv_last(F.leaky_relu(self.conv_hr(h), 0.2).to(x.dtype))
        else:
            h = self.upsample(h.to(x.dtype))
        return cast(Tensor, h / self.img_range + self.mean)

    @property
    def torso_dtype(self) -> torch.dtype:
        """The dtype of the residual stream, and of all that computes between the first and the last convolution."""
        return next(self.conv_first.parameters()).dtype

    def cast_torso(self, dtype: torch.dtype) -> "SwinIR":
        """Cast every convolution and linear layer but the last to `dtype`; returns itself.

        LayerNorm, the relative position bias, the softmax, the last convolution and the output stay in float32. The
        residual stream is in `dtype`: with the published weights it can leave float16's range (65504), so measure its
        maximum before choosing float16, or take bfloat16.
        """
        last = self.conv_last if self.upsampler == "nearest+conv" else self.upsample[0]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module is not last:
                module.to(dtype)
        return self


ARCHITECTURES = {"swinir": SwinIR}
