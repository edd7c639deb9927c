"""PGDiff's steps: partial guidance as published, scaled by the learned variance (arXiv 2309.10810).

The mean of the next state moves against the gradient of a loss at x0, by scale * variance * gradient. The denoiser
predicts the variance of each pixel, so the strength falls from step to step; nothing is normalised or clipped. The loss
is the distance from smooth semantics, a restoration that a network computes in each step from the state and the
degraded image. With a reference picture the loss also has the distance of two face embeddings.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from bfr.models.networks.arcface import IResNet
from bfr.models.networks.identity import IdentityDistance
from bfr.models.networks.rrdb import SmoothRestorer
from bfr.models.networks.unet import UNet
from bfr.models.stages.gradient import without_autograd
from bfr.models.stages.guide import distance_gradient
from bfr.models.stages.stage import Stage, random
from bfr.models.stages.step import LearnedVarianceStep, clip_finite, learned_noise, learned_posterior

IDENTITY_WEIGHT = 25.0  # of the distance of embeddings in the loss, as published


class ReferenceStage(Stage):
    """reference (B, 3, S, S) in [0, 1] -> identity (B, E), its embedding; 0 if none was given (it is all 0)."""

    kind, outputs, wraps = "reference-embedder", ("identity",), "network"
    network: IdentityDistance

    def forward(self, reference: Tensor) -> Tensor:
        given = reference.amax((1, 2, 3))[:, None] > 0.0
        return torch.where(given, self.network.embed(2.0 * reference - 1.0), 0.0)

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        return {"reference": random(batch, 3, size, size)}


class IdentityGradient(Stage):
    """x0 (B, 3, S, S), target (B, E) -> the gradient of each image's distance at x0, (B, 3, S, S)."""

    kind, outputs, wraps, autograd = "identity-gradient", ("gradient",), "network", True
    network: IdentityDistance

    def forward(self, x0: Tensor, target: Tensor) -> Tensor:
        return distance_gradient(self.network, x0, target)

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        image = 2.0 * random(batch, 3, size, size) - 1.0
        return {"x0": image, "target": random(batch, self.network.embedding) - 0.5}


class PartialGuidance(nn.Module):
    """The networks of a guided step: denoiser, restorer of smooth semantics, gradient of the identity if any."""

    def __init__(self, denoiser: nn.Module, restorer: nn.Module, identity: nn.Module | None = None) -> None:
        super().__init__()
        self.denoiser, self.restorer, self.identity = denoiser, restorer, identity

    def cast_torso(self, dtype: torch.dtype) -> None:
        """The denoiser's torso in half; all else stays in float32."""
        cast(UNet, self.denoiser).cast_torso(dtype)


def partial_guidance(
    *,
    denoiser: Mapping[str, Any],
    restorer: Mapping[str, Any],
    recognizer: Mapping[str, Any] | None = None,
    image_size: int,
) -> PartialGuidance:
    """Build the networks of a step.

    Args:
        denoiser: Options of UNet.
        restorer: Options of SmoothRestorer.
        recognizer: Options of IResNet, which sees the whole image, as published; None without a reference.
        image_size: S, the images' side in pixels.
    """
    identity = None
    if recognizer is not None:
        distance = IdentityDistance(IResNet(**recognizer), image_size=image_size, metric="mse", crop="whole")
        identity = IdentityGradient(distance)
    return PartialGuidance(UNet(**denoiser), SmoothRestorer(**restorer), identity)


class SmoothStep(Stage):
    """A learned-variance step towards smooth semantics: its loss is |x0 - smooth|^2.

    Reads what LearnedVarianceStep does; signed (B, 3, S, S), the degraded image in [-1, 1]; and strength (B,) float32,
    PGDiff's guidance scale. x0 is returned as it was before the mean moved.
    """

    kind, outputs, wraps = "step-learned-smooth", ("x_next", "x0"), "network"
    network: PartialGuidance

    def forward(
        self,
        x: Tensor,
        h1: Tensor,
        h2: Tensor,
        t: Tensor,
        row: Tensor,
        noise: Tensor,
        signed: Tensor,
        strength: Tensor,
        identity: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x0, mean, log_variance = learned_posterior(self.network.denoiser(x, t).float(), x, row)
        # The gradient of the loss at x0, (B, 3, S, S); smooth semantics are constant in it.
        gradient = 2.0 * (x0 - clip_finite(self.network.restorer(x, signed, t)))
        if identity is not None:
            given = (identity.abs().amax(1) > 0.0)[:, None, None, None]
            towards = torch.where(given, cast(nn.Module, self.network.identity)(x0, identity), 0.0)
            gradient = gradient + IDENTITY_WEIGHT * towards
        # The mean of the next state, moved as Sohl-Dickstein et al. (arXiv 1503.03585) condition it.
        moved = mean - strength[:, None, None, None] * torch.exp(log_variance) * gradient
        return moved + learned_noise(log_variance, h1, h2, row, noise), x0

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        own = LearnedVarianceStep(self.network.denoiser).examples(size, batch)
        return {**own, "signed": own["x"].clone(), "strength": torch.full((batch,), 0.1)}


class ReferenceStep(SmoothStep):
    """A SmoothStep whose loss also has IDENTITY_WEIGHT * |embedding of x0 - identity|^2; identity: (B, E).

    An image whose identity is all 0 is guided towards smooth semantics alone.
    """

    kind, autograd = "step-learned-reference", True

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        distance = cast(IdentityGradient, self.network.identity).network
        return {**super().examples(size, batch), "identity": random(batch, distance.embedding) - 0.5}

    def traceable(self, size: int) -> nn.Module:
        """See `Stage`: the same with the gradient recorded, without autograd; all weights keep their names."""
        recorded = without_autograd(cast(IdentityGradient, self.network.identity), size)
        return ReferenceStep(PartialGuidance(self.network.denoiser, self.network.restorer, recorded)).eval()


ARCHITECTURES = {"partial-guidance": partial_guidance}
