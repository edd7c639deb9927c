"""Stages of identity guidance: the gradient between two steps, and the networks before and after the loop.

PGDiff (arXiv 2309.10810) guides in pixels towards a reference picture's identity; CLR-Face (arXiv 2402.06106) guides
in latents towards the one that a network recovers from the degraded picture. What they wrap is built by
`bfr.models.networks.clrface`.
"""

import torch
from torch import Tensor, nn

from bfr.models.networks.clrface import IdentityRecovery
from bfr.models.networks.identity import IdentityDistance
from bfr.models.networks.vqgan import VQModel
from bfr.models.stages.gradient import without_autograd
from bfr.models.stages.stage import ImageStage, Stage, random
from bfr.models.stages.step import clip_finite
from bfr.runtime.diffusion.solvers import Column

TINY = 1e-12


class GuideStage(Stage):
    """Moves a step's result against the gradient of the identity's distance: `... -> x_next_guided, x0_guided`.

    x_next, x0: (B, C, h, w), what the step made; row: (B, 8), the step's; strength: (B,); target: (B, E) embeddings.
    With g the gradient of the distance at x0, taken as a constant, and the distance's mask m where it has one,

        x0_guided = x0 - strength * m * g,    x_next_guided = x_next + c * (x0_guided - x0),

    because every solver is linear in x0, with coefficient c. A strength of 0 leaves an image exactly unchanged.
    PGDiff's own guidance, which shifts the mean by its learned variance, is in `bfr.models.stages.pgdiff`.
    """

    kind, outputs, wraps, autograd = "guide", ("x_next_guided", "x0_guided"), "network", True
    network: IdentityDistance

    def __init__(self, network: IdentityDistance, *, normalize: bool = False, clipped: bool = True) -> None:
        """Build the stage.

        Args:
            network: The distance whose gradient guides.
            normalize: Scale m * g, in each image, to the length of x_next - x0, so that a strength means the same
                everywhere. PGDiff scales so in colorization and inpainting, to the length of the last step, x_t -
                x_{t-1}, but x_t is not available here. x_next - x0 also becomes shorter as the loop ends. It is 0 where
                x_next is x0, so the last step of most solvers is not guided.
            clipped: Clip x0_guided to [-1, 1], as images need and latents do not.
        """
        super().__init__(network)
        self.normalize, self.clipped = normalize, clipped

    def forward(
        self, x_next: Tensor, x0: Tensor, row: Tensor, strength: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        direction = distance_gradient(self.network, x0, target)
        if self.network.mask is not None:
            direction = self.network.mask * direction
        if self.normalize:
            direction = direction * (_length(x_next - x0) / _length(direction).clamp(min=TINY))
        amount = strength[:, None, None, None]
        moved = x0 - amount * direction
        moved = torch.where(amount == 0.0, x0, clip_finite(moved) if self.clipped else moved)
        return x_next + row[:, Column.C, None, None, None] * (moved - x0), moved

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """See `Stage`; `size` is the side of x0."""
        autoencoder = self.network.autoencoder
        state = 2.0 * random(batch, 3 if autoencoder is None else autoencoder.embed_dim, size, size) - 1.0
        return {
            "x_next": 0.5 * state,
            "x0": state,
            "row": random(batch, 8),
            "strength": torch.full((batch,), 0.1),
            "target": random(batch, self.network.embedding) - 0.5,
        }

    def traceable(self, size: int) -> nn.Module:
        return without_autograd(self, size)


def distance_gradient(network: IdentityDistance, x0: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of each image's distance at its x0, (B, C, h, w); also where gradients are switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        point = x0.detach().clone().requires_grad_()  # clones, of what inference mode made, can have gradients
        distance = network(point, target.detach().clone())
        (gradient,) = torch.autograd.grad(distance.sum(), point)
    return gradient


class EmbedStage(Stage):
    """reference (B, 3, S, S) in [0, 1], estimate (B, 3, S, S) in [-1, 1] -> identity (B, E), the target of guidance.

    The identity of the reference, another picture of the same person; of the estimate if the reference is all 0.
    """

    kind, outputs, wraps = "embedder", ("identity",), "network"
    network: IdentityDistance

    def forward(self, reference: Tensor, estimate: Tensor) -> Tensor:
        given = reference.amax((1, 2, 3), keepdim=True) > 0.0
        return self.network.embed(torch.where(given, 2.0 * reference - 1.0, estimate))

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        return {"reference": random(batch, 3, size, size), "estimate": 2.0 * random(batch, 3, size, size) - 1.0}


class EncodeStage(ImageStage):
    """degraded (B, 3, S, S) in [0, 1] -> latent (B, C, h, w), not quantised."""

    kind, outputs, wraps = "encoder", ("latent",), "network"
    network: VQModel

    def forward(self, degraded: Tensor) -> Tensor:
        return self.network.encode(2.0 * degraded - 1.0)


class RecoverStage(Stage):
    """latent (B, C, h, w) of a degraded image -> identity (B, E), and estimate (B, 3, S, S) in [-1, 1], clipped."""

    kind, outputs, wraps = "recoverer", ("identity", "estimate"), "network"
    network: IdentityRecovery

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        identity, estimate = self.network(latent)
        return identity, clip_finite(estimate)

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """See `Stage`; `size` is the side of the latent."""
        return {"latent": random(batch, self.network.channels, size, size)}


class DecodeStage(Stage):
    """latent_state (B, C, h, w) -> restored (B, 3, S, S) in [-1, 1], clipped; quantised before it is decoded.

    NaN or Inf in an image's latent make its whole picture NaN. Otherwise the quantiser would replace NaN by some code,
    and the result of a loop that overflowed would look valid.
    """

    kind, outputs, wraps = "decoder", ("restored",), "network"
    network: VQModel

    def forward(self, latent_state: Tensor) -> Tensor:
        broken = 0.0 * latent_state.sum((1, 2, 3), keepdim=True)  # 0, or NaN
        return clip_finite(self.network.decode(latent_state)) + broken

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """See `Stage`; `size` is the side of the latent."""
        return {"latent_state": random(batch, self.network.embed_dim, size, size)}


def _length(x: Tensor) -> Tensor:
    """Each image's Euclidean length, (B, 1, 1, 1)."""
    return (x * x).sum((1, 2, 3), keepdim=True).sqrt()
