"""The table of backends, one row each, read by `open_device`, `auto`, the command line's help, `doctor` and `bench`.

A backend's module is imported when the backend is chosen, not before.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bfr.runtime.backends.cuda.bindings import Cuda, device_count
from bfr.runtime.backends.device import Device
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.machine import MachineFiles, MachineRecord
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import (
    BackendUnavailable,
    BfrError,
    EngineMismatch,
    EngineMissing,
    InvalidOption,
    MissingDependency,
)
from bfr.runtime.install import install_command

CompilerOption = Literal["max_autotune", "coordinate_descent_tuning", "conv_1x1_as_mm"]
"""Options of PyTorch's inductor, by its names: time each kernel's variants, tune the fastest one's blocks further,
compute 1x1 convolutions as matrix products."""
_UNUSABLE = (BackendUnavailable, EngineMismatch, EngineMissing, MissingDependency)
_log = logging.getLogger("bfr")
Opened = TypeVar("Opened")


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend, by the names that it is loaded by.

    Attributes:
        name: Its name in options.
        module: Full name of the module with its device.
        device: The class in that module. On `cpu` it is called with `threads` and `spinning`, on `cuda` with `index`;
            a class on `cuda` is a child of `bfr.runtime.backends.cuda.device.GpuDevice`.
        package: The package that it imports.
        extra: The extra that installs it.
        where: The processor that it runs on.
        help: Its description, in a few words.
        unmeasured: Whether `auto` chooses it on a GPU without measurements, in the order of the rows.
        records: Whether a whole chain is recorded as one CUDA graph by default.
        compiles: Whether its class takes `compiler`, a collection of COMPILER_OPTIONS.
    """

    name: str
    module: str
    device: str
    package: str
    extra: str
    where: Literal["cpu", "cuda"]
    help: str
    unmeasured: bool = False
    records: bool = False
    compiles: bool = False

    @property
    def installed(self) -> bool:
        """Whether its package is there. Nothing is imported."""
        try:
            return find_spec(self.package) is not None
        except ValueError:  # what was imported without a spec is there
            return True

    def load(self) -> Any:
        """Import its class. Raises MissingDependency if its package is not installed."""
        try:
            return getattr(import_module(self.module), self.device)
        except ImportError as error:
            if isinstance(error, MissingDependency) or (error.name or "").startswith("bfr"):
                raise
            raise MissingDependency(
                f"backend {self.name} cannot be loaded ({error}): {install_command(self.extra)}"
            ) from error

    def check(self, bundle: Bundle | None, precision: Precision, index: int) -> None:
        """Raise a BfrError unless it works here. Loads no network."""
        if self.where == "cuda":
            self.load().check(bundle, precision, index)


_ORT, _TRT = "bfr.runtime.backends.onnxruntime", "bfr.runtime.backends.tensorrt"
_ROWS = (
    Backend("onnxruntime-cpu", _ORT, "CpuDevice", "onnxruntime", "cpu", "cpu", "ONNX Runtime on the CPU"),
    Backend("tensorrt", _TRT, "TensorRtDevice", "tensorrt", "tensorrt", "cuda",
            "engines of bfr build, run by TensorRT", unmeasured=True, records=True),
    Backend("tensorrt-rtx", _TRT, "TensorRtRtxDevice", "tensorrt_rtx", "tensorrt-rtx", "cuda",
            "engines of bfr build, run by TensorRT for RTX", unmeasured=True, records=True),
    Backend("onnxruntime-cuda", _ORT, "CudaDevice", "onnxruntime", "gpu", "cuda",
            "ONNX Runtime on an NVIDIA GPU", unmeasured=True),
    # The one that is not part of the runtime: it needs torch and the networks' modules. Its first call compiles for
    # minutes, so `auto` chooses it only if it was measured.
    Backend("torch-cuda", "bfr.export.pytorch.compiled", "CompiledDevice", "torch", "export", "cuda",
            "PyTorch on an NVIDIA GPU, compiled", records=True, compiles=True),
)  # fmt: skip
BACKENDS: dict[str, Backend] = {row.name: row for row in _ROWS}
FALLBACK = "onnxruntime-cpu"  # of `auto`
if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[("auto", *BACKENDS)]
HELP = "; ".join(["auto: the fastest that was verified here", *(f"{b.name}: {b.help}" for b in BACKENDS.values())])


def open_device(
    name: str,
    bundle: Bundle | None = None,
    *,
    precision: Precision = "fp32",
    threads: int | None = None,
    spinning: bool = True,
    index: int = 0,
    compiler: Collection[CompilerOption] | None = None,
) -> Device:
    """Open the device of a backend.

    Args:
        name: One of BACKENDS, or `auto`, see `choose`.
        bundle: What will run; `auto` looks for its engines and measurements on this machine.
        precision: What it will run in.
        threads: Threads of a CPU backend; None is OMP_NUM_THREADS, or the library's choice.
        spinning: Whether idle threads of a backend on the CPU wait in a loop.
        index: The number of the GPU.
        compiler: Compiler options of a backend that compiles; None is its default.

    Raises:
        InvalidOption: The name is unknown.
        MissingDependency: A package that the backend needs is not installed.
        BackendUnavailable: The backend does not work on this machine.
    """
    if name == "auto":
        name = choose(bundle, precision, index)
    if name not in BACKENDS:
        raise InvalidOption(f"backend {name!r} is unknown: choose one of {', '.join(('auto', *BACKENDS))}")
    backend = BACKENDS[name]
    make = backend.load()
    more = {"compiler": compiler} if backend.compiles and compiler is not None else {}
    device: Device = make(threads=threads, spinning=spinning) if backend.where == "cpu" else make(index=index, **more)
    return device


def open_usable(
    backend: str, bundle: Bundle, precision: Precision, index: int, open_on: Callable[[str], Opened]
) -> Opened:
    """Open a bundle on a backend. If a backend does not work here, `auto` tries the next one.

    Args:
        backend: One of BACKENDS, or `auto`, see `choose`.
        bundle: The bundle.
        precision: Precision of the networks.
        index: The number of the GPU.
        open_on: Opens the bundle on the backend of a name.

    Returns:
        What `open_on` returned.

    Raises:
        BfrError: The backend that was named does not work, or none does.
    """
    tried: list[str] = []
    while True:
        name = choose(bundle, precision, index, without=tried) if backend == "auto" else backend
        try:
            return open_on(name)
        except _UNUSABLE as error:
            if backend != "auto" or name == FALLBACK:
                raise
            _log.warning("skipping backend %s: %s", name, error)
            tried.append(name)


def choose(bundle: Bundle | None, precision: Precision, index: int = 0, *, without: Collection[str] = ()) -> str:
    """Return the backend that `auto` chooses.

    Of those that were verified on this GPU (by `bfr build`, or by `bfr verify --record`) the one with the fastest
    step; then those that need no measurement, in the order of the rows: TensorRT if engines were built, then ONNX
    Runtime on CUDA. Without a GPU, and for int8, the CPU. If an expected backend does not work, this warns.

    Args:
        bundle: What will run; None for any.
        precision: What it will run in.
        index: The number of the GPU.
        without: Backends that were tried and could not load the networks.
    """
    if precision == "int8" or not device_count():
        return FALLBACK
    record = recorded(bundle)
    measured = verified_seconds(record, precision, Cuda(index).facts.name)
    ranked = sorted(measured, key=lambda name: measured[name])
    for name in dict.fromkeys([*ranked, *(row.name for row in BACKENDS.values() if row.unmeasured)]):
        if name in without:
            continue
        try:
            BACKENDS[name].check(bundle, precision, index)
        except BfrError as error:
            built = any(one.key.library == name and one.key.precision == precision for one in record.engines)
            if built or name in measured:
                _log.warning("skipping backend %s: %s", name, error)
            continue
        return name
    return FALLBACK


def verified_seconds(record: MachineRecord, precision: Precision, gpu: str | None) -> dict[str, float]:
    """Seconds a step, by backend, of a whole system verified here in this precision on this GPU, or the CPU (None)."""
    checks = [*record.verified, *(check for engine in record.engines for check in engine.checks)]
    return {
        check.backend: check.seconds_a_step
        for check in checks
        if check.gpu == gpu
        and check.precision == precision
        and check.backend in BACKENDS
        and check.seconds_a_step is not None
        and check.psnr_db >= check.floor_db
    }


def recorded(bundle: Bundle | None) -> MachineRecord:
    """Read a bundle's record on this machine; an unreadable one is a warning and counts as empty."""
    try:
        return MachineFiles(bundle.hash).read() if bundle else MachineRecord()
    except BfrError as error:
        _log.warning("not using engines and measurements: %s", error)
        return MachineRecord()
