"""Solvers as tables: a sampler step of every linear solver is one row of eight numbers.

    x0 = clip(a * x - b * out)
    x' = c * x0 + d * out + e * h1 + g * h2 + f * x + s * noise

`x` is the state, `out` the denoiser's output (eps, v or x0), `h1` and `h2` are the two previous x0, and x' is the next
state. A solver is therefore a function of the schedule that returns a row for each step; the loop, the exported graph
and the engine never change with it. SOLVERS, at the end, has them all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.diffusion.schedule import Float64, Route, Schedule, log_snr, route
from bfr.runtime.errors import InvalidOption

Prediction = Literal["eps", "v", "x0"]


class Column(IntEnum):
    """The column of each coefficient in a row. Graphs are exported with this order: it is part of the bundle format."""

    A, B, C, D, E, F, G, S = range(8)
    # The learned-variance step has no use for d and e, and reads log-variances there.
    LOG_BETA, LOG_POSTERIOR = D, E


@dataclass(frozen=True, slots=True)
class StepTable:
    """The coefficients of a solver for a loop of N steps.

    Attributes:
        timesteps: (N,) float32, what the denoiser is called with, in the order of the loop.
        rows: (N, 8) float32, the coefficients, columns as in `Column`.
        signal: The start is `signal * estimate + noise * gaussian`, the estimate in [-1, 1].
        noise: The start is `signal * estimate + noise * gaussian`, the estimate in [-1, 1].
    """

    timesteps: NDArray[np.float32]
    rows: NDArray[np.float32]
    signal: float
    noise: float

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True, slots=True)
class Method:
    """A solver.

    Attributes:
        fill: Writes the columns C to S of (N, 8) rows; its arguments are the rows, the route, eta and the prediction.
        with_eta: Whether eta may be above 0.
        noisy: Whether the schedule alone determines the noise that it adds.
        learned: Whether its rows are those of the learned-variance graph.
        predictions: What the denoiser may predict.
    """

    fill: Callable[[Float64, Route, float, Prediction], None]
    with_eta: bool = False
    noisy: bool = False
    learned: bool = False
    predictions: tuple[Prediction, ...] = ("eps", "v", "x0")


def step_table(
    schedule: Schedule,
    *,
    solver: str,
    spacing: str,
    start: float,
    steps: int | None = None,
    eta: float = 0.0,
    prediction: Prediction = "eps",
    matched: bool = False,
    stop: int = 0,
) -> StepTable:
    """Return the table of a truncated loop.

    Args:
        schedule: The training schedule.
        solver: A name of SOLVERS.
        spacing: Where on the schedule the denoiser is called, see `route`.
        start: See `route`.
        steps: See `route`.
        eta: Share of noise that each step adds, 0 to 1. In DDIM 1 is as noisy as DDPM, in DPM-Solver++ 1 is its SDE
            form; 0 for the other solvers.
        prediction: What the denoiser predicts.
        matched: See `route`.
        stop: See `route`.

    Raises:
        InvalidOption: A number is out of its range.
    """
    calls = route(schedule, spacing, start, steps=steps, matched=matched, stop=stop)
    return StepTable(
        timesteps=calls.timesteps.astype(np.float32),
        rows=solver_rows(calls, solver, eta=eta, prediction=prediction).astype(np.float32),
        signal=float(np.sqrt(calls.level)),
        noise=float(np.sqrt(1.0 - calls.level)),
    )


def solver_rows(calls: Route, solver: str, *, eta: float = 0.0, prediction: Prediction = "eps") -> Float64:
    """(N, 8) float64: a solver's rows on any route. Raises InvalidOption as `step_table` does."""
    if not 0.0 <= eta <= 1.0:
        raise InvalidOption(f"eta {eta} is out of range: choose between 0 (deterministic) and 1 (as noisy as DDPM)")
    method = SOLVERS[solver]
    if eta != 0.0 and not method.with_eta:
        why = "takes its noise from the schedule" if method.noisy else "is deterministic"
        with_eta = ", ".join(name for name, other in SOLVERS.items() if other.with_eta)
        raise InvalidOption(f"eta {eta} belongs to the solvers {with_eta}; {solver} {why}: use 0")
    if prediction not in method.predictions:
        raise InvalidOption(f"{solver} is defined for {' and '.join(method.predictions)} prediction, not {prediction}")
    rows = np.zeros((len(calls.timesteps), len(Column)))
    rows[:, Column.A], rows[:, Column.B] = _x0_from_output(calls.alpha_bar, prediction)
    method.fill(rows, calls, eta, prediction)
    return rows


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


def _ddim(rows: Float64, calls: Route, eta: float, prediction: Prediction) -> None:
    """DDIM (arXiv 2010.02502, equations 12 and 16): eps stays the network's own when x0 is clipped."""
    ab, following = calls.alpha_bar, calls.following
    sigma = eta * np.sqrt((1.0 - following) / (1.0 - ab)) * np.sqrt(1.0 - ab / following)
    direction = np.sqrt(np.maximum(1.0 - following - sigma**2, 0.0))
    out, x = _eps_from_output(ab, prediction)
    rows[:, Column.C] = np.sqrt(following)
    rows[:, Column.D] = direction * out
    rows[:, Column.F] = direction * x
    rows[:, Column.S] = sigma  # 0 in the last step, which goes to 1


def _posterior(rows: Float64, calls: Route) -> Float64:
    """DDPM's posterior q(x' | x, x0) (arXiv 2006.11239, eqs. 6, 7): its mean's weights; returns its variance."""
    ab, following = calls.alpha_bar, calls.following
    beta = 1.0 - ab / following
    rows[:, Column.C] = beta * np.sqrt(following) / (1.0 - ab)
    rows[:, Column.F] = (1.0 - following) * np.sqrt(1.0 - beta) / (1.0 - ab)
    return np.asarray(beta * (1.0 - following) / (1.0 - ab))


def _ddpm(rows: Float64, calls: Route, *_: object) -> None:
    """Ancestral sampling with the posterior's own variance; its noise is 0 in the last step."""
    rows[:, Column.S] = np.sqrt(_posterior(rows, calls))


def _ddpm_learned(rows: Float64, calls: Route, *_: object) -> None:
    """Ancestral sampling with the learned variance (arXiv 2102.09672, equation 15), for the learned-variance graph.

    Its noise has the variance exp(v' log beta + (1 - v') log posterior), v' = (v + 1) / 2, times s, 1 but in the last
    step. There the posterior variance is 0 and replaced by the one before, or by beta, for its logarithm.
    """
    variance = _posterior(rows, calls)
    beta = 1.0 - calls.alpha_bar / calls.following
    variance[-1] = variance[-2] if len(variance) > 1 else beta[-1]
    rows[:, Column.LOG_BETA] = np.log(beta)
    rows[:, Column.LOG_POSTERIOR] = np.log(variance)
    rows[:-1, Column.S] = 1.0


def _dpmpp(rows: Float64, calls: Route, eta: float, _: Prediction, *, order: int) -> None:
    """DPM-Solver++ multistep (arXiv 2211.01095): the linear part exactly, x0 along the step from its last values.

    In half log-SNR l, x / alpha obeys du = -(1 + eta) (u - x0) dl + sqrt(2 eta) exp(-l) dW: eta 0 is the probability
    flow, eta 1 the SDE of the paper's section 4.3. Order 2 is the published 2M, algorithm 2. Order 3 integrates the
    parabola through three x0 exactly (the 3M of diffusers and k-diffusion takes half of its curvature term), and is of
    order 3 on Gaussian data. The first steps, without a history, and the last one, to no noise, are of lower order.
    """
    signal, noise = np.sqrt(calls.following), np.sqrt(1.0 - calls.following)
    h = _widths(calls)
    with np.errstate(invalid="ignore"):
        rows[:, Column.F] = noise / np.sqrt(1.0 - calls.alpha_bar) * np.exp(-eta * h)
        rows[:, Column.S] = noise * np.sqrt(-np.expm1(-2.0 * eta * h))
    for k in range(len(h) - 1):
        i0 = -np.expm1(-(1.0 + eta) * h[k])  # over the step, of (1 + eta) exp((1 + eta) (l - h)) times 1, l and l^2
        i1 = h[k] - i0 / (1.0 + eta)
        i2 = h[k] ** 2 - 2.0 * i1 / (1.0 + eta)
        weights = np.array([i0, 0.0, 0.0])
        if order == 3 and k >= 2:
            h1, h2 = h[k - 1], h[k - 2]
            slope, before = np.array([1.0, -1.0, 0.0]) / h1, np.array([0.0, 1.0, -1.0]) / h2
            weights += i1 * slope + (i2 + h1 * i1) * (slope - before) / (h1 + h2)
        elif k >= 1:
            weights += i0 * 0.5 * h[k] / h[k - 1] * np.array([1.0, -1.0, 0.0])
        rows[k, [Column.C, Column.E, Column.G]] = signal[k] * weights
    _to_x0(rows[-1])


def _unipc(rows: Float64, calls: Route, *_: object) -> None:
    """UniPC-2 (arXiv 2302.04867) with x0 prediction and B(h) = exp(h) - 1: predictor and corrector of order 2.

    The corrector of a state uses the x0 found at its prediction, so it is folded into the next step and needs no
    further call. With p and c the weights of the predictor and the corrector on x0 here, one and two calls earlier,
    the corrected state is x + c[0] x0 + (c[1] - p[0]) h1 + (c[2] - p[1]) h2, and the next prediction starts from it.
    """
    signal, noise = np.sqrt(calls.following), np.sqrt(1.0 - calls.following)
    h = _widths(calls)
    correction = np.zeros(3)
    for k in range(len(h) - 1):
        scale, gain = noise[k] / np.sqrt(1.0 - calls.alpha_bar[k]), -signal[k] * np.expm1(-h[k])
        half = 0.5 * h[k] / h[k - 1] if k else 0.0
        predictor = gain * np.array([1.0 + half, -half])
        rows[k, Column.F] = scale
        rows[k, [Column.C, Column.E, Column.G]] = scale * correction + [*predictor, 0.0]
        correction = gain * _corrector(h[k], h[k - 1] if k else None) - [0.0, *predictor]
    _to_x0(rows[-1])


def _corrector(h: float, before: float | None) -> Float64:
    """(3,) UniC's weights on x0 after the step, at its start, and one call earlier; of order 1 in the first step."""
    if before is None:
        return np.array([0.5, 0.5, 0.0])
    back = -before / h
    phi1 = np.expm1(-h)
    phi2 = -phi1 / h - 1.0
    phi3 = -phi2 / h - 0.5
    old, new = np.linalg.solve([[1.0, 1.0], [back, 1.0]], [phi2 / phi1, 2.0 * phi3 / phi1])
    return np.array([new, 1.0 - old / back - new, old / back])


def _widths(calls: Route) -> Float64:
    """(N,) each step's width in half log-SNR; the last, to no noise, is infinite."""
    return np.asarray(log_snr(calls.following) - log_snr(calls.alpha_bar))


def _to_x0(row: Float64) -> None:
    """Make a step the last one: the next state is x0."""
    row[Column.C :] = 0.0
    row[Column.C] = 1.0


SOLVERS: dict[str, Method] = {
    "ddim": Method(_ddim, with_eta=True),
    "ddpm": Method(_ddpm, noisy=True),
    "ddpm-learned": Method(_ddpm_learned, noisy=True, learned=True, predictions=("eps",)),
    "dpmpp-2m": Method(partial(_dpmpp, order=2), with_eta=True),
    "dpmpp-3m": Method(partial(_dpmpp, order=3), with_eta=True),
    "unipc-2": Method(_unipc),
}
if TYPE_CHECKING:
    Solver = str
else:
    Solver = Literal[tuple(SOLVERS)]
