"""The choice of a backend. Each one's module is imported when it is chosen, not before."""

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, cast, get_args

from bfr.runtime.backends.cuda.bindings import Cuda, device_count
from bfr.runtime.backends.device import Device
from bfr.runtime.backends.tensorrt_key import LIBRARIES, find_engine, this_machine
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import BfrError, InvalidOption, MissingDependency

BackendName = Literal["auto", "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx", "torch-cuda"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
UNMEASURED: tuple[BackendName, ...] = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")  # in the order they are tried
TORCH_REMEDY = 'backend torch-cuda needs PyTorch: pip install "bfr-runtime[export]"'
_log = logging.getLogger("bfr")


def open_device(
    name: str,
    bundle: Bundle | None = None,
    *,
    precision: Precision = "fp32",
    threads: int | None = None,
    spinning: bool = True,
    index: int = 0,
) -> Device:
    """Open the device of a backend, one of BACKENDS; `auto` is the fastest that was verified here, see `choose`.

    bundle, precision: what will run, for `auto` to look for engines and measurements. threads, spinning: of the
    CPU backend. index: the number of the GPU.
    Raises InvalidOption for an unknown name, MissingDependency without a package that it needs, BackendUnavailable
    where it does not work.
    """
    if name not in BACKENDS:
        raise InvalidOption(f"backend {name!r} is unknown: choose one of {', '.join(BACKENDS)}")
    if name == "auto":
        name = choose(bundle, precision, index)
    if name in LIBRARIES:
        from bfr.runtime.backends.tensorrt import TensorRtDevice

        return TensorRtDevice(name, index)
    if name == "torch-cuda":
        # The one backend that is not part of the runtime: it needs torch and the networks' modules.
        if find_spec("torch") is None:
            raise MissingDependency(TORCH_REMEDY)
        return cast("Device", import_module("bfr.export.pytorch.compiled").CompiledDevice(index))
    from bfr.runtime.backends import onnxruntime as ort

    return ort.CudaDevice(index) if name == "onnxruntime-cuda" else ort.CpuDevice(threads, spinning=spinning)


def choose(bundle: Bundle | None, precision: Precision, index: int = 0) -> BackendName:
    """The backend that `auto` takes.

    Of those that were verified on this GPU (by `bfr build`, or by `bfr verify --record`) the one with the fastest
    step; then TensorRT where engines were built, then ONNX Runtime on CUDA; without a GPU, and for int8, the CPU. What
    was expected and does not work is said once, as a warning.
    """
    if precision == "int8" or not device_count():
        return "onnxruntime-cpu"
    measured = verified_seconds(bundle, precision, Cuda(index).facts.name) if bundle else {}
    ranked = sorted(measured, key=lambda name: measured[name])
    for name in (*ranked, *(name for name in UNMEASURED if name not in ranked)):
        try:
            _usable(name, bundle, precision, index)
        except BfrError as error:
            if name in measured or _was_built(name, bundle, precision):
                _log.warning("backend %s is passed over: %s", name, error)
            continue
        return name
    return "onnxruntime-cpu"


def verified_seconds(bundle: Bundle, precision: Precision, gpu: str) -> dict[BackendName, float]:
    """Seconds a denoising step of the backends whose whole loop was verified in this precision on this GPU."""
    checks = [*bundle.manifest.verified, *(check for engine in bundle.manifest.engines for check in engine.checks)]
    return {
        check.backend: check.seconds_a_step
        for check in checks
        if check.gpu == gpu
        and check.precision == precision
        and check.backend in BACKENDS
        and check.seconds_a_step is not None
    }


def _usable(name: BackendName, bundle: Bundle | None, precision: Precision, index: int) -> None:
    """Raise a BfrError unless the backend works here, as far as can be told without loading the networks."""
    if name in LIBRARIES:
        if bundle is None:
            raise InvalidOption(f"{name} runs the engines of a bundle")
        machine = this_machine(name, Cuda(index))
        for network, entry in bundle.manifest.networks.items():
            find_engine(bundle, network, precision if precision in entry.variants else "fp32", machine)
    elif name == "torch-cuda":
        if find_spec("torch") is None:
            raise MissingDependency(TORCH_REMEDY)
    elif name == "onnxruntime-cuda":
        from bfr.runtime.backends import onnxruntime as ort

        if not ort.cuda_works():
            raise MissingDependency(ort.CUDA_REMEDY)


def _was_built(name: str, bundle: Bundle | None, precision: Precision) -> bool:
    engines = bundle.manifest.engines if bundle else ()
    return any(engine.key.library == name and engine.key.precision == precision for engine in engines)
