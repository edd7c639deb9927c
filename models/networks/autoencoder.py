"""Encoder and decoder of VQGAN (arXiv 2012.09841), which latent diffusion and OSDFace's embedder share.

The names of weights are those of the published files: `conv_in`, `down.*` or `up.*`, `mid.*`, `norm_out`, `conv_out`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bfr.runtime.errors import InvalidOption

GROUPS = 32
EPS = 1e-6


def normalize(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm as the published networks have it: epsilon 1e-6, not torch's 1e-5."""
    return nn.GroupNorm(groups, channels, eps=EPS)


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2): a strided 3x3 convolution, padded at right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        # Not F.interpolate: it reads the batch as a number, which would become a constant of a recorded gradient.
        x = torch.ops.aten.upsample_nearest2d.default(x, [2 * height, 2 * width])
        return cast(Tensor, self.conv(x))


class ResnetBlock(nn.Module):
    """Residual block (B, channels, H, W) -> (B, width, H, W), without time embedding."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = normalize(channels, groups)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = normalize(width, groups)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if channels != width:
            self.nin_shortcut = nn.Conv2d(channels, width, 1)
        self.projects = channels != width

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return cast(Tensor, h + (self.nin_shortcut(x) if self.projects else x))


class AttnBlock(nn.Module):
    """Residual self-attention of one head over the H*W positions.

    The weights are an (H*W)^2 matrix an image: 1 GiB at 128x128 positions, as in the published code.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = normalize(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        h = self.norm(x)
        q, k, v = (conv(h).reshape(-1, channels, height * width) for conv in (self.q, self.k, self.v))
        weight = torch.softmax(q.transpose(1, 2) @ k * channels**-0.5, dim=-1)  # (B, of q, of k)
        h = (v @ weight.transpose(1, 2)).reshape(-1, channels, height, width)
        return cast(Tensor, x + self.proj_out(h))


Attention = Callable[[int, int], nn.Module]
"""Makes self-attention of so many channels, normalized in so many groups."""


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int, attention: Attention = AttnBlock) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = attention(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x))))


@dataclass(frozen=True, slots=True)
class Levels:
    """What encoder and decoder share, by the names of the published configurations (`ddconfig`).

    Raises InvalidOption for options that do not fit together.

    Attributes:
        ch: Channels of the first level.
        ch_mult: Each level's channels as multiples of `ch`; a level has half the side of the one before.
        num_res_blocks: Residual blocks of a level.
        attn_resolutions: Sides at which every block is followed by an attention, counted from `resolution`.
        resolution: Side of images, S; that of latents is s = S / 2^(levels - 1).
        z_channels: Channels between encoder and decoder.
        groups: Groups of GroupNorm; an option of ours, fewer than 32 for small networks.
    """

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    z_channels: int
    groups: int = GROUPS

    def __post_init__(self) -> None:
        halvings = len(self.ch_mult) - 1
        if self.resolution % 2**halvings:
            raise InvalidOption(
                f"resolution {self.resolution} cannot be halved {halvings} times: choose a multiple of {2**halvings}, "
                "or fewer levels in ch_mult"
            )
        if any(self.ch * mult % self.groups for mult in (1, *self.ch_mult)):
            raise InvalidOption(
                f"ch {self.ch} times ch_mult {list(self.ch_mult)} must divide into {self.groups} groups: choose "
                "another ch, or groups"
            )


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by an attention if there is one, then a resampling.

    Args:
        levels: What all levels share.
        index: Index of the level; the finest is 0.
        channels: That the first block reads; `width` are those that the level makes.
        count: Number of residual blocks.
        attention: Makes the attentions.
    """

    def __init__(self, levels: Levels, index: int, channels: int, count: int, attention: Attention = AttnBlock) -> None:
        super().__init__()
        width = self.width = levels.ch * levels.ch_mult[index]
        inputs = [channels, *[width] * (count - 1)]
        self.block = nn.ModuleList(ResnetBlock(read, width, levels.groups) for read in inputs)
        attends = levels.resolution >> index in levels.attn_resolutions
        self.attn = nn.ModuleList(attention(width, levels.groups) for _ in inputs if attends)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip_longest(self.block, self.attn):
            x = block(x) if attention is None else attention(block(x))
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class Encoder(nn.Module):
    """(B, in_channels, S, S) -> (B, z_channels, s, s)."""

    def __init__(self, levels: Levels, in_channels: int = 3, attention: Attention = AttnBlock) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, levels.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels, last = levels.ch, len(levels.ch_mult) - 1
        for index in range(last + 1):
            level = Level(levels, index, channels, levels.num_res_blocks, attention)
            channels = level.width
            level.downsample = Downsample(channels) if index < last else None
            self.down.append(level)
        self.mid = Middle(channels, levels.groups, attention)
        self.norm_out = normalize(channels, levels.groups)
        self.conv_out = nn.Conv2d(channels, levels.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(self.mid(h)))))


class Decoder(nn.Module):
    """(B, z_channels, s, s) -> (B, out_ch, S, S)."""

    def __init__(self, levels: Levels, out_ch: int = 3) -> None:
        super().__init__()
        channels = levels.ch * levels.ch_mult[-1]
        self.conv_in = nn.Conv2d(levels.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels, levels.groups)
        up = []
        for index in reversed(range(len(levels.ch_mult))):
            level = Level(levels, index, channels, levels.num_res_blocks + 1)
            channels = level.width
            level.upsample = Upsample(channels) if index else None
            up.append(level)
        self.up = nn.ModuleList(reversed(up))  # finest first, as the encoder's
        self.norm_out = normalize(channels, levels.groups)
        self.conv_out = nn.Conv2d(channels, out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(h))))
