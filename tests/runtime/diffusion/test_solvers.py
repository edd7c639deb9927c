import numpy as np
import pytest

from bfr.runtime.diffusion.schedule import linear_schedule, respace
from bfr.runtime.diffusion.solvers import Column, StepTable, step_table
from bfr.runtime.errors import InvalidOption

RNG = np.random.default_rng(0)
AB = respace(linear_schedule(), "ddim250").alpha_bar


def table(**options: object) -> StepTable:
    return step_table(linear_schedule(), **{"solver": "ddim", "spacing": "ddim250", "start": 100, **options})  # type: ignore[arg-type]


def apply(row: np.ndarray, x: np.ndarray, out: np.ndarray, noise: np.ndarray) -> np.ndarray:
    a, b, c, d, _, f, _, s = row.astype(np.float64)
    x0 = np.clip(a * x - b * out, -1, 1)
    return c * x0 + d * out + f * x + s * noise


def test_the_published_loop_starts_at_400_and_calls_396_to_0() -> None:
    found = table()
    assert found.timesteps.tolist() == list(range(396, -1, -4))
    assert len(found) == 100
    assert found.signal == pytest.approx(np.sqrt(linear_schedule().alpha_bar[400]))
    assert found.signal**2 + found.noise**2 == pytest.approx(1)


def test_a_matched_start_has_the_noise_that_the_first_call_is_told_of() -> None:
    schedule = linear_schedule()
    for spacing in ("ddim250", "ddim50"):
        found = table(spacing=spacing, start=4, matched=True)
        first = schedule.alpha_bar[int(found.timesteps[0])]
        assert (found.signal, found.noise) == pytest.approx((np.sqrt(first), np.sqrt(1 - first)))
        assert np.array_equal(found.rows, table(spacing=spacing, start=4).rows)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("index", [0, 1, 57, 99])
def test_a_ddim_row_is_the_papers_step(eta: float, index: int) -> None:
    x, eps, noise = RNG.normal(size=(3, 1000))
    ab, prev = AB[index], AB[index - 1] if index else 1.0
    x0 = np.clip((x - np.sqrt(1 - ab) * eps) / np.sqrt(ab), -1, 1)
    sigma = eta * np.sqrt((1 - prev) / (1 - ab)) * np.sqrt(1 - ab / prev)
    expected = np.sqrt(prev) * x0 + np.sqrt(1 - prev - sigma**2) * eps + sigma * noise * (index > 0)
    row = table(eta=eta).rows[99 - index]
    assert np.allclose(apply(row, x, eps, noise), expected, atol=1e-5)


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("index", [0, 40, 99])
def test_other_predictions_are_the_same_step_of_converted_outputs(prediction: str, index: int) -> None:
    x, eps, noise = RNG.normal(size=(3, 1000))
    ab = AB[index]
    x0 = (x - np.sqrt(1 - ab) * eps) / np.sqrt(ab)
    out = {"v": np.sqrt(ab) * eps - np.sqrt(1 - ab) * x0, "x0": x0}[prediction]
    expected = apply(table(eta=0.5).rows[99 - index], x, eps, noise)
    assert np.allclose(
        apply(table(eta=0.5, prediction=prediction).rows[99 - index], x, out, noise), expected, atol=1e-4
    )


def test_ddpm_is_ddim_at_eta_1_but_for_the_clipping() -> None:
    """Ho et al.'s ancestral step and DDIM's at eta 1 are one step where nothing is clipped (arXiv 2010.02502, 4.1)."""
    for index in (1, 30, 99):
        x0, eps, noise = 0.5 * np.clip(RNG.normal(size=1000), -1.9, 1.9), *RNG.normal(size=(2, 1000))
        x = np.sqrt(AB[index]) * x0 + np.sqrt(1 - AB[index]) * eps
        ddpm = apply(table(solver="ddpm").rows[99 - index], x, eps, noise)
        ddim = apply(table(eta=1.0).rows[99 - index], x, eps, noise)
        assert np.allclose(ddpm, ddim, atol=1e-5)


def test_the_last_step_adds_no_noise() -> None:
    for solver in ("ddim", "ddpm", "ddpm-learned"):
        assert table(solver=solver, eta=0.0 if solver != "ddim" else 1.0).rows[-1, Column.S] == 0


def test_learned_variance_rows_carry_the_two_log_variances() -> None:
    kept = respace(linear_schedule(), "ddim250")
    rows = table(solver="ddpm-learned").rows
    before = np.append(1.0, kept.alpha_bar[:-1])
    betas = 1 - kept.alpha_bar / before
    posterior = betas * (1 - before) / (1 - kept.alpha_bar)
    assert np.allclose(rows[:, Column.LOG_BETA], np.log(betas[:100])[::-1], rtol=1e-6)
    assert np.allclose(rows[:-1, Column.LOG_POSTERIOR], np.log(posterior[1:100])[::-1], rtol=1e-6)
    assert rows[-1, Column.LOG_POSTERIOR] == pytest.approx(np.log(posterior[1]), rel=1e-6)


def test_one_learned_step_has_finite_log_variances() -> None:
    assert np.isfinite(table(solver="ddpm-learned", start=1).rows).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0}, "allows whole numbers from 1 to 250"),
        ({"start": 251}, "allows whole numbers from 1 to 250"),
        ({"eta": -0.1}, "between 0"),
        ({"eta": 1.1}, "between 0"),
        ({"eta": float("nan")}, "between 0"),
        ({"solver": "ddpm", "eta": 0.5}, "use 0"),
        ({"solver": "ddpm-learned", "prediction": "v"}, "eps"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        table(**options)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "ddpm-learned"])
def test_a_loop_that_stops_early_ends_with_x0(solver: str) -> None:
    whole, early = (table(solver=solver, spacing="100", start=61, stop=stop, matched=True) for stop in (0, 35))
    assert len(early) == 61 - 35
    assert np.array_equal(early.timesteps, whole.timesteps[: len(early)])
    assert np.array_equal(early.rows[:-1, [Column.A, Column.B, Column.C]], whole.rows[: len(early) - 1, :3])
    last = early.rows[-1]
    assert (last[Column.C], last[Column.F], last[Column.S]) == pytest.approx((1.0, 0.0, 0.0), abs=1e-6)
    for stop, start in ((10, 10), (-1, 10)):
        with pytest.raises(InvalidOption, match="stop"):
            table(spacing="100", start=start, stop=stop)
    with pytest.raises(InvalidOption, match="respacing"):
        table(spacing="time", start=300, steps=3, stop=2)
