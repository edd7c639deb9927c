"""Streams of noise where a step reads more of it than its state has channels."""

from dataclasses import replace

from bfr.runtime.diffusion.schedule import linear_schedule
from bfr.runtime.diffusion.solvers import step_table
from bfr.runtime.restore.buffers import Buffers, draws_of
from bfr.runtime.restore.plan import Loop, Plan

IMAGE, WIDE = (3, 8, 8), (6, 8, 8)
TABLE = step_table(linear_schedule(), solver="ddim", spacing="ddim50", start=5)
LOOP = Loop("denoise", "denoiser", TABLE, IMAGE, source="degraded", result="state")


def test_a_loop_of_wide_noise_draws_it_in_its_steps_and_its_start_as_the_state() -> None:
    wide = replace(LOOP, wide=WIDE)
    assert LOOP.draws() == {IMAGE: 5}
    assert wide.draws() == {IMAGE: 1, WIDE: 4}
    assert replace(wide, diffuse=None).draws() == {WIDE: 4}
    assert draws_of([LOOP, wide, replace(LOOP, diffuse=None)]) == {IMAGE: 5 + 1 + 4, WIDE: 4}


def test_wide_noise_is_counted_in_the_memory() -> None:
    plan = Plan({"degraded": IMAGE}, {"degraded": IMAGE, "state": IMAGE}, (LOOP,), "state")
    own = Buffers.bytes(plan, 2)
    image = 2 * 4 * 3 * 8 * 8
    # degraded, its upload, the result's download; two states, three x0, two of noise
    assert own == (1 + 1 + 1 + 2 + 3 + 2) * image
    wide = Plan({"degraded": IMAGE}, {"degraded": IMAGE, "state": IMAGE}, (replace(LOOP, wide=WIDE),), "state")
    assert Buffers.bytes(wide, 2) == own + 2 * 2 * image
