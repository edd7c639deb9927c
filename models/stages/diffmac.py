"""DiffMAC's stages, after its paper's description: features that align a latent, and a bottleneck between two loops.

Gao et al., "DiffMAC: Diffusion Manifold Hallucination Correction" (arXiv 2403.10098). No code is published. The paper's
first loop is aligned with a spatial feature embedding of the degraded face by AdaIN; a manifold information bottleneck
compresses the first loop's result, and a second loop starts from it. Widths and layers are our design.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bfr.models.networks.unet import UNet
from bfr.models.stages.stage import Stage, random


class Features(nn.Module):
    """latent (B, C, h, w) -> features (B, C, h, w), its spatial feature embedding."""

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)
        )

    def forward(self, latent: Tensor) -> Tensor:
        return cast(Tensor, self.layers(latent))


class AlignedUNet(nn.Module):
    """A denoiser (x, t, features) -> eps whose state is aligned with spatial features by AdaIN.

    A convolution computes a scale and a shift per pixel from the features and applies them to the normalized state
    (Huang & Belongie, arXiv 1703.06868). The UNet reads the state and the result, concatenated along the channels.
    """

    def __init__(self, *, channels: int, unet: dict[str, Any]) -> None:
        """Build the network.

        Args:
            channels: C of state and features.
            unet: Options of UNet, whose in_channels are 2 C.
        """
        super().__init__()
        self.modulation = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.unet = UNet(**unet)

    def forward(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        scale, shift = self.modulation(features).chunk(2, dim=1)
        aligned = F.instance_norm(x) * (1.0 + scale) + shift
        return cast(Tensor, self.unet(torch.cat([x, aligned], dim=1), t))

    def cast_torso(self, dtype: torch.dtype) -> None:
        """The UNet's torso in half; all else stays in float32."""
        self.unet.cast_torso(dtype)


class Bottleneck(nn.Module):
    """first, latent (B, C, h, w) each -> compressed (B, C, h, w), the compressed result of the first loop.

    A share between 0 and 1 keeps the value, the rest is replaced by the channel's mean: the mean of the noise that an
    information bottleneck adds while it is trained (Schulz et al., arXiv 2001.00396).
    """

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.share = nn.Sequential(
            nn.Conv2d(2 * channels, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, channels, 1), nn.Sigmoid()
        )

    def forward(self, first: Tensor, latent: Tensor) -> Tensor:
        share = self.share(torch.cat([first, latent], dim=1))
        return cast(Tensor, share * first + (1.0 - share) * first.mean((2, 3), keepdim=True))


class AlignStage(Stage):
    """latent (B, C, h, w) of the degraded face -> features (B, C, h, w)."""

    kind, outputs, wraps = "aligner", ("features",), "network"
    network: Features

    def forward(self, latent: Tensor) -> Tensor:
        return cast(Tensor, self.network(latent))

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """See `Stage`; `size` is the side of the latent."""
        return {"latent": random(batch, self.network.channels, size, size)}


class BottleneckStage(Stage):
    """first, latent (B, C, h, w): of the first loop, and of the degraded face -> compressed (B, C, h, w)."""

    kind, outputs, wraps = "bottleneck", ("compressed",), "network"
    network: Bottleneck

    def forward(self, first: Tensor, latent: Tensor) -> Tensor:
        return cast(Tensor, self.network(first, latent))

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """See `Stage`; `size` is the side of the latents."""
        latent = random(batch, self.network.channels, size, size)
        return {"first": latent, "latent": latent.flip(3)}


ARCHITECTURES = {"diffmac-features": Features, "diffmac-unet": AlignedUNet, "diffmac-bottleneck": Bottleneck}
