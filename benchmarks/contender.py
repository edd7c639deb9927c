"""Opens what is compared: eager PyTorch and the runtime's backends, on the same bundle.

PyTorch is imported only where it is asked for: a runtime backend's memory is measured without it.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from bfr.runtime.backends import Device, Network
from bfr.runtime.backends.choose import BACKENDS, open_device
from bfr.runtime.bundle import Bundle
from bfr.runtime.errors import BackendUnavailable, InvalidOption, MissingDependency
from bfr.runtime.manifest import Precision, Preset
from bfr.runtime.restorer import Restorer, load_networks

BASELINES = ("eager-cpu", "eager-cuda")  # float32: results and times are compared with the first one named
EAGER = (*BASELINES, "eager-tf32", "eager-half")
RUNTIME = tuple(name for name in BACKENDS if name != "auto")
REMEDY = 'pip install "bfr-runtime[bench]"'


@dataclass(frozen=True, slots=True)
class Contender:
    """A backend with a bundle's networks loaded.

    name: as in a configuration. load_seconds: of reading, hashing and loading the networks; not of importing libraries.
    settings: a context that every call runs in.
    """

    name: str
    device: Device
    networks: dict[str, Network]
    precision: Precision = "fp32"
    load_seconds: float = 0.0
    settings: Callable[[], AbstractContextManager[Any]] = nullcontext

    def restorer(self, bundle: Bundle, sampler: Preset, batch: int) -> Restorer:
        """The Restorer of one batch size. Eager half counts as float32 here: its networks are already what they are."""
        precision = "fp32" if self.name in EAGER else self.precision
        return Restorer(bundle, self.device, sampler, precision=precision, batch=batch, networks=self.networks)


def split_name(name: str) -> tuple[str, str]:
    """`NAME[:PRECISION]` -> backend and precision. Raises InvalidOption with the names that there are."""
    backend, _, precision = name.partition(":")
    if backend in EAGER and not precision:
        return backend, "fp16" if backend == "eager-half" else "fp32"
    if backend not in RUNTIME:
        raise InvalidOption(
            f"backend {name!r} is unknown: choose among {', '.join(EAGER)}, and {', '.join(RUNTIME)}[:fp16]"
        )
    return backend, precision or "fp32"


def default_backends(bundle: Bundle) -> tuple[str, ...]:
    """What works here: on a GPU eager float32, TF32 and half, else eager on the CPU; then the runtime's, likewise."""
    from bfr.runtime.backends.onnxruntime import cuda_works

    halves = [f":{precision}" for precision in bundle.precisions if precision != "fp32"]
    eager = ("eager-cuda", "eager-tf32", "eager-half") if _torch().cuda.is_available() else ("eager-cpu",)
    runtime = [f"onnxruntime-cuda{half}" for half in ("", *halves)] if cuda_works() else ["onnxruntime-cpu"]
    return (*eager, *runtime)


def open_contender(bundle: Bundle, name: str, *, threads: int | None, spinning: bool) -> Contender:
    """Open a backend and load the networks. threads: of the CPU, None is each library's own choice.

    spinning: whether ONNX Runtime's idle threads spin, as they do outside benchmarks.
    Raises BackendUnavailable where it does not work or makes no sense here, MissingDependency, InvalidOption.
    """
    backend, precision = split_name(name)
    if backend in EAGER:
        return _open_eager(bundle, backend, threads)
    device = _open_cpu(threads, spinning) if backend == "onnxruntime-cpu" else open_device(backend, threads=threads)
    chosen = bundle.precision(precision)
    begin = time.perf_counter()
    networks = load_networks(bundle, device, chosen)
    return Contender(name, device, networks, chosen, time.perf_counter() - begin)


def _open_cpu(threads: int | None, spinning: bool) -> Device:
    from bfr.runtime.backends.onnxruntime import CpuDevice

    return CpuDevice(threads, spinning=spinning)


def _open_eager(bundle: Bundle, backend: str, threads: int | None) -> Contender:
    torch = _torch()
    from bfr.export.eager import EagerDevice, EagerNetwork
    from bfr.export.reference import load_reference

    where = "cpu" if backend == "eager-cpu" else "cuda"
    if where == "cuda" and not torch.cuda.is_available():
        reason = "eager PyTorch in half is for GPUs: a CPU emulates it" if backend == "eager-half" else "it needs a GPU"
        raise BackendUnavailable(f"{backend}: {reason}, and PyTorch found no CUDA device")
    if threads is not None:
        torch.set_num_threads(threads)
    begin = time.perf_counter()
    modules = load_reference(bundle)
    if backend == "eager-half":  # the published half mode: the denoiser's convolutions
        step: Any = modules[bundle.denoise.network]
        step.denoiser.cast_torso(torch.float16)
    networks: dict[str, Network] = {name: EagerNetwork(module.to(where)) for name, module in modules.items()}
    seconds = time.perf_counter() - begin
    precision: Precision = "fp16" if backend == "eager-half" else "fp32"
    # PyTorch lets cuDNN compute float32 convolutions in TF32 by default, 10 bits of mantissa: the baseline is float32.
    exact = partial(torch.backends.cudnn.flags, enabled=True, allow_tf32=False)
    return Contender(
        backend, EagerDevice(where), networks, precision, seconds, exact if backend == "eager-cuda" else nullcontext
    )


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependency(f"eager PyTorch, the baseline, needs torch: {REMEDY}") from error
    return torch


def default_threads() -> int:
    """PyTorch's own choice: the physical cores that it may use, or OMP_NUM_THREADS."""
    return int(_torch().get_num_threads())
