"""Runs a graph with chosen tensors marked as its outputs, in ONNX Runtime or as an engine, by Polygraphy's runners."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.device import Float32
from bfr.runtime.backends.tensorrt_key import load_library
from bfr.runtime.errors import EngineBuildFailed, MissingDependency
from bfr.runtime.install import install_command

Where = Literal["onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]
_SEARCHED, _RUNTIME = ("PATH", "bin/**/cudart64_*.dll") if os.name == "nt" else ("LD_LIBRARY_PATH", "lib/libcudart.so*")


def run_marked(
    graph: Path,
    outputs: Sequence[str],
    inputs: Mapping[str, Float32],
    where: Where = "onnxruntime-cpu",
    index: int = 0,
) -> dict[str, NDArray[Any]]:
    """Run a graph whose outputs are these tensors.

    Args:
        graph: The .onnx file.
        outputs: Names of tensors of the graph.
        inputs: By name, (B, ...) float32 each.
        where: The runner.
        index: Number of the GPU, for ONNX Runtime. An engine is built and run on the GPU that is current.

    Returns:
        The tensors by name, each in its own type; of an engine those of them that it has.

    Raises:
        EngineBuildFailed: The engine is not built, or does not run.
        MissingDependency: CUDA's runtime library, which Polygraphy loads by itself, is not there.
    """
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.ERROR):  # it writes to standard output, where JSON goes
        if not where.startswith("tensorrt"):
            return _infer(_session(graph, outputs, where, index), inputs)
        try:
            with _runtime_library_found():
                return _run_engine(graph, outputs, inputs, where)
        except OSError as error:
            if "cudart" not in str(error):
                raise
            raise MissingDependency(
                f"Polygraphy cannot load CUDA's runtime library ({error}): {install_command('tensorrt')}, with a "
                f"driver of CUDA 12 {install_command('tensorrt-cu12')}; or add the CUDA toolkit's folder to {_SEARCHED}"
            ) from error
        except PolygraphyException as error:
            raise EngineBuildFailed(
                f"{graph.name} with its layers' results as outputs does not run with {where} ({error}): they take "
                "memory on the GPU, more than the engine itself. `bfr verify --backend onnxruntime-cpu --explain` "
                "compares the same graph on the CPU"
            ) from error


@contextmanager
def _runtime_library_found() -> Iterator[None]:
    """Polygraphy looks for CUDA's runtime library where pip installs it, too.

    By itself it knows the folder of CUDA 12's package, `nvidia/cuda_runtime`, and not that of CUDA 13's, `nvidia/cu13`.
    """
    packages = find_spec("nvidia")
    roots = (packages.submodule_search_locations if packages else None) or ()
    folders = sorted({str(file.parent) for root in roots for file in Path(root).glob(f"*/{_RUNTIME}")})
    before = os.environ.get(_SEARCHED)
    os.environ[_SEARCHED] = os.pathsep.join([*([before] if before else []), *folders])
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SEARCHED]
        else:
            os.environ[_SEARCHED] = before


def _session(graph: Path, outputs: Sequence[str], where: Where, index: int) -> Any:
    """The runner of a graph in ONNX Runtime with these tensors as its outputs. Polygraphy takes names for patterns."""
    import onnx
    import onnxruntime
    from polygraphy.backend.onnx import modify_outputs
    from polygraphy.backend.onnxrt import OnnxrtRunner

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    gpu = ("CUDAExecutionProvider", {"device_id": str(index), "use_tf32": "0"})  # as the backend has them
    provider: Any = gpu if where == "onnxruntime-cuda" else "CPUExecutionProvider"
    model = onnx.load(graph, load_external_data=False)
    marked = modify_outputs(model, outputs=[*map(escape, outputs)]).SerializeToString()
    return OnnxrtRunner(lambda: onnxruntime.InferenceSession(marked, sess_options=options, providers=[provider]))


def _run_engine(
    graph: Path, outputs: Sequence[str], inputs: Mapping[str, Float32], where: Where
) -> dict[str, NDArray[Any]]:
    """Build an engine with these tensors as its outputs, and run it once. It never ran on a GPU.

    TensorRT does not fuse across outputs: what fusing changes does not show.
    """
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineFromNetwork,
        ModifyNetworkOutputs,
        NetworkFromOnnxPath,
        Profile,
        TrtRunner,
    )

    types = load_library("tensorrt-rtx" if where == "tensorrt-rtx" else "tensorrt").DataType
    profile = Profile()
    for name, value in inputs.items():
        profile.add(name, value.shape, value.shape, value.shape)
    parsed = NetworkFromOnnxPath(str(graph), strongly_typed=True)()
    layers = [parsed[1].get_layer(i) for i in range(parsed[1].num_layers)]
    written = [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]
    there = {one.name for one in written if one is not None and one.dtype in (types.FLOAT, types.HALF)}
    marked = [escape(name) for name in outputs if name in there]
    if not marked:
        return {}
    network = ModifyNetworkOutputs(parsed, outputs=marked)
    return _infer(TrtRunner(EngineFromNetwork(network, CreateConfig(profiles=[profile]))), inputs)


def _infer(runner: Any, inputs: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
    """Copies of what a runner of Polygraphy makes, which builds its session or engine now."""
    with runner:
        return {name: np.array(value) for name, value in runner.infer(dict(inputs)).items()}
