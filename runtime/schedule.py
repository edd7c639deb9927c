"""The noise schedule: betas, alpha_bar, respacing. Everything is float64 NumPy.

Sources: Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239) for the linear schedule; Nichol &
Dhariwal, "Improved DDPM" (arXiv 2102.09672) and Song et al., "DDIM" (arXiv 2010.02502) for the two ways of respacing.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidOption

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A respaced noise schedule of `n` kept timesteps.

    timesteps: (n,) int64, the original timesteps kept, rising; what the denoiser is called with.
    alpha_bar: (n,) float64, the share of signal variance left at each of them, falling from about 1 to about 0.
    """

    timesteps: NDArray[np.int64]
    alpha_bar: Float64

    @property
    def alpha_bar_prev(self) -> Float64:
        """(n,) float64: alpha_bar one kept step earlier; 1 before the first."""
        return np.concatenate([[1.0], self.alpha_bar[:-1]])

    @property
    def betas(self) -> Float64:
        """(n,) float64: the noise variance added from each kept step to the next."""
        return np.asarray(1.0 - self.alpha_bar / self.alpha_bar_prev)


def linear_schedule(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """The linear schedule of DDPM, not respaced: `steps` betas from `beta_start` to `beta_end`."""
    betas = np.linspace(beta_start, beta_end, steps, dtype=np.float64)
    return Schedule(np.arange(steps), np.asarray(np.cumprod(1.0 - betas), np.float64))


def respace(schedule: Schedule, spacing: str) -> Schedule:
    """Keep the timesteps that `spacing` names.

    `"ddim250"` keeps every k-th step from 0 on, for the smallest k that leaves exactly 250 of them;
    `"250"` spreads 250 steps evenly from the first to the last, each position rounded half to even.
    Raises InvalidOption where no such spacing exists.
    """
    kept = _kept_steps(len(schedule.timesteps), spacing)
    return Schedule(schedule.timesteps[kept], schedule.alpha_bar[kept])


def _kept_steps(steps: int, spacing: str) -> NDArray[np.int64]:
    match = re.fullmatch(r"(ddim)?(\d+)", spacing)
    if match is None:
        raise InvalidOption(f"spacing {spacing!r} is not understood: write 'ddim250' or '250', with the count you want")
    count = int(match[2])
    if not 1 <= count <= steps:
        raise InvalidOption(f"spacing {spacing!r} asks for {count} of {steps} timesteps: choose between 1 and {steps}")
    if not match[1]:
        return _spread(steps, count)
    for stride in range(1, steps + 1):
        kept = np.arange(0, steps, stride)
        if len(kept) == count:
            return kept
    raise InvalidOption(
        f"spacing {spacing!r}: no whole stride leaves exactly {count} of {steps} timesteps; "
        f"use '{count}' for rounded spacing, or a divisor of {steps}"
    )


def _spread(steps: int, count: int) -> NDArray[np.int64]:
    # Positions are summed up, not multiplied out: the published code does so, and rounding then differs.
    stride = (steps - 1) / (count - 1) if count > 1 else 1.0
    kept, position = [], 0.0
    for _ in range(count):
        kept.append(round(position))
        position += stride
    return np.array(kept, dtype=np.int64)
