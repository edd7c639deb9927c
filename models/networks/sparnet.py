"""SPARNet, a face enhancer with spatial attention in its residual blocks, key-compatible with DR2's release of it.

Chen et al., "Learning Spatial Attention for Face Super-Resolution" (arXiv 2012.01211). Published weights are kept under
spectral normalization, which is a constant factor of each convolution if nothing is trained: `own_weights` divides.
"""

import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bfr.runtime.errors import InvalidCheckpoint

SPARNET_HD: dict[str, int] = {"size": 512, "min_ch": 32, "max_ch": 512, "min_feat_size": 32}
"""Parameters of the published SPARNetHD2D."""

Scale = Literal["none", "down", "up"]
SLOPE = 0.2  # of leaky ReLUs
ATTENTION_CHANNELS = 64
LARGEST = 64  # pixels a side of the feature map that the first attention is dimensioned for


class Norm(nn.Module):
    """(B, C, h, w) -> the same, each channel of each image normalized."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(x))


class Conv(nn.Module):
    """(B, in, h, w) -> (B, out, h', w'): a 3x3 convolution, mirrored at the edges; h' is h, h / 2 or 2 h by `scale`."""

    def __init__(
        self, channels: int, out: int, scale: Scale = "none", *, norm: bool = False, leaky: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.leaky = scale, leaky
        self.conv2d = nn.Conv2d(channels, out, 3, stride=2 if scale == "down" else 1, bias=not norm)
        self.norm: nn.Module = Norm(out) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.scale == "up" else x
        x = self.norm(self.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect")))
        return F.leaky_relu(x, SLOPE) if self.leaky else x


class HourGlass(nn.Module):
    """(B, C, h, w) -> the same, times an attention map (B, 1, h, w) of an hourglass of `depth` halvings."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.depth, inner = depth, ATTENTION_CHANNELS
        for level in range(depth, 0, -1):
            before = channels if level == depth else inner
            self.add_module(f"b1_{level}", Conv(before, inner, norm=True, leaky=True))
            self.add_module(f"b2_{level}", Conv(before, inner, "down", norm=True, leaky=True))
            if level == 1:
                self.add_module("b2_plus_1", Conv(inner, inner, norm=True, leaky=True))
            self.add_module(f"b3_{level}", Conv(inner, inner, "up", norm=True, leaky=True))
        if depth:
            self.out_block = nn.Sequential(Conv(inner, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x * self.out_block(self._level(self.depth, x))) if self.depth else x

    def _level(self, level: int, x: Tensor) -> Tensor:
        low = self.get_submodule(f"b2_{level}")(x)
        low = self._level(level - 1, low) if level > 1 else self.get_submodule("b2_plus_1")(low)
        return cast(Tensor, self.get_submodule(f"b1_{level}")(x) + self.get_submodule(f"b3_{level}")(low))


class Residual(nn.Module):
    """(B, in, h, w) -> (B, out, h', w'): two convolutions under attention, beside a shortcut."""

    def __init__(self, channels: int, out: int, scale: Scale, depth: int) -> None:
        super().__init__()
        same = scale == "none" and channels == out
        self.shortcut_func: nn.Module = nn.Identity() if same else Conv(channels, out, scale)
        self.preact_func = nn.Sequential(Norm(channels), nn.LeakyReLU(SLOPE))
        first: Scale = "up" if scale == "up" else "none"
        second: Scale = "down" if scale == "down" else "none"
        self.conv1 = Conv(channels, out, first, norm=True, leaky=True)
        self.conv2 = Conv(out, out, second, norm=True)
        self.att_func = HourGlass(depth, out)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.shortcut_func(x) + self.att_func(self.conv2(self.conv1(self.preact_func(x)))))


class SPARNet(nn.Module):
    """image (B, 3, S, S) in [-1, 1] -> the same, enhanced, not clipped.

    The parameters carry the published names.

    Args:
        size: S, in pixels.
        min_ch: Least channels of a feature map.
        max_ch: Most channels of a feature map.
        min_feat_size: Side that the encoder goes down to.
        res_depth: Residual blocks between encoder and decoder, less their levels.
        bottleneck_size: The attention's smallest map has about size * bottleneck_size / LARGEST pixels a side.
    """

    def __init__(
        self,
        *,
        size: int,
        min_ch: int,
        max_ch: int,
        min_feat_size: int,
        res_depth: int = 10,
        bottleneck_size: int = 4,
    ) -> None:
        super().__init__()
        steps, depth = int(math.log2(size // min_feat_size)), int(math.log2(LARGEST / bottleneck_size))
        first = max(min_ch, min(max_ch // (steps + 1), max_ch))
        widths = [max(min_ch, min(first * 2**i, max_ch)) for i in range(steps + 1)]
        down = [Residual(widths[i], widths[i + 1], "down", depth - i) for i in range(steps)]
        self.encoder = nn.Sequential(Conv(3, widths[0]), *down)
        depth += 1 - steps
        layers = res_depth + 3 - steps
        self.res_layers = nn.Sequential(*(Residual(widths[-1], widths[-1], "none", depth) for _ in range(layers)))
        up = [Residual(widths[-1 - i], widths[-2 - i], "up", depth + 1 + i) for i in range(steps)]
        self.decoder = nn.Sequential(*up)
        self.out_conv = Conv(widths[0], 3)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.out_conv(self.decoder(self.res_layers(self.encoder(image)))))

    def own_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a checkpoint whose convolutions are under spectral normalization, or are not.

        Source: Miyato et al., "Spectral Normalization" (arXiv 1802.05957): W / (u' W v), u and v as they were trained.
        Raises InvalidCheckpoint if u or v of a weight is not there.
        """
        own: dict[str, Tensor] = {}
        for name, tensor in state.items():
            base, kind = name.removesuffix("_orig"), name.rsplit("_", 1)[-1]
            if base == name:
                own |= {} if kind in ("u", "v") and f"{name[:-2]}_orig" in state else {name: tensor}
            elif f"{base}_u" not in state or f"{base}_v" not in state:
                raise InvalidCheckpoint(
                    f"the checkpoint has {name} without {base}_u and {base}_v: choose the whole checkpoint"
                )
            else:
                own[base] = tensor / torch.dot(state[f"{base}_u"], tensor.flatten(1) @ state[f"{base}_v"])
        return own


ARCHITECTURES = {"sparnet": SPARNet}
