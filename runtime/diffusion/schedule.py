"""The noise schedule, and where on it a truncated loop calls its denoiser. Everything is float64 NumPy.

Sources: Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239) for the linear schedule; Nichol &
Dhariwal, "Improved DDPM" (arXiv 2102.09672) and Song et al., "DDIM" (arXiv 2010.02502) for the two ways of respacing;
Lu et al., "DPM-Solver" (arXiv 2206.00927) for grids in log-SNR.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidOption

Float64 = NDArray[np.float64]
Grid = Literal["time", "log-snr", "quadratic"]
GRIDS: tuple[Grid, ...] = get_args(Grid)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A respaced noise schedule of `n` kept timesteps.

    Attributes:
        timesteps: (n,) int64, the original timesteps kept, rising; what the denoiser is called with.
        alpha_bar: (n,) float64, the share of signal variance left at each of them, falling from about 1 to about 0.
    """

    timesteps: NDArray[np.int64]
    alpha_bar: Float64

    @property
    def log_snr(self) -> Float64:
        """(n,) float64, falling: half the logarithm of the signal-to-noise ratio, the time variable of solvers."""
        return log_snr(self.alpha_bar)

    def alpha_bar_at(self, timesteps: Float64) -> Float64:
        """alpha_bar at real-valued timesteps: between two kept ones, log-SNR is interpolated linearly in time."""
        return np.asarray(1.0 / (1.0 + np.exp(-2.0 * np.interp(timesteps, self.timesteps, self.log_snr))))

    def timesteps_at(self, log_snr: Float64) -> Float64:
        """Return the real-valued timesteps of log-SNRs: the inverse of `alpha_bar_at`."""
        return np.asarray(np.interp(-log_snr, -self.log_snr, self.timesteps))


@dataclass(frozen=True, slots=True)
class Route:
    """Where a truncated loop of N steps calls the denoiser, in the order of its calls.

    Attributes:
        timesteps: (N,) float64, falling, of the training schedule.
        alpha_bar: (N,) float64, at each of them.
        level: alpha_bar that the estimate is diffused to.
    """

    timesteps: Float64
    alpha_bar: Float64
    level: float

    @property
    def following(self) -> Float64:
        """(N,) float64: alpha_bar that each step goes to, that of the next call, and 1, no noise, after the last."""
        return np.append(self.alpha_bar[1:], 1.0)


def log_snr(alpha_bar: Float64) -> Float64:
    """log(signal / noise) = log(alpha_bar / (1 - alpha_bar)) / 2, both standard deviations; infinite without noise."""
    with np.errstate(divide="ignore"):
        return np.asarray(0.5 * (np.log(alpha_bar) - np.log1p(-alpha_bar)))


def linear_schedule(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Return the linear schedule of DDPM, not respaced: `steps` betas from `beta_start` to `beta_end`."""
    betas = np.linspace(beta_start, beta_end, steps, dtype=np.float64)
    return Schedule(np.arange(steps), np.asarray(np.cumprod(1.0 - betas), np.float64))


def scaled_linear_schedule(steps: int, beta_start: float, beta_end: float) -> Schedule:
    """Stable Diffusion's schedule: betas even in their square roots (arXiv 2112.10752, its published settings)."""
    betas = np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), steps, dtype=np.float64) ** 2
    return Schedule(np.arange(steps), np.asarray(np.cumprod(1.0 - betas), np.float64))


def respace(schedule: Schedule, spacing: str) -> Schedule:
    """Keep the timesteps that `spacing` names.

    `"ddim250"` keeps every k-th step from 0 on, for the smallest k that leaves exactly 250 of them;
    `"250"` spreads 250 steps evenly from the first to the last, each position rounded half to even.
    Raises InvalidOption if no such spacing exists.
    """
    kept = _kept_steps(len(schedule.timesteps), spacing)
    return Schedule(schedule.timesteps[kept], schedule.alpha_bar[kept])


def parse_respacing(spacing: str) -> tuple[bool, int]:
    """Return whether a respacing has a whole stride (`ddim250`), and its count. Raises InvalidOption for others."""
    match = re.fullmatch(r"(ddim)?([0-9]{1,9})", spacing)
    if match is None:
        raise InvalidOption(
            f"spacing {spacing!r} is unknown: choose {', '.join(GRIDS)}, or a respacing such as ddim250 or 250"
        )
    return bool(match[1]), int(match[2])


def _kept_steps(steps: int, spacing: str) -> NDArray[np.int64]:
    strided, count = parse_respacing(spacing)
    if not 1 <= count <= steps:
        raise InvalidOption(f"spacing {spacing!r} keeps {count} of {steps} timesteps: choose between 1 and {steps}")
    if not strided:
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


def route(
    schedule: Schedule, spacing: str, start: float, *, steps: int | None = None, matched: bool = False, stop: int = 0
) -> Route:
    """Return the calls of a truncated loop.

    With the published spacing and N, `matched` changes almost nothing. With wide spacings or a small N, the image keeps
    noise beyond the timestep of the first call unless `matched` is True.

    Args:
        schedule: The training schedule.
        spacing: A respacing (see `respace`): the start is diffused to index N of the kept timesteps, and the loop calls
            indices N-1 .. 0, as published. Or a grid: the start is diffused to the timestep of the first of `steps`
            calls. The calls and timestep 0 are uniform in time, in log-SNR or in the square root of time; no call is at
            0, and the last step goes to the clean image.
        start: For a respacing, N, from 1 to the number of kept timesteps, which starts from noise alone. For a grid, a
            timestep above 0, up to the last one.
        steps: Number of calls, of a grid.
        matched: For a respacing, diffuse to index N-1, the timestep of the first call.
        stop: For a respacing, the index of the last call, whose x0 is the result: the loop calls indices N-1 .. stop.

    Raises:
        InvalidOption: A number is out of its range.
    """
    if spacing in GRIDS:
        if stop:
            raise InvalidOption(f"stop {stop} goes with a respacing, as ddim250: spacing {spacing!r} ends at time 0")
        return _grid(schedule, spacing, start, steps)
    if steps is not None:
        raise InvalidOption(
            f"steps {steps} goes with the spacings {', '.join(GRIDS)}; at spacing {spacing!r} the start is the number "
            "of steps: change that"
        )
    kept = respace(schedule, spacing)
    count = len(kept.timesteps)
    if not (1 <= start <= count and start == int(start)):
        raise InvalidOption(
            f"start {start:g} is out of range: spacing {spacing!r} allows whole numbers from 1 to {count}"
        )
    first = int(start) - 1
    if not 0 <= stop <= first:
        raise InvalidOption(f"stop {stop} is out of range: start {start:g} allows whole numbers from 0 to {first}")
    called, levels = slice(stop, first + 1), np.append(kept.alpha_bar, 0.0)  # beyond the last one all is noise
    return Route(
        kept.timesteps[called][::-1].astype(np.float64),
        kept.alpha_bar[called][::-1],
        float(levels[first if matched else first + 1]),
    )


def _grid(schedule: Schedule, spacing: str, start: float, steps: int | None) -> Route:
    last = int(schedule.timesteps[-1])
    if steps is None or steps < 1:
        raise InvalidOption(f"spacing {spacing!r} needs the number of steps, 1 or more: add steps")
    if not 0.0 < start <= last:
        raise InvalidOption(f"start {start:g} is out of range: spacing {spacing!r} allows timesteps above 0, to {last}")
    left = 1.0 - np.arange(steps) / steps  # the share of the way that is left at each call
    if spacing == "log-snr":
        from_, to = log_snr(schedule.alpha_bar_at(np.array([start, 0.0])))
        timesteps = schedule.timesteps_at(to + (from_ - to) * left)
    else:
        timesteps = start * (left if spacing == "time" else left**2)
    alpha_bar = schedule.alpha_bar_at(timesteps)
    return Route(timesteps, alpha_bar, float(alpha_bar[0]))
