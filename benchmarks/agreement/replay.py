"""Recorded noise and estimates of a published run, which replace a device's noise and the estimator."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.export.onnx.graph import export_graph
from bfr.export.pytorch.eager import EagerDevice, EagerNetwork
from bfr.models.stages.stage import Stage
from bfr.runtime.backends.device import BoundCall, Buffer, Device, Network
from bfr.runtime.backends.onnxruntime import CpuDevice


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


def unit_picture(picture: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    return np.ascontiguousarray(np.moveaxis(picture, 2, 0)[None] / np.float32(255.0), np.float32)


def on_both(
    stages: Mapping[str, Stage],
    sizes: Mapping[str, int],
    scratch: Path,
    run: Callable[[Any, Mapping[str, Network]], float],
) -> tuple[float, float]:
    """Run networks in eager PyTorch, and exported on ONNX Runtime.

    Args:
        stages: The networks, by name.
        sizes: Of what each is traced with, the side of its images or latents.
        scratch: A folder for the exported graphs.
        run: Takes a device and the networks on it; returns the largest error.
    """
    eager = run(EagerDevice(), {name: EagerNetwork(stage) for name, stage in stages.items()})
    cpu, exported = CpuDevice(), dict[str, Network]()
    for name, stage in stages.items():
        graph, _ = export_graph(stage, stage.examples(sizes[name]), stage.outputs, scratch / f"{name}.onnx")
        exported[name] = cpu.load_graph(graph)
    return eager, run(cpu, exported)
