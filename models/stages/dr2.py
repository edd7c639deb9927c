"""DR2's stages: a loop that keeps the degraded image's low frequencies, then an enhancer (arXiv 2303.06885).

Each step replaces the state's low frequencies by those of the degraded image, diffused to the state's timestep. The
loop ends early (`stop` of a sampler), and an enhancement network sharpens its x0.
"""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bfr.models.networks.resize import mirrored_matrix, resize_matrix
from bfr.models.stages.stage import Stage, random
from bfr.models.stages.step import LearnedVarianceStep, clip, clip_finite, learned_noise, learned_posterior
from bfr.runtime.diffusion.solvers import Column

FACTORS = 6  # low-passes of 1, 2, 4 ... 32, those that divide the image's side


class RefinedStep(LearnedVarianceStep):
    """A learned-variance step whose low frequencies are the degraded image's.

    Reads what LearnedVarianceStep does, with noise (B, 6, S, S), the step's own and the degraded image's; signed
    (B, 3, S, S), the degraded image in [-1, 1]; and strength (B,), DR2's N: the low-pass is a reduction to S / N and
    back. Between powers of 2 its matrix is interpolated in log2 N; 0 disables the refinement. The last step, whose
    noise has the factor 0, is not refined.
    """

    kind = "step-learned-refined"

    def __init__(self, denoiser: nn.Module, *, size: int, **options: Any) -> None:
        """Build the stage.

        Args:
            denoiser: The network.
            size: S, in pixels.
            **options: As in LinearStep.
        """
        super().__init__(denoiser, **options)
        passes = np.stack([low_pass(size, 2**k) for k in range(FACTORS) if size % 2**k == 0 and size >> k >= 2])
        self.register_buffer("passes", torch.from_numpy(passes).float(), persistent=False)

    def forward(  # type: ignore[override]  # it reads more
        self, x: Tensor, h1: Tensor, h2: Tensor, t: Tensor, row: Tensor, noise: Tensor, signed: Tensor, strength: Tensor
    ) -> tuple[Tensor, Tensor]:
        x0, mean, log_variance = learned_posterior(self.denoiser(x, t).float(), x, row)
        own, other = noise.chunk(2, dim=1)
        drawn = mean + learned_noise(log_variance, h1, h2, row, own)
        signal, level = _levels(row)
        matrix = self._matrix(strength)
        low = torch.matmul(torch.matmul(matrix, signal * signed + level * other - drawn), matrix.transpose(2, 3))
        return drawn + row[:, Column.S, None, None, None] * low, x0

    def _matrix(self, strength: Tensor) -> Tensor:
        """(B,) -> (B, 1, S, S)."""
        passes = cast(Tensor, self.passes)
        count, size, _ = passes.shape
        exponents = torch.arange(count, dtype=torch.float32, device=passes.device)
        shares = (1.0 - (torch.log2(strength)[:, None] - exponents).abs()).clamp(min=0.0)
        return torch.matmul(shares, passes.flatten(1)).reshape(-1, 1, size, size)

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        own = super().examples(size, batch)
        channels = 2 * own["x"].shape[1]
        own["noise"] = random(batch, channels, size, size)
        return {**own, "signed": own["x"].clone(), "strength": torch.full((batch,), 4.0)}


class EnhanceStage(Stage):
    """state (B, 3, S, S) in [-1, 1] -> restored (B, 3, T, T) in [-1, 1]: clipped, resized, enhanced."""

    kind, outputs, wraps = "enhancer", ("restored",), "network"
    network: nn.Module

    def __init__(self, network: nn.Module, *, source: int, target: int) -> None:
        """Build the stage.

        Args:
            network: (B, 3, T, T) in [-1, 1] -> the same shape and range.
            source: S, in pixels.
            target: T, in pixels.
        """
        super().__init__(network)
        self.source = source
        self.register_buffer("matrix", torch.from_numpy(resize_matrix(source, target)).float(), persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        matrix = cast(Tensor, self.matrix)
        resized = torch.matmul(torch.matmul(matrix, clip(state) + 0.0 * state), matrix.T)
        return clip_finite(self.network(resized).float())

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        del size
        return {"state": 2.0 * random(batch, 3, self.source, self.source) - 1.0}


def low_pass(size: int, factor: int) -> NDArray[np.float64]:
    """(size, size) float64: reduces one axis to size / factor pixels and back, bicubic, mirrored at the edges."""
    if factor == 1:
        return np.eye(size)
    return np.asarray(mirrored_matrix(size // factor, size) @ mirrored_matrix(size, size // factor))


def _levels(row: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of signal and noise in the next state, from a row of the learned-variance solver.

    The next signal is the posterior's mean for a clean image, c + f sqrt(alpha_bar). The next variance is the sum of
    the state's remaining noise, f^2 (1 - alpha_bar), and the posterior's own variance.
    """
    a, b, c, f, log_posterior = (
        row[:, column, None, None, None] for column in (Column.A, Column.B, Column.C, Column.F, Column.LOG_POSTERIOR)
    )
    return c + f / a, torch.sqrt((f * b / a) ** 2 + torch.exp(log_posterior))
