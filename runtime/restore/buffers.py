"""The large buffers of a chain."""

from collections.abc import Iterable
from contextlib import ExitStack
from math import prod

from bfr.runtime.backends.device import Buffer, Device, Noise, own_array
from bfr.runtime.restore.plan import Loop, Plan, Shape


class Buffers:
    """All large buffers of a chain, allocated once for the largest batch; smaller ones use their first images.

    The state of each loop alternates between two buffers, x0 rotates through three (the new one and the two that the
    step reads), and noise between two: no call writes what it reads, and no call allocates. Loops whose states have one
    shape share x0; loops whose noise has one shape share noise. A guided loop has two more, for a step's results before
    guidance.
    """

    def __init__(self, device: Device, plan: Plan, batch: int) -> None:
        """Allocate them. Raises DeviceOutOfMemory."""
        self.batch = batch
        with ExitStack() as owned:  # freed at once if the memory does not suffice for all of it

            def array(shape: Shape) -> Buffer:
                return own_array(owned, device, (batch, *shape))

            self.inputs = {name: device.input(owned, (batch, *shape)) for name, shape in plan.inputs.items()}
            self.output = device.output(owned, (batch, *plan.values[plan.result]))
            states = {loop.result for loop in plan.loops}
            self.values = {
                name: self.inputs[name].buffer if name in plan.inputs else array(shape)
                for name, shape in plan.values.items()
                if name not in states
            }
            self.x = {loop.name: (array(loop.shape), array(loop.shape)) for loop in plan.loops}
            shapes = dict.fromkeys(loop.shape for loop in plan.loops)
            guided = {loop.shape for loop in plan.loops if loop.guide}
            self.x0 = {shape: tuple(array(shape) for _ in range(3)) for shape in shapes}
            self.unguided = {shape: (array(shape), array(shape)) for shape in shapes if shape in guided}
            self.noise: dict[Shape, Noise] = {}
            self.draws = draws_of(plan.loops)
            first = 0
            for shape, count in self.draws.items():
                self.noise[shape] = device.noise(owned, (batch, *shape), first)
                first += count  # two streams of one image never hold the same numbers
            for loop in plan.loops:
                self.values[loop.result] = self.x[loop.name][len(loop.table) % 2]
            self._owned = owned.pop_all()

    @staticmethod
    def bytes(plan: Plan, batch: int) -> int:
        """Return their bytes on a device, where inputs, results and noise have a second buffer each."""
        loops = list(plan.loops)
        counts = {loop.shape: 3 + 2 * any(o.guide for o in loops if o.shape == loop.shape) for loop in loops}
        states = {loop.result for loop in loops}
        made = [shape for name, shape in plan.values.items() if name not in states]
        elements = sum(map(prod, made)) + sum(map(prod, plan.inputs.values())) + prod(plan.values[plan.result])
        elements += sum(count * prod(shape) for shape, count in counts.items()) + sum(2 * prod(o.shape) for o in loops)
        elements += sum(2 * prod(shape) for shape in draws_of(loops))
        return 4 * batch * elements

    def close(self) -> None:
        """Free them."""
        self._owned.close()


def draws_of(loops: Iterable[Loop]) -> dict[Shape, int]:
    """Count the draws of noise of a plan's loops, by shape."""
    found: dict[Shape, int] = {}
    for loop in loops:
        for shape, count in loop.draws().items():
            found[shape] = found.get(shape, 0) + count
    return found


class BatchView:
    """The first images of the buffers, for a chain of one batch size.

    values: the buffer of each value of the plan, by name.
    """

    def __init__(self, device: Device, buffers: Buffers, batch: int) -> None:
        self.device, self.buffers, self.batch = device, buffers, batch
        self.values = {name: self.view(buffer) for name, buffer in buffers.values.items()}

    def view(self, buffer: Buffer) -> Buffer:
        """Return the first images of a buffer."""
        return self.device.view(buffer, self.batch)
