"""The truncated loop: diffuse to an intermediate time, denoise from there.

Source: DifFace (arXiv 2212.06512), algorithm 1, with DDIM or any other solver that is a table
(`bfr.runtime.diffusion.solvers`). The same code runs on every device; nothing but networks runs between two steps.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from bfr.runtime.backends.device import BoundCall, Buffer, Network, Stopwatch, own_array
from bfr.runtime.diffusion.solvers import StepTable
from bfr.runtime.restore.buffers import BatchView
from bfr.runtime.restore.plan import Loop, Shape

OnStep = Callable[[int, Buffer], None]
"""Called with the number of steps done, from 0, and the buffer of the state. May raise to stop the loop.

For a system without a loop it is called once, with 0, at the end.
"""


class BoundLoop:
    """A diffuse and a denoise stage, every call of every step bound to its buffers."""

    def __init__(
        self,
        where: BatchView,
        clock: Stopwatch,
        networks: Mapping[str, Network],
        spec: Loop,
        constants: ExitStack,
        taken: Mapping[Shape, int],
    ) -> None:
        """Bind the calls.

        Args:
            where: The chain's buffers.
            clock: Times the calls.
            networks: The loaded networks, by name.
            spec: The loop's part of the plan.
            constants: Closes the small buffers that are made here.
            taken: Number of draws that the loops before this one take of each stream of noise, by shape.
        """
        self.spec, self.device, self.clock = spec, where.device, clock
        buffers, self.noise = where.buffers, where.buffers.noise[spec.noise]

        def view(arrays: Sequence[Buffer]) -> list[Buffer]:
            return [where.view(array) for array in arrays]

        def constant(*shape: int) -> Buffer:
            """Allocate a small buffer that the steps read and never write."""
            return own_array(constants, where.device, (where.batch, *shape))

        def full(value: float) -> Buffer:
            buffer = constant()
            where.device.write(buffer, np.full(where.batch, value, np.float32))
            return buffer

        self.source = where.values[spec.source]
        self.x, self.x0, noise = view(buffers.x[spec.name]), view(buffers.x0[spec.shape]), view(self.noise.buffers)
        self._step_draw = taken[spec.noise]  # the draw that the first step adds
        self._diffuse_draw = None
        if spec.diffuse is not None:
            self._diffuse_draw, self._start = taken[spec.shape], where.buffers.noise[spec.shape]
            self._diffuse_noise = where.view(self._start.buffers[self._diffuse_draw % 2])
            self._step_draw += spec.noise == spec.shape
        self._levels, self._times = constant(2), [constant() for _ in spec.table.timesteps]
        self._rows = [constant(len(row)) for row in spec.table.rows]
        times, self._condition_calls = self._times, list[BoundCall]()
        if spec.conditioner is not None:
            times = [constant(spec.features) for _ in self._times]
            conditioner = networks[spec.conditioner]
            self._condition_calls = [
                conditioner.bind({"t": t}, {"conditioning": made}) for t, made in zip(self._times, times, strict=True)
            ]
        fixed = {name: where.values[value] for name, value in spec.conditions.items()}
        if spec.strength is not None:
            fixed["strength"] = full(spec.strength)
        denoiser, guide = networks[spec.network], spec.guide
        reads: dict[str, Buffer] = {}
        if guide:
            reads = {name: where.values[value] for name, value in guide.inputs.items()}
            reads["strength"] = full(guide.strength)
        self.steps: list[list[BoundCall]] = []
        for k, (row, time) in enumerate(zip(self._rows, times, strict=True)):
            # Without a diffuse stage, the first step reads the source's own buffer.
            x = self.source if k == 0 and spec.diffuse is None else self.x[k % 2]
            inputs = {"x": x, "h1": self.x0[(k - 1) % 3], "h2": self.x0[(k - 2) % 3]}
            inputs |= {"t": time, "row": row, "noise": noise[(self._step_draw + k) % 2], **fixed}
            made = [self.x[(k + 1) % 2], self.x0[k % 3]]
            calls = []
            if guide and k in guide.steps:
                raw = view(buffers.unguided[spec.shape])
                calls.append(denoiser.bind(inputs, {"x_next": raw[0], "x0": raw[1]}))
                results = {"x_next_guided": made[0], "x0_guided": made[1]}
                inputs = {"x_next": raw[0], "x0": raw[1], "row": row, **reads}
                calls.append(networks[guide.network].bind(inputs, results))
            else:
                calls.append(denoiser.bind(inputs, {"x_next": made[0], "x0": made[1]}))
            self.steps.append(calls)
        self.set_tables([spec.table] * where.batch)

    def run(self, on_step: OnStep | None, done: int) -> int:
        """Diffuse, then run the steps; returns `done` and the number of these steps."""
        clock, last = self.clock, len(self.steps) - 1
        for history in self.x0[1:]:
            self.device.zero(history)  # 0 * NaN is NaN: NaN of the previous batch must not reach this one
        if self._diffuse_draw is not None:
            self._start.ready(self._diffuse_draw)
            self.device.diffuse(self.source, self._diffuse_noise, self.x[0], self._levels)
            clock.mark(str(self.spec.diffuse))
        if on_step:
            on_step(done, self.source if self._diffuse_draw is None else self.x[0])
        for k, calls in enumerate(self.steps):
            if k < last:
                self.noise.ready(self._step_draw + k)
            for call in calls:
                clock.call(call)
            if on_step:
                on_step(done + k + 1, self.x[(k + 1) % 2])
        clock.mark(self.spec.name)
        return done + len(self.steps)

    def set_tables(self, tables: Sequence[StepTable]) -> None:
        """Write what the steps read of each image's table."""
        write = self.device.write
        write(self._levels, np.array([(table.signal, table.noise) for table in tables], np.float32))
        for k, (row, time) in enumerate(zip(self._rows, self._times, strict=True)):
            write(row, np.stack([table.rows[k] for table in tables]))
            write(time, np.array([table.timesteps[k] for table in tables], np.float32))
        for call in self._condition_calls:
            call()
