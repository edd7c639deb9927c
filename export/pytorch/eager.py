"""Eager PyTorch as a device: the reference of verification and benchmarks, with the same loop as every backend."""

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from bfr.models.stages.stage import as_tuple
from bfr.runtime.backends.device import BoundCall, Float32, Noise, own_array
from bfr.runtime.backends.host import HostDevice, HostNoise
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import InvalidOption


class EagerNetwork:
    """A stage module of `bfr.models.stages.step`, called as it is."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval()

    def bind(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> BoundCall:
        def call() -> None:
            with torch.inference_mode():
                for buffer, result in zip(outputs.values(), as_tuple(self.module(**inputs)), strict=True):
                    buffer.copy_(result)
                if buffer.is_cuda:
                    torch.cuda.synchronize(buffer.device)

        return call


class EagerDevice(HostDevice):
    """The CPU or a GPU through PyTorch. It loads modules, not bundles."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.name = f"eager-{self.device.type}"

    @property
    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def array(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, device=self.device)

    def view(self, buffer: Tensor, batch: int) -> Tensor:
        return buffer[:batch]

    def zero(self, buffer: Tensor) -> None:
        buffer.zero_()

    def write(self, buffer: Tensor, values: Float32) -> None:
        buffer.copy_(torch.from_numpy(np.ascontiguousarray(values)))

    def read(self, buffer: Tensor) -> Float32:
        return np.array(buffer.cpu().numpy())

    def diffuse(self, estimate: Tensor, noise: Tensor, x: Tensor, levels: Tensor) -> None:
        signal, sigma = levels.T[:, :, None, None, None]
        torch.add(estimate * signal, noise * sigma, out=x)

    def noise(self, owned: ExitStack, shape: tuple[int, ...], first: int = 0) -> Noise:
        return UploadedNoise(self, owned, shape, first)

    def load(self, bundle: Bundle, name: str, precision: Precision) -> EagerNetwork:
        """The float32 module of a bundle's network."""
        if precision != "fp32":
            raise InvalidOption(f"eager PyTorch runs float32 only, not {precision}: choose fp32")
        from bfr.export.pytorch.reference import load_stage

        return EagerNetwork(load_stage(bundle, name).to(self.device))


class UploadedNoise:
    """Host noise, written to the device when it is due."""

    def __init__(self, device: EagerDevice, owned: ExitStack, shape: tuple[int, ...], first: int = 0) -> None:
        self.device, self.host, self._count = device, HostNoise(owned, shape, first), 0
        self.buffers = (own_array(owned, device, shape), own_array(owned, device, shape))

    def begin(self, seed: int, images: tuple[int, ...], last: int) -> None:
        self._count = len(images)
        self.host.begin(seed, images, last)

    def ready(self, step: int) -> None:
        self.host.ready(step)
        made, due = self.host.buffers[step % 2], self.buffers[step % 2]
        self.device.write(self.device.view(due, self._count), made[: self._count])
