"""PGDiff's steps: their arithmetic against NumPy, what is left out, and what is traced in their place."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from small import LEARNED_UNET, RECOGNIZER
from torch import Tensor

from bfr.models.networks.rrdb import SmoothRestorer
from bfr.models.stages.pgdiff import (
    IdentityGradient,
    PartialGuidance,
    ReferenceStage,
    ReferenceStep,
    SmoothStep,
    partial_guidance,
)
from bfr.models.stages.step import LearnedVarianceStep
from bfr.models.weights.seeded import LOOP_SCALE, seed_weights
from bfr.runtime.diffusion.schedule import linear_schedule
from bfr.runtime.diffusion.solvers import Column, step_table

SIZE, EMBEDDING = 32, 6
UNET: dict[str, Any] = {**LEARNED_UNET, "image_size": SIZE, "num_res_blocks": 0}
RESTORER = {"channels": 8, "blocks": 1, "growth": 4}
TABLE = step_table(linear_schedule(), solver="ddpm-learned", spacing="ddim10", start=10)


@pytest.fixture(scope="module")
def network() -> PartialGuidance:
    made = partial_guidance(denoiser=UNET, restorer=RESTORER, recognizer=RECOGNIZER, image_size=SIZE)
    seed_weights(made.denoiser, LOOP_SCALE)
    seed_weights(made.restorer)
    seed_weights(cast(IdentityGradient, made.identity).network.recognizer)
    return made.eval()


def inputs(steps: tuple[int, ...] = (0, 5, 9)) -> dict[str, Tensor]:
    """One image at each of some steps of TABLE."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(len(steps), *shape, generator=generator)

    rows = torch.from_numpy(TABLE.rows[list(steps)])
    t = torch.from_numpy(TABLE.timesteps[list(steps)])
    image = (3, SIZE, SIZE)
    values = {"x": normal(*image), "h1": normal(*image), "h2": normal(*image), "t": t, "row": rows}
    values |= {"noise": normal(*image), "signed": normal(*image).clamp(-1, 1), "identity": normal(EMBEDDING)}
    return values | {"strength": torch.tensor([0.1, 0.05, 0.2])}


def without(values: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name not in names}


@torch.no_grad()
def test_the_mean_moves_by_scale_times_the_learned_variance_times_the_gradient(network: PartialGuidance) -> None:
    """It is mean - s * variance * (2 (x0 - smooth) + 25 * gradient) + deviation * noise; nothing of it is clipped."""
    values = inputs()
    x_next, x0 = ReferenceStep(network).eval()(**values)
    a = {name: value.double().numpy() for name, value in values.items()}
    eps, v = np.split(network.denoiser(values["x"], values["t"]).double().numpy(), 2, axis=1)

    def column(index: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        return a["row"][:, index, None, None, None]

    expected_x0 = np.clip(column(Column.A) * a["x"] - column(Column.B) * eps, -1, 1)
    share = (v + 1) / 2
    variance = np.exp(share * column(Column.LOG_BETA) + (1 - share) * column(Column.LOG_POSTERIOR))
    smooth = network.restorer(values["x"], values["signed"], values["t"]).clamp(-1, 1).double().numpy()
    towards = cast(Any, network.identity)(x0, values["identity"]).double().numpy()
    gradient = 2 * (expected_x0 - smooth) + 25 * towards
    mean = column(Column.C) * expected_x0 + column(Column.F) * a["x"]
    shift = a["strength"][:, None, None, None] * variance * gradient
    expected = mean - shift + column(Column.S) * np.sqrt(variance) * a["noise"]
    np.testing.assert_allclose(x0.numpy(), expected_x0, rtol=0, atol=1e-5)
    np.testing.assert_allclose(x_next.numpy(), expected, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(shift).max())))
    assert np.abs(shift).max(axis=(1, 2, 3)).min() > 1e-5
    last = np.abs(TABLE.rows[-1, Column.S])
    assert last == 0.0  # no noise in the last step, and the mean moves there too


@torch.no_grad()
def test_strength_0_is_the_step_without_guidance(network: PartialGuidance) -> None:
    values = inputs()
    values["strength"] = torch.zeros(3)
    plain = LearnedVarianceStep(network.denoiser).eval()(**without(values, "signed", "identity", "strength"))
    for found, expected in zip(ReferenceStep(network).eval()(**values), plain, strict=True):
        assert torch.equal(found, expected)


@torch.no_grad()
def test_an_image_without_a_reference_is_guided_by_smooth_semantics_alone(network: PartialGuidance) -> None:
    values = inputs()
    values["identity"][1] = 0.0
    guided, _ = ReferenceStep(network).eval()(**values)
    smooth, _ = SmoothStep(network).eval()(**without(values, "identity"))
    assert torch.equal(guided[1], smooth[1])
    assert not torch.equal(guided[0], smooth[0])


@torch.no_grad()
def test_no_reference_is_the_identity_0(network: PartialGuidance) -> None:
    distance = cast(IdentityGradient, network.identity).network
    pictures = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    pictures[1] = 0.0
    identity = ReferenceStage(distance).eval()(pictures)
    torch.testing.assert_close(identity[0], distance.embed(2.0 * pictures[:1] - 1.0)[0], rtol=0, atol=1e-6)
    assert torch.equal(identity[1], torch.zeros(EMBEDDING))


@torch.no_grad()
def test_what_is_traced_computes_the_same_under_the_same_names(network: PartialGuidance) -> None:
    stage = ReferenceStep(network).eval()
    traced = stage.traceable(SIZE)
    assert traced.state_dict().keys() == stage.state_dict().keys()
    values = inputs()
    for found, expected in zip(traced(**values), stage(**values), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_restorer_takes_its_own_of_the_published_file() -> None:
    """The file also holds a discriminator and the like; the published code ignores what it does not know."""
    restorer = SmoothRestorer(**RESTORER)
    own = restorer.state_dict()
    published = {**own, "discriminator.conv0.weight": torch.zeros(1), "step_counter": torch.zeros(1)}
    assert restorer.own_weights(published).keys() == own.keys()
    for name in ("generator.body.0.rdb3.conv5.bias", "generator.conv_up2.weight", "time_embed.2.bias"):
        assert name in own
    assert own["generator.conv_first.weight"].shape == (8, 9 * 16, 3, 3)
