"""A small bundle, and a device made of NumPy functions."""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: more threads than that only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of PyTorch, OpenBLAS and our ONNX Runtime
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
if sys.dont_write_bytecode:  # compile a module where it is imported first, not in every process that a test starts
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import numpy as np
import pytest
from bundles import unpacked
from once import once, run_folder
from plans import difface_plan

from bfr.runtime.backends.host import HostDevice
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import Network, Preset, Tensor
from bfr.runtime.faces.geometry import Face, template
from bfr.runtime.restore.batch import Pending, Restored
from bfr.runtime.restore.chain import Chain
from bfr.runtime.restore.precision import Trial, choose_precision, sample
from bfr.runtime.restore.restorer import Restorer

SIZE = 32
RESTORED = (210, 200, 190)  # the colour of every pixel that the fake networks restore
FACE, BAD_FACE = (230, 30, 30), (230, 30, 230)  # colours of what the fake detector takes for faces


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


class NumpyDevice(HostDevice):
    """A device whose `load` gives what `graphs` holds under the file's name."""

    name = "numpy"

    def __init__(
        self, graphs: Mapping[str, NumpyNetwork] | None = None, buckets: tuple[int, ...] | None = None
    ) -> None:
        self.graphs, self.buckets = graphs or {}, buckets

    def load(self, bundle: Bundle, name: str, precision: Any) -> NumpyNetwork:
        return self.graphs[bundle.graph(name, precision).name]


def linear_step(eps: Callable[..., np.ndarray], *, clipped: bool = True) -> NumpyNetwork:
    """A step network around a denoiser `eps(x, t)`, which may read more by name, in NumPy."""

    def step(x: Any, h1: Any, h2: Any, t: Any, row: Any, noise: Any, **more: Any) -> tuple[np.ndarray, np.ndarray]:
        a, b, c, d, e, f, g, s = (row[:, i, None, None, None] for i in range(8))
        out = eps(x, t, **more)
        x0 = a * x - b * out
        x0 = np.clip(x0, -1, 1) if clipped else x0
        return c * x0 + d * out + e * h1 + g * h2 + f * x + s * noise, x0

    return NumpyNetwork(step)


def difface_chain(
    device: Any,
    estimator: Any,
    denoiser: Any,
    table: Any,
    *,
    batch: int,
    size: int,
    buffers: Any = None,
    conditioner: Any = None,
    **plan: Any,
) -> Chain:
    """DifFace's chain of these networks; see `difface_plan`."""
    networks = {"estimator": estimator, "denoiser": denoiser, "conditioner": conditioner}
    named = {"conditioner": "conditioner"} if conditioner else {}
    return Chain(device, networks, difface_plan(table, size, **named, **plan), batch=batch, buffers=buffers)


class RecordingRestorer(Restorer):
    """A Restorer that remembers the keys of each call of `run` and `launch`."""

    calls: list[list[int | None]]

    def run(self, images: Sequence[Any], *, keys: Sequence[int | None] | None = None, **options: Any) -> list[Restored]:
        self.calls.append(list(keys or [None] * len(images)))
        return super().run(images, keys=keys, **options)

    def launch(self, images: Sequence[Any], *, keys: Sequence[int | None] | None = None, **options: Any) -> Pending:
        self.calls.append(list(keys or [None] * len(images)))
        return super().launch(images, keys=keys, **options)


def _of_size(network: Network) -> Network:
    """A network's entry whose images are SIZE x SIZE."""

    def resized(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shapes = [(*tensor.shape[:2], SIZE, SIZE) if len(tensor.shape) == 4 else tensor.shape for tensor in tensors]
        return tuple(one.model_copy(update={"shape": shape}) for one, shape in zip(tensors, shapes, strict=True))

    return network.model_copy(update={"inputs": resized(network.inputs), "outputs": resized(network.outputs)})


def small_bundle() -> Bundle:
    """The packaged bundle at 32 x 32. Its files do not fit: whoever opens it gives the networks."""
    mini = Bundle.open(default_bundle())
    networks = {name: _of_size(network) for name, network in mini.manifest.networks.items()}
    return Bundle(mini.folder, mini.manifest.model_copy(update={"image_size": SIZE, "networks": networks}), mini.hash)


def small_restorer(batch: int = 1) -> RecordingRestorer:
    """A Restorer of 32 x 32 faces without a backend: a face becomes RESTORED all over, one of BAD_FACE's colour NaN."""

    def estimate(degraded: np.ndarray) -> tuple[np.ndarray]:
        bad = degraded[:, 2].mean(axis=(1, 2)) > degraded[:, 1].mean(axis=(1, 2)) + 0.4
        return (np.where(bad[:, None, None, None], np.nan, 2 * degraded - 1),)

    def denoise(x: np.ndarray, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.where(np.isnan(x), np.nan, colour), x

    colour = (2 * np.array(RESTORED, np.float32) / 255 - 1)[None, :, None, None]

    fakes: Any = {"estimator": NumpyNetwork(estimate), "denoiser": NumpyNetwork(denoise)}
    sampler = Preset(spacing="ddim100", start=2, eta=0.5, matched=True)
    restorer = RecordingRestorer(small_bundle(), NumpyDevice(), sampler, batch=batch, networks=fakes)
    restorer.calls = []
    return restorer


class Squares:
    """A detector of squares in the colours of faces, and of white ones in grey pictures."""

    name = "squares"

    def detect(self, pixels: np.ndarray) -> list[Face]:
        import cv2

        red, green, blue = np.moveaxis(pixels.astype(int), 2, 0)
        mask = ((red - green > 100) | (np.minimum(green, blue) > 244)).astype(np.uint8)
        faces = []
        for left, top, width, height, area in cv2.connectedComponentsWithStats(mask)[2][1:]:
            if area >= 100:
                landmarks = np.array([left, top]) + template(512) * (width / 512)
                box = np.array([left, top, left + width, top + height], np.float32)
                faces.append(Face(box, landmarks.astype(np.float32), 0.95))
        return faces

    def refine(self, pixels: np.ndarray, face: Face) -> Face:
        return face


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of this run, in which int8 was tried on the packaged bundle and was slower than float32.

    What a user fetched or measured decides nothing in a test, and no test takes seconds for a trial of its own.
    """
    times = {"fp32": 1.0, "int8": 2.0}

    def tried(_: Path) -> None:
        mini = Bundle.open(default_bundle())
        backend, trial = "onnxruntime-cpu", lambda precision: Trial(sample(SIZE), times[precision])
        assert choose_precision(mini, "auto", backend=backend, trial=trial) == "fp32"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BFR_HOME", str(run_folder(tmp_path_factory) / "once" / "cache" / "bfr"))
        once(tmp_path_factory, "cache", tried)
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of bfr, for this test and its children."""
    folder = tmp_path / "home"
    monkeypatch.setenv("BFR_HOME", str(folder))
    return folder


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
        Squares, face, bad_face, restored = Squares, FACE, BAD_FACE, RESTORED
        identity = staticmethod(lambda: NumpyNetwork(lambda degraded: (2 * degraded - 1,)))
        chain, bundle = staticmethod(difface_chain), staticmethod(small_bundle)

    return Fakes


@pytest.fixture
def small() -> Iterator[Callable[..., RecordingRestorer]]:
    """A maker of small Restorers, closed afterwards; see `small_restorer`."""
    made: list[RecordingRestorer] = []

    def make(batch: int = 1) -> RecordingRestorer:
        made.append(small_restorer(batch))
        return made[-1]

    yield make
    for restorer in made:
        restorer.close()


@pytest.fixture(scope="session")
def tiny_system() -> Any:
    """The system of `tiny_bundle`."""
    from systems import tiny

    return tiny()


@pytest.fixture(scope="session")
def tiny_weights(tiny_system: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of `tiny_system`."""
    from systems import write_weights

    folder = tmp_path_factory.mktemp("weights")
    write_weights(tiny_system, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A DifFace of two small UNets at 32 x 32, in fp32 and fp16. This process's own: tests build engines into it."""
    return unpacked("tiny", tmp_path_factory.mktemp("bundles") / "tiny")
