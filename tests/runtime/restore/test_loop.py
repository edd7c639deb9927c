from typing import Any

import numpy as np
import pytest
from plans import difface_plan

from bfr.runtime.diffusion.noise import fill_normal
from bfr.runtime.diffusion.schedule import linear_schedule
from bfr.runtime.diffusion.solvers import StepTable, step_table
from bfr.runtime.restore.buffers import Buffers
from bfr.runtime.restore.chain import Chain, to_unit

SIZE = 8
FACE = np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)


def table(start: int = 7) -> StepTable:
    return step_table(linear_schedule(), solver="ddim", spacing="ddim50", start=start, eta=0.5)


def toy_eps(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return 0.3 * np.tanh(x) + 0.001 * t[:, None, None, None]


def chain(fakes: Any, step: Any = None, batch: int = 1, steps: StepTable | None = None) -> Chain:
    device = fakes.Device()
    network = step or fakes.step(toy_eps)
    return fakes.chain(device, fakes.identity(), network, steps or table(), batch=batch, size=SIZE)  # type: ignore[no-any-return]


def draw(step: int, image: int = 3) -> np.ndarray:
    out = np.empty((3, SIZE, SIZE), np.float32)
    fill_normal(out, seed=11, image=image, step=step)
    return out


def test_the_loop_is_the_published_algorithm(fakes: Any) -> None:
    """Against the textbook loop in float64, written out without tables and buffers."""
    schedule = linear_schedule()
    kept = np.arange(0, 1000, 20)
    ab = schedule.alpha_bar[kept]
    x = np.sqrt(ab[7]) * (2 * FACE - 1) + np.sqrt(1 - ab[7]) * draw(0)
    for k, i in enumerate(range(6, -1, -1)):
        prev = ab[i - 1] if i else 1.0
        eps = toy_eps(x, np.array([kept[i]]))
        x0 = np.clip((x - np.sqrt(1 - ab[i]) * eps) / np.sqrt(ab[i]), -1, 1)
        sigma = 0.5 * np.sqrt((1 - prev) / (1 - ab[i])) * np.sqrt(1 - ab[i] / prev)
        x = np.sqrt(prev) * x0 + np.sqrt(1 - prev - sigma**2) * eps + (sigma * draw(k + 1) if i else 0)
    expected = np.clip(x / 2 + 0.5, 0, 1)
    one = chain(fakes)
    assert np.abs(one.run(FACE, seed=11, images=(3,)).image - expected).max() < 1e-5
    assert np.allclose(to_unit(one.values["estimate"]), FACE, atol=1e-6)


def test_every_step_reads_the_two_previous_x0(fakes: Any) -> None:
    seen = []

    def step(x: Any, h1: Any, h2: Any, t: Any, row: Any, noise: Any) -> tuple[np.ndarray, np.ndarray]:
        seen.append((float(h1[0, 0, 0, 0]), float(h2[0, 0, 0, 0])))
        return x, np.full_like(x, len(seen))

    one = chain(fakes, fakes.Network(step))
    for _ in range(2):  # the second run must not see the first one's history
        seen.clear()
        one.run(FACE, seed=1, images=(0,))
        assert seen == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5)]


def test_no_call_writes_what_it_reads(fakes: Any) -> None:
    network = fakes.step(toy_eps)
    chain(fakes, network)
    assert len(network.bound) == 7
    for inputs, outputs in network.bound:
        for output in outputs.values():
            assert not any(np.shares_memory(output, value) for value in inputs.values())
    for (_, outputs), (inputs, _) in zip(network.bound, network.bound[1:], strict=False):
        assert outputs["x_next"] is inputs["x"]
        assert outputs["x0"] is inputs["h1"]


def test_a_bad_image_harms_neither_its_neighbours_nor_the_next_batch(fakes: Any) -> None:
    two = chain(fakes, batch=2)
    alone = chain(fakes).run(FACE, seed=11, images=(3,)).image
    bad = np.concatenate([FACE, np.full_like(FACE, np.nan)])
    result = two.run(bad, seed=11, images=(3, 4))
    assert np.array_equal(result.image[:1], alone)
    assert np.isnan(result.image[1]).all()
    again = two.run(np.concatenate([FACE, FACE]), seed=11, images=(3, 3)).image
    assert np.array_equal(again, np.concatenate([alone, alone]))


def test_a_loop_that_was_stopped_half_way_can_run_again(fakes: Any) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, _state: Any) -> None:
        if done == 3:
            raise Stop

    one = chain(fakes)
    with pytest.raises(Stop):
        one.run(FACE, seed=5, images=(1,), on_step=stop)
    assert np.array_equal(one.run(FACE, seed=11, images=(3,)).image, chain(fakes).run(FACE, seed=11, images=(3,)).image)


def test_progress_counts_from_the_diffused_start_to_the_last_step(fakes: Any) -> None:
    seen: list[int] = []
    chain(fakes).run(FACE, seed=1, images=(0,), on_step=lambda done, _state: seen.append(done))
    assert seen == list(range(8))


def test_one_step_loop(fakes: Any) -> None:
    result = chain(fakes, steps=table(1)).run(FACE, seed=11, images=(3,))
    assert np.isfinite(result.image).all()


def test_seconds_add_up(fakes: Any) -> None:
    seconds = chain(fakes).run(FACE, seed=1, images=(0,)).seconds
    assert set(seconds) == {"network", "upload", "estimate", "diffuse", "denoise", "download"}
    assert 0 < seconds["network"] <= seconds["estimate"] + seconds["denoise"]


def test_to_unit_clips_and_hides_neither_nan_nor_inf() -> None:
    found = to_unit(np.array([-2, -1, 0, 1, 2, np.nan, np.inf, -np.inf], np.float32))
    assert np.array_equal(found, np.array([0, 0, 0.5, 1, 1, *[np.nan] * 3], np.float32), equal_nan=True)


def test_what_depends_on_time_alone_is_computed_once(fakes: Any) -> None:
    asked: list[float] = []

    def condition(t: np.ndarray) -> tuple[np.ndarray]:
        asked.append(float(t[0]))
        return (np.stack([t, 0.001 * t], axis=1),)

    def eps(x: np.ndarray, conditioning: np.ndarray) -> np.ndarray:
        return 0.3 * np.tanh(x) + conditioning[:, 1, None, None, None]

    steps = table()
    one = fakes.chain(
        fakes.Device(),
        fakes.identity(),
        fakes.step(eps),
        steps,
        batch=1,
        size=SIZE,
        conditioner=fakes.Network(condition),
        features=2,
    )
    assert asked == steps.timesteps.tolist()
    for _ in range(2):
        found = one.run(FACE, seed=11, images=(3,)).image
    assert np.allclose(found, chain(fakes).run(FACE, seed=11, images=(3,)).image, atol=1e-6)
    assert len(asked) == len(steps)


def test_a_batch_may_be_launched_before_the_previous_one_is_fetched(fakes: Any) -> None:
    other = FACE[:, :, ::-1].copy()
    one = chain(fakes)
    expected = [one.run(face, seed=11, images=(3,)).image for face in (FACE, other)]
    one.upload(FACE)
    first = one.launch(seed=11, images=(3,))
    one.upload(other)
    second = one.launch(seed=11, images=(3,))
    assert np.array_equal(first().image, expected[0])
    assert np.array_equal(second().image, expected[1])


def test_a_smaller_batch_uses_the_first_images_of_larger_buffers(fakes: Any) -> None:
    device = fakes.Device()
    buffers = Buffers(device, difface_plan(table(), SIZE), 3)
    small = fakes.chain(device, fakes.identity(), fakes.step(toy_eps), table(), batch=1, size=SIZE, buffers=buffers)
    large = fakes.chain(device, fakes.identity(), fakes.step(toy_eps), table(), batch=3, size=SIZE, buffers=buffers)
    alone = chain(fakes).run(FACE, seed=11, images=(3,)).image
    three = large.run(np.concatenate([FACE] * 3), seed=11, images=(3, 4, 3)).image
    assert np.array_equal(small.run(FACE, seed=11, images=(3,)).image, alone)
    assert np.array_equal(three[[0, 2]], np.concatenate([alone, alone]))
    assert not np.array_equal(three[1:2], alone)
