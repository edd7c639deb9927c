from typing import Any

import numpy as np
import pytest

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Adapt, Preset
from bfr.runtime.diffusion.solvers import StepTable
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.adapt import movement, starts, truncation
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.restore.tables import sampler_table

SIZE = 8
PRESET = Preset(
    solver="dpmpp-2m",
    spacing="log-snr",
    start=40,
    steps=3,
    eta=1.0,
    adapt=Adapt(typical=10.0, power=2.0, least=5.0, most=120.0),
)
FACES = np.random.default_rng(0).random((3, 3, SIZE, SIZE), dtype=np.float32)
SHIFTS = (0.01, 0.03, 0.05)  # how far the toy estimator moves each face, of 1


def toy(fakes: Any) -> dict[str, Any]:
    """An estimator that moves a face by what its first pixel's red says, and a denoiser."""

    def estimate(degraded: np.ndarray) -> tuple[np.ndarray]:
        shift = degraded[:, :1, :1, :1]
        moved = 2 * (degraded + shift) - 1
        moved[:, 0, 0, 0] = 0.0
        return (moved.astype(np.float32),)

    def eps(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return 0.3 * np.tanh(x) + 0.001 * t[:, None, None, None]

    return {"estimator": fakes.Network(estimate), "denoiser": fakes.step(eps)}


def faces() -> np.ndarray:
    marked = FACES.copy()
    marked[:, 0, 0, 0] = SHIFTS
    return marked


def table_of(bundle: Bundle) -> Any:
    return lambda preset: sampler_table(bundle, preset)


def test_movement_is_the_rms_in_grey_levels() -> None:
    degraded = np.full((2, 3, 4, 4), 0.5, np.float32)
    estimate = 2 * degraded - 1
    estimate[1] += 2 * 0.1
    assert movement(degraded, estimate) == pytest.approx([0.0, 25.5], abs=1e-4)


def test_the_start_goes_with_a_power_of_the_movement_within_limits() -> None:
    found = starts(PRESET, np.array([10.0, 5.0, 1.0, 100.0, np.nan, np.inf]))
    assert found.tolist() == [40.0, 10.0, 5.0, 120.0, 40.0, 40.0]
    assert starts(PRESET.model_copy(update={"adapt": None}), np.array([1.0, 9.0])).tolist() == [40.0, 40.0]


@pytest.mark.parametrize("recorded", [False, True])
def test_each_image_is_restored_as_with_its_own_start(tiny_bundle: Bundle, fakes: Any, recorded: bool) -> None:
    """In one batch, with noise in every step, against a chain of one image with a constant start."""
    networks, degraded = toy(fakes), faces()
    truncate = truncation(PRESET, table_of(tiny_bundle))
    pair = networks["estimator"], networks["denoiser"]
    table = sampler_table(tiny_bundle, PRESET)
    together = fakes.chain(fakes.Device(), *pair, table, batch=3, size=SIZE, truncate=truncate)
    done: list[int] = []
    on_step = None if recorded else lambda k, _: done.append(k)
    for _ in range(2):
        found = together.run(degraded, seed=5, images=(1, 2, 3), on_step=on_step)
    assert done == ([] if recorded else [0, 1, 2, 3] * 2)
    moved = movement(degraded, together.values["estimate"])
    chosen = starts(PRESET, moved)
    assert len({*chosen.tolist()}) == 3
    for i, start in enumerate(chosen):
        constant = PRESET.model_copy(update={"start": float(start), "adapt": None})
        alone = fakes.chain(fakes.Device(), *pair, sampler_table(tiny_bundle, constant), batch=1, size=SIZE)
        expected = alone.run(degraded[i : i + 1], seed=5, images=(i + 1,)).image
        assert np.allclose(found.image[i], expected[0], atol=1e-6)


def test_a_bad_image_takes_the_typical_start_and_harms_no_other(tiny_bundle: Bundle, fakes: Any) -> None:
    networks, degraded = toy(fakes), faces()
    options: dict[str, Any] = {"batch": 3, "size": SIZE, "truncate": truncation(PRESET, table_of(tiny_bundle))}
    table: StepTable = sampler_table(tiny_bundle, PRESET)
    chain = fakes.chain(fakes.Device(), networks["estimator"], networks["denoiser"], table, **options)
    good = chain.run(degraded, seed=5, images=(1, 2, 3)).image
    degraded[1] = np.nan
    found = chain.run(degraded, seed=5, images=(1, 2, 3)).image
    assert np.array_equal(found[[0, 2]], good[[0, 2]])
    assert np.isnan(found[1]).mean() > 0.9


def test_a_restorer_gives_an_image_the_same_alone_and_in_company(tiny_bundle: Bundle) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(3)]
    overrides = PRESET.model_dump()
    overrides["adapt"] = {"typical": 60.0, "power": 2.0, "least": 5.0, "most": 400.0}
    results = []
    for batch in (1, 3):
        with Restorer.open(
            tiny_bundle.folder, backend="onnxruntime-cpu", batch=batch, threads=1, **overrides
        ) as restorer:
            results.append(restorer.restore(images))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(*results, strict=True))
    with Restorer.open(
        tiny_bundle.folder, backend="onnxruntime-cpu", threads=1, **{**overrides, "adapt": None}
    ) as restorer:
        assert any(not np.array_equal(a, b) for a, b in zip(restorer.restore(images), results[0], strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": "ddim250", "start": 6, "steps": None}, "one of the spacings time, log-snr, quadratic"),
        ({"adapt": Adapt(typical=1, least=9, most=8)}, "least start 9 is above its most, 8"),
        ({"adapt": Adapt(typical=1, least=9, most=5000)}, "start 5000 is out of range"),
    ],
)
def test_limits_that_cannot_be_are_refused_at_the_start(
    tiny_bundle: Bundle, fakes: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidOption, match=message):
        Restorer(tiny_bundle, fakes.Device(), PRESET.model_copy(update=changes), networks=toy(fakes))
