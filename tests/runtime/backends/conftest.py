"""TensorRT over the GPUs made of NumPy, at the library's boundary."""

import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest
from fake_gpu import FakeGpu, FakeRuntime, install

from bfr.runtime.backends import tensorrt_key as trt
from bfr.runtime.backends import tensorrt_stream
from bfr.runtime.backends.cuda import bindings as cuda
from bfr.runtime.bundle.bundle import Bundle, describe_file
from bfr.runtime.bundle.machine import Engine, MachineFiles


class FakeContext:
    """An execution context that runs the engine's ONNX file on the CPU when the stream gets there."""

    def __init__(self, engine: "FakeEngine") -> None:
        self.engine, self.profile, self.memory = engine, -1, (0, 0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.enqueued, self.refuse = 0, False

    def __del__(self) -> None:
        if self.memory[0] and self.memory[0] not in self.engine.gpu.device:
            self.engine.trt.late.append(self.engine.name)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return profile < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: Any) -> bool:
        assert self.profile >= 0, "the profile comes first"
        self.shapes[name] = tuple(shape)
        return self.shapes[name] == self.engine.get_tensor_profile_shape(name, self.profile)[1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return next(iter(self.shapes.values()))[0], *self.engine.shapes[name]

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        self.memory = address, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.names and address % 256 == 0

    def is_stream_capturable(self, stream: int) -> bool:
        assert self.engine.trt.name == "tensorrt-rtx", "of TensorRT-RTX alone"
        assert self.memory[0], "the answer depends on the memory"
        return bool(self.engine.trt.capturable)

    def execute_async_v3(self, stream: int) -> bool:
        gpu, engine = self.engine.gpu, self.engine
        assert engine.cache is None or engine.cache() is not None, "the runtime cache must outlive its contexts"
        assert stream not in gpu.capturing or engine.trt.capturable
        assert gpu is engine.trt.runtime.gpu, "an engine runs on the GPU that it was deserialized on"
        assert self.memory[0], "memory comes first"
        first, self.enqueued = not self.enqueued, self.enqueued + 1
        if self.refuse or (first and stream in gpu.capturing):  # a first call may allocate
            engine.logger.log(engine.trt.ILogger.Severity.ERROR, "refused")
            return False
        assert set(self.addresses) == set(engine.names)
        batch, addresses = next(iter(self.shapes.values()))[0], dict(self.addresses)

        def work() -> None:
            gpu.at(*self.memory)[...] = 0xFF  # activations are nobody else's
            feeds = {n: gpu.floats(addresses[n], (batch, *engine.shapes[n])) for n in engine.inputs}
            outputs = engine.session.run(list(engine.outputs), feeds)
            for name, value in zip(engine.outputs, outputs, strict=True):
                gpu.floats(addresses[name], value.shape)[...] = value

        gpu.enqueue(stream, f"engine {engine.name}", work, addresses)
        return True


class FakeCache:
    """What TensorRT-RTX compiles."""

    data = b""

    def deserialize(self, data: bytes) -> bool:
        self.data = data
        return True

    def serialize(self) -> bytes:
        return b"compiled " + self.data


class FakeConfig:
    """How TensorRT-RTX makes contexts. It does not keep its cache alive."""

    create_runtime_cache = staticmethod(FakeCache)
    strategy = ""

    def __init__(self, engine: "FakeEngine") -> None:
        self.engine = engine

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self.engine.cache = weakref.ref(cache)
        return True


class FakeEngine:
    """What `serialize` wrote: the path of an ONNX file, and batch sizes."""

    def __init__(self, module: "FakeTensorRt", logger: Any, said: dict[str, Any]) -> None:
        self.trt, self.logger, self.gpu = module, logger, module.runtime.gpu
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(said["graph"], options, providers=["CPUExecutionProvider"])
        self.shapes = {t.name: t.shape[1:] for t in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.inputs = [t.name for t in self.session.get_inputs()]
        self.outputs = [t.name for t in self.session.get_outputs()]
        self.names, self.buckets, self.name = [*self.inputs, *self.outputs], said["buckets"], said["name"]
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(self.buckets)
        self.contexts: list[FakeContext] = []
        self.cache: Any = None

    def get_tensor_name(self, i: int) -> str:
        return self.names[i]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return self.trt.types.get(name, "float")

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert name in self.inputs, "outputs have no profile"
        return [(self.buckets[profile], *self.shapes[name])] * 3

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return (1000 if self.name == "estimator" else 2000) * self.buckets[profile]

    def create_runtime_config(self) -> Any:
        assert self.trt.name == "tensorrt-rtx", "of TensorRT-RTX alone"
        return FakeConfig(self)

    def create_execution_context(self, how: Any) -> FakeContext:
        assert getattr(how, "strategy", how) == "user managed"
        assert self.gpu is self.trt.runtime.gpu, "a context is made on its engine's GPU"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": [self.name]}))


def streamed(stream: Any) -> bytes:
    """All that a stream holds, in TensorRT's order: a header, then from a place that it seeks all that is left."""

    def take(size: int) -> bytes:
        data = b""
        while len(data) < size:  # a short answer is asked for again
            piece = stream.read(size - len(data), 0)
            assert 0 < len(piece) <= tensorrt_stream.PIECE
            data += piece
        return data

    assert stream.ready
    assert stream.seek(0, "end")
    size = stream.at
    assert not stream.seek(1, "current")
    assert stream.seek(0, "set")
    header = take(32)
    assert stream.seek(-8, "current")
    return header[:24] + take(size - 24)


class FakeTensorRt:
    """The module `tensorrt`, or `tensorrt_rtx`. `engines`: what was deserialized. `sources`: what from."""

    __version__ = "10.3.0"

    class IStreamReaderV2:
        """Of the bindings: whoever does not call its constructor crashes."""

        ready = False

        def __init__(self) -> None:
            self.ready = True

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    DataType = SimpleNamespace(FLOAT="float", HALF="half")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    SeekPosition = SimpleNamespace(SET="set", CUR="current", END="end")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def __init__(self, name: str, runtime: FakeRuntime) -> None:
        self.name, self.__name__, self.runtime = name, name.replace("-", "_"), runtime
        self.engines: list[FakeEngine] = []
        self.sources: list[Any] = []
        self.types: dict[str, str] = {}
        self.refuse, self.capturable = False, True
        self.starts = True  # False: its constructors return a null pointer, as beside a driver that does not fit
        self.plugins: Any = None
        self.late: list[str] = []  # engines whose contexts ended after their memory

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        self.plugins = logger
        return True

    def Runtime(self, logger: Any) -> Any:
        assert self.plugins is logger, "an engine with plugins needs them"
        if not self.starts:
            logger.log(self.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

        def deserialize(source: Any) -> FakeEngine | None:
            self.sources.append(source)
            data = streamed(source) if isinstance(source, self.IStreamReaderV2) else bytes(source)
            if self.refuse:
                logger.log(self.ILogger.Severity.ERROR, "serialized for another version")
                return None
            self.engines.append(FakeEngine(self, logger, json.loads(data)))
            return self.engines[-1]

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeGpu]]:
    """Two GPUs; afterwards everything that was taken must have been given back, unless a test says otherwise."""
    found = install(monkeypatch)
    yield found
    for gpu in found:
        if "everything" not in gpu.fail:
            assert not gpu.device, "device memory was not given back"
            assert not gpu.pinned, "page-locked memory was not given back"
            assert not gpu.alive, f"not given back: {set(gpu.alive.values())}"


@pytest.fixture
def tensorrt(request: pytest.FixtureRequest, gpus: list[FakeGpu], monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """TensorRT on the fake GPUs, or what the parameter names."""
    module = FakeTensorRt(getattr(request, "param", "tensorrt"), cuda.bindings()[0])
    monkeypatch.setattr(trt, "load_library", lambda _: module)
    monkeypatch.setattr("bfr.runtime.backends.tensorrt.load_library", lambda _: module)
    return module


@pytest.fixture
def built(tiny_bundle: Bundle, tensorrt: FakeTensorRt, tmp_path: Any, home: Any) -> Bundle:
    """`tiny_bundle` with engines for both precisions and batches of 1, 2 and 4."""
    return with_engines(tiny_bundle, tensorrt, tmp_path / "built")


@pytest.fixture
def building(tensorrt: FakeTensorRt, tmp_path: Any, home: Any) -> Callable[[Bundle], Bundle]:
    """A maker of engines for other bundles, as those of `built`."""
    return lambda bundle: with_engines(bundle, tensorrt, tmp_path / "built")


def with_engines(source: Bundle, tensorrt: FakeTensorRt, folder: Any) -> Bundle:
    """A copy of a bundle, and engines on this machine for all its precisions and batches of 1, 2 and 4."""
    shutil.copytree(source.folder, folder)
    bundle, engines = Bundle.open(folder), []
    files = MachineFiles(bundle.hash)
    machine = trt.this_machine(tensorrt.name, cuda.Cuda(0))  # type: ignore[arg-type]
    for name, network in bundle.manifest.networks.items():
        for precision, variant in network.variants.items():
            path = files.make() / f"{name}.{precision}.engine"
            said = {"graph": str(folder / variant.graph.path), "buckets": [1, 2, 4], "name": name}
            path.write_text(json.dumps(said))
            key = trt.engine_key(bundle, name, precision, machine, buckets=(1, 2, 4), options={"level": 3})
            file = describe_file(path.parent, path)
            engines.append(Engine(network=name, file=file, key=key, half_share=0.0, build_seconds=1.0))
    files.write_engines(engines)
    return bundle
