"""A chain: a system's networks and truncated loops, one after the other over the same buffers, for one batch size."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from bfr.runtime.backends.device import Device, Float32, Network, Stopwatch
from bfr.runtime.restore.adapt import movement
from bfr.runtime.restore.buffers import BatchView, Buffers
from bfr.runtime.restore.loop import BoundLoop, OnStep
from bfr.runtime.restore.plan import DEGRADED, ESTIMATE, Call, Plan


@dataclass(frozen=True)
class ChainResult:
    """One batch through the chain.

    Attributes:
        state: The result as the device makes it, (B, 3, S, S) float32, about [-1, 1].
        seconds: Stage -> seconds of the whole batch; `network` is the part spent in the networks.
    """

    state: Float32
    seconds: dict[str, float]

    def kept(self) -> "ChainResult":
        """Return a copy that no later batch overwrites."""
        return ChainResult(self.state.copy(), self.seconds)

    @cached_property
    def image(self) -> Float32:
        """(B, 3, S, S) float32 in [0, 1], NaN where the loop gave NaN or Inf."""
        return to_unit(self.state)


class Chain:
    """The bound calls of one batch size, recorded as one program where the device can.

    `upload` takes a batch and `launch` enqueues the work on it, also while the device runs the previous batch, so the
    device never waits for the host between two batches. At most two are in flight. `launch` returns a function that
    waits for the result. `run` does all three.
    """

    def __init__(
        self,
        device: Device,
        networks: Mapping[str, Network],
        plan: Plan,
        *,
        batch: int,
        buffers: Buffers | None = None,
    ) -> None:
        """Bind every call.

        Args:
            device: The device of the networks.
            networks: The loaded networks, by name.
            plan: The calls.
            batch: The batch size.
            buffers: Buffers of this plan and this batch or a larger one, which chains share; None makes them.

        Raises:
            DeviceOutOfMemory: The buffers do not fit.
        """
        self.device, self.plan, self.batch = device, plan, batch
        with ExitStack() as owned:
            self.buffers = buffers or Buffers(device, plan, batch)
            if buffers is None:
                owned.callback(self.buffers.close)
            self.clock = device.stopwatch(owned)
            constants = owned.enter_context(ExitStack())
            where = BatchView(device, self.buffers, batch)
            self.values = where.values
            self._stages: list[BoundNetwork | BoundLoop] = []
            taken = dict.fromkeys(self.buffers.noise, 0)
            for stage in plan.stages:
                if isinstance(stage, Call):
                    self._stages.append(BoundNetwork(where, self.clock, networks, stage))
                else:
                    self._stages.append(BoundLoop(where, self.clock, networks, stage, constants, taken))
                    for shape, count in stage.draws().items():
                        taken[shape] += count
            # A recorded part ends before the host chooses the tables.
            split = next(i for i, s in enumerate(self._stages) if isinstance(s, BoundLoop)) if plan.truncate else 0
            parts = [p for p in (self._stages[:split], self._stages[split:]) if p]
            self._parts = [partial(self._work, part) for part in parts]
            self._programs = [device.record(owned, part) for part in self._parts]
            self._owned = owned.pop_all()

    def run(
        self,
        degraded: Float32,
        *,
        seed: int,
        images: tuple[int, ...],
        on_step: OnStep | None = None,
        inputs: Mapping[str, Float32] | None = None,
    ) -> ChainResult:
        """Restore one batch.

        Args:
            degraded: (B, 3, S, S) float32 in [0, 1].
            seed: Seed of the noise.
            images: Keys of the noise, one for each image.
            on_step: See `launch`.
            inputs: The plan's other inputs, by name.

        Returns:
            The result, which later batches do not overwrite.
        """
        self.upload(degraded, inputs)
        return self.launch(seed=seed, images=images, on_step=on_step)().kept()

    def upload(self, degraded: Float32, inputs: Mapping[str, Float32] | None = None) -> None:
        """Take the next batch; the device may still work on the previous one. An input that is not given is all 0."""
        self._degraded = degraded
        given = {DEGRADED: degraded, **(inputs or {})}
        for name, shape in self.plan.inputs.items():
            values = given.get(name)
            self.buffers.inputs[name].upload(np.zeros((self.batch, *shape), np.float32) if values is None else values)

    def launch(self, *, seed: int, images: tuple[int, ...], on_step: OnStep | None = None) -> Callable[[], ChainResult]:
        """Enqueue the work on the batch that was uploaded. The batch before the previous one must be finished.

        Where the plan chooses a start for each image (`truncate`), this waits for the estimate.

        Args:
            seed: Seed of the noise.
            images: Keys of the noise, one for each image.
            on_step: Called between the steps, which are then not recorded as one program.

        Returns:
            A function that waits for the batch. The second launch after this one overwrites the state of its result.
        """
        self.clock.begin()
        for shape, noise in self.buffers.noise.items():
            if draws := self.buffers.draws[shape]:
                noise.begin(seed, images, last=draws - 1)
        for one in self.buffers.inputs.values():
            one.commit()
        self.clock.mark("upload")
        parts = self._programs if on_step is None else [partial(part, on_step) for part in self._parts]
        parts[0]()
        if self.plan.truncate is not None:
            moved = movement(self._degraded, self.device.read(self.values[ESTIMATE]))
            loop = next(stage for stage in self._stages if isinstance(stage, BoundLoop))
            loop.set_tables(self.plan.truncate(moved))
        for part in parts[1:]:
            part()
        result = self.buffers.output.take(self.values[self.plan.result])
        self.clock.mark("download")
        seconds = self.clock.stop()
        return lambda: ChainResult(result(), seconds())

    def close(self) -> None:
        """Free the buffers and programs of the chain, and drop the networks."""
        self._owned.close()
        # They refer to the chain. This cycle would keep networks and GPU memory until Python collects garbage.
        self._stages, self._parts, self._programs = [], [], []

    def _work(self, stages: Sequence["BoundNetwork | BoundLoop"], on_step: OnStep | None = None) -> None:
        """Enqueue what the device does for a batch; the host decides nothing meanwhile."""
        done = 0
        for stage in stages:
            done = stage.run(on_step, done)
        if on_step and not self.plan.steps:
            on_step(0, self.values[self.plan.result])  # a system without a loop is done with its last call


class BoundNetwork:
    """A network that is called once."""

    def __init__(self, where: BatchView, clock: Stopwatch, networks: Mapping[str, Network], spec: Call) -> None:
        self.name, self.clock = spec.name, clock
        inputs = {name: where.values[value] for name, value in spec.inputs.items()}
        outputs = {name: where.values[value] for name, value in spec.outputs.items()}
        self.call = networks[spec.network].bind(inputs, outputs)

    def run(self, on_step: OnStep | None, done: int) -> int:
        """Call the network once; returns the number of steps that are done."""
        del on_step
        self.clock.call(self.call)
        self.clock.mark(self.name)
        return done


def to_unit(x: Float32) -> Float32:
    """Map [-1, 1] to [0, 1], clipped. Inf becomes NaN, since clipping would hide it."""
    unit = x * np.float32(0.5)
    unit += np.float32(0.5)
    unit[np.isinf(unit)] = np.nan
    return np.clip(unit, 0.0, 1.0, out=unit)
