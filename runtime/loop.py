"""The truncated loop: estimate, diffuse to an intermediate time, denoise from there.

Source: DifFace (arXiv 2212.06512), algorithm 1, with DDIM or any other solver that is a table (`bfr.runtime.solvers`).
The same code runs on every device; nothing but the network runs between two steps.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod

import numpy as np

from bfr.runtime.backends import Buffer, Device, Float32, Network, Noise, own_array
from bfr.runtime.solvers import StepTable
from bfr.runtime.truncation import Truncate, movement

OnStep = Callable[[int, Buffer], None]
"""Called with the number of steps done, from 0, and the buffer of the state. May raise to stop the loop."""


@dataclass(frozen=True)
class ChainResult:
    """One batch through the chain.

    state, start: (B, 3, S, S) float32, the last state and the estimate, as the device holds them, about [-1, 1].
    seconds: stage -> seconds of the whole batch; `network` is the part spent in the networks.
    """

    state: Float32
    start: Float32
    seconds: dict[str, float]

    @cached_property
    def image(self) -> Float32:
        """(B, 3, S, S) float32 in [0, 1], NaN where the loop gave NaN or Inf: whoever writes images looks for it."""
        return to_unit(self.state)

    @cached_property
    def estimate(self) -> Float32:
        """(B, 3, S, S) float32 in [0, 1], what the loop started from."""
        return to_unit(self.start)


class Buffers:
    """All large buffers of a chain, allocated once for the largest batch; smaller ones use their first images.

    The state alternates between two buffers, x0 goes round three (the new one and the two that the step reads), and
    noise between two: no call writes what it reads, and no call allocates.
    """

    def __init__(self, device: Device, batch: int, size: int, noise: Noise | None = None) -> None:
        """`noise` replaces the device's own. Raises DeviceOutOfMemory."""
        self.batch = batch
        shape = (batch, 3, size, size)
        with ExitStack() as owned:  # given back at once where there is not enough for all of it
            self.input = device.input(shape)
            owned.callback(self.input.close)
            self.noise = noise or device.noise(shape)
            owned.callback(self.noise.close)
            arrays = [own_array(owned, device, shape) for _ in range(6)]
            self.estimate, self.x, self.x0 = arrays[0], arrays[1:3], arrays[3:6]
            self._owned = owned.pop_all()

    @staticmethod
    def bytes(batch: int, size: int) -> int:
        """What they take on a device: those above, the input and where it arrives, and two of noise."""
        return 10 * 4 * prod((batch, 3, size, size))

    def close(self) -> None:
        """Give them back."""
        self._owned.close()


class Chain:
    """The bound calls of one batch size, recorded as one program where the device can.

    `stage` takes a batch, also while the device works on another one; `start` begins the work on it, and `finish` waits
    for the result. `run` is the three in a row.
    """

    def __init__(
        self,
        device: Device,
        estimator: Network,
        denoiser: Network,
        table: StepTable,
        *,
        batch: int,
        size: int,
        noise: Noise | None = None,
        conditions: Mapping[str, Buffer] | None = None,
        conditioner: Network | None = None,
        features: int = 0,
        truncate: Truncate | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        """`conditioner` makes `features` numbers of each timestep, ahead, which the denoiser takes in its place.

        `truncate` chooses a table for each image, of the length of `table`, once its estimate is there.
        `conditions` are inputs that every step reads beside its own; `buffers`, of this batch or a larger one, are
        shared with other chains, else the chain makes its own, with `noise` in the place of the device's.
        """
        self.device, self.table, self.batch = device, table, batch
        with ExitStack() as owned:
            self.buffers = buffers or Buffers(device, batch, size, noise)
            if buffers is None:
                owned.callback(self.buffers.close)
            self.clock = device.stopwatch()
            owned.callback(self.clock.close)
            self._constants = owned.enter_context(ExitStack())
            self._bind(estimator, denoiser, conditions or {}, conditioner, features)
            self._set_tables([table] * batch)
            self._truncate = truncate
            # A graph ends where the host has to decide.
            parts = [self._work] if truncate is None else [self._begin, self._denoise]
            self._programs = [device.record(part) for part in parts]
            for program in self._programs:
                owned.callback(program.close)
            self._owned = owned.pop_all()

    def _bind(
        self,
        estimator: Network,
        denoiser: Network,
        conditions: Mapping[str, Buffer],
        conditioner: Network | None,
        features: int,
    ) -> None:
        """Fix the buffers of every call."""
        self._estimate = self._view(self.buffers.estimate)
        self._x = [self._view(x) for x in self.buffers.x]
        self._x0 = [self._view(x0) for x0 in self.buffers.x0]
        self._noise = [self._view(noise) for noise in self.buffers.noise.buffers]
        degraded = self._view(self.buffers.input.buffer)
        self._levels = self._constant((self.batch, 2))
        self._rows = [self._constant((self.batch, len(row))) for row in self.table.rows]
        self._times = [self._constant((self.batch,)) for _ in self.table.timesteps]
        times, self._condition_calls = self._times, []
        if conditioner is not None:
            times = [self._constant((self.batch, features)) for _ in self._times]
            self._condition_calls = [
                conditioner.bind({"t": t}, {"conditioning": made}) for t, made in zip(self._times, times, strict=True)
            ]
        self._estimate_call = estimator.bind({"degraded": degraded}, {"estimate": self._estimate})
        self._step_calls = [
            denoiser.bind(
                {
                    "x": self._x[k % 2],
                    "h1": self._x0[(k - 1) % 3],
                    "h2": self._x0[(k - 2) % 3],
                    "t": times[k],
                    "row": self._rows[k],
                    "noise": self._noise[(k + 1) % 2],
                    **conditions,
                },
                {"x_next": self._x[(k + 1) % 2], "x0": self._x0[k % 3]},
            )
            for k in range(len(self.table))
        ]

    def run(
        self, degraded: Float32, *, seed: int, images: tuple[int, ...], on_step: OnStep | None = None
    ) -> ChainResult:
        """Restore one batch.

        degraded: (B, 3, S, S) float32 in [0, 1]. seed, images: the keys of the noise, one image key for each image.
        """
        self.stage(degraded)
        self.start(seed=seed, images=images, on_step=on_step)
        return self.finish()

    def stage(self, degraded: Float32) -> None:
        """Take the next batch; the device may still work on the previous one."""
        self._degraded = degraded
        self.buffers.input.stage(degraded)

    def start(self, *, seed: int, images: tuple[int, ...], on_step: OnStep | None = None) -> None:
        """Begin the work on the batch that was staged. The previous one must be finished.

        on_step: is called between the steps, which are then not recorded as one program. With `truncate`, this waits
        for the estimate.
        """
        self.clock.begin()
        self.buffers.noise.start(seed, images, last=len(self.table) - 1)  # the last step adds no noise
        self.buffers.input.commit()
        self.clock.mark("upload")
        if on_step is None:
            parts: list[Callable[[], None]] = list(self._programs)
        else:
            parts = [self._begin, partial(self._denoise, on_step)]
        parts[0]()
        if self._truncate is not None:
            moved = movement(self._degraded, self.device.read(self._estimate))
            self._set_tables(self._truncate(moved))
        for part in parts[1:]:
            part()

    def finish(self) -> ChainResult:
        """Wait for the batch and fetch its result."""
        self.clock.skip()
        state, start = self.device.read(self._x[len(self.table) % 2]), self.device.read(self._estimate)
        self.clock.mark("download")
        return ChainResult(state, start, self.clock.seconds())

    def close(self) -> None:
        """Give back what the chain made."""
        self._owned.close()

    def _work(self) -> None:
        """What the device does for a batch, without a word to the host."""
        self._begin()
        self._denoise()

    def _begin(self) -> None:
        for history in self._x0[1:]:
            self.device.zero(history)  # 0 * NaN is NaN: a bad image must not outlive its batch
        self.clock.call(self._estimate_call)
        self.clock.mark("estimate")

    def _denoise(self, on_step: OnStep | None = None) -> None:
        noise, clock = self.buffers.noise, self.clock
        noise.ready(0)
        self.device.diffuse(self._estimate, self._noise[0], self._x[0], self._levels)
        clock.mark("diffuse")
        if on_step:
            on_step(0, self._x[0])
        for k, call in enumerate(self._step_calls):
            if k + 1 < len(self.table):
                noise.ready(k + 1)
            clock.call(call)
            if on_step:
                on_step(k + 1, self._x[(k + 1) % 2])
        clock.mark("denoise")

    def _set_tables(self, tables: Sequence[StepTable]) -> None:
        """Write what the steps read of each image's table."""
        write = self.device.write
        write(self._levels, np.array([(table.signal, table.noise) for table in tables], np.float32))
        for k, (row, time) in enumerate(zip(self._rows, self._times, strict=True)):
            write(row, np.stack([table.rows[k] for table in tables]))
            write(time, np.array([table.timesteps[k] for table in tables], np.float32))
        for call in self._condition_calls:
            call()

    def _view(self, buffer: Buffer) -> Buffer:
        return self.device.view(buffer, self.batch)

    def _constant(self, shape: tuple[int, ...]) -> Buffer:
        """A small buffer that the work reads and never writes."""
        return own_array(self._constants, self.device, shape)


def to_unit(x: Float32) -> Float32:
    """[-1, 1] -> [0, 1], clipped. Inf becomes NaN, which clipping does not hide."""
    unit = x * np.float32(0.5)
    unit += np.float32(0.5)
    unit[np.isinf(unit)] = np.nan
    return np.clip(unit, 0.0, 1.0, out=unit)
