"""`bfr verify --explain` of engines: the real Polygraphy over stand-ins for TensorRT and for the CUDA runtime."""

# ruff: noqa: N802, N815  (the CUDA runtime's names)

import ctypes
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from glob import escape
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from half_graphs import CHANNELS, convolutions

from bfr.export.verify import explain as explaining
from bfr.export.verify.explain import Explanation, compare_graphs
from bfr.runtime.errors import EngineBuildFailed, MissingDependency

pytest.importorskip("polygraphy")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.engines
LAYERS, STREAM = 4, 77
NAMES = [name for i in range(LAYERS) for name in (f"val[{i}]", f"relu_{i}")]


class DataType(Enum):
    FLOAT, HALF, BF16, INT32, INT64, INT8, UINT8, BOOL = range(8)


class BuilderFlag(IntEnum):
    TF32, REFIT = 0, 1


class NetworkFlag(IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = 0, 1


class TensorFormat(Enum):
    LINEAR, HWC, CHW16 = range(3)


class Mode(Enum):
    INPUT, OUTPUT = range(2)


class LayerType(Enum):
    SHAPE, CONSTANT, QUANTIZE, DEQUANTIZE, OTHER = range(5)


@dataclass(eq=False)
class Tensor:
    name: str
    dtype: DataType
    shape: tuple[int, ...] = (-1, CHANNELS, 8, 8)
    is_network_output: bool = False
    is_shape_tensor: bool = False


@dataclass(eq=False)
class Network:
    """What the parser made of a graph: a layer for each node, one result each."""

    path: str = ""
    typed: bool = False
    layers: list[Any] = field(default_factory=list)
    num_inputs: int = 1

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, i: int) -> Any:
        return self.layers[i]

    def get_input(self, i: int) -> Tensor:
        return Tensor("x", DataType.FLOAT)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, i: int) -> Any:
        return self.layers[i]

    def mark_output(self, tensor: Tensor) -> None:
        assert tensor.dtype in (DataType.FLOAT, DataType.HALF), f"{tensor.name} is no floating tensor"
        tensor.is_network_output = True

    def unmark_output(self, tensor: Tensor) -> None:
        tensor.is_network_output = False

    @property
    def marked(self) -> list[str]:
        return [layer.output.name for layer in self.layers if layer.output.is_network_output]


class Parser:
    num_errors = 0

    def __init__(self, network: Network, _logger: Any) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        import onnx

        model = onnx.load(path)
        half = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in model.graph.initializer)
        self.network.path = path
        for node in model.graph.node:
            name, kind = node.output[0], DataType.HALF if half else DataType.FLOAT
            kind = DataType.INT64 if name in ("shape", "size") else DataType.FLOAT if name == "y" else kind
            tensor = Tensor(name, kind, is_network_output=name in ("y", "size"))
            layer = SimpleNamespace(name=name, num_inputs=0, num_outputs=1, output=tensor, precision_is_set=False)
            layer.type = LayerType.SHAPE if node.op_type == "Shape" else LayerType.OTHER
            layer.get_output = lambda _i, tensor=tensor: tensor
            self.network.layers.append(layer)
        return True


class Config:
    DLA_core, default_device_type = -1, "GPU"
    profiling_verbosity = "layer names"

    def __init__(self) -> None:
        self.flags, self.profiles = {BuilderFlag.TF32}, list[dict[str, Any]]()

    num_optimization_profiles = property(lambda self: len(self.profiles))

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self.flags


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes


class TensorRt(ModuleType):
    """The module `tensorrt`, or `tensorrt_rtx`. built: marked tensors of each engine that was built."""

    __version__ = "10.14.1"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__, self.__file__ = ModuleSpec(name, None), f"/{name}/__init__.py"
        trt, built = self, list[list[str]]()
        self.built, self.refuse = built, False

        class Builder:
            def __init__(self, _logger: Any) -> None: ...

            create_builder_config = staticmethod(Config)
            create_optimization_profile = staticmethod(Profile)

            def create_network(self, flags: int) -> Network:
                return Network(typed=bool(flags >> NetworkFlag.STRONGLY_TYPED & 1))

            def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
                assert network.typed
                assert not config.flags, "TF32 was left on"
                assert config.profiles == [{"x": ((1, CHANNELS, 8, 8),) * 3}]
                built.append(network.marked)
                types = {one.output.name: one.output.dtype.value for one in network.layers}
                said = {"path": network.path, "marked": network.marked, "types": types}
                return None if trt.refuse else json.dumps(said).encode()

        self.Builder, self.OnnxParser = Builder, Parser
        self.DataType, self.BuilderFlag, self.NetworkDefinitionCreationFlag = DataType, BuilderFlag, NetworkFlag
        self.float32, self.float16, self.int32, self.int8 = (
            DataType.FLOAT, DataType.HALF, DataType.INT32, DataType.INT8
        )  # fmt: skip
        self.int64, self.bfloat16, self.bool, self.uint8 = (
            DataType.INT64, DataType.BF16, DataType.BOOL, DataType.UINT8
        )  # fmt: skip
        self.TensorFormat, self.TensorIOMode, self.LayerType = TensorFormat, Mode, LayerType
        self.DeviceType, self.TensorLocation = SimpleNamespace(DLA="DLA"), SimpleNamespace(HOST="host")
        self.Logger = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)
        self.ILogger = self.IOutputAllocator = self.IDebugListener = type("Base", (), {"__init__": lambda _: None})
        self.ICudaEngine, self.IExecutionContext = Engine, Context
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.init_libnvinfer_plugins = lambda *_: True
        self.Runtime = lambda _logger: SimpleNamespace(deserialize_cuda_engine=lambda data: Engine(json.loads(data)))


class Engine:
    """Runs the graph in ONNX Runtime on the CPU."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said, self.names = said, ["x", *said["marked"]]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, i: int) -> str:
        return str(self.names[i])

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT if name == "x" else DataType(self.said["types"][name])

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (-1, CHANNELS, 8, 8)

    def get_tensor_format(self, _name: str, _profile: int) -> TensorFormat:
        return TensorFormat.LINEAR

    def is_shape_inference_io(self, _name: str) -> bool:
        return False

    def create_execution_context(self) -> "Context":
        return Context(self)


class Context:
    active_optimization_profile = 0

    def __init__(self, engine: Engine) -> None:
        self.engine, self.address = engine, 0
        self.shape: tuple[int, ...] = (-1, CHANNELS, 8, 8)
        self.allocators: dict[str, Any] = {}

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return self.shape

    def set_input_shape(self, _name: str, shape: Sequence[int]) -> bool:
        self.shape = tuple(shape)
        return True

    def get_tensor_address(self, _name: str) -> int:
        return self.address

    def set_tensor_address(self, _name: str, address: int) -> bool:
        self.address = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        import onnx
        import onnxruntime
        from polygraphy.backend.onnx import modify_outputs

        assert stream == STREAM
        names, said = [*self.allocators], self.engine.said
        marked = modify_outputs(onnx.load(said["path"]), outputs=[*map(escape, names)]).SerializeToString()
        session = onnxruntime.InferenceSession(marked, providers=["CPUExecutionProvider"])
        x = np.zeros(self.shape, np.float32)
        ctypes.memmove(x.ctypes.data, self.address, x.nbytes)
        for name, value in zip(names, session.run(names, {"x": x}), strict=True):
            size = value.nbytes
            target = self.allocators[name].reallocate_output_async(name, 0, size, 256, stream)
            self.allocators[name].notify_shape(name, value.shape)
            ctypes.memmove(target, np.ascontiguousarray(value).ctypes.data, size)
        return True


class CudaRuntime:
    """The library libcudart over the host's memory."""

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise OSError(f"{path}: cannot open shared object file: No such file or directory")
        self.blocks: dict[int, Any] = {}

    def cudaMalloc(self, found: Any, size: Any) -> int:
        block = ctypes.create_string_buffer(max(1, size.value))
        found._obj.value = ctypes.addressof(block)
        self.blocks[ctypes.addressof(block)] = block
        return 0

    def cudaFree(self, address: Any) -> int:
        self.blocks.pop(address.value, None)  # it takes 0, too
        return 0

    def cudaMemcpyAsync(self, target: Any, source: Any, size: Any, _kind: Any, stream: Any) -> int:
        assert stream.value == STREAM
        ctypes.memmove(target, source, size.value)
        return 0

    def cudaStreamCreate(self, found: Any) -> int:
        found._obj.value = STREAM
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:
        return int(stream.value != STREAM)

    cudaStreamDestroy = cudaStreamSynchronize


@pytest.fixture
def runtime_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file where CUDA 13's package has it."""
    path = (
        tmp_path / "site" / "nvidia/cu13" / ("bin/x86_64/cudart64_13.dll" if os.name == "nt" else "lib/libcudart.so.13")
    )
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return path


@pytest.fixture
def library(
    request: pytest.FixtureRequest, runtime_library: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TensorRt]:
    """A TensorRT, and a Polygraphy that is imported anew over it, and forgotten afterwards."""
    module = TensorRt(request.param.replace("-", "_"))
    before = {name: found for name, found in sys.modules.items() if name.split(".")[0] == "polygraphy"}
    for name in before:
        del sys.modules[name]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(ctypes, "CDLL", CudaRuntime)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "polygraphy"]:
        del sys.modules[name]
    sys.modules.update(before)


both = pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"], indirect=True)


def explained(folder: Path, scales: dict[int, float], where: Any) -> Explanation:
    inputs = {"x": np.random.default_rng(1).random((1, CHANNELS, 8, 8), np.float32)}
    full, half = (convolutions(folder, half, scales, layers=LAYERS, size=True) for half in (False, True))
    return compare_graphs(full, half, inputs, "body", "fp16", where=where)


@both
def test_the_layer_that_overflows_in_an_engine_is_named(library: TensorRt, tmp_path: Path) -> None:
    """As on the CPU, where the same graph runs; TF32 is off, the profile is the inputs', and one engine is built."""
    where = library.__name__.replace("_", "-")
    found = explained(tmp_path, {2: 1.3e5, 3: 1e-5}, where)
    assert found.first is not None
    assert (found.first.name, found.first.operator, found.first.error) == ("body.2", "Conv", np.inf)
    assert found.backend == where
    assert replace(found, backend="onnxruntime-cpu") == explained(tmp_path, {2: 1.3e5, 3: 1e-5}, "onnxruntime-cpu")
    assert library.built == [NAMES]


@pytest.mark.parametrize("library", ["tensorrt"], indirect=True)
def test_an_engine_is_built_once_for_its_part_of_the_tensors(
    library: TensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = explained(tmp_path, {}, "tensorrt")
    monkeypatch.setattr(explaining, "ENGINE_PART", 5)
    monkeypatch.setattr(explaining, "PART", 2)
    assert explained(tmp_path, {}, "tensorrt") == whole
    assert whole.compared == len(NAMES)
    marked = [name for part in library.built[1:] for name in part]
    assert sorted(marked) == sorted(NAMES)
    assert max(map(len, library.built[1:])) <= 5


@pytest.mark.parametrize("library", ["tensorrt"], indirect=True)
def test_an_engine_that_is_not_built_says_what_else_there_is(library: TensorRt, tmp_path: Path) -> None:
    library.refuse = True
    with pytest.raises(EngineBuildFailed, match=r"half\.onnx .*tensorrt .*--backend onnxruntime-cpu --explain"):
        explained(tmp_path, {}, "tensorrt")


@pytest.mark.parametrize("library", ["tensorrt"], indirect=True)
def test_without_cudas_runtime_library_the_failure_says_how_to_get_it(
    library: TensorRt, tmp_path: Path, runtime_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: str) -> Any:
        raise OSError(f"{path}: cannot open shared object file")

    runtime_library.unlink()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(MissingDependency, match=r"CUDA's runtime library .*cudart.*tensorrt-cu12"):
        explained(tmp_path, {}, "tensorrt")
    assert "LD_LIBRARY_PATH" not in os.environ
