import numpy as np
import pytest

from bfr.runtime.diffusion.schedule import linear_schedule, respace
from bfr.runtime.errors import InvalidOption


def test_the_linear_schedule_is_the_published_one() -> None:
    schedule = linear_schedule()
    product = 1.0
    for t, beta in enumerate(np.linspace(1e-4, 0.02, 1000)):
        product *= 1 - beta
        assert schedule.alpha_bar[t] == pytest.approx(product, rel=1e-12)
    assert schedule.alpha_bar.dtype == np.float64


def test_ddim250_keeps_every_fourth_step() -> None:
    assert respace(linear_schedule(), "ddim250").timesteps.tolist() == list(range(0, 1000, 4))


def test_250_is_spread_by_additions_rounded_half_to_even() -> None:
    kept = respace(linear_schedule(), "250").timesteps
    position, expected = 0.0, []
    for _ in range(250):
        expected.append(round(position))
        position += 999 / 249
    assert kept.tolist() == expected
    assert (kept[0], kept[-1]) == (0, 999)


def test_one_step() -> None:
    assert respace(linear_schedule(), "1").timesteps.tolist() == [0]


@pytest.mark.parametrize("spacing", ["ddim", "fast", "0", "1001", "ddim300", "-5", "ddim0", ""])
def test_a_spacing_that_does_not_exist_is_refused(spacing: str) -> None:
    with pytest.raises(InvalidOption, match="spacing"):
        respace(linear_schedule(), spacing)
