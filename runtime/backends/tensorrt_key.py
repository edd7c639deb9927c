"""TensorRT and TensorRT-RTX: which one is installed, its logger, and the key of its engines.

Both have the part of TensorRT 11's API that bfr uses; TensorRT has it from 10.3 on. A deserialization without a GPU can
kill the process: make a `Cuda`, which raises BackendUnavailable without one, before the library's runtime.
"""

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

from bfr.runtime.backends.board import power_mode
from bfr.runtime.backends.cuda.bindings import Cuda
from bfr.runtime.backends.cuda.device import BUCKETS
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.machine import Engine, EngineKey, MachineFiles
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import BackendUnavailable, EngineMismatch, EngineMissing, MissingDependency
from bfr.runtime.install import install_command

Library = Literal["tensorrt", "tensorrt-rtx"]
LIBRARIES: tuple[Library, ...] = ("tensorrt", "tensorrt-rtx")
# Source: `ComputeCapability` of tensorrt-rtx 1.7.1. Data center GPUs from Hopper on are not among them.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
_log = logging.getLogger("bfr.tensorrt")


@dataclass(frozen=True, slots=True)
class Machine:
    """The properties of this machine that an engine depends on; the fields are those of EngineKey."""

    library: Library
    version: str
    cuda: str
    driver: str
    gpu: str
    compute_capability: str
    power: str | None = None


def remedy(library: Library) -> str:
    """How a library is installed."""
    if library == "tensorrt-rtx":
        return install_command("tensorrt-rtx")
    return (
        f"{install_command('tensorrt')}, with a driver of CUDA 12 {install_command('tensorrt-cu12')}; "
        "on a Jetson TensorRT comes with JetPack, never from pip"
    )


def check_capability(library: Library, gpu: str, capability: str) -> None:
    """Raise BackendUnavailable if a library makes no engines for a GPU's compute capability, as "9.0"."""
    if library == "tensorrt-rtx" and capability not in RTX_CAPABILITIES:
        raise BackendUnavailable(
            f"tensorrt-rtx does not support {gpu} (compute capability {capability}), only "
            f"{', '.join(RTX_CAPABILITIES)}: use TensorRT, {remedy('tensorrt')}"
        )


def load_library(name: Library) -> ModuleType:
    """Return the Python module of a library. Raises MissingDependency if it, or what it links to, is not there."""
    try:
        return importlib.import_module(name.replace("-", "_"))
    except (ImportError, OSError) as error:  # OSError: a shared library of it cannot be loaded
        raise MissingDependency(f"{name} cannot be imported ({error}): {remedy(name)}") from error


@cache
def make_logger(trt: Any, level: int = logging.WARNING) -> Any:
    """Return the logger that writes to Python's logging, under `bfr.tensorrt`, from `level` on.

    It is never freed: the library keeps a pointer to its first logger as long as anything of it exists, also after what
    was made with that logger.
    """
    severities = trt.ILogger.Severity
    levels = {
        severities.INTERNAL_ERROR: logging.CRITICAL,
        severities.ERROR: logging.ERROR,
        severities.WARNING: logging.WARNING,
        severities.INFO: logging.INFO,
        severities.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]  # a class of the bindings
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if levels[severity] >= logging.ERROR:
                self.errors.append(message)
            if levels[severity] >= level:
                _log.log(levels[severity], message)

    return Logger()


def make_with(kind: Callable[[Any], Any], logger: Any, library: str) -> Any:
    """Make a builder or a runtime of a library.

    Args:
        kind: The class, `Builder` or `Runtime`.
        logger: A logger of `make_logger`.
        library: Name and version, for the message.

    Raises:
        BackendUnavailable: The library makes none, with what it said: as a rule CUDA does not start.
    """
    logger.errors.clear()
    try:
        return kind(logger)
    except TypeError as error:  # the bindings' word for a null pointer
        raise BackendUnavailable(
            f"{library} does not start here; it said: {'; '.join(logger.errors) or 'nothing'}. Update the NVIDIA "
            "driver, or install the extra that `bfr doctor` names"
        ) from error


def this_machine(library: Library, cuda: Cuda) -> Machine:
    """Return what engines depend on here. Raises BackendUnavailable if the library does not support the GPU."""
    trt = load_library(library)
    facts = cuda.facts
    check_capability(library, facts.name, facts.compute_capability)
    here = (facts.runtime, facts.driver, facts.name, facts.compute_capability)
    return Machine(library, trt.__version__, *here, power=power_mode())


def engine_key(
    bundle: Bundle,
    network: str,
    precision: Precision,
    machine: Machine,
    *,
    buckets: Sequence[int] = BUCKETS,
    options: dict[str, str | int | bool | None],
) -> EngineKey:
    """Return the full key of an engine of a bundle's network, built on `machine` with the builder's `options`."""
    variant = bundle.network(network).variants[precision]
    return EngineKey(
        graph_sha256=variant.graph.sha256,
        weights_sha256=tuple(file.sha256 for file in variant.weights),
        precision=precision,
        buckets=tuple(sorted(buckets)),
        options=options,
        **asdict(machine),
    )


def find_engine(
    bundle: Bundle,
    network: str,
    precision: Precision,
    machine: Machine,
    *,
    buckets: Sequence[int] | None = None,
    options: dict[str, str | int | bool | None] | None = None,
) -> Engine:
    """Return the engine of a network that this machine built and recorded. Its files are not yet checked.

    buckets, options: as the engine must have been built; None takes those that it was built with.
    Raises EngineMissing if none was built, EngineMismatch with each field, what it has and what is wanted.
    """
    command = f"bfr build {bundle.folder} --precision {precision}"
    built = [engine for engine in MachineFiles(bundle.hash).read().engines if engine.network == network]
    same = [engine for engine in built if engine.key.library == machine.library and engine.key.precision == precision]
    if not same:
        others = ", ".join(f"{engine.key.precision} with {engine.key.library}" for engine in built)
        raise EngineMissing(
            f"this machine has no {machine.library} engine of {bundle.folder}, {network} in {precision}"
            f"{f', only {others}' if others else ''}: run `{command}`"
        )
    for engine in same:
        found = engine.key
        wanted = engine_key(
            bundle,
            network,
            precision,
            machine,
            buckets=found.buckets if buckets is None else buckets,
            options=found.options if options is None else options,
        )
        if found == wanted:
            return engine
    found, differences = same[-1].key, "\n".join(f"  {line}" for line in key_differences(same[-1].key, wanted))
    back = f", or go back to the power mode {found.power} (`sudo nvpmodel`)" if found.power != wanted.power else ""
    raise EngineMismatch(
        f"{bundle.folder}: the engine of {network} does not fit:\n{differences}\n"
        f"Build it again: `{command}`{back}. The present one stays until the new one is verified."
    )


def find_engines(bundle: Bundle, precision: Precision, machine: Machine) -> list[Engine]:
    """Return the engines of all networks for this machine; a network without that precision runs in fp32."""
    return [
        find_engine(bundle, name, precision if precision in entry.variants else "fp32", machine)
        for name, entry in bundle.manifest.networks.items()
    ]


def key_differences(have: EngineKey, want: EngineKey) -> list[str]:
    """One line for each field that differs: its name, what the engine has, what is wanted."""
    return [
        f"{name}: the engine has {getattr(have, name)}, wanted is {getattr(want, name)}"
        for name in EngineKey.model_fields
        if getattr(have, name) != getattr(want, name)
    ]
