"""ONNX Runtime on the CPU and on CUDA: buffers allocated once, every call bound to them beforehand."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from bfr.runtime.backends.cuda.bindings import device_count
from bfr.runtime.backends.cuda.device import GpuBuffer, GpuDevice
from bfr.runtime.backends.device import BoundCall, Float32, refuse_shared
from bfr.runtime.backends.host import HostDevice, check_threads, environments_threads, trim_heap
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.bundle.onnx import LARGEST_ELEMENTS, OnnxFile
from bfr.runtime.errors import BackendUnavailable, DeviceOutOfMemory, MissingDependency
from bfr.runtime.install import install_command

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependency(
        f"ONNX Runtime is not installed: {install_command('cpu')}, or on an NVIDIA GPU "
        f"{install_command('gpu')} (not both)"
    ) from error

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
SHRINK = "memory.enable_memory_arena_shrinkage"  # an option of a run
# What a session may do with a graph. Older versions ignore the entries that they do not know.
SAFE = {
    "session.load_model_format": "ONNX",  # never guessed from the bytes
    "session.use_external_initializer_file_buffers_directly": "1",  # no copy of what is mapped
    "optimization.constant_folding_max_output_size_in_bytes": str(4 * LARGEST_ELEMENTS),  # of one node
}
# With floating-point tensors all of them have CUDA kernels; what ONNX Runtime leaves to the CPU are those on shapes.
ON_SHAPES = frozenset(
    ("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Identity", "Mul", "Range",
     "Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where")
)  # fmt: skip
CUDA_REMEDY = (
    f"onnxruntime-gpu, an NVIDIA driver, CUDA and cuDNN are needed: {install_command('gpu')} in an environment "
    "without onnxruntime, then run `bfr doctor`; or choose --backend onnxruntime-cpu"
)


class OrtNetwork:
    """A session, and the calls bound to it."""

    def __init__(self, session: ort.InferenceSession, source: Path | OnnxFile) -> None:
        self.session, self.source = session, source  # whose weights the session reads in place
        self._shapes = set[tuple[int, ...]]()  # that it was called with
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry(SHRINK, "cpu:0")

    def bind(self, inputs: Mapping[str, Float32], outputs: Mapping[str, Float32]) -> BoundCall:
        refuse_shared([b.ctypes.data for b in inputs.values()], [b.ctypes.data for b in outputs.values()])
        binding = self.session.io_binding()
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, _shared_value(buffer))
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, _shared_value(buffer))

        shape = next(iter(inputs.values())).shape

        def call() -> None:
            # The first call of a shape allocates tensor by tensor, the others one block that fits what it has seen.
            # ONNX Runtime would keep both: of DifFace 512, 500 MiB.
            first = shape not in self._shapes
            self.session.run_with_iobinding(binding, self._shrink if first else None)
            self._shapes.add(shape)

        return call


class CpuDevice(HostDevice):
    """The CPU through ONNX Runtime. Any batch size is as good as another: a call takes as long as its images."""

    name = "onnxruntime-cpu"

    def __init__(self, threads: int | None = None, *, spinning: bool = True) -> None:
        """Choose the threads of the sessions.

        Args:
            threads: Number of threads; None is that of OMP_NUM_THREADS, or one a core.
            spinning: Whether threads wait for each other in a loop within a call, which is quicker, but slows other
                processes down. Between calls none spins: those of one network would slow the next one down.

        Raises:
            InvalidOption: The number of threads is out of range.
        """
        check_threads(threads)
        self.threads, self.spinning = threads or environments_threads(), spinning

    @property
    def versions(self) -> dict[str, str]:
        return {"onnxruntime": ort.__version__}

    def load(self, bundle: Bundle, name: str, precision: Precision) -> OrtNetwork:
        return self.load_graph(bundle.open_graph(name, precision))

    def load_graph(self, graph: Path | OnnxFile) -> OrtNetwork:
        """Load a checked ONNX file, or the path of one that is known to be ours."""
        options = ort.SessionOptions()
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.spinning else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3  # it would warn of each constant in half that it does not fold
        return OrtNetwork(_session(graph, options, [CPU]), graph)


def _shared_value(array: Float32) -> ort.OrtValue:
    """An OrtValue over an array's own memory, which must live as long as the value is used."""
    value = ort.OrtValue.ortvalue_from_numpy(array)
    if value.data_ptr() != array.ctypes.data:
        raise RuntimeError("this ONNX Runtime copies host arrays; writes would not reach the network")
    return value


class CudaNetwork:
    """A session on the device's stream; a call returns when its kernels are enqueued."""

    def __init__(self, device: "CudaDevice", session: ort.InferenceSession, source: Path | OnnxFile) -> None:
        self.device, self.session, self.source = device, session, source
        self.options = ort.RunOptions()
        self.options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(self, inputs: Mapping[str, GpuBuffer], outputs: Mapping[str, GpuBuffer]) -> BoundCall:
        refuse_shared([b.address for b in inputs.values()], [b.address for b in outputs.values()])
        binding = self.session.io_binding()
        for name, buffer in inputs.items():
            binding.bind_input(name, "cuda", self.device.cuda.index, np.float32, buffer.shape, buffer.address)
        for name, buffer in outputs.items():
            binding.bind_output(name, "cuda", self.device.cuda.index, np.float32, buffer.shape, buffer.address)

        def call() -> None:
            try:
                self.session.run_with_iobinding(binding, self.options)
            except Exception as error:  # pybind's own types
                text = str(error).lower()
                if ("memory" in text and "illegal" not in text) or "alloc_failed" in text:  # the latter of cuBLAS
                    raise DeviceOutOfMemory(f"ONNX Runtime: {error}: choose a smaller --batch") from error
                self.device.raise_if_lost("ONNX Runtime", error)
                raise

        return call


class CudaDevice(GpuDevice):
    """One CUDA GPU through ONNX Runtime, which enqueues its kernels on the device's own stream.

    Chains are not recorded: a graph would keep the addresses of pinned memory that ONNX Runtime frees after the call.
    """

    name = "onnxruntime-cuda"
    records = False

    def __init__(self, index: int = 0) -> None:
        self.check(None, "fp32", index)
        super().__init__(index)

    @classmethod
    def check(cls, bundle: Bundle | None, precision: Precision, index: int) -> None:
        del bundle, precision
        if not cuda_works(index):
            raise BackendUnavailable(f"the CUDA provider of ONNX Runtime does not work here: {CUDA_REMEDY}")

    @property
    def versions(self) -> dict[str, str]:
        return {"onnxruntime": ort.__version__, **super().versions}

    def load(self, bundle: Bundle, name: str, precision: Precision) -> CudaNetwork:
        return self.load_graph(bundle.open_graph(name, precision))

    def load_graph(self, graph: Path | OnnxFile) -> CudaNetwork:
        """Load a checked ONNX file, or the path of one that is known to be ours."""
        options = ort.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # TF32 keeps 10 bits of the mantissa: float32 is computed in float32.
        provider = {
            "device_id": str(self.cuda.index),
            "use_tf32": "0",
            "user_compute_stream": str(int(self.stream)),
        }
        session = _session(graph, options, [(CUDA, provider)])
        _refuse_host_work(session, graph.path.name if isinstance(graph, OnnxFile) else graph.name)
        return CudaNetwork(self, session, graph)


def cuda_works(index: int = 0) -> bool:
    """Return whether a GPU can be used: the provider is compiled in, and memory on that device can be had."""
    if CUDA not in ort.get_available_providers() or index >= device_count():
        return False
    with redirect_stdout(io.StringIO()):  # it prints what it did not find, which need not be missing
        ort.preload_dlls()
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", index)
    except Exception:  # ONNX Runtime raises RuntimeError and pybind's own types alike
        return False
    return True


def _refuse_host_work(session: ort.InferenceSession, name: str) -> None:
    """Raise BackendUnavailable if ONNX Runtime leaves more of a graph to the CPU than the arithmetic of shapes.

    The shapes of tensors are in the host's memory anyway: nothing is copied, and nothing waits for the GPU.
    """
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != CUDA]
    left = sorted({node.op_type for part in parts for node in part.get_nodes()} - ON_SHAPES)
    if left:
        raise BackendUnavailable(
            f"{name} does not run on the GPU as a whole: the CUDA provider of ONNX Runtime {ort.__version__} has no "
            f"kernel for {', '.join(left)}. Export it with opset 20 or without them, or choose another --backend"
        )


def _session(graph: Path | OnnxFile, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    remedy = CUDA_REMEDY if wanted == CUDA else f"onnxruntime {ort.__version__} may be too old for it; upgrade it"
    for name, value in SAFE.items():
        options.add_session_config_entry(name, value)
    source: str | bytes = str(graph)
    if isinstance(graph, OnnxFile):
        source, weights = graph.model, graph.weights
        if hasattr(options, "add_external_initializers_from_files_in_memory"):
            options.add_external_initializers_from_files_in_memory(
                [*weights], [*weights.values()], [*map(len, weights.values())]
            )
        else:  # 1.23, the last for Python 3.10, reads the files again
            source = str(graph.path)
    try:
        session = ort.InferenceSession(source, options, providers=providers)
    except Exception as error:
        path = graph.path if isinstance(graph, OnnxFile) else graph
        raise BackendUnavailable(f"{path.name} does not load with {wanted}: {error}\n{remedy}") from error
    if isinstance(graph, OnnxFile):
        graph.settle()
    trim_heap()
    if session.get_providers()[0] != wanted:
        raise BackendUnavailable(f"{wanted} was requested, but {session.get_providers()[0]} was loaded: {remedy}")
    return session
