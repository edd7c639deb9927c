"""A small system exported once a session, and a device made of NumPy functions."""

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bfr.runtime.bundle import Bundle
from bfr.runtime.noise import HostNoise

SIZE = 32
NETWORK: dict[str, Any] = {
    "image_size": SIZE,
    "in_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [16],
    "channel_mult": [1, 2],
    "num_head_channels": 32,
    "use_scale_shift_norm": True,
}


class NumpyNetwork:
    """A network that is a function of named arrays and returns its outputs in order."""

    def __init__(self, function: Callable[..., tuple[np.ndarray, ...]]) -> None:
        self.function = function
        self.bound: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Callable[[], None]:
        self.bound.append((dict(inputs), dict(outputs)))

        def call() -> None:
            for buffer, result in zip(outputs.values(), self.function(**inputs), strict=True):
                buffer[...] = result

        return call


class NumpyDevice:
    """A device whose buffers are arrays; `load` gives what `graphs` holds under the file's name."""

    name = "numpy"
    versions = {"numpy": np.__version__}  # noqa: RUF012

    def __init__(
        self, graphs: Mapping[str, NumpyNetwork] | None = None, buckets: tuple[int, ...] | None = None
    ) -> None:
        self.graphs, self.buckets = graphs or {}, buckets

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def write(self, buffer: np.ndarray, values: np.ndarray) -> None:
        buffer[...] = values

    def read(self, buffer: np.ndarray) -> np.ndarray:
        return buffer.copy()

    def diffuse(self, estimate: np.ndarray, noise: np.ndarray, x: np.ndarray, signal: float, sigma: float) -> None:
        x[...] = np.float32(signal) * estimate + np.float32(sigma) * noise

    def noise(self, shape: tuple[int, ...]) -> Any:
        noise = HostNoise(shape)
        noise.buffers = noise.arrays  # type: ignore[attr-defined]
        return noise

    def load(self, graph: Path) -> NumpyNetwork:
        return self.graphs[graph.name]


def linear_step(eps: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> NumpyNetwork:
    """A step network around a denoiser `eps(x, t)`, in NumPy."""

    def step(x: Any, h1: Any, h2: Any, t: Any, row: Any, noise: Any) -> tuple[np.ndarray, np.ndarray]:
        a, b, c, d, e, f, g, s = (row[:, i, None, None, None] for i in range(8))
        out = eps(x, t)
        x0 = np.clip(a * x - b * out, -1, 1)
        return c * x0 + d * out + e * h1 + g * h2 + f * x + s * noise, x0

    return NumpyNetwork(step)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """P32: nothing reaches another machine. Tests of downloads serve themselves, on the loopback address."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test reached for {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def fakes() -> Any:
    """The NumPy device, its network class and the step maker."""

    class Fakes:
        Device, Network, step = NumpyDevice, NumpyNetwork, staticmethod(linear_step)
        identity = staticmethod(lambda: NumpyNetwork(lambda degraded: (2 * degraded - 1,)))

    return Fakes


@pytest.fixture(scope="session")
def tiny_system() -> Any:
    """A DifFace of two small name-seeded UNets at 32x32, its denoiser with variance channels as the published one."""
    from bfr.models.catalog import NetworkSpec, SystemSpec
    from bfr.models.fetch import Download
    from bfr.runtime.manifest import Licence, Preset

    return SystemSpec(
        name="tiny",
        title="name-seeded networks for tests",
        image_size=SIZE,
        networks={
            "estimator": NetworkSpec(
                kind="estimator",
                architecture="unet",
                parameters={**NETWORK, "out_channels": 3, "unshuffle": 2, "time_conditioned": False},
                weights=Download("", "estimator.pth"),
                half=None,
            ),
            "denoiser": NetworkSpec(
                kind="denoiser",
                architecture="unet",
                parameters={**NETWORK, "out_channels": 6},
                weights=Download("", "denoiser.pth"),
                learned_variance=True,
            ),
        },
        presets={"reference": Preset(spacing="ddim250", start=6, eta=0.5), "short": Preset(spacing="ddim50", start=2)},
        licence=Licence(name="none", url="", notice="random weights"),
    )


@pytest.fixture(scope="session")
def tiny_weights(tiny_system: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of `tiny_system`, in the layouts that published files have."""
    import torch

    from bfr.models.seeded import LOOP_SCALE, seed_weights

    folder = tmp_path_factory.mktemp("weights")
    for name, spec in tiny_system.networks.items():
        module = spec.build()
        seed_weights(module, LOOP_SCALE)
        state = {f"module.{key}": value for key, value in module.state_dict().items()}
        torch.save({"state_dict": state} if name == "denoiser" else state, folder / spec.weights.file)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_system: Any, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny_system`, exported in fp32 and fp16 and verified."""
    from bfr.export.bundle import export_system

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    return export_system(tiny_system, tiny_weights, folder, precisions=("fp32", "fp16"))
