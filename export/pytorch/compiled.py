"""PyTorch on a GPU, compiled or eager, as a child of the runtime's GPU device: its buffers, its stream, its noise.

The buffers' memory is seen as tensors without a copy, and everything that PyTorch enqueues goes to the device's stream.
A whole chain becomes one CUDA graph, captured by PyTorch: memory that its allocator returns during the capture belongs
to the graph until the graph is freed.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from bfr.export.pytorch.reference import load_stage
from bfr.models.stages.gradient import move
from bfr.models.stages.stage import HALVES, Stage, as_tuple
from bfr.runtime.backends.cuda.bindings import Cuda
from bfr.runtime.backends.cuda.device import GpuBuffer, GpuDevice
from bfr.runtime.backends.device import BoundCall, refuse_shared
from bfr.runtime.backends.registry import CompilerOption
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.machine import private_folder
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import BackendUnavailable, DeviceLost, DeviceOutOfMemory, InvalidOption, MissingDependency
from bfr.runtime.restore.options import OpenOptions

INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
RECOMPILE_LIMIT = 64  # of torch.compile: every network, precision and batch size is compiled apart
StageCall = Callable[[dict[str, Tensor], tuple[Tensor, ...]], None]


def prepare_stage(stage: nn.Module, precision: Precision, *, channels_last: bool = False) -> nn.Module:
    """Make a stage module ready to run: in half as published (`cast_torso`), weights laid out. Changes and returns it.

    Args:
        stage: The module.
        precision: Precision of the network in it.
        channels_last: The layout in which tensor cores read convolutions; compiled code keeps activations in it as
            well, eager group normalization does not.

    Raises:
        InvalidOption: The stage has no such precision.
    """
    stage = stage.eval().requires_grad_(False)
    if precision != "fp32":
        network: Any = getattr(stage, stage.wraps, None) if isinstance(stage, Stage) else None
        if precision not in HALVES or not hasattr(network, "cast_torso"):
            raise InvalidOption(f"{type(stage).__name__} cannot run in {precision}: choose fp32")
        network.cast_torso(HALVES[precision])
    return stage.to(memory_format=torch.channels_last) if channels_last else stage  # type: ignore[call-overload]


def compile_options(chosen: Collection[CompilerOption]) -> dict[str, Any]:
    """Return the options of `torch.compile`: the chosen ones are on, all others are off."""
    return {"options": {name: name in chosen for name in get_args(CompilerOption)}}


def stage_call(stage: nn.Module, compiler: Mapping[str, Any] | None = None) -> StageCall:
    """Return a function of inputs by name and of the tensors that it writes the outputs into, in the stage's order.

    The writes belong to what is compiled: the last kernels write where the results are wanted, without another copy.

    Args:
        stage: The module.
        compiler: Options of `torch.compile`; None runs eagerly. What cannot be compiled raises; nothing falls back.
    """

    def run(inputs: dict[str, Tensor], outputs: tuple[Tensor, ...]) -> None:
        for output, result in zip(outputs, as_tuple(stage(**inputs)), strict=True):
            output.copy_(result)

    if compiler is None:
        return run
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    return torch.compile(run, fullgraph=True, dynamic=False, **compiler)


def array_interface(buffer: GpuBuffer) -> dict[str, Any]:
    """A device buffer as the CUDA array interface describes it, version 3.

    Its stream is None: nothing has to be waited for, since all reads and writes are on the device's stream.
    """
    pointer = {"data": (buffer.address, False), "typestr": "<f4", "strides": None}
    return {"version": 3, "shape": buffer.shape, "stream": None, **pointer}


def tensor_view(buffer: GpuBuffer, index: int) -> Tensor:
    """The buffer's memory on GPU `index` as a float32 tensor. It must not be used once the buffer was released."""
    view = SimpleNamespace(__cuda_array_interface__=array_interface(buffer))
    found = torch.as_tensor(view, device=torch.device("cuda", index))
    if found.data_ptr() != buffer.address:
        raise RuntimeError("this PyTorch copies device arrays; what a network writes would not reach the chain")
    return found


class CompiledNetwork:
    """A stage module on the GPU; a call returns when its kernels are enqueued."""

    def __init__(self, device: "CompiledDevice", run: StageCall) -> None:
        self.device, self.run = device, run

    def bind(self, inputs: Mapping[str, GpuBuffer], outputs: Mapping[str, GpuBuffer]) -> BoundCall:
        refuse_shared([b.address for b in inputs.values()], [b.address for b in outputs.values()])
        sources = {name: self.device.tensor(buffer) for name, buffer in inputs.items()}
        targets = tuple(self.device.tensor(buffer) for buffer in outputs.values())

        def call() -> None:
            with self.device.computing():
                self.run(sources, targets)

        return call


def keep_compiled_code() -> None:
    """Have PyTorch keep compiled code, which it loads and runs, where no other user can write.

    Its default is a folder in /tmp with a name that every user can guess and create first. TORCHINDUCTOR_CACHE_DIR
    overrules. Raises WriteFailed, and BackendUnavailable if another user can write in the folder.
    """
    if not os.environ.get(INDUCTOR_CACHE):
        os.environ[INDUCTOR_CACHE] = str(private_folder("inductor"))


class CompiledDevice(GpuDevice):
    """One GPU through PyTorch; `torch-cuda` is the compiled one.

    The first call of a network at a batch size compiles it, for minutes; PyTorch keeps the result on disk for the next
    process. Eager PyTorch on the same buffers, noise and stream is the reference of measurements.
    """

    def __init__(
        self,
        index: int = 0,
        *,
        compiled: bool = True,
        graphs: bool = True,
        tf32: bool = False,
        compiler: Collection[CompilerOption] = OpenOptions().compiler,
    ) -> None:
        """Open the GPU.

        Args:
            index: Number of the GPU.
            compiled: Compile networks with `torch.compile`, else run them eagerly.
            graphs: Record whole chains as CUDA graphs.
            tf32: Let float32 convolutions round their inputs to 10 bits of mantissa, as PyTorch does by default.
            compiler: What inductor does, see `OpenOptions.compiler`.

        Raises:
            MissingDependency: cuda-python, NVRTC or Triton is missing.
            BackendUnavailable: There is no such GPU, or PyTorch was built without CUDA.
        """
        Cuda(index)  # its errors say more than PyTorch's
        if not torch.cuda.is_available():
            raise BackendUnavailable(
                f"PyTorch {torch.__version__} cannot use CUDA here: install a build of it for CUDA "
                "(https://pytorch.org/get-started), or choose another --backend"
            )
        if compiled and find_spec("triton") is None:
            raise MissingDependency(
                "torch.compile needs Triton on a GPU: pip install triton, or choose another --backend"
            )
        if compiled:
            keep_compiled_code()
        super().__init__(index)
        self.name = "torch-cuda" if compiled else "eager-cuda"
        self.compiled, self.records, self.tf32 = compiled, graphs, tf32
        self.compiler = compile_options(compiler) if compiled else None
        torch.cuda.set_device(index)
        self.torch_stream = torch.cuda.ExternalStream(int(self.stream), device=index)  # type: ignore[no-untyped-call]
        self._graphs: list[torch.cuda.CUDAGraph] = []

    @property
    def versions(self) -> dict[str, str]:
        found = {"torch": torch.__version__, "torch's CUDA": str(torch.version.cuda)}
        if self.compiled:
            try:
                found["triton"] = version("triton")
            except PackageNotFoundError:  # it came under another name
                found["triton"] = "unknown"
        return {**found, **super().versions}

    def tensor(self, buffer: GpuBuffer) -> Tensor:
        """A buffer's memory as a tensor."""
        return tensor_view(buffer, self.cuda.index)

    def load(self, bundle: Bundle, name: str, precision: Precision) -> CompiledNetwork:
        """A network of a bundle, rebuilt from its float32 weights; its files are checked first.

        Raises InvalidOption for a precision that it does not have.
        """
        # Compiled code keeps the layout of the weights; eager stays as published.
        stage: nn.Module = prepare_stage(load_stage(bundle, name), precision, channels_last=self.compiled)
        if isinstance(stage, Stage) and stage.autograd:  # which cannot be recorded; its trace is plain arithmetic
            stage = stage.traceable(int(bundle.network(name).inputs[0].shape[-1])).eval()
        where = torch.device("cuda", self.cuda.index)
        with self.computing():
            for part in stage.modules():
                if isinstance(part, fx.GraphModule):
                    move(part, where)  # the constants that it makes
            stage = stage.to(where)
        self.cuda.synchronize(self.stream)
        return CompiledNetwork(self, stage_call(stage, self.compiler))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Make PyTorch use this device's GPU and stream, without gradients, in the requested precision.

        Raises DeviceOutOfMemory, DeviceLost.
        """
        # When compiled, cuDNN times all of its algorithms once, before a capture (0 is no limit, the default is 10);
        # eager PyTorch takes the algorithm that cuDNN's heuristic chooses, as published.
        flags = torch.backends.cudnn.flags(
            enabled=True, benchmark=self.compiled, benchmark_limit=0, allow_tf32=self.tf32
        )
        try:
            with torch.no_grad(), torch.cuda.stream(self.torch_stream), flags:
                yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):  # the latter of cuBLAS, cuDNN
                free, total = self.cuda.memory()
                raise DeviceOutOfMemory(
                    f"GPU {self.cuda.index}, PyTorch: {str(error).splitlines()[0]} {free:,} of {total:,} bytes are "
                    "free: choose a smaller --batch, or end what else uses the GPU (nvidia-smi)"
                ) from error
            if "CUDA error" in str(error):
                self.raise_if_lost("PyTorch", error)
            raise

    def capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record what `work` enqueues on the device's stream, PyTorch's and ours alike; nothing runs.

        Chains run one after the other, so that all graphs share the memory of the first one's.
        """
        graph = torch.cuda.CUDAGraph()
        pool = self._graphs[0].pool() if self._graphs else None
        failed: BaseException | None = None
        self.settle()
        with self.computing():
            capture = torch.cuda.graph(graph, pool=pool, stream=self.torch_stream, capture_error_mode="thread_local")
            try:
                with capture:
                    try:
                        work()
                    except BaseException as error:
                        failed = error
                        raise
            except RuntimeError:
                if failed is not None:  # the error of ending the capture would hide this one
                    raise failed from None
                raise
        self._graphs.append(graph)
        return graph

    def replay(self, graph: torch.cuda.CUDAGraph) -> None:
        """Enqueue a recorded graph."""
        with self.computing():
            graph.replay()

    def forget(self, graph: torch.cuda.CUDAGraph) -> None:
        """Free a recorded graph, and its memory once no other graph shares it."""
        self.cuda.synchronize(self.stream)
        self._graphs = [other for other in self._graphs if other is not graph]
        graph.reset()
        torch.cuda.empty_cache()

    def array(self, shape: tuple[int, ...]) -> GpuBuffer:
        try:
            return super().array(shape)
        except DeviceOutOfMemory:
            torch.cuda.empty_cache()  # PyTorch's unused memory may suffice
            return super().array(shape)

    def memory(self) -> tuple[int, int] | None:
        with self.computing():
            torch.cuda.empty_cache()  # memory that PyTorch holds unused counts as free
        return super().memory()

    def close(self) -> None:
        # cuBLAS's workspaces stay: graphs of other devices in this process may hold their addresses.
        with suppress(DeviceLost):
            self.cuda.synchronize(self.stream)  # PyTorch's own error on a lost device would hide the first one
            for graph in list(self._graphs):
                self.forget(graph)
            torch.cuda.empty_cache()
        super().close()
