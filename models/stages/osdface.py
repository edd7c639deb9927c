"""The stages of a latent one-step restoration around its denoiser: encode, make the prompt, decode.

OSDFace (arXiv 2411.17163) encodes the degraded face itself as the state, without noise, and one call of the denoiser at
a fixed timestep gives x0, which is decoded.
"""

from typing import cast

from torch import Tensor, nn

from bfr.models.networks.sd import VaeDecoder
from bfr.models.stages.stage import Stage, random
from bfr.models.stages.step import clip_finite


class LatentEncodeStage(Stage):
    """degraded (B, 3, S, S) in [0, 1] -> latent (B, 4, S / 8, S / 8), of about unit size: the mean, not a sample."""

    kind, outputs, wraps = "vae-encoder", ("latent",), "encoder"

    def __init__(self, encoder: nn.Module) -> None:
        """Build the stage.

        Args:
            encoder: Image in [-1, 1] -> scaled latent, see `bfr.models.networks.sd.VaeEncoder`.
        """
        super().__init__()
        self.encoder = encoder

    def forward(self, degraded: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(2.0 * degraded - 1.0).float())

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """See `Stage`; size: of the images, S."""
        return {"degraded": random(batch, 3, size, size)}


class PromptStage(Stage):
    """degraded (B, 3, S, S) in [0, 1] -> context (B, tokens, width), (B, 77, 1024) in the published network."""

    kind, outputs, wraps = "prompt", ("context",), "embedder"

    def __init__(self, embedder: nn.Module) -> None:
        """Build the stage.

        Args:
            embedder: Image in [-1, 1] -> context, see `bfr.models.networks.osdface.VisualEmbedder`.
        """
        super().__init__()
        self.embedder = embedder

    def forward(self, degraded: Tensor) -> Tensor:
        return cast(Tensor, self.embedder(2.0 * degraded - 1.0).float())

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """See `Stage`; size: of the images, S."""
        return {"degraded": random(batch, 3, size, size)}


class LatentDecodeStage(Stage):
    """latent_state (B, 4, S / 8, S / 8), scaled as LatentEncodeStage does -> restored (B, 3, S, S) in [-1, 1]."""

    kind, outputs, wraps = "vae-decoder", ("restored",), "decoder"

    def __init__(self, decoder: VaeDecoder) -> None:
        """Build the stage.

        Args:
            decoder: Scaled latent -> image, see `bfr.models.networks.sd.VaeDecoder`.
        """
        super().__init__()
        self.decoder = decoder

    def forward(self, latent_state: Tensor) -> Tensor:
        return clip_finite(self.decoder(latent_state).float())

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """See `Stage`; size: of the images, S."""
        side = size // self.decoder.factor
        return {"latent_state": random(batch, self.decoder.channels, side, side)}
