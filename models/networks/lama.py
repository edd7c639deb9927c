"""LaMa, key-compatible with the published inpainting estimator of DifFace.

Architecture: Suvorov et al., "Resolution-robust Large Mask Inpainting with Fourier Convolutions" (arXiv 2109.07161): a
residual network whose channels are split into a local stream, convolved as usual, and a global one, filtered in the
Fourier domain. The size of the image is fixed when the network is built: the Fourier transforms are then products with
constant matrices, and an exported graph has neither complex numbers nor shape arithmetic (only the batch is dynamic).
"""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Streams: TypeAlias = tuple[Tensor, Tensor | None]  # local and global (B, channels, S, S); None: no global channels
Channels: TypeAlias = tuple[int, int]  # how many local and global ones
Options: TypeAlias = Mapping[str, Any]

MAX_CHANNELS = 1024
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, True: nn.Tanh, False: nn.Identity}


class RealDft2d(nn.Module):
    """Orthonormal 2-D Fourier transform of real (S, S) images and its inverse, as products with constant matrices.

    A spectrum has the S // 2 + 1 columns k of non-negative frequency; its real and imaginary parts lie one above the
    other, (..., 2S, S // 2 + 1). The matrices are computed in float64 and kept in float32, outside the state dict.
    """

    cos: Tensor
    sin: Tensor
    columns: Tensor
    inverse_cos: Tensor
    inverse_sin: Tensor
    inverse_columns: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.bins = size, size // 2 + 1
        # e^(i angle) / sqrt(S): (position, frequency), the products reduced modulo S while they are exact integers
        position = torch.arange(size)
        angle = (position[:, None] * position % size).double() * (2 * math.pi / size)
        cos, sin = angle.cos() / math.sqrt(size), angle.sin() / math.sqrt(size)
        # Columns 0 and S/2 are their own conjugates; every other one stands for two. The inverse's imaginary rows
        # 0 and S/2 are exactly zero: a filtered spectrum is no real image's, and irfft2 ignores what it has there.
        own = 2 * position[: self.bins] % size == 0
        weight = torch.where(own, 1.0, 2.0).double()[:, None]
        matrices = {
            "cos": cos[:, : self.bins],
            "sin": -sin[:, : self.bins],
            "columns": _complex_product(cos, -sin),
            "inverse_cos": weight * cos[: self.bins],
            "inverse_sin": (-weight * sin[: self.bins]).masked_fill(own[:, None], 0.0),
            "inverse_columns": _complex_product(cos, sin),
        }
        for name, matrix in matrices.items():
            self.register_buffer(name, matrix.float().contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """rfft2: (..., S, S) -> (..., 2S, S // 2 + 1)."""
        return self.columns @ torch.cat([x @ self.cos, x @ self.sin], dim=-2)

    def inverse(self, spectrum: Tensor) -> Tensor:
        """irfft2, whatever the symmetry of the spectrum: (..., 2S, S // 2 + 1) -> (..., S, S)."""
        real, imaginary = torch.split(self.inverse_columns @ spectrum, self.size, dim=-2)
        return real @ self.inverse_cos + imaginary @ self.inverse_sin


def _complex_product(real: Tensor, imaginary: Tensor) -> Tensor:
    """The (2S, 2S) matrix that multiplies stacked parts by the complex matrix of these parts, each (S, S)."""
    return torch.cat([torch.cat([real, -imaginary], dim=1), torch.cat([imaginary, real], dim=1)])


class FourierUnit(nn.Module):
    """A 1x1 convolution of the spectrum, each channel's real part before its imaginary one: (B, channels, S, S)."""

    def __init__(self, channels: int, dft: RealDft2d) -> None:
        super().__init__()
        self.channels, self.dft = channels, dft
        self.conv_layer = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        size, bins = self.dft.size, self.dft.bins
        spectrum = self.dft(x).reshape(-1, 2 * self.channels, size, bins)
        spectrum = F.relu(self.bn(self.conv_layer(spectrum)))
        return self.dft.inverse(spectrum.reshape(-1, self.channels, 2 * size, bins))


class SpectralTransform(nn.Module):
    """The global stream's convolution: a residual Fourier unit between pointwise convolutions; may halve the size."""

    def __init__(self, channels: int, out_channels: int, stride: int, dft: RealDft2d) -> None:
        super().__init__()
        half = out_channels // 2
        self.downsample: nn.Module = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.fu = FourierUnit(half, dft)
        self.conv2 = nn.Conv2d(half, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.downsample(x))
        return cast(Tensor, self.conv2(x + self.fu(x)))


class FFC(nn.Module):
    """Fast Fourier convolution: each output stream is the sum of a convolution of either input stream.

    Borders are padded by reflection, so that only the stride changes the size.
    """

    def __init__(self, channels: Channels, out_channels: Channels, kernel: int, stride: int, dft: RealDft2d) -> None:
        super().__init__()
        (local, wide), (out_local, out_wide) = channels, out_channels
        self.padding = (kernel // 2,) * 4

        def conv(count: int, out_count: int) -> nn.Conv2d:
            return nn.Conv2d(count, out_count, kernel, stride, bias=False)

        self.convl2l = conv(local, out_local)
        self.convl2g = conv(local, out_wide) if out_wide else None
        self.convg2l = conv(wide, out_local) if wide else None
        self.convg2g = SpectralTransform(wide, out_wide, stride, dft) if wide and out_wide else None

    def forward(self, streams: Streams) -> Streams:
        local, wide = streams
        padded = F.pad(local, self.padding, mode="reflect")  # once for both convolutions
        out_local = self.convl2l(padded)
        out_wide = None if self.convl2g is None else self.convl2g(padded)
        if wide is not None and self.convg2l is not None:
            out_local = out_local + self.convg2l(F.pad(wide, self.padding, mode="reflect"))
        if self.convg2g is not None:
            out_wide = out_wide + self.convg2g(wide)
        return out_local, out_wide


class FFCLayer(nn.Module):
    """A fast Fourier convolution, then BatchNorm and ReLU on each stream."""

    def __init__(self, channels: Channels, out: Channels, dft: RealDft2d, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.ffc = FFC(channels, out, kernel, stride, dft)
        self.bn_l = nn.BatchNorm2d(out[0])
        self.bn_g = nn.BatchNorm2d(out[1]) if out[1] else None

    def forward(self, streams: Streams) -> Streams:
        local, wide = self.ffc(streams)
        return F.relu(self.bn_l(local)), None if self.bn_g is None else F.relu(self.bn_g(wide))


class FFCResBlock(nn.Module):
    """Two layers of fast Fourier convolution around a residual connection of both streams."""

    def __init__(self, channels: Channels, dft: RealDft2d) -> None:
        super().__init__()
        self.conv1 = FFCLayer(channels, channels, dft)
        self.conv2 = FFCLayer(channels, channels, dft)

    def forward(self, streams: Streams) -> Streams:
        local, wide = self.conv2(self.conv1(streams))
        return streams[0] + local, None if streams[1] is None else streams[1] + wide


class Split(nn.Module):
    """Begins the streams: the image is local, and nothing is global."""

    def forward(self, x: Tensor) -> Streams:
        return x, None


class Join(nn.Module):
    """Ends the streams: one tensor, the local channels first."""

    def forward(self, streams: Streams) -> Tensor:
        local, wide = streams
        return local if wide is None else torch.cat([local, wide], dim=1)


class LaMa(nn.Module):
    """Inpainting estimator `x` (B, input_nc, S, S) -> (B, output_nc, S, S), both float32, S = `image_size`.

    The published network takes an RGB image in [0, 1], 0 in the hole, with a mask, 1 in the hole, as fourth channel;
    its output is RGB in [0, 1] by the sigmoid. The parameters carry the names of the published configuration, except
    `image_size`, which is ours. The three `*_conv_kwargs` hold `ratio_gin` and `ratio_gout`, the shares of global
    channels, and `enable_lfu`: local Fourier units, on in the published code unless it is False, are not supported.
    An input of another size raises ValueError, and so do options that do not fit together.
    """

    def __init__(
        self,
        *,
        input_nc: int,
        output_nc: int,
        ngf: int,
        n_downsampling: int,
        n_blocks: int,
        add_out_act: str | bool,
        init_conv_kwargs: Options,
        downsample_conv_kwargs: Options,
        resnet_conv_kwargs: Options,
        image_size: int = 256,
    ) -> None:
        super().__init__()
        if n_downsampling < 1 or image_size % 2**n_downsampling:
            raise ValueError(f"image_size {image_size} cannot be halved n_downsampling = {n_downsampling} times")
        if add_out_act not in ACTIVATIONS:
            raise ValueError(f"add_out_act is {add_out_act!r}; it must be one of {', '.join(map(str, ACTIVATIONS))}")
        ratios = _ratios(init_conv_kwargs, downsample_conv_kwargs, resnet_conv_kwargs, n_downsampling)
        self.input_nc, self.image_size = input_nc, image_size
        widths = [min(MAX_CHANNELS, ngf * 2**level) for level in range(n_downsampling + 1)]
        global_widths = [int(width * ratio) for width, ratio in zip(widths, ratios, strict=True)]
        streams = [(width - count, count) for width, count in zip(widths, global_widths, strict=True)]
        dfts = [RealDft2d(image_size >> level) for level in range(n_downsampling + 1)]  # one for all units of a level

        self.model = nn.Sequential(Split(), FFCLayer((input_nc, 0), streams[0], dfts[0], kernel=7))
        for level in range(n_downsampling):
            self.model.append(FFCLayer(streams[level], streams[level + 1], dfts[level + 1], stride=2))
        for _ in range(n_blocks):
            self.model.append(FFCResBlock(streams[-1], dfts[-1]))
        self.model.append(Join())
        for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True):
            up = nn.ConvTranspose2d(wide, narrow, 3, stride=2, padding=1, output_padding=1)
            self.model.extend([up, nn.BatchNorm2d(narrow), nn.ReLU()])
        self.model.extend([nn.ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, 7), ACTIVATIONS[add_out_act]()])

    def forward(self, x: Tensor) -> Tensor:
        expected = (self.input_nc, self.image_size, self.image_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"this LaMa takes inputs of shape {expected}, fixed when it is built: resize the input")
        return cast(Tensor, self.model(x))


def _ratios(init: Options, down: Options, resnet: Options, levels: int) -> list[float]:
    """The share of global channels at each level, finest first; ValueError for options that do not fit together."""
    for name, options in (("init", init), ("downsample", down), ("resnet", resnet)):
        if options.get("enable_lfu", True):
            raise ValueError(f"{name}_conv_kwargs: local Fourier units are not supported: set enable_lfu to False")
        if set(options) != {"ratio_gin", "ratio_gout", "enable_lfu"}:
            raise ValueError(f"{name}_conv_kwargs must hold ratio_gin, ratio_gout, enable_lfu: it has {[*options]}")
        if not all(0 <= options[key] < 1 for key in ("ratio_gin", "ratio_gout")):
            raise ValueError(f"{name}_conv_kwargs: ratio_gin and ratio_gout must be in [0, 1)")
    if init["ratio_gin"]:
        raise ValueError("init_conv_kwargs: the input has no global channels: set ratio_gin to 0")
    if resnet["ratio_gin"] != resnet["ratio_gout"]:
        raise ValueError("resnet_conv_kwargs: a residual block needs equal ratio_gin and ratio_gout")
    if init["ratio_gout"] != down["ratio_gin"] or (levels > 1 and down["ratio_gin"] != down["ratio_gout"]):
        raise ValueError("init_conv_kwargs' ratio_gout and downsample_conv_kwargs' ratios must be equal")
    return [*[down["ratio_gin"]] * levels, resnet["ratio_gin"]]


ARCHITECTURES = {"lama": LaMa}
