"""Solvers as tables: a sampler step of every linear solver is one row of eight numbers.

    x0 = clip(a * x - b * out)
    x' = c * x0 + d * out + e * h1 + g * h2 + f * x + s * noise

`x` is the state, `out` the denoiser's output (eps, v or x0), `h1` and `h2` are the two previous x0, and x' is the next
state. A solver is therefore a function of the schedule that returns a row for each step; the loop, the exported graph
and the engine never change with it.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidOption
from bfr.runtime.schedule import Float64, Schedule, respace

Prediction = Literal["eps", "v", "x0"]
Solver = Literal["ddim", "ddpm", "ddpm-learned"]


class Column(IntEnum):
    """Where each coefficient stands in a row. Graphs are exported with this order: it is part of the bundle format."""

    A, B, C, D, E, F, G, S = range(8)
    # The learned-variance step has no use for d and e, and reads log-variances there.
    LOG_BETA, LOG_POSTERIOR = D, E


@dataclass(frozen=True, slots=True)
class StepTable:
    """What the loop needs to know of a solver, for N steps.

    timesteps: (N,) float32, what the denoiser is called with, in the order of the loop.
    rows: (N, 8) float32, the coefficients, columns as in `Column`.
    signal, noise: the start is `signal * estimate + noise * gaussian`, the estimate in [-1, 1].
    """

    timesteps: NDArray[np.float32]
    rows: NDArray[np.float32]
    signal: float
    noise: float

    def __len__(self) -> int:
        return len(self.timesteps)


def step_table(
    schedule: Schedule,
    *,
    solver: Solver,
    spacing: str,
    start: int,
    eta: float = 0.0,
    prediction: Prediction = "eps",
    matched: bool = False,
) -> StepTable:
    """The table of a truncated loop: diffuse to index `start` of the respaced schedule, then run `start` steps back.

    schedule: the training schedule; `spacing` respaces it (see `respace`).
    start: N, 1 .. kept steps - 1. The start is diffused to index N, the loop runs indices N-1 .. 0, as published.
    matched: diffuse to index N-1 instead, the one that the first call is told. At the published spacing and N the two
    are nearly the same; at wide spacings or a small N, noise that no call is told of would stay in the image.
    eta: 0 .. 1, the share of DDPM's noise in DDIM; 0 for the DDPM solvers, whose noise is given by the schedule.
    Raises InvalidOption where a number is out of its range.
    """
    kept = respace(schedule, spacing)
    last = len(kept.timesteps) - 1
    if not 1 <= start <= last:
        raise InvalidOption(f"start {start} is out of range: spacing {spacing!r} allows 1 to {last}")
    if not 0.0 <= eta <= 1.0:
        raise InvalidOption(f"eta {eta} is out of range: choose between 0 (deterministic) and 1 (as noisy as DDPM)")
    if solver != "ddim" and eta != 0.0:
        raise InvalidOption(f"eta {eta} belongs to the ddim solver; {solver} takes its noise from the schedule: use 0")
    if solver == "ddim":
        rows = _ddim(kept, eta, prediction)
    elif solver == "ddpm":
        rows = _ddpm(kept, prediction)
    elif prediction == "eps":
        rows = _ddpm_learned(kept)
    else:
        raise InvalidOption(f"ddpm-learned is defined for eps prediction, not for {prediction}")
    backwards = slice(start - 1, None, -1)
    diffused = start - 1 if matched else start
    return StepTable(
        timesteps=kept.timesteps[backwards].astype(np.float32),
        rows=rows[backwards].astype(np.float32),
        signal=float(np.sqrt(kept.alpha_bar[diffused])),
        noise=float(np.sqrt(1.0 - kept.alpha_bar[diffused])),
    )


def _x0_from_output(ab: Float64, prediction: Prediction) -> tuple[Float64, Float64]:
    """(a, b) with x0 = a * x - b * out."""
    if prediction == "eps":
        return np.sqrt(1.0 / ab), np.sqrt(1.0 / ab - 1.0)
    if prediction == "v":
        return np.sqrt(ab), np.sqrt(1.0 - ab)
    return np.zeros_like(ab), -np.ones_like(ab)


def _eps_from_output(ab: Float64, prediction: Prediction) -> tuple[Float64, Float64]:
    """(p, q) with eps = p * out + q * x."""
    if prediction == "eps":
        return np.ones_like(ab), np.zeros_like(ab)
    if prediction == "v":
        return np.sqrt(ab), np.sqrt(1.0 - ab)
    return -np.sqrt(ab / (1.0 - ab)), 1.0 / np.sqrt(1.0 - ab)


def _rows(ab: Float64, prediction: Prediction) -> Float64:
    rows = np.zeros((len(ab), len(Column)))
    rows[:, Column.A], rows[:, Column.B] = _x0_from_output(ab, prediction)
    return rows


def _ddim(kept: Schedule, eta: float, prediction: Prediction) -> Float64:
    """DDIM (arXiv 2010.02502, equations 12 and 16): eps stays the network's own, whatever x0 was clipped to."""
    ab, prev = kept.alpha_bar, kept.alpha_bar_prev
    sigma = eta * np.sqrt((1.0 - prev) / (1.0 - ab)) * np.sqrt(1.0 - ab / prev)
    direction = np.sqrt(np.maximum(1.0 - prev - sigma**2, 0.0))
    out, x = _eps_from_output(ab, prediction)
    rows = _rows(ab, prediction)
    rows[:, Column.C] = np.sqrt(prev)
    rows[:, Column.D] = direction * out
    rows[:, Column.F] = direction * x
    rows[:, Column.S] = sigma  # 0 at index 0, where prev is 1
    return rows


def _posterior(kept: Schedule) -> tuple[Float64, Float64, Float64]:
    """DDPM's posterior q(x' | x, x0) (arXiv 2006.11239, equations 6 and 7): weights of x0 and x, variance."""
    ab, prev, beta = kept.alpha_bar, kept.alpha_bar_prev, kept.betas
    weight_x0 = beta * np.sqrt(prev) / (1.0 - ab)
    weight_x = (1.0 - prev) * np.sqrt(1.0 - beta) / (1.0 - ab)
    return weight_x0, weight_x, beta * (1.0 - prev) / (1.0 - ab)


def _ddpm(kept: Schedule, prediction: Prediction) -> Float64:
    """Ancestral sampling with the posterior's own variance; its noise is 0 at index 0."""
    rows = _rows(kept.alpha_bar, prediction)
    rows[:, Column.C], rows[:, Column.F], variance = _posterior(kept)
    rows[:, Column.S] = np.sqrt(variance)
    return rows


def _ddpm_learned(kept: Schedule) -> Float64:
    """Ancestral sampling with the learned variance (arXiv 2102.09672, equation 15), for the learned-variance graph.

    Its noise has the variance exp(v' log beta + (1 - v') log posterior), v' = (v + 1) / 2, times s, 1 but at index 0.
    The posterior variance is 0 at index 0 and replaced by the next one before its logarithm is taken.
    """
    rows = _rows(kept.alpha_bar, "eps")
    rows[:, Column.C], rows[:, Column.F], variance = _posterior(kept)
    rows[:, Column.LOG_BETA] = np.log(kept.betas)
    rows[:, Column.LOG_POSTERIOR] = np.log(np.append(variance[1], variance[1:]))
    rows[1:, Column.S] = 1.0
    return rows
