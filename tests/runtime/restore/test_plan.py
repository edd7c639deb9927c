"""Chains of several stages, against the same arithmetic written out in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bfr.runtime.diffusion.noise import fill_normal
from bfr.runtime.diffusion.schedule import linear_schedule
from bfr.runtime.diffusion.solvers import StepTable, step_table
from bfr.runtime.restore.buffers import Buffers
from bfr.runtime.restore.chain import Chain
from bfr.runtime.restore.plan import Call, Guide, Loop, Plan

SIZE, SMALL, SEED = 8, 4, 11
SCHEDULE = linear_schedule()
TIMES = np.arange(1000)
Array = np.ndarray[Any, Any]


def faces(count: int) -> Array:
    return np.random.default_rng(2).random((count, 3, SIZE, SIZE), dtype=np.float32)


def grid(start: float, steps: int, eta: float = 0.5) -> StepTable:
    return step_table(SCHEDULE, solver="ddim", spacing="time", start=start, steps=steps, eta=eta)


def alpha_bar(t: float) -> float:
    """Between two timesteps, log-SNR is linear in time; written out apart from the project's own."""
    snr = np.log(SCHEDULE.alpha_bar / (1 - SCHEDULE.alpha_bar))
    low = int(t)
    high = min(low + 1, 999)
    between = snr[low] + (t - low) * (snr[high] - snr[low])
    return float(1 / (1 + np.exp(-between)))


def draw(image: int, step: int, shape: tuple[int, ...]) -> Array:
    out = np.empty(shape, np.float32)
    fill_normal(out, seed=SEED, image=image, step=step)
    return out.astype(np.float64)


def ddim(
    x: Array,
    t: Array,
    eps: Callable[[Array, float], Array],
    noise: Callable[[int], Array],
    *,
    eta: float,
    guide: Callable[[Array, int], Array] | None = None,
) -> Array:
    """DDIM over the timesteps t to the clean image; guide(x0, k) moves x0."""
    for k, now in enumerate(t):
        ab, prev = alpha_bar(now), alpha_bar(t[k + 1]) if k + 1 < len(t) else 1.0
        e = eps(x, now)
        x0 = np.clip((x - np.sqrt(1 - ab) * e) / np.sqrt(ab), -1, 1)
        if guide is not None:
            x0 = guide(x0, k)
        sigma = eta * np.sqrt((1 - prev) / (1 - ab)) * np.sqrt(1 - ab / prev)
        x = np.sqrt(prev) * x0 + np.sqrt(max(1 - prev - sigma**2, 0.0)) * e
        if k + 1 < len(t):
            x = x + sigma * noise(k)
    return x


def cascade() -> Plan:
    """DiffBFR's shape: a small conditional loop, a large one, and one more at a fractional time."""
    image, small = (3, SIZE, SIZE), (3, SMALL, SMALL)
    return Plan(
        inputs={"degraded": image},
        values={"degraded": image, "lq": small, "low": small, "enlarged": image, "estimate": image, "state": image},
        stages=(
            Call("shrink", "shrink", {"image": "degraded"}, {"resized": "lq"}),
            Loop("first", "low", grid(400, 3), small, "lq", "low", "diffuse-first", {"condition": "lq"}),
            Call("enlarge", "enlarge", {"image": "low"}, {"resized": "enlarged"}),
            Loop(
                "second",
                "high",
                grid(300, 4),
                image,
                "enlarged",
                "estimate",
                "diffuse-second",
                {"condition": "degraded"},
            ),
            Loop("third", "texture", grid(40.5, 2), image, "estimate", "state", "diffuse-third"),
        ),
        result="state",
    )


def shrunk(x: Array) -> Array:
    return x.reshape(*x.shape[:2], SMALL, 2, SMALL, 2).mean((3, 5)) * 2 - 1


def enlarged(x: Array) -> Array:
    return x.repeat(2, axis=2).repeat(2, axis=3)


def conditional(x: Array, t: Any, condition: Array) -> Array:
    return 0.3 * np.tanh(x - condition) + 0.0005 * np.asarray(t).reshape(-1, 1, 1, 1)


def texture(x: Array, t: Any) -> Array:
    return 0.4 * np.sin(x) + 0.0002 * np.asarray(t).reshape(-1, 1, 1, 1)


def cascade_networks(fakes: Any) -> dict[str, Any]:
    return {
        "shrink": fakes.Network(lambda image: (shrunk(image),)),
        "enlarge": fakes.Network(lambda image: (enlarged(image),)),
        "low": fakes.step(conditional),
        "high": fakes.step(conditional),
        "texture": fakes.step(texture),
    }


def expected_cascade(face: Array, image: int) -> tuple[Array, Array]:
    """The estimate and the result of one face, in float64."""
    lq, small, large = shrunk(face), (3, SMALL, SMALL), (3, SIZE, SIZE)
    # Three draws for three steps: one to diffuse, one between each two. The large loops go on counting.
    starts = {"first": (400.0, 3, 0), "second": (300.0, 4, 3), "third": (40.5, 2, 7)}

    def loop(name: str, source: Array, shape: tuple[int, ...], eps: Callable[[Array, float], Array]) -> Array:
        start, steps, first = starts[name]
        ab = alpha_bar(start)
        x = np.sqrt(ab) * source + np.sqrt(1 - ab) * draw(image, first, shape)
        times = start * (1 - np.arange(steps) / steps)
        return ddim(x, times, eps, lambda k: draw(image, first + 1 + k, shape), eta=0.5)

    low = loop("first", lq, small, lambda x, t: conditional(x, t, lq))
    estimate = loop("second", enlarged(low), large, lambda x, t: conditional(x, t, face))
    return estimate, loop("third", estimate, large, texture)


@pytest.mark.parametrize("count", [1, 3])
def test_a_cascade_with_a_fractional_time_is_its_arithmetic(fakes: Any, count: int) -> None:
    chain = Chain(fakes.Device(), cascade_networks(fakes), cascade(), batch=count)
    degraded, images = faces(3)[:count], tuple(range(5, 5 + count))
    for _ in range(2):  # the second run must not see what the first left
        found = chain.run(degraded, seed=SEED, images=images)
    for i, image in enumerate(images):
        estimate, result = expected_cascade(degraded[i : i + 1].astype(np.float64), image)
        assert np.abs(chain.values["estimate"][i] - estimate[0]).max() < 1e-5
        assert np.abs(found.state[i] - result[0]).max() < 1e-5
    stages = {"shrink", "diffuse-first", "first", "enlarge", "diffuse-second", "second", "diffuse-third", "third"}
    assert stages | {"network", "upload", "download"} == set(found.seconds)


def test_loops_of_one_chain_share_no_noise(fakes: Any) -> None:
    buffers = Buffers(fakes.Device(), cascade(), 1)
    (small, large) = (buffers.noise[shape] for shape in ((3, SMALL, SMALL), (3, SIZE, SIZE)))
    assert (small.first, large.first) == (0, 3)
    assert list(buffers.draws.values()) == [3, 6]
    buffers.close()


def test_steps_are_counted_through_all_loops(fakes: Any) -> None:
    seen: list[int] = []
    chain = Chain(fakes.Device(), cascade_networks(fakes), cascade(), batch=1)
    chain.run(faces(1), seed=1, images=(0,), on_step=lambda done, _: seen.append(done))
    assert seen == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9]
    assert cascade().steps == 9
    assert cascade().calls() == {"shrink": 1, "low": 3, "enlarge": 1, "high": 4, "texture": 2}


def guided(strength: float, steps: frozenset[int], target: str = "target") -> Plan:
    image = (3, SIZE, SIZE)
    guide = Guide("guide", {"target": target}, strength, steps)
    loop = Loop("denoise", "denoiser", grid(500, 5), image, "degraded", "state", guide=guide)
    inputs = {"degraded": image, "target": image}
    return Plan(inputs, {**inputs, "state": image}, (loop,), "state")


def guide_network(fakes: Any) -> Any:
    """Moves x0 against the gradient of |x0 - target|^2 / 2, and the state with it."""

    def guide(x_next: Any, x0: Any, row: Any, strength: Any, target: Any) -> tuple[Array, Array]:
        x0_guided = np.clip(x0 - strength[:, None, None, None] * (x0 - target), -1, 1)
        return x_next + row[:, 2, None, None, None] * (x0_guided - x0), x0_guided

    return fakes.Network(guide)


@pytest.mark.parametrize("steps", [frozenset({0, 1, 2, 3, 4}), frozenset({1, 2}), frozenset({4})])
def test_guidance_between_steps_is_guidance_of_x0(fakes: Any, steps: frozenset[int]) -> None:
    """The state that moves with x0 is the one that the guided x0 would have given."""
    degraded, target = faces(2), faces(2)[:, :, ::-1].copy()
    networks = {"denoiser": fakes.step(texture), "guide": guide_network(fakes)}
    chain = Chain(fakes.Device(), networks, guided(0.3, steps), batch=2)
    found = chain.run(degraded, seed=SEED, images=(5, 6), inputs={"target": target})
    for i in range(2):
        y = target[i : i + 1].astype(np.float64)
        ab = alpha_bar(500)
        x = np.sqrt(ab) * degraded[i : i + 1] + np.sqrt(1 - ab) * draw(5 + i, 0, (3, SIZE, SIZE))
        expected = ddim(
            x,
            500 * (1 - np.arange(5) / 5),
            texture,
            lambda k, i=i: draw(5 + i, 1 + k, (3, SIZE, SIZE)),
            eta=0.5,
            guide=lambda x0, k, y=y: np.clip(x0 - 0.3 * (x0 - y), -1, 1) if k in steps else x0,
        )
        assert np.abs(found.state[i] - expected[0]).max() < 1e-5


def test_guided_x0_is_what_later_steps_read(fakes: Any) -> None:
    seen: list[Array] = []

    def step(x: Any, h1: Any, h2: Any, t: Any, row: Any, noise: Any) -> tuple[Array, Array]:
        seen.append(h1.copy())
        return x, np.full_like(x, 0.5)

    guide = fakes.Network(lambda x_next, x0, **_: (x_next, x0 + 0.25))
    networks = {"denoiser": fakes.Network(step), "guide": guide}
    chain = Chain(fakes.Device(), networks, guided(1.0, frozenset({1})), batch=1)
    chain.run(faces(1), seed=1, images=(0,))
    assert [float(h[0, 0, 0, 0]) for h in seen] == [0.0, 0.5, 0.75, 0.5, 0.5]


def test_no_call_of_a_guided_loop_writes_what_it_reads(fakes: Any) -> None:
    networks = {"denoiser": fakes.step(texture), "guide": guide_network(fakes)}
    Chain(fakes.Device(), networks, guided(0.3, frozenset(range(5))), batch=2)
    calls = [*networks["denoiser"].bound, *networks["guide"].bound]
    assert len(calls) == 10
    for inputs, outputs in calls:
        for output in outputs.values():
            assert not any(np.shares_memory(output, value) for value in inputs.values())


def test_a_loop_without_noise_starts_from_its_source(fakes: Any) -> None:
    """OSDFace's shape: one step at timestep 399, nothing diffused, no clipping, a context."""
    latent, image = (4, SMALL, SMALL), (3, SIZE, SIZE)
    table = grid(399, 1, eta=0.0)
    loop = Loop("denoise", "denoiser", table, latent, "latent", "state", None, {"context": "context"})
    plan = Plan(
        {"degraded": image},
        {"degraded": image, "latent": latent, "context": (2, 5), "state": latent, "restored": image},
        (
            Call("encode", "encoder", {"degraded": "degraded"}, {"latent": "latent", "context": "context"}),
            loop,
            Call("decode", "decoder", {"latent_state": "state"}, {"restored": "restored"}),
        ),
        "restored",
    )

    def encode(degraded: Array) -> tuple[Array, Array]:
        z = 9.0 * np.concatenate([shrunk(degraded), shrunk(degraded)[:, :1]], axis=1)
        return z, degraded.reshape(len(degraded), -1)[:, :10].reshape(-1, 2, 5)

    def eps(x: Array, t: Any, context: Array) -> Array:
        assert np.all(np.asarray(t) == 399)
        return np.cos(x) + context.mean((1, 2))[:, None, None, None]

    networks = {
        "encoder": fakes.Network(encode),
        "denoiser": fakes.step(eps, clipped=False),
        "decoder": fakes.Network(lambda latent_state: (enlarged(latent_state[:, :3]) / 20,)),
    }
    chain = Chain(fakes.Device(), networks, plan, batch=3)
    degraded = faces(3)
    found = chain.run(degraded, seed=SEED, images=(1, 2, 3))
    z, context = encode(degraded.astype(np.float64))
    ab = SCHEDULE.alpha_bar[399]
    expected = enlarged(((z - np.sqrt(1 - ab) * eps(z, np.full(3, 399.0), context)) / np.sqrt(ab))[:, :3]) / 20
    assert np.abs(found.state - expected).max() < 1e-5
    other = chain.run(degraded, seed=SEED + 1, images=(9, 9, 9))
    assert np.array_equal(other.state, found.state)  # no noise anywhere


def test_bytes_are_those_that_are_allocated(fakes: Any) -> None:
    class Counting(fakes.Device):  # type: ignore[misc,name-defined]
        total = 0

        def array(self, shape: tuple[int, ...]) -> Array:
            Counting.total += 4 * int(np.prod(shape))
            return super().array(shape)  # type: ignore[no-any-return]

        def noise(self, owned: Any, shape: tuple[int, ...], first: int = 0) -> Any:
            Counting.total += 2 * 4 * int(np.prod(shape))
            return super().noise(owned, shape, first)

    for plan in (cascade(), guided(0.3, frozenset({1}))):
        Counting.total = 0
        Buffers(Counting(), plan, 3).close()
        # A GPU's alone: where inputs arrive, and the result leaves.
        moving = 4 * 3 * sum(int(np.prod(shape)) for shape in (*plan.inputs.values(), plan.values[plan.result]))
        assert Buffers.bytes(plan, 3) == Counting.total + moving
