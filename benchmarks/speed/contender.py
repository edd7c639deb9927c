"""Opens what is compared: eager PyTorch and the runtime's backends, on the same bundle.

A contender is named `NAME[:PRECISION][+graph|+nograph]`:

- `eager-cpu`, `eager-cuda`, `eager-tf32`, `eager-half`: PyTorch as published, in float32; `eager-tf32` rounds as
  PyTorch does by default on a GPU, `eager-half` has the denoiser's convolutions in half. On a GPU they share the
  runtime's buffers, noise and stream, so that what is compared is the networks' kernels and their launches.
- `torch-cpu`: the same networks in float32 through `torch.compile`, as its defaults have it.
- `openvino-cpu`: the bundle's graphs through OpenVINO, which is no backend of the runtime; its package is `openvino`.
- a backend of the runtime.

`openvino-cpu` and the runtime's take `:fp16` or `:int8` behind them, where the bundle has that precision.
- `+graph`: each whole chain is one CUDA graph, where the backend can and does not do so by itself (eager PyTorch).
  `+nograph`: it is not, where the backend does (TensorRT, TensorRT-RTX, compiled PyTorch).

PyTorch is imported only where it is asked for: a runtime backend's memory is measured without it.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from bfr.runtime.backends.cuda.bindings import device_count
from bfr.runtime.backends.device import Device, Network
from bfr.runtime.backends.registry import BACKENDS, CompilerOption, open_device
from bfr.runtime.backends.tensorrt_key import LIBRARIES, find_engines
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision, Preset
from bfr.runtime.errors import BackendUnavailable, BfrError, InvalidOption, MissingDependency
from bfr.runtime.install import importing
from bfr.runtime.restore.chains import load_networks
from bfr.runtime.restore.restorer import Restorer

BASELINES = ("eager-cpu", "eager-cuda")  # float32: results and times are compared with the first one named
EAGER = (*BASELINES, "eager-tf32", "eager-half", "torch-cpu")
GRAPHS = ("openvino-cpu", *BACKENDS)  # run the bundle's graphs, in any of its precisions
RECORD = tuple(row.name for row in BACKENDS.values() if row.records)  # record graphs unless told otherwise
MAY_RECORD = ("eager-cuda", "eager-half")


class Name(NamedTuple):
    """A contender's name in parts.

    Attributes:
        graph: Whether whole chains are recorded, where the device can.
    """

    backend: str
    precision: str
    graph: bool


@dataclass(frozen=True, slots=True)
class Contender:
    """A backend with a bundle's networks loaded.

    Attributes:
        name: As in a configuration.
        load_seconds: Seconds of reading, hashing and loading the networks; not of importing libraries.
        build_seconds: Seconds of the engines that it loaded, when `bfr build` made them; None of what builds nothing
            beforehand.
    """

    name: str
    device: Device
    networks: dict[str, Network]
    precision: Precision = "fp32"
    load_seconds: float = 0.0
    build_seconds: float | None = None

    @property
    def records(self) -> bool:
        """Whether a chain is recorded, in its second run."""
        return bool(getattr(self.device, "records", False))

    @property
    def first_calls(self) -> int:
        """The calls of a chain that do not show its speed: the first, or those up to the one that records it."""
        return 2 if self.records else 1

    def restorer(self, bundle: Bundle, sampler: Preset, batch: int) -> Restorer:
        """The Restorer of one batch size. Eager half counts as float32 here: its networks are already what they are."""
        precision = "fp32" if self.name.startswith("eager") else self.precision
        return Restorer(bundle, self.device, sampler, precision=precision, batch=batch, networks=self.networks)


def split_name(name: str) -> Name:
    """Return the parts of a contender's name. Raises InvalidOption, with those that there are, for an unknown one."""
    rest, _, suffix = name.partition("+")
    backend, _, precision = rest.partition(":")
    if backend not in GRAPHS and (backend not in EAGER or precision):
        raise InvalidOption(
            f"backend {name!r} is unknown: choose among {', '.join(EAGER)}, and {', '.join(GRAPHS)}[:fp16 or :int8]"
        )
    graph = backend in RECORD
    if suffix:
        if (suffix, backend in RECORD, backend in MAY_RECORD) not in (("nograph", True, False), ("graph", False, True)):
            raise InvalidOption(
                f"backend {name!r}: +graph goes with {', '.join(MAY_RECORD)}, +nograph with {', '.join(RECORD)}"
            )
        graph = not graph
    return Name(backend, precision or ("fp16" if backend == "eager-half" else "fp32"), graph)


def default_backends(bundle: Bundle, index: int = 0) -> tuple[str, ...]:
    """What works here, on GPU `index` if there is one: eager PyTorch, then the runtime's, in every precision.

    On a GPU: eager in float32, TF32 and half, half as a graph too, compiled PyTorch, ONNX Runtime, and TensorRT and
    TensorRT-RTX where the bundle has their engines for this machine. Without one: both on the CPU.
    """
    from bfr.runtime.backends.onnxruntime import cuda_works

    on_gpu = [precision for precision in bundle.precisions if precision != "int8"]
    precisions = [f":{precision}" if precision != "fp32" else "" for precision in on_gpu]
    if bundle.wrapped:
        return ("onnxruntime-cuda", "onnxruntime-cpu") if cuda_works(index) else ("onnxruntime-cpu",)
    if not (device_count() and _torch().cuda.is_available()):
        return ("eager-cpu", *(["onnxruntime-cuda"] if cuda_works(index) else ["onnxruntime-cpu"]))
    found = ["eager-cuda", "eager-tf32", "eager-half", "eager-half+graph"]
    if find_spec("triton") is not None:
        found += [f"torch-cuda{half}" for half in precisions]
    if cuda_works(index):
        found += [f"onnxruntime-cuda{half}" for half in precisions]
    for library in LIBRARIES:
        for precision in on_gpu:
            try:
                BACKENDS[library].load().check(bundle, precision, index)
            except BfrError:
                continue
            found.append(f"{library}:{precision}" if precision != "fp32" else library)
    return tuple(found)


def open_contender(
    bundle: Bundle,
    name: str,
    *,
    threads: int | None,
    index: int = 0,
    compiler: Collection[CompilerOption] | None = None,
) -> Contender:
    """Open a backend and load the networks.

    Args:
        bundle: The bundle.
        name: Name of the contender.
        threads: CPU threads; None is each library's own choice.
        index: Number of the GPU.
        compiler: Compiler options of a backend that compiles; None is its default.

    Raises:
        BackendUnavailable: It does not work or makes no sense here.
        MissingDependency: A package that it needs is not installed.
        InvalidOption: The name is unknown.
        EngineMissing: The bundle has no engines for this machine; EngineMismatch where they are another machine's.
    """
    parts = split_name(name)
    if parts.backend in ("eager-cpu", "torch-cpu"):
        return _open_torch_cpu(bundle, name, threads)
    if parts.backend in EAGER:
        return _open_eager_gpu(bundle, name, parts, index)
    device: Any
    if parts.backend == "openvino-cpu":
        try:
            from bfr.benchmarks.speed.openvino import OpenVinoDevice
        except ImportError as error:
            raise MissingDependency(f"{name} needs OpenVINO: pip install openvino") from error
        device = OpenVinoDevice(threads)
    else:
        device = open_device(parts.backend, bundle, threads=threads, index=index, compiler=compiler)
        if BACKENDS[parts.backend].where == "cuda":
            device.records = parts.graph
    chosen = bundle.precision(parts.precision)
    begin = time.perf_counter()
    networks = load_networks(bundle, device, chosen)
    seconds = time.perf_counter() - begin
    engines = find_engines(bundle, chosen, device.machine) if parts.backend in LIBRARIES else []
    build_seconds = sum(engine.build_seconds for engine in engines) if engines else None
    return Contender(name, device, networks, chosen, seconds, build_seconds)


def _open_torch_cpu(bundle: Bundle, name: str, threads: int | None) -> Contender:
    torch = _torch()
    from bfr.export.pytorch.eager import EagerDevice, EagerNetwork
    from bfr.export.pytorch.reference import load_reference

    if threads is not None:
        torch.set_num_threads(threads)
    begin = time.perf_counter()
    stages: dict[str, Any] = load_reference(bundle)
    if name == "torch-cpu":
        stages = {key: torch.compile(stage, fullgraph=True, dynamic=False) for key, stage in stages.items()}
    networks: dict[str, Network] = {key: EagerNetwork(stage) for key, stage in stages.items()}
    return Contender(name, EagerDevice(), networks, "fp32", time.perf_counter() - begin)


def _open_eager_gpu(bundle: Bundle, name: str, parts: Name, index: int) -> Contender:
    torch = _torch()
    if not torch.cuda.is_available():
        half = parts.backend == "eager-half"
        reason = "eager PyTorch in half is for GPUs: a CPU emulates it" if half else "it needs a GPU"
        raise BackendUnavailable(f"{name}: {reason}, and PyTorch found no CUDA device")
    from bfr.export.pytorch.compiled import CompiledDevice

    # PyTorch lets cuDNN compute float32 convolutions in TF32 by default, 10 bits of mantissa: the baseline is float32,
    # and what stays in float32 of `eager-half` is computed as by `torch-cuda:fp16`, which it is compared with.
    device: Any = CompiledDevice(index, compiled=False, graphs=parts.graph, tf32=parts.backend == "eager-tf32")
    begin = time.perf_counter()
    half_too = set()
    if parts.backend == "eager-half":  # the published half mode
        unets = (stage.network for stage in bundle.denoisers)
        half_too = {name for name in unets if bundle.network(name).architecture == "unet"}
    networks = {
        net: device.load(bundle, net, "fp16" if net in half_too else "fp32") for net in bundle.manifest.networks
    }
    precision: Precision = "fp16" if half_too else "fp32"
    return Contender(name, device, networks, precision, time.perf_counter() - begin)


def _torch() -> Any:
    with importing("PyTorch, the baseline,", "bench"):
        import torch
    return torch


def default_threads() -> int:
    """PyTorch's own choice: the physical cores that it may use, or OMP_NUM_THREADS."""
    return int(_torch().get_num_threads())
