"""Solvers and grids of few steps, on Gaussian data: there the network, the flow and the marginals are known exactly."""

from pathlib import Path

import numpy as np
import pytest

from bfr.runtime.diffusion.schedule import GRIDS, Route, linear_schedule, log_snr, route
from bfr.runtime.diffusion.solvers import Column, Solver, solver_rows, step_table
from bfr.runtime.errors import InvalidOption

MEAN, DEVIATION = 0.3, 0.25  # of the data
START = 1.7  # the state at the start of the flow
SCHEDULE = linear_schedule()
GOLDEN = Path(__file__).parents[2] / "golden" / "solvers.npz"


def noise_of(x: np.ndarray, alpha_bar: float) -> np.ndarray:
    """What a perfect network predicts: the mean of eps, given the state."""
    return np.sqrt(1 - alpha_bar) * (x - np.sqrt(alpha_bar) * MEAN) / deviation(alpha_bar) ** 2


def deviation(alpha_bar: float) -> float:
    return float(np.sqrt(alpha_bar * DEVIATION**2 + 1 - alpha_bar))


def flow(x: float, from_: float, to: float) -> float:
    """The probability flow from one alpha_bar to another, exactly: it keeps the state's quantile."""
    return float(np.sqrt(to) * MEAN + deviation(to) / deviation(from_) * (x - np.sqrt(from_) * MEAN))


def walk(rows: np.ndarray, alpha_bar: np.ndarray, states: list[float]) -> float:
    """The state after all rows; the first calls are given `states`, exact ones, as a history."""
    x, h1, h2 = 0.0, 0.0, 0.0
    for k, (row, ab) in enumerate(zip(rows, alpha_bar, strict=True)):
        x = states[k] if k < len(states) else x
        a, b, c, d, e, f, g, _ = row
        out = float(noise_of(np.array(x), ab))
        x0 = a * x - b * out
        x, h1, h2 = c * x0 + d * out + e * h1 + g * h2 + f * x, x0, h1
    return x


def error(solver: Solver, steps: int, history: int = 0) -> float:
    """Of `steps` steps, evenly in half log-SNR from -1 to 2, with exact states for `history` calls before them."""
    h = 3.0 / steps
    alpha_bar = 1 / (1 + np.exp(-2 * (-1.0 + h * np.arange(-history, steps + 1))))
    calls = Route(np.zeros(len(alpha_bar)), alpha_bar, float(alpha_bar[0]))
    begin = float(alpha_bar[history])
    states = [flow(START, begin, ab) for ab in alpha_bar[: history + 1]]
    found = walk(solver_rows(calls, solver)[:-1], alpha_bar[:-1], states)
    return abs(found - flow(START, begin, alpha_bar[-1]))


@pytest.mark.parametrize(
    ("solver", "history", "order"), [("ddim", 0, 1), ("dpmpp-2m", 0, 2), ("dpmpp-3m", 2, 3), ("unipc-2", 0, 3)]
)
def test_halving_the_steps_width_shows_the_solvers_order(solver: Solver, history: int, order: int) -> None:
    """3M's first steps have no history and are of lower order: it is given one, so that its own order is seen."""
    coarse, fine = error(solver, 256, history), error(solver, 512, history)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.12)


def test_at_ten_steps_a_higher_order_is_worth_ten_times_the_steps_of_ddim() -> None:
    for solver in ("dpmpp-2m", "dpmpp-3m", "unipc-2"):
        assert error(solver, 10) < error("ddim", 100)


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2"])
def test_a_truncated_loop_ends_at_the_clean_value_of_its_start(solver: Solver, spacing: str) -> None:
    def end(steps: int) -> float:
        calls = route(SCHEDULE, spacing, 396.5, steps=steps)
        return abs(walk(solver_rows(calls, solver), calls.alpha_bar, [START]) - flow(START, calls.level, 1.0))

    assert end(160) < end(10) / 2  # what is left is the last step's, from timestep 0 to no noise at all
    assert end(160) < (7e-3 if solver == "ddim" else 2e-3)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-3m", "unipc-2"])
def test_ten_steps_even_in_log_snr_are_as_good_as_a_hundred_of_the_published_loop(solver: Solver) -> None:
    few = route(SCHEDULE, "log-snr", 400, steps=10)
    published = route(SCHEDULE, "ddim250", 100)
    reached = abs(walk(solver_rows(few, solver), few.alpha_bar, [START]) - flow(START, few.level, 1.0))
    wanted = abs(walk(solver_rows(published, "ddim"), published.alpha_bar, [START]) - flow(START, published.level, 1.0))
    assert reached < wanted


@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-3m"])
def test_the_sde_form_keeps_the_marginals_mean_and_variance(solver: Solver) -> None:
    """The step is linear in the state here, so mean and covariance of (x, h1, h2) go through it exactly."""

    def errors(steps: int) -> tuple[float, float]:
        h = 3.0 / steps
        alpha_bar = 1 / (1 + np.exp(-2 * (-1.0 + h * np.arange(steps + 1))))
        rows = solver_rows(Route(np.zeros(steps + 1), alpha_bar, float(alpha_bar[0])), solver, eta=1.0)
        mean = np.array([np.sqrt(alpha_bar[0]) * MEAN, 0.0, 0.0])
        covariance = np.diag([deviation(alpha_bar[0]) ** 2, 0.0, 0.0])
        for row, ab in zip(rows[:-1], alpha_bar, strict=False):
            a, b, c, _, e, f, g, s = row
            shift = float(noise_of(np.array(0.0), ab))
            slope = float(noise_of(np.array(1.0), ab)) - shift
            of_x = a - b * slope
            matrix = np.array([[c * of_x + f, e, g], [of_x, 0.0, 0.0], [0.0, 1.0, 0.0]])
            mean = matrix @ mean + [-c * b * shift, -b * shift, 0.0]
            covariance = matrix @ covariance @ matrix.T + np.diag([s * s, 0.0, 0.0])
        final = float(alpha_bar[-1])
        return abs(mean[0] - np.sqrt(final) * MEAN), abs(np.sqrt(covariance[0, 0]) - deviation(final))

    assert max(errors(200)) < 2e-3
    assert max(errors(200)) < max(errors(50)) / 3


@pytest.mark.parametrize("name", ["dpmpp-2m", "dpmpp-2m-sde", "unipc-2"])
def test_a_solver_is_the_published_one(name: str) -> None:
    """The states are those of diffusers 0.35.2 (its order at the end as ours), given the same network and noise."""
    recorded = {key.split("/")[1]: value for key, value in np.load(GOLDEN).items() if key.startswith(f"{name}/")}
    calls = route(SCHEDULE, "log-snr", 396, steps=8)
    solver: Solver = "unipc-2" if name == "unipc-2" else "dpmpp-2m"
    rows = solver_rows(calls, solver, eta=float(name.endswith("sde")))
    x, h1, h2 = recorded["start"], 0.0, 0.0
    for (a, b, c, d, e, f, g, s), noise, expected in zip(rows, recorded["noises"], recorded["states"], strict=True):
        out = 0.7 * np.tanh(1.3 * x + 0.2) + 0.1 * np.sin(3 * x)
        x0 = a * x - b * out
        x, h1, h2 = c * x0 + d * out + e * h1 + g * h2 + f * x + s * noise, x0, h1
        assert np.allclose(x, expected, atol=1e-6)  # diffusers keeps sigmas in float32


def test_first_order_is_ddim() -> None:
    """One step has no history: every solver takes DDIM's, and at eta 1 of DPM-Solver++ that of DDPM."""
    calls = route(SCHEDULE, "log-snr", 300, steps=5)
    x, out, noise = np.random.default_rng(0).normal(size=(3, 100))

    def first(solver: Solver, eta: float = 0.0) -> np.ndarray:
        a, b, c, d, _, f, _, s = solver_rows(calls, solver, eta=eta)[0]
        return np.asarray(c * (a * x - b * out) + d * out + f * x + s * noise)

    for solver in ("dpmpp-2m", "dpmpp-3m", "unipc-2"):
        assert np.allclose(first(solver), first("ddim"), atol=1e-12)
    assert np.allclose(first("dpmpp-2m", 1.0), first("ddpm"), atol=1e-12)


def test_every_last_step_ends_at_x0() -> None:
    for solver in ("dpmpp-2m", "dpmpp-3m", "unipc-2"):
        row = step_table(SCHEDULE, solver=solver, spacing="time", start=30, steps=4).rows[-1]  # type: ignore[arg-type]
        assert row[Column.C :].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_rows_read_no_history_that_is_not_there() -> None:
    for solver in ("dpmpp-2m", "dpmpp-3m", "unipc-2"):
        rows = step_table(SCHEDULE, solver=solver, spacing="time", start=200, steps=6).rows  # type: ignore[arg-type]
        assert rows[0, [Column.E, Column.G]].tolist() == [0.0, 0.0]
        assert rows[1, Column.G] == 0.0
        assert np.all(rows[1:-1, Column.E] != 0.0)
        assert np.all(rows[2:-1, Column.G] != 0.0) == (solver != "dpmpp-2m")


def test_grids_begin_at_the_start_and_are_even_in_what_they_are_named_for() -> None:
    for spacing in GRIDS:
        calls = route(SCHEDULE, spacing, 250.75, steps=5)
        assert calls.timesteps[0] == pytest.approx(250.75)
        assert calls.level == calls.alpha_bar[0]
    time, snr, quadratic = (route(SCHEDULE, spacing, 250.75, steps=5) for spacing in GRIDS)
    end = log_snr(SCHEDULE.alpha_bar[:1])
    assert np.allclose(np.diff([*time.timesteps, 0.0]), -250.75 / 5)
    assert np.allclose(np.diff([*np.sqrt(quadratic.timesteps), 0.0]), -np.sqrt(250.75) / 5)
    assert np.allclose(np.diff([*log_snr(snr.alpha_bar), *end], 2), 0.0, atol=1e-9)
    assert np.all(np.diff(snr.timesteps) < 0)


def test_alpha_bar_between_two_timesteps_is_interpolated_in_log_snr() -> None:
    whole = SCHEDULE.alpha_bar_at(np.arange(1000.0))
    assert np.allclose(whole, SCHEDULE.alpha_bar, rtol=1e-12)
    between = SCHEDULE.alpha_bar_at(np.array([99.25]))
    expected = 0.75 * log_snr(SCHEDULE.alpha_bar[[99]]) + 0.25 * log_snr(SCHEDULE.alpha_bar[[100]])
    assert log_snr(between) == pytest.approx(expected)
    assert SCHEDULE.timesteps_at(log_snr(between)) == pytest.approx(99.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": "time", "steps": None}, "add steps"),
        ({"spacing": "time", "steps": 0}, "1 or more"),
        ({"spacing": "log-snr", "start": 0.0}, "above 0, to 999"),
        ({"spacing": "log-snr", "start": 999.5}, "above 0, to 999"),
        ({"spacing": "log-snr", "start": float("nan")}, "above 0, to 999"),
        ({"spacing": "ddim250", "start": 10}, "goes with the spacings time, log-snr, quadratic"),
        ({"spacing": "ddim250", "start": 10.5, "steps": None}, "whole numbers from 1 to 250"),
        ({"solver": "unipc-2", "eta": 0.5}, "unipc-2 is deterministic: use 0"),
        ({"solver": "ddpm", "eta": 0.5}, "ddpm takes its noise from the schedule: use 0"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, object], message: str) -> None:
    settings = {"solver": "ddim", "spacing": "time", "start": 100.0, "steps": 5, **options}
    with pytest.raises(InvalidOption, match=message):
        step_table(SCHEDULE, **settings)  # type: ignore[arg-type]
