"""ONNX Runtime on the CPU and on CUDA: buffers allocated once, every call bound to them beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bfr.runtime.backends import BoundCall, Buffer, Float32, Noise
from bfr.runtime.errors import BackendUnavailable, MissingDependency
from bfr.runtime.noise import HostNoise, UploadedNoise

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependency(
        'ONNX Runtime is not installed: pip install "bfr-runtime[cpu]", or on an NVIDIA GPU '
        'pip install "bfr-runtime[gpu]" (not both)'
    ) from error

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
CUDA_REMEDY = (
    'onnxruntime-gpu, an NVIDIA driver, CUDA and cuDNN are needed: pip install "bfr-runtime[gpu]" in an environment '
    "without onnxruntime, then run `bfr doctor`; or choose --backend onnxruntime-cpu"
)


@dataclass(frozen=True, slots=True)
class HostBuffer:
    """An OrtValue over a NumPy array: both see the same memory."""

    array: Float32
    value: ort.OrtValue


@dataclass(frozen=True, slots=True)
class CudaBuffer:
    """An OrtValue in the memory of a GPU."""

    value: ort.OrtValue


class OrtNetwork:
    """A session, and the calls bound to it."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        taken = {buffer.value.data_ptr() for buffer in inputs.values()}
        if any(buffer.value.data_ptr() in taken for buffer in outputs.values()):
            raise ValueError("an output buffer is also an input: the result would depend on the order of the writes")
        binding = self.session.io_binding()
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, buffer.value)
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, buffer.value)

        def call() -> None:
            self.session.run_with_iobinding(binding)

        return call


class CpuDevice:
    """The CPU. Any batch size is as good as another: a call takes as long as its images."""

    name = "onnxruntime-cpu"
    buckets: tuple[int, ...] | None = None

    def __init__(self, threads: int | None = None, *, spinning: bool = True) -> None:
        """`spinning`: idle threads wait in a loop, which is quicker but slows whatever else runs on the machine."""
        self.threads, self.spinning = threads, spinning

    @property
    def versions(self) -> dict[str, str]:
        return {"onnxruntime": ort.__version__}

    def array(self, shape: tuple[int, ...]) -> HostBuffer:
        return _host_buffer(np.zeros(shape, np.float32))

    def write(self, buffer: HostBuffer, values: Float32) -> None:
        buffer.array[...] = values

    def read(self, buffer: HostBuffer) -> Float32:
        return buffer.array.copy()

    def diffuse(self, estimate: HostBuffer, noise: HostBuffer, x: HostBuffer, signal: float, sigma: float) -> None:
        np.multiply(estimate.array, np.float32(signal), out=x.array)
        np.add(x.array, np.float32(sigma) * noise.array, out=x.array)

    def noise(self, shape: tuple[int, ...]) -> Noise:
        return _CpuNoise(shape)

    def load(self, graph: Path) -> OrtNetwork:
        options = ort.SessionOptions()
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.spinning else "0")
        return OrtNetwork(_session(graph, options, [CPU]))


def _host_buffer(array: Float32) -> HostBuffer:
    value = ort.OrtValue.ortvalue_from_numpy(array)
    if value.data_ptr() != array.ctypes.data:
        raise RuntimeError("this ONNX Runtime copies host arrays; writes would not reach the network")
    return HostBuffer(array, value)


class _CpuNoise(HostNoise):
    """Host noise whose two arrays are buffers of the device."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self._wrapped = (_host_buffer(self.arrays[0]), _host_buffer(self.arrays[1]))

    @property
    def buffers(self) -> tuple[Buffer, Buffer]:
        return self._wrapped


class CudaDevice:
    """One CUDA GPU through ONNX Runtime. The state stays on the device from the first step to the last."""

    name = "onnxruntime-cuda"
    buckets: tuple[int, ...] | None = (1, 2, 4, 8, 16)

    def __init__(self, index: int = 0) -> None:
        self.index = index
        if not cuda_works():
            raise BackendUnavailable(f"the CUDA provider of ONNX Runtime does not work here: {CUDA_REMEDY}")

    @property
    def versions(self) -> dict[str, str]:
        return {"onnxruntime": ort.__version__}

    def array(self, shape: tuple[int, ...]) -> CudaBuffer:
        buffer = CudaBuffer(ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, "cuda", self.index))
        self.write(buffer, np.zeros(shape, np.float32))
        return buffer

    def write(self, buffer: CudaBuffer, values: Float32) -> None:
        buffer.value.update_inplace(np.ascontiguousarray(values, np.float32))

    def read(self, buffer: CudaBuffer) -> Float32:
        return np.array(buffer.value.numpy(), np.float32)

    def diffuse(self, estimate: CudaBuffer, noise: CudaBuffer, x: CudaBuffer, signal: float, sigma: float) -> None:
        self.write(x, np.float32(signal) * self.read(estimate) + np.float32(sigma) * self.read(noise))

    def noise(self, shape: tuple[int, ...]) -> Noise:
        return UploadedNoise(self, shape)

    def load(self, graph: Path) -> OrtNetwork:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # TF32 keeps 10 bits of the mantissa: float32 is asked for, float32 is computed.
        return OrtNetwork(_session(graph, options, [(CUDA, {"device_id": str(self.index), "use_tf32": "0"})]))


def cuda_works() -> bool:
    """Whether a GPU can be used: the provider is compiled in, and memory on the device can be had."""
    if CUDA not in ort.get_available_providers():
        return False
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", 0)
    except Exception as error:  # ONNX Runtime raises RuntimeError and pybind's own types alike
        _ = error
        return False
    return True


def _session(graph: Path, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    remedy = CUDA_REMEDY if wanted == CUDA else f"onnxruntime {ort.__version__} may be too old for it; upgrade it"
    try:
        session = ort.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:
        raise BackendUnavailable(f"{graph.name} does not load with {wanted}: {error}\n{remedy}") from error
    if session.get_providers()[0] != wanted:
        raise BackendUnavailable(f"{wanted} was asked for, {session.get_providers()[0]} was loaded: {remedy}")
    return session
