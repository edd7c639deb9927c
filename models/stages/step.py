"""Wraps denoisers so that one call is one whole step of a loop, arithmetic included.

Nothing but the network runs between two steps: the row's arithmetic (`bfr.runtime.diffusion.solvers`) and the clipping
are part of the graph, computed in float32 whatever the network's precision.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bfr.models.networks.unet import UNet, condition
from bfr.models.stages.stage import Stage, random
from bfr.runtime.diffusion.solvers import Column


class ConditionerStage(Stage):
    """t (B,) float32 -> conditioning (B, features) float32, which a step reads instead of `t`.

    It depends on the timestep alone, so a chain computes it once for each row of a table and not in each step.
    """

    kind, outputs = "conditioner", ("conditioning",)

    def __init__(self, denoiser: UNet) -> None:
        super().__init__()
        self.channels, self.time_embed = denoiser.model_channels, denoiser.time_embed
        self.layers = nn.ModuleList(denoiser.conditioning_layers())
        self.features = sum(denoiser.conditioning_sizes)

    def forward(self, t: Tensor) -> Tensor:
        return torch.cat(condition(t, self.channels, self.time_embed, self.layers), dim=1)

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        del size
        return {"t": torch.full((batch,), 100.0)}


class LinearStep(Stage):
    """One step of any linear solver: `x, h1, h2, t, row, noise -> x_next, x0`.

    x, h1, h2, noise: (B, C, S, S) float32; t: (B,) float32, or (B, features) as ConditionerStage makes it; row: (B, 8)
    float32. See `bfr.runtime.diffusion.solvers`.
    """

    kind, outputs, wraps = "step", ("x_next", "x0"), "denoiser"
    denoiser: nn.Module

    def __init__(
        self, denoiser: nn.Module, *, features: int | None = None, clipped: bool = True, channels: int | None = None
    ) -> None:
        """Build the stage.

        Args:
            denoiser: The network.
            features: Length of the conditioning that replaces timesteps; None if the step reads timesteps.
            clipped: Clip x0 to [-1, 1], as images need and latents do not.
            channels: C, channels of the state; None if they are all that the denoiser reads.
        """
        super().__init__(denoiser)
        self.features, self.clipped, self.channels = features, clipped, channels

    def forward(
        self, x: Tensor, h1: Tensor, h2: Tensor, t: Tensor, row: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.follow(self.denoiser(x, t).float(), x, h1, h2, row, noise)

    def follow(
        self, out: Tensor, x: Tensor, h1: Tensor, h2: Tensor, row: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The row's arithmetic on the denoiser's output."""
        x0 = _column(row, Column.A) * x - _column(row, Column.B) * out
        x0 = clip(x0) if self.clipped else x0
        return _next_state(x0, out, x, h1, h2, row, noise), x0

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        channels = self.channels or int(cast(UNet, self.denoiser).in_channels)
        image, features = random(batch, channels, size, size), self.features
        return {
            "x": image,
            "h1": image.clone(),
            "h2": image.clone(),
            "t": torch.full((batch,), 100.0) if features is None else random(batch, features),
            "row": random(batch, 8),
            "noise": image.clone(),
        }


class ConcatStep(LinearStep):
    """A linear step whose denoiser reads `condition`, (B, K, S, S), beside the state: channels after its own."""

    kind = "step-concat"

    def forward(  # type: ignore[override]  # it reads more
        self, x: Tensor, h1: Tensor, h2: Tensor, t: Tensor, row: Tensor, noise: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.follow(self.denoiser(torch.cat([x, condition], dim=1), t).float(), x, h1, h2, row, noise)

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        own = super().examples(size, batch)
        more = int(cast(UNet, self.denoiser).in_channels) - own["x"].shape[1]
        return {**own, "condition": random(batch, more, size, size)}


class ContextStep(LinearStep):
    """A linear step whose denoiser attends to `context`, (B, tokens, width), as text-conditioned ones do."""

    kind = "step-context"

    def __init__(self, denoiser: nn.Module, *, context: Sequence[int], **options: Any) -> None:
        """Build the stage.

        Args:
            denoiser: The network.
            context: Number of tokens and their width.
            **options: As in LinearStep.
        """
        super().__init__(denoiser, **options)
        self.context = tuple(context)

    def forward(  # type: ignore[override]  # it reads more
        self, x: Tensor, h1: Tensor, h2: Tensor, t: Tensor, row: Tensor, noise: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.follow(self.denoiser(x, t, context).float(), x, h1, h2, row, noise)

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        return {**super().examples(size, batch), "context": random(batch, *self.context)}


class KnownStep(LinearStep):
    """A linear step guided towards known pixels, as in inpainting: reads `known`, `mask` and `strength` as well.

    known: (B, 3, S, S) float32 in [-1, 1]; mask: (B, 1, S, S) float32, 1 in the hole; strength: (B,) float32, gamma.
    After clipping, x0 takes one gradient step of gamma * sum((x0 - known)^2 * (1 - mask)), and is clipped again.
    """

    kind = "step-known"

    def forward(  # type: ignore[override]  # it reads more
        self,
        x: Tensor,
        h1: Tensor,
        h2: Tensor,
        t: Tensor,
        row: Tensor,
        noise: Tensor,
        known: Tensor,
        mask: Tensor,
        strength: Tensor,
    ) -> tuple[Tensor, Tensor]:
        out = self.denoiser(x, t).float()
        x0 = clip(_column(row, Column.A) * x - _column(row, Column.B) * out)
        x0 = clip(x0 - 2.0 * strength[:, None, None, None] * (1.0 - mask) * (x0 - known))
        return _next_state(x0, out, x, h1, h2, row, noise), x0

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        own = super().examples(size, batch)
        mask = random(batch, 1, size, size).round()
        return {**own, "known": own["x"].clone(), "mask": mask, "strength": random(batch)}


class LearnedVarianceStep(LinearStep):
    """One ancestral step with the learned variance: the denoiser returns (B, 6, S, S), eps and variance values.

    Reads and writes what LinearStep does. Source: "Improved DDPM" (arXiv 2102.09672), equation 15.
    """

    kind = "step-learned"

    def forward(
        self, x: Tensor, h1: Tensor, h2: Tensor, t: Tensor, row: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        x0, mean, log_variance = learned_posterior(self.denoiser(x, t).float(), x, row)
        return mean + learned_noise(log_variance, h1, h2, row, noise), x0


def learned_posterior(out: Tensor, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x0, clipped, and the mean and the log variance of the next state, (B, C, S, S) each.

    Args:
        out: The denoiser's output, (B, 2 C, S, S): eps and variance values.
        x: The state, (B, C, S, S).
        row: The step's row, (B, 8).
    """
    eps, variance = out.chunk(2, dim=1)
    x0 = clip_finite(_column(row, Column.A) * x - _column(row, Column.B) * eps)
    share = (variance + 1.0) / 2.0
    log_variance = share * _column(row, Column.LOG_BETA) + (1.0 - share) * _column(row, Column.LOG_POSTERIOR)
    return x0, _column(row, Column.C) * x0 + _column(row, Column.F) * x, log_variance


def learned_noise(log_variance: Tensor, h1: Tensor, h2: Tensor, row: Tensor, noise: Tensor) -> Tensor:
    """The noise that a step adds to the mean. It reads h1 and h2, times 0, so all steps have the same inputs."""
    history = _column(row, Column.G) * (h1 + h2)  # d and e hold the log-variances; g is 0
    return _column(row, Column.S) * torch.exp(0.5 * log_variance) * noise + history


def has_variance(denoiser: UNet, channels: int | None = None) -> bool:
    """Whether the output has variance channels behind the state's, `channels` or all that the denoiser reads."""
    return cast(nn.Conv2d, denoiser.out[2]).out_channels > (channels or denoiser.in_channels)


def cut_variance(denoiser: UNet) -> UNet:
    """Drop the last convolution's variance channels, which DDIM never reads: 6 outputs become 3. Returns itself."""
    last = cast(nn.Conv2d, denoiser.out[2])
    keep = last.out_channels // 2
    cut = nn.Conv2d(last.in_channels, keep, 3, padding=1).to(last.weight)
    cut.load_state_dict({name: value[:keep] for name, value in last.state_dict().items()})
    denoiser.out[2] = cut
    return denoiser


def _next_state(x0: Tensor, out: Tensor, x: Tensor, h1: Tensor, h2: Tensor, row: Tensor, noise: Tensor) -> Tensor:
    return (
        _column(row, Column.C) * x0
        + _column(row, Column.D) * out
        + _column(row, Column.E) * h1
        + _column(row, Column.G) * h2
        + _column(row, Column.F) * x
        + _column(row, Column.S) * noise
    )


def clip(x: Tensor) -> Tensor:
    """Clip to [-1, 1]. Infinity becomes 1, so use it only if another output shows the infinity."""
    return x.clamp(-1.0, 1.0)


def clip_finite(x: Tensor) -> Tensor:
    """Clip finite values to [-1, 1]; Inf becomes NaN, by which the runtime recognises a result that overflowed."""
    return clip(x) + 0.0 * x


def _column(row: Tensor, column: Column) -> Tensor:
    return row[:, column, None, None, None]
