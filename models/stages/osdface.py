"""The stages of a latent one-step restoration around its denoiser: encode, make the prompt, decode.

OSDFace (arXiv 2411.17163) encodes the degraded face itself as the state, without noise, and one call of the denoiser at
a fixed timestep gives x0, which is decoded.
"""

from typing import cast

from torch import Tensor, nn

from bfr.models.networks.sd import VaeDecoder
from bfr.models.stages.stage import ImageStage, Stage, random
from bfr.models.stages.step import clip_finite


class LatentEncodeStage(ImageStage):
    """degraded (B, 3, S, S) in [0, 1] -> latent (B, 4, S / 8, S / 8), of about unit size: the mean, not a sample.

    It wraps a `bfr.models.networks.sd.VaeEncoder`.
    """

    kind, outputs, wraps = "vae-encoder", ("latent",), "encoder"
    encoder: nn.Module

    def forward(self, degraded: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(2.0 * degraded - 1.0).float())


class PromptStage(ImageStage):
    """degraded (B, 3, S, S) in [0, 1] -> context (B, tokens, width), (B, 77, 1024) in the published network.

    It wraps a `bfr.models.networks.osdface.VisualEmbedder`.
    """

    kind, outputs, wraps = "prompt", ("context",), "embedder"
    embedder: nn.Module

    def forward(self, degraded: Tensor) -> Tensor:
        return cast(Tensor, self.embedder(2.0 * degraded - 1.0).float())


class LatentDecodeStage(Stage):
    """latent_state (B, 4, S / 8, S / 8), scaled as LatentEncodeStage does -> restored (B, 3, S, S) in [-1, 1]."""

    kind, outputs, wraps = "vae-decoder", ("restored",), "decoder"
    decoder: VaeDecoder

    def forward(self, latent_state: Tensor) -> Tensor:
        return clip_finite(self.decoder(latent_state).float())

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """See `Stage`; `size` is the side of the images, S."""
        side = size // self.decoder.factor
        return {"latent_state": random(batch, self.decoder.channels, side, side)}
