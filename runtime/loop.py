"""The truncated loop: estimate, diffuse to an intermediate time, denoise from there.

Source: DifFace (arXiv 2212.06512), algorithm 1, with DDIM or any other solver that is a table (`bfr.runtime.solvers`).
The same code runs on every device; nothing but the network runs between two steps.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bfr.runtime.backends import Buffer, Device, Float32, Network, Noise
from bfr.runtime.solvers import StepTable

OnStep = Callable[[int, Buffer], None]
"""Called with the number of steps done, from 0, and the buffer of the state. May raise to stop the loop."""


@dataclass(frozen=True, slots=True)
class ChainResult:
    """One batch through the chain.

    image: (B, 3, S, S) float32 in [0, 1], NaN where the loop gave NaN or Inf: whoever writes images looks for it.
    estimate: (B, 3, S, S) float32 in [0, 1], what the loop started from.
    seconds: stage -> seconds of the whole batch; `network` is the part spent in the networks' calls.
    """

    image: Float32
    estimate: Float32
    seconds: dict[str, float]


class Chain:
    """The buffers and bound calls of one batch size, allocated once.

    The state alternates between two buffers, x0 goes round three (the new one and the two that the step reads), and
    noise between two: no call writes what it reads, and no call allocates.
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
    ) -> None:
        """`noise` replaces the device's own; `conditions` are inputs that every step reads beside its own."""
        shape = (batch, 3, size, size)
        self.device, self.table, self.batch = device, table, batch
        self.noise = noise or device.noise(shape)
        self.degraded, self.estimate = device.array(shape), device.array(shape)
        self.x = [device.array(shape) for _ in range(2)]
        self.x0 = [device.array(shape) for _ in range(3)]
        self.zeros = np.zeros(shape, np.float32)
        self.estimate_call = estimator.bind({"degraded": self.degraded}, {"estimate": self.estimate})
        self.step_calls = []
        for k, (timestep, row) in enumerate(zip(table.timesteps, table.rows, strict=True)):
            t, rows = device.array((batch,)), device.array((batch, len(row)))
            device.write(t, np.full(batch, timestep, np.float32))
            device.write(rows, np.tile(row, (batch, 1)))
            inputs = {
                "x": self.x[k % 2],
                "h1": self.x0[(k - 1) % 3],
                "h2": self.x0[(k - 2) % 3],
                "t": t,
                "row": rows,
                "noise": self.noise.buffers[(k + 1) % 2],
                **(conditions or {}),
            }
            outputs = {"x_next": self.x[(k + 1) % 2], "x0": self.x0[k % 3]}
            self.step_calls.append(denoiser.bind(inputs, outputs))

    def run(
        self, degraded: Float32, *, seed: int, images: tuple[int, ...], on_step: OnStep | None = None
    ) -> ChainResult:
        """Restore one batch.

        degraded: (B, 3, S, S) float32 in [0, 1]. seed, images: the keys of the noise, one image key for each image.
        """
        clock = Clock()
        self.noise.start(seed, images, last=len(self.table) - 1)  # the last step adds no noise
        self.device.write(self.degraded, degraded)
        for history in self.x0[1:]:
            self.device.write(history, self.zeros)  # 0 * NaN is NaN: a bad image must not outlive its batch
        clock.stage("upload")
        clock.call(self.estimate_call)
        clock.stage("estimate")
        self.noise.ready(0)
        self.device.diffuse(self.estimate, self.noise.buffers[0], self.x[0], self.table.signal, self.table.noise)
        clock.stage("diffuse")
        if on_step:
            on_step(0, self.x[0])
        for k, call in enumerate(self.step_calls):
            if k + 1 < len(self.table):
                self.noise.ready(k + 1)
            clock.call(call)
            if on_step:
                on_step(k + 1, self.x[(k + 1) % 2])
        clock.stage("denoise")
        image = to_unit(self.device.read(self.x[len(self.table) % 2]))
        estimate = to_unit(self.device.read(self.estimate))
        clock.stage("download")
        return ChainResult(image, estimate, clock.seconds)

    def close(self) -> None:
        """End the noise's thread."""
        self.noise.close()


def to_unit(x: Float32) -> Float32:
    """[-1, 1] -> [0, 1], clipped; in place. Inf becomes NaN, which clipping does not hide."""
    x[np.isinf(x)] = np.nan
    x *= np.float32(0.5)
    x += np.float32(0.5)
    return np.clip(x, 0.0, 1.0, out=x)


class Clock:
    """Seconds per stage, and in the networks' calls."""

    def __init__(self) -> None:
        self.seconds = {"network": 0.0}
        self._last = time.perf_counter()

    def call(self, call: Callable[[], None]) -> None:
        begin = time.perf_counter()
        call()
        self.seconds["network"] += time.perf_counter() - begin

    def stage(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
