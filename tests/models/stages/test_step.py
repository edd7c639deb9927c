from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bfr.models.networks.unet import UNet
from bfr.models.stages.estimate import EstimatorStage
from bfr.models.stages.step import KnownStep, LearnedVarianceStep, LinearStep, cut_variance
from bfr.runtime.diffusion.schedule import linear_schedule, respace
from bfr.runtime.diffusion.solvers import step_table

SHAPE = (2, 3, 8, 8)


class Fixed(nn.Module):
    """A denoiser that says what it was given."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert x.shape[0] == t.shape[0]
        return self.out


def draws(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def test_a_linear_step_is_its_row() -> None:
    x, h1, h2, noise, out = draws(5)
    row = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    x_next, x0 = LinearStep(Fixed(out))(x, h1, h2, torch.zeros(2), row, noise)
    a, b, c, d, e, f, g, s = (row[:, i].view(2, 1, 1, 1).double() for i in range(8))
    expected = (a * x - b * out).clamp(-1, 1)
    assert torch.allclose(x0.double(), expected, atol=1e-6)
    following = c * expected + d * out + e * h1 + g * h2 + f * x + s * noise
    assert torch.allclose(x_next.double(), following, atol=1e-5)


def test_learned_variance_interpolates_between_the_two_log_variances() -> None:
    """Improved DDPM, equation 15, written out in float64."""
    x, h1, h2, noise, eps = draws(5)
    index = 7
    kept = respace(linear_schedule(), "250")
    table = step_table(linear_schedule(), solver="ddpm-learned", spacing="250", start=10)
    row = torch.from_numpy(table.rows[9 - index]).repeat(2, 1)
    ab, prev = kept.alpha_bar[index], kept.alpha_bar[index - 1]
    beta = 1 - ab / prev
    posterior = beta * (1 - prev) / (1 - ab)
    for v, variance in ((-1.0, posterior), (1.0, beta)):
        out = torch.cat([eps, torch.full(SHAPE, v)], dim=1)
        x_next, x0 = LearnedVarianceStep(Fixed(out))(x, h1, h2, torch.zeros(2), row, noise)
        mean = beta * np.sqrt(prev) / (1 - ab) * x0 + (1 - prev) * np.sqrt(1 - beta) / (1 - ab) * x
        assert torch.allclose(x_next, (mean + np.sqrt(variance) * noise).float(), atol=1e-5)


def test_guidance_is_the_gradient_of_the_known_pixels_error() -> None:
    x, h1, h2, noise, out = draws(5)
    known = draws(6)[5].clamp(-1, 1)
    mask = (torch.arange(8) < 4).float().expand(2, 1, 8, 8)
    row = torch.tensor([1.0, 0.5, 1.0, 0, 0, 0, 0, 0]).repeat(2, 1)
    free = (x - 0.5 * out).clamp(-1, 1).requires_grad_()
    loss = ((free - known) ** 2 * (1 - mask)).sum()
    (gradient,) = torch.autograd.grad(loss, free)
    expected = (free - 0.5 * gradient).clamp(-1, 1).detach()
    x_next, x0 = KnownStep(Fixed(out))(x, h1, h2, torch.zeros(2), row, noise, known, mask, torch.full((2,), 0.5))
    assert torch.allclose(x0, expected, atol=1e-6)
    assert torch.equal(x_next, x0)


def test_the_estimate_is_clipped_and_mapped() -> None:
    stage = EstimatorStage(nn.Identity())
    found = stage(torch.tensor([-0.5, 0.0, 0.25, 1.0, 2.0]))
    assert found.tolist() == [-1.0, -1.0, -0.5, 1.0, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_not_clipped_away(bad: float) -> None:
    x, h1, h2, noise, out = draws(5)
    out[0, 0, 0, 0] = bad
    row: Any = torch.tensor([1.0, 1, 1, 0.5, 0, 0, 0, 0]).repeat(2, 1)
    x_next, _ = LinearStep(Fixed(out))(x, h1, h2, torch.zeros(2), row, noise)
    assert not torch.isfinite(x_next[0, 0, 0, 0])
    assert torch.isfinite(x_next[1]).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_estimate_that_overflowed_is_not_clipped_away(bad: float) -> None:
    degraded = torch.tensor([0.5, bad])
    found = EstimatorStage(nn.Identity())(degraded)
    assert found[0] == 0.0
    assert torch.isnan(found[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("channel", [0, 3])
def test_a_learned_variance_step_that_overflowed_is_not_clipped_away(bad: float, channel: int) -> None:
    """In eps, which only the clipped x0 reads, and in the variance."""
    x, h1, h2, noise, eps = draws(5)
    out = torch.cat([eps, torch.zeros(SHAPE)], dim=1)
    out[0, channel, 0, 0] = bad
    table = step_table(linear_schedule(), solver="ddpm-learned", spacing="250", start=10)
    row = torch.from_numpy(table.rows[2]).repeat(2, 1)
    x_next, _ = LearnedVarianceStep(Fixed(out))(x, h1, h2, torch.zeros(2), row, noise)
    assert torch.isnan(x_next[0, 0, 0, 0])
    assert torch.isfinite(x_next[1]).all()


def test_cutting_the_variance_leaves_eps_as_it_was() -> None:
    network = UNet(
        image_size=16,
        in_channels=3,
        model_channels=32,
        out_channels=6,
        num_res_blocks=1,
        attention_resolutions=(),
        channel_mult=(1,),
    ).eval()
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([10.0])
    with torch.inference_mode():
        before = network(x, t)
        after = cut_variance(network)(x, t)
    assert after.shape[1] == 3
    assert torch.allclose(after, before[:, :3], atol=1e-6)
