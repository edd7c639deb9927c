"""DR2's step by its formula, and what its low-pass does. The whole loop is compared in tests/golden/dr2_*."""

from typing import Any

import numpy as np
import pytest
import torch
from small import LEARNED_UNET
from torch import Tensor

from bfr.models.networks.unet import UNet
from bfr.models.stages.dr2 import EnhanceStage, RefinedStep, low_pass
from bfr.models.stages.step import LearnedVarianceStep
from bfr.models.systems.dr2 import DR2, preset
from bfr.models.weights.seeded import LOOP_SCALE, seed_weights
from bfr.runtime.diffusion.schedule import linear_schedule, respace
from bfr.runtime.diffusion.solvers import step_table

SIZE = 16
UNET: dict[str, Any] = {**LEARNED_UNET, "image_size": SIZE, "num_res_blocks": 1}
TABLE = step_table(linear_schedule(), solver="ddpm-learned", spacing="100", start=10, stop=2, matched=True)


@pytest.fixture(scope="module")
def step() -> RefinedStep:
    denoiser = UNet(**UNET)
    seed_weights(denoiser, LOOP_SCALE)
    return RefinedStep(denoiser, size=SIZE).eval()


def inputs(strength: list[float], steps: tuple[int, ...] = (0, 3, 6)) -> dict[str, Tensor]:
    """One image at each of some steps of TABLE."""
    generator = torch.Generator().manual_seed(0)

    def normal(channels: int) -> Tensor:
        return torch.randn(len(steps), channels, SIZE, SIZE, generator=generator)

    values = {"x": normal(3), "h1": normal(3), "h2": normal(3), "t": torch.from_numpy(TABLE.timesteps[list(steps)])}
    values |= {"row": torch.from_numpy(TABLE.rows[list(steps)]), "noise": normal(6)}
    return values | {"signed": normal(3).clamp(-1, 1), "strength": torch.tensor(strength)}


def plain(step: RefinedStep, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The step without refinement."""
    read = {name: value for name, value in values.items() if name not in ("signed", "strength")}
    made: tuple[Tensor, Tensor] = LearnedVarianceStep(step.denoiser)(**{**read, "noise": read["noise"][:, :3]})
    return made


@torch.no_grad()
def test_low_frequencies_are_those_of_the_diffused_input(step: RefinedStep) -> None:
    """It is x' + U (sqrt(a) y + sqrt(1 - a) n - x') U', with the alpha_bar of the schedule itself, in float64."""
    values = inputs([4.0, 2.0, 1.0])
    found, x0 = step(**values)
    drawn, plain_x0 = plain(step, values)
    assert torch.equal(x0, plain_x0)
    alpha_bar = respace(linear_schedule(), "100").alpha_bar
    for i, (k, factor) in enumerate(((0, 4), (3, 2), (6, 1))):
        following = alpha_bar[9 - k - 1]  # of the state after the call at index 9 - k
        noise, signed = values["noise"][i, 3:].double().numpy(), values["signed"][i].double().numpy()
        target = np.sqrt(following) * signed + np.sqrt(1.0 - following) * noise
        before, matrix = drawn[i].double().numpy(), low_pass(SIZE, factor)
        expected = before + matrix @ (target - before) @ matrix.T
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=0, atol=5e-6)
        assert np.abs(expected - before).max() > 0.1
    np.testing.assert_allclose(found[2].numpy(), target, rtol=0, atol=5e-6)  # N = 1 keeps nothing of the state


@torch.no_grad()
def test_0_leaves_the_refinement_out_and_the_last_step_has_none(step: RefinedStep) -> None:
    values = inputs([0.0, 4.0, 4.0], steps=(0, 7, 7))
    found, x0 = step(**values)
    drawn, _ = plain(step, values)
    torch.testing.assert_close(found[0], drawn[0], rtol=0, atol=0)
    torch.testing.assert_close(found[1], x0[1], rtol=0, atol=1e-6)  # the last step gives x0
    between = step(**inputs([3.0, 3.0, 3.0]))[0]
    around = [step(**inputs([n] * 3))[0] for n in (2.0, 4.0)]
    assert all(not torch.allclose(between, other, atol=1e-3) for other in around)


def test_a_low_pass_keeps_flat_pictures_and_removes_stripes() -> None:
    matrix = low_pass(32, 4)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)
    assert np.abs(matrix @ np.tile([1.0, -1.0], 16))[8:-8].max() < 0.05  # stripes are mirrored into pairs at the edges
    np.testing.assert_array_equal(low_pass(32, 1), np.eye(32))
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)  # mirrored at both edges alike


def test_presets_are_the_published_pairs() -> None:
    """Omega is tau + 5, 10, 20, 25 or 30, by N; start counts from 1."""
    found = {name: (one.guidance, one.start - 1, one.stop, one.calls) for name, one in DR2.presets.items()}
    assert found == {"mild": (4, 42, 22, 21), "reference": (8, 60, 35, 26), "severe": (16, 65, 35, 31)}
    assert [preset(n, 0).start - 1 for n in (1, 2, 4, 8, 16, 32)] == [5, 10, 20, 25, 30, 30]
    assert preset(16, 90).start == 100  # the last of 100


@torch.no_grad()
def test_the_enhancer_is_given_a_clipped_picture_of_its_size() -> None:
    seen = []

    class Network(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image)
            return 3.0 * image

    state = torch.full((1, 3, 8, 8), 2.0)
    state[..., :4] = -0.5
    restored = EnhanceStage(Network(), source=8, target=16)(state)
    assert seen[0].shape == restored.shape == (1, 3, 16, 16)
    torch.testing.assert_close(seen[0][..., -1], torch.ones(1, 3, 16), rtol=0, atol=0.2)
    assert restored.abs().max() == 1.0
    state[0, 0, 0, 0] = torch.nan
    assert EnhanceStage(Network(), source=8, target=16)(state).isnan().any()
