"""What was recorded of a published run, in the place of a device's noise and of an estimator."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.device import BoundCall, Buffer, Device


class ReplayedNoise:
    """A recorded stream of noise in the place of a device's own."""

    def __init__(self, device: Device, draws: NDArray[np.float32]) -> None:
        self.device, self.draws = device, draws
        self.buffers = (device.array(draws[0].shape), device.array(draws[0].shape))

    def begin(self, seed: int, images: tuple[int, ...], last: int) -> None:
        """Nothing to prepare: the draws are there."""

    def ready(self, step: int) -> None:
        """Write the recorded draw of `step`."""
        self.device.write(self.buffers[step % 2], self.draws[step])

    def close(self) -> None:
        """Nothing to end."""


class GivenEstimate:
    """A recorded estimate in the place of the estimator."""

    def __init__(self, device: Device, estimate: NDArray[np.float32]) -> None:
        self.device, self.estimate = device, np.clip(estimate, 0, 1) * 2.0 - 1.0

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """A call that writes the estimate."""
        del inputs
        return lambda: self.device.write(outputs["estimate"], self.estimate)
