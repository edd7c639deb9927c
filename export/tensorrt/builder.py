"""ONNX to a serialized engine, with TensorRT 10.3 to 11, which needs a GPU, or with TensorRT-RTX, which needs none.

Networks are always strongly typed: the types in the graph decide what is half. TensorRT 11 has no other mode.
"""

import logging
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bfr.export.options import BuildOptions
from bfr.export.tensorrt.progress import Meter, monitor
from bfr.runtime.backends.cuda.bindings import device_count
from bfr.runtime.backends.tensorrt_key import Library, Machine, load_library, make_logger, make_with
from bfr.runtime.bundle.machine import private_folder
from bfr.runtime.errors import BackendUnavailable, BfrError, EngineBuildFailed
from bfr.runtime.files import write_bytes
from bfr.runtime.install import install_command

# What older libraries do not read. Source: the ONNX support matrices of TensorRT.
OPERATOR_REMEDIES = {
    "GroupNormalization": "it needs TensorRT 10.9 or later: export the bundle with `--opset 20`",
    "Attention": "it needs TensorRT 10.14 or later: export the bundle with `--opset 21`",
}
REMEDY = "export the network with another opset (18, 20 or 21) or without these operators, or upgrade the library"
_log = logging.getLogger("bfr.tensorrt")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed graph. All are kept together: a parser whose network was collected is a segmentation fault."""

    trt: Any
    logger: Any
    builder: Any
    network: Any
    parser: Any


def parse_graph(graph: Path, trt: Any) -> Parsed:
    """Parse an ONNX file; its weights are read from the files that it refers to.

    Raises EngineBuildFailed with every node that the library does not support, the remedy, and Polygraphy's commands
    that narrow the graph to these nodes; BackendUnavailable if the library needs a GPU for it and there is none.
    """
    logger, name = make_logger(trt, logging.CRITICAL), f"{trt.__name__.replace('_', '-')} {trt.__version__}"
    if trt.__name__ == "tensorrt" and not device_count():  # its builder may abort the process
        raise BackendUnavailable(
            f"{name} reads graphs only on a machine with an NVIDIA GPU, and CUDA finds none here. TensorRT-RTX reads "
            f"them without one: {install_command('tensorrt-rtx')} and choose --library tensorrt-rtx"
        )
    trt.init_libnvinfer_plugins(logger, "")  # DeformConv and others are plugins, which the parser looks up
    builder = make_with(trt.Builder, logger, name)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        lines = [f"  {_describe(error)}" for error in errors] or [f"  {text}" for text in logger.errors]
        remedies = {OPERATOR_REMEDIES.get(error.node_operator(), REMEDY) for error in errors} or {REMEDY}
        known = any(error.node_operator() for error in errors)
        raise EngineBuildFailed(
            "\n".join(
                [
                    f"{graph.name} cannot be read by {name}:",
                    *dict.fromkeys(lines),
                    *sorted(remedies),
                    *(narrowing(graph, network, trt) if known else ()),
                ]
            )
        )
    return Parsed(trt, logger, builder, network, parser)


def narrowing(graph: Path, network: Any, trt: Any) -> list[str]:
    """Return Polygraphy's commands that list unsupported nodes and cut the graph down to them.

    Args:
        graph: The .onnx file.
        network: The network, as far as it was parsed. The commands name its inputs' shapes, with a batch of 1.
        trt: The library's module.
    """
    inputs = (network.get_input(i) for i in range(network.num_inputs))
    shapes = [f"{one.name}:[{','.join(str(max(size, 1)) for size in one.shape)}]" for one in inputs]
    rtx = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if trt.__name__ == "tensorrt_rtx" else ""
    reduce = ["polygraphy", "debug", "reduce", str(graph), "-o", "reduced.onnx", "--mode", "bisect"]
    reduce += ["--model-input-shapes", *shapes] if shapes else []
    reduce += ["--fail-regex", "UNSUPPORTED_NODE|INVALID_NODE", "--check"]
    check = ["polygraphy", "inspect", "model", "polygraphy_debug.onnx", "--display-as", "trt"]
    return [
        f"Polygraphy ({install_command('explain')}) lists what is not supported, and narrows the graph to it:",
        f"  {rtx}{shlex.join(['polygraphy', 'inspect', 'capability', str(graph)])}",
        f"  {rtx}{shlex.join([*reduce, *check])}",
    ]


def build_engine_bytes(
    graph: Path,
    options: BuildOptions,
    library: Library,
    *,
    meter: Meter | None = None,
    timing: Path | None = None,
    say: Callable[[str], None] = _log.warning,
    trt: Any = None,
) -> bytes:
    """Build the engine of an ONNX file and return it serialized; only the timing cache is written.

    Args:
        graph: The .onnx file.
        options: Batches, workspace, level and so on.
        library: `tensorrt` or `tensorrt-rtx`.
        meter: Gets the phases, and cancels the build.
        timing: The file of the timing cache, for `tensorrt` only.
        say: Gets what happened to the timing cache.
        trt: The library's module, if not the installed one.

    Raises:
        MissingDependency: The library is not installed.
        EngineBuildFailed: The library refused the graph; the text has the library's messages.
    """
    meter = meter or Meter(graph.name)
    trt = trt or load_library(library)
    meter.say("parsing")
    parsed = parse_graph(graph, trt)
    config = _configure(parsed, options)
    timing = timing if library == "tensorrt" else None
    if timing is not None:
        _use_timing_cache(config, timing, say)
    config.progress_monitor = watcher = monitor(trt, meter)
    meter.say("building")
    serialized = parsed.builder.build_serialized_network(parsed.network, config)
    del watcher  # lives as long as the build
    if serialized is None:
        said = "; ".join(parsed.logger.errors) or "nothing"
        if meter.cancelled.is_set():
            raise EngineBuildFailed(f"the build of {graph.name} was cancelled")
        raise EngineBuildFailed(
            f"{library} {trt.__version__} could not build an engine of {graph.name}: {said}. "
            "If memory ran out, choose fewer --batches or a smaller --workspace, or end what else uses the GPU"
        )
    if timing is not None:
        _save_timing_cache(config, timing, say)
    return bytes(serialized)


def typed_share(graph: Path, library: Library) -> float:
    """Return the share (0 to 1) in half of the floating-point tensors that a graph's layers write."""
    parsed = parse_graph(graph, load_library(library))
    types, layers = parsed.trt.DataType, (parsed.network.get_layer(i) for i in range(parsed.network.num_layers))
    written = [layer.get_output(i).dtype for layer in layers for i in range(layer.num_outputs)]
    half = sum(bool(kind in (types.HALF, types.BF16)) for kind in written)
    full = sum(bool(kind == types.FLOAT) for kind in written)
    return half / max(1, half + full)


def timing_cache_path(machine: Machine, say: Callable[[str], None]) -> Path | None:
    """Return where the timing cache of a TensorRT version, a GPU and a board's power mode is kept.

    The result is None, with a message, without a place.
    """
    parts = (machine.version, machine.compute_capability, machine.gpu, machine.power or "")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-")
    try:
        return private_folder("timing") / f"{name}.cache"
    except BfrError as error:
        say(f"no timing cache: {error}")
        return None


def _configure(parsed: Parsed, options: BuildOptions) -> Any:
    trt, config = parsed.trt, parsed.builder.create_builder_config()
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector shows no types
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; float32 means float32
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # TensorRT-RTX allocates during a call else, and a whole chain is captured.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    for bucket in options.buckets:
        if config.add_optimization_profile(_profile(parsed, bucket)) < 0:
            raise EngineBuildFailed(
                f"batch {bucket} is refused: {'; '.join(parsed.logger.errors) or 'without a reason'}"
            )
    return config


def _profile(parsed: Parsed, bucket: int) -> Any:
    """The optimization profile of one batch size: nothing varies inside it."""
    profile = parsed.builder.create_optimization_profile()
    for i in range(parsed.network.num_inputs):
        tensor = parsed.network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 in shape[1:] or shape[0] not in (-1, bucket):
            raise EngineBuildFailed(
                f"input {tensor.name} has the shape {shape}: only the batch may vary, and here it must be {bucket}. "
                "Export the bundle again with `bfr export`"
            )
        fixed = (bucket, *shape[1:])
        profile.set_shape(tensor.name, fixed, fixed, fixed)
    return profile


def _use_timing_cache(config: Any, path: Path, say: Callable[[str], None]) -> None:
    data = b""
    try:
        if path.is_file():
            data = path.read_bytes()
    except OSError as error:
        say(f"the timing cache {path} cannot be read ({error.strerror}): the build takes longer")
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        say(f"the timing cache {path} is damaged or of another machine and is left unused: the build takes longer")
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timing_cache(config: Any, path: Path, say: Callable[[str], None]) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        write_bytes(path, bytes(cache.serialize()))
    except BfrError as error:
        say(f"the timing cache is not kept: {error}")


def _describe(error: Any) -> str:
    node = f"{error.node_operator()} {error.node_name()}".strip()
    return f"{node or 'the graph'}: {error.desc()}"
