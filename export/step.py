"""Wraps networks so that one call is one whole stage of the chain, arithmetic included.

Nothing but the network runs between two steps: the row's arithmetic (`bfr.runtime.solvers`) and the clipping are part
of the graph, computed in float32 whatever the network's precision.
"""

from typing import cast

import torch
from torch import Tensor, nn

from bfr.models.unet import UNet, condition
from bfr.runtime.solvers import Column


class EstimatorStage(nn.Module):
    """degraded (B, 3, S, S) in [0, 1] -> estimate (B, 3, S, S) in [-1, 1], clipped, as the loop starts from it."""

    def __init__(self, estimator: nn.Module) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, degraded: Tensor) -> Tensor:
        return clip(2.0 * self.estimator(degraded).float() - 1.0)


class ConditionerStage(nn.Module):
    """t (B,) float32 -> conditioning (B, features) float32, which a step takes in the place of `t`.

    It depends on the timestep alone: computed once for each of a table, it is left out of every step.
    """

    def __init__(self, denoiser: UNet) -> None:
        super().__init__()
        self.channels, self.time_embed = denoiser.model_channels, denoiser.time_embed
        self.layers = nn.ModuleList(denoiser.conditioning_layers())
        self.features = sum(denoiser.conditioning_sizes)

    def forward(self, t: Tensor) -> Tensor:
        return torch.cat(condition(t, self.channels, self.time_embed, self.layers), dim=1)


class _Step(nn.Module):
    def __init__(self, denoiser: nn.Module, features: int | None = None) -> None:
        """`features`: of the conditioning that is given in the place of timesteps, None where timesteps are."""
        super().__init__()
        self.denoiser, self.features = denoiser, features


class LinearStep(_Step):
    """One step of any linear solver: `x, h1, h2, t, row, noise -> x_next, x0`.

    x, h1, h2, noise: (B, 3, S, S) float32; t: (B,) float32, or (B, features) as ConditionerStage makes it; row: (B, 8)
    float32. See `bfr.runtime.solvers`.
    """

    def forward(
        self, x: Tensor, h1: Tensor, h2: Tensor, t: Tensor, row: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        out = self.denoiser(x, t).float()
        x0 = clip(_column(row, Column.A) * x - _column(row, Column.B) * out)
        return _next_state(x0, out, x, h1, h2, row, noise), x0


class GuidedStep(_Step):
    """A linear step guided towards known pixels, as in inpainting: reads `known`, `mask` and `strength` as well.

    known: (B, 3, S, S) float32 in [-1, 1]; mask: (B, 1, S, S) float32, 1 in the hole; strength: (B,) float32, gamma.
    After clipping, x0 takes one gradient step of gamma * sum((x0 - known)^2 * (1 - mask)), and is clipped again.
    """

    def forward(
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


class LearnedVarianceStep(_Step):
    """One ancestral step whose variance the network chose: the denoiser gives (B, 6, S, S), eps and variance values.

    Reads and writes what LinearStep does. Source: "Improved DDPM" (arXiv 2102.09672), equation 15.
    """

    def forward(
        self, x: Tensor, h1: Tensor, h2: Tensor, t: Tensor, row: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        eps, variance = self.denoiser(x, t).float().chunk(2, dim=1)
        x0 = clip(_column(row, Column.A) * x - _column(row, Column.B) * eps)
        share = (variance + 1.0) / 2.0
        log_variance = share * _column(row, Column.LOG_BETA) + (1.0 - share) * _column(row, Column.LOG_POSTERIOR)
        deviation = _column(row, Column.S) * torch.exp(0.5 * log_variance)
        # d and e hold the log-variances; g is 0. Reading h1 and h2 all the same keeps the graphs' inputs alike.
        history = _column(row, Column.G) * (h1 + h2)
        return _column(row, Column.C) * x0 + _column(row, Column.F) * x + deviation * noise + history, x0


def has_variance(denoiser: UNet) -> bool:
    """Whether the denoiser's output has variance channels behind the image's."""
    return cast(nn.Conv2d, denoiser.out[2]).out_channels > denoiser.in_channels


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
    """Clip to [-1, 1]."""
    return x.clamp(-1.0, 1.0)


def _column(row: Tensor, column: Column) -> Tensor:
    return row[:, column, None, None, None]
