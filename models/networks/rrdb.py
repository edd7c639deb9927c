"""PGDiff's restorer: ESRGAN's generator that also sees a noisy state and its timestep, key-compatible with its release.

Wang et al., "ESRGAN" (arXiv 1809.00219): residual blocks of densely connected convolutions. Real-ESRGAN's x1 generator
folds 4x4 pixels into channels first and enlarges twice at the end. Yang et al., "PGDiff" (arXiv 2309.10810), give it
nine channels: the state, the degraded image, and three numbers that a small network makes of the timestep.
"""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bfr.models.networks.blocks import timestep_embedding

TIME_CHANNELS = 100  # of the sinusoidal embedding
FOLD = 4  # pixels a side that become channels


class DenseBlock(nn.Module):
    """(B, C, h, w) -> the same: five convolutions, each of which reads the input and all results before it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        for i in range(5):
            width = channels if i == 4 else growth
            self.add_module(f"conv{i + 1}", nn.Conv2d(channels + i * growth, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for i in range(4):
            seen.append(_leaky(self.get_submodule(f"conv{i + 1}")(torch.cat(seen, dim=1))))
        return cast(Tensor, x + 0.2 * self.get_submodule("conv5")(torch.cat(seen, dim=1)))


class ResidualBlock(nn.Module):
    """(B, C, h, w) -> the same: three dense blocks, their change scaled down."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(channels, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x))))


class Generator(nn.Module):
    """(B, in_channels, S, S) -> (B, 3, S, S); S is a multiple of FOLD."""

    def __init__(self, in_channels: int, channels: int, blocks: int, growth: int) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(in_channels * FOLD**2, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(channels, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_up1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_up2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_hr = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_first(F.pixel_unshuffle(x, FOLD))
        h = h + self.conv_body(self.body(h))
        for enlarge in (self.conv_up1, self.conv_up2):
            h = _leaky(enlarge(F.interpolate(h, scale_factor=2.0, mode="nearest")))
        return cast(Tensor, self.conv_last(_leaky(self.conv_hr(h))))


class SmoothRestorer(nn.Module):
    """State x, timestep t (B,) and degraded image -> a smooth restoration; images (B, 3, S, S) in [-1, 1], not clipped.

    Args:
        channels: Channels of the generator's feature maps.
        blocks: Its residual blocks.
        growth: Channels that each convolution of a dense block adds.
    """

    def __init__(self, *, channels: int = 64, blocks: int = 23, growth: int = 32) -> None:
        super().__init__()
        self.generator = Generator(9, channels, blocks, growth)
        self.time_embed = nn.Sequential(nn.Linear(TIME_CHANNELS, 3), nn.SiLU(), nn.Linear(3, 3))

    def forward(self, x: Tensor, degraded: Tensor, t: Tensor) -> Tensor:
        time = self.time_embed(timestep_embedding(t, TIME_CHANNELS))[:, :, None, None].expand_as(x)
        return cast(Tensor, self.generator(torch.cat([x, degraded, time], dim=1)))

    def own_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The generator's and the time network's: the file also holds what they were trained against."""
        own = ("generator.", "time_embed.")
        return {name: value for name, value in state.items() if name.startswith(own)}


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)
