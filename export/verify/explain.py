"""Name the layer where a reduced precision, or another backend, departs from float32: every tensor is compared.

Polygraphy runs the float32 graph and the tested graph on the same inputs, with their tensors marked as outputs. Each
such tensor is stored in its own type: one in half is rounded to half, and can overflow, on a CPU too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.export.verify.marked import Where, run_marked
from bfr.export.verify.walk import Reference, walk
from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import InvalidOption
from bfr.runtime.install import need
from bfr.runtime.restore.plan import Plan

HALF_MAX = 65504.0  # the largest finite number in half
JUMP = 10.0  # times the error of a layer's inputs, or of one rounding if they have less
ROUNDING: Mapping[Precision, float] = {"fp32": 2.0**-20, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0**-7}
PART = 64  # tensors that are marked together: about 2 GiB a side of a network at 512x512
ENGINE_PART = 512  # of an engine, which takes minutes to build: about 8 GiB in half, on the GPU and on the host
SHOWN = 10
PACKAGES = ("polygraphy", "onnx", "onnxruntime")
COPIES = ("Cast", "QuantizeLinear", "DequantizeLinear")  # of a tensor in another type; they are no layers
SUFFIXES = (".half", "_quantized", ".folded")  # that the exporter and the quantizer add to the names of weights


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator, and how far its result is from float32.

    Attributes:
        name: Name of the weight that it reads; without one `OP after WEIGHT`, the previous weight.
        operator: ONNX's name of it.
        tensor: Its result, in the tested graph.
        type: The type of the result, such as `float16`.
        largest: The largest |x| of the float32 result.
        error: Relative, L2 norms; infinite where the result holds NaN or Inf and the float32 one does not.
    """

    name: str
    operator: str
    tensor: str
    type: str
    largest: float
    error: float

    def __str__(self) -> str:
        beyond = self.type == "float16" and self.largest > HALF_MAX
        range_ = f"|x| up to {self.largest:.3g} of {HALF_MAX:.0f}{', which overflows' * beyond}"
        return f"{self.name} ({self.operator}, {self.type}): relative error {self.error:.1e}, {range_}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The comparison of a network's tensors with those in float32.

    Attributes:
        network, precision: The tested network.
        backend: The backend that ran it; the float32 graph ran in ONNX Runtime on the CPU.
        layers: Number of layers; `compared` of them have a counterpart in the float32 graph.
        first: The first layer whose error is JUMP times that of its inputs, in the graph's order; None without one.
        largest: The layer of the largest |x|.
        worst: Up to SHOWN layers, the largest error first.
    """

    network: str
    precision: Precision
    backend: str
    layers: int
    compared: int
    first: Layer | None
    largest: Layer
    worst: tuple[Layer, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.network} in {self.precision} on {self.backend}, {self.compared} of {self.layers} layers compared",
            f"  first jump   {self.first or 'none: the error grows layer by layer'}",
            f"  worst        {self.worst[0]}",
            f"  largest |x|  {self.largest}",
            f"  {'layer':56} {'operator':20} {'type':8} {'|x|':>9} {'error':>9}",
        ]
        lines += [
            f"  {layer.name[-56:]:56} {layer.operator[:20]:20} {layer.type:8} {layer.largest:9.3g} {layer.error:9.1e}"
            for layer in self.worst
        ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Plain types; an infinite error is the text `inf`, which JSON has no number for."""
        return asdict(
            self, dict_factory=lambda pairs: {key: "inf" if value == np.inf else value for key, value in pairs}
        )


def explain_all(
    bundle: Bundle, plan: Plan, reference: Reference, precision: Precision, backend: str, index: int = 0
) -> Iterator[Explanation]:
    """Explain each network of a plan whose graph or backend differs from float32 on the CPU."""
    for name, inputs, _ in walk(bundle, plan, reference, 1):
        if differs(bundle, name, precision, backend):
            yield explain(bundle, name, precision, inputs, backend=backend, index=index)


def differs(bundle: Bundle, name: str, precision: Precision, backend: str) -> bool:
    """Whether the graph or the backend differs from the float32 graph on the CPU."""
    return (precision != "fp32" and precision in bundle.network(name).variants) or _where(backend) != "onnxruntime-cpu"


def explain(
    bundle: Bundle,
    name: str,
    precision: Precision,
    inputs: Mapping[str, Float32],
    *,
    backend: str = "onnxruntime-cpu",
    index: int = 0,
) -> Explanation:
    """Compare every tensor of a network with float32.

    Args:
        bundle: The bundle of the network.
        name: Name of the network.
        precision: Precision of the variant; fp32 if the network has no such variant.
        inputs: By name, (B, ...) float32 each; B 1 takes the least memory.
        backend: The tested backend. A PyTorch backend runs no graph, so its graph runs on the CPU.
        index: The number of the GPU, for ONNX Runtime. An engine is built and run on the GPU that is current.

    Raises:
        InvalidOption: Graph and backend are the same on both sides.
        MissingDependency: Polygraphy or ONNX Runtime is not installed.
    """
    need("explain", *PACKAGES)
    if not differs(bundle, name, precision, backend):
        raise InvalidOption(
            f"{name} in {precision} on the CPU is the float32 graph itself: there is nothing to compare it with. "
            "Where it disagrees with PyTorch, export it with another --opset"
        )
    kind = precision if precision in bundle.network(name).variants else "fp32"
    where = _where(backend)
    graphs = bundle.graph(name, "fp32"), bundle.graph(name, kind)
    return compare_graphs(*graphs, inputs, name, kind, where=where, index=index)


def compare_graphs(
    reference: Path,
    tested: Path,
    inputs: Mapping[str, Float32],
    network: str,
    precision: Precision,
    *,
    where: Where = "onnxruntime-cpu",
    index: int = 0,
) -> Explanation:
    """As `explain`, for two files. Raises InvalidOption if they have no layer in common."""
    from polygraphy import config

    config.USE_TENSORRT_RTX = where == "tensorrt-rtx"  # Polygraphy's other modules read it when they are imported
    expected, found = _Graph(reference), _Graph(tested)
    pairs = [(expected.keys[key], name) for key, name in found.keys.items() if key in expected.keys]
    errors: dict[str, Layer] = {}
    step = ENGINE_PART if where.startswith("tensorrt") else PART
    for start in range(0, len(pairs), step):
        results = run_marked(tested, [b for _, b in pairs[start : start + step]], inputs, where, index)
        for place in range(start, min(start + step, len(pairs)), PART):
            part = [(a, b) for a, b in pairs[place : min(place + PART, start + step)] if b in results]
            theirs = run_marked(reference, [a for a, _ in part], inputs) if part else {}
            for a, b in part:
                if np.issubdtype(theirs[a].dtype, np.floating) and theirs[a].shape == results[b].shape:
                    errors[b] = Layer(*found.layers[b], b, str(results[b].dtype), *_distance(theirs[a], results[b]))
    if not errors:
        raise InvalidOption(f"{tested.name} and {reference.name} have no layer in common: export the bundle again")
    worst = sorted(errors.values(), key=lambda layer: -layer.error)[:SHOWN]  # the first of equals stays first
    largest = max(errors.values(), key=lambda layer: layer.largest)
    first = _first_jump(found, errors, ROUNDING[precision])
    return Explanation(network, precision, where, len(found.layers), len(errors), first, largest, tuple(worst))


def _first_jump(graph: "_Graph", errors: Mapping[str, Layer], rounding: float) -> Layer | None:
    carried: dict[str, float] = {}
    for node in graph.nodes:
        before = max((carried.get(name, 0.0) for name in node.input), default=0.0)
        for name in node.output:
            carried[name] = errors[name].error if name in errors else before
            if name in errors and carried[name] > JUMP * max(before, rounding):
                return errors[name]
    return None


def _distance(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    """The largest |expected|, and the relative L2 error."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    largest = float(np.abs(a).max(initial=0.0))
    if not np.isfinite(b).all():
        return largest, np.inf if np.isfinite(a).all() else 0.0
    return largest, float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-30))


class _Graph:
    """An ONNX graph without its weights: its layers in order, their names, and a key that identifies each.

    A layer's key is its operator and its weight, or without a weight its inputs' keys: neither the names of tensors,
    which the exporter numbers, nor the order of nodes, which the quantizer changes.
    """

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(path, load_external_data=False).graph
        self.nodes: list[Any] = []
        self.layers: dict[str, tuple[str, str]] = {}  # tensor -> name and operator
        self.keys: dict[tuple[int, int], str] = {}  # key and how many had it before -> tensor
        constants = {tensor.name: tensor.name for tensor in graph.initializer}
        whole = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)  # shapes and axes; floats are rounded in half
        keys = {
            tensor.name: hash(numpy_helper.to_array(tensor).tobytes())
            for tensor in graph.initializer
            if tensor.data_type in whole and not tensor.external_data
        }
        keys |= {tensor.name: hash(tensor.name) for tensor in graph.input}
        after = {tensor.name: tensor.name for tensor in graph.input}
        count: dict[int, int] = {}
        for node in graph.node:
            read = [name for name in node.input if name]
            if all(name in constants for name in read):  # a copy of a weight, or a constant
                constants |= {name: constants[read[0]] if read else name for name in node.output}
                continue
            self.nodes.append(node)
            weight = next((_weight(constants[name]) for name in read if "." in constants.get(name, "")), "")
            before = next((after[name] for name in reversed(read) if name in after), "")
            settings = tuple(sorted((a.name, a.i, tuple(a.ints)) for a in node.attribute if a.name != "to"))
            origin: Any = weight or tuple(keys.get(name, 0) for name in read)
            for place, name in enumerate(node.output):
                after[name] = weight or before
                if node.op_type in COPIES:
                    keys[name] = keys.get(read[0], 0)
                    continue
                keys[name] = hash((node.op_type, settings, origin, place))
                count[keys[name]] = count.get(keys[name], 0) + 1
                self.keys[keys[name], count[keys[name]]] = name
                self.layers[name] = weight or f"{node.op_type} after {before}", node.op_type


def _weight(name: str) -> str:
    """`denoiser.out.2` of `denoiser.out.2.weight`, whatever the exporter or the quantizer added to it."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name.rsplit(".", 1)[0]


def _where(backend: str) -> Where:
    """Return where a backend's graph runs for a comparison; the graph of a PyTorch backend runs on the CPU."""
    for where in ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda"):
        if backend.startswith(where):
            return where
    return "onnxruntime-cpu"
