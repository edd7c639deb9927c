"""Read an ONNX file's graph: checked, normalized to one form, and without random numbers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from math import prod
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, inliner
from onnx.numpy_helper import from_array, to_array

from bfr.models.weights.identify import no_graph
from bfr.runtime.bundle.bundle import describe_file
from bfr.runtime.bundle.manifest import LARGEST_GRAPH, NAME_PATTERN, Tensor, Variant
from bfr.runtime.bundle.onnx import LARGEST_ELEMENTS, FilesBeside, check_graph
from bfr.runtime.errors import BundleInvalid, InputNotFound, InvalidCheckpoint, InvalidOption

OLDEST_OPSET = 7  # the oldest that ONNX Runtime runs; from it on Mul and Add broadcast
ONNX_DOMAINS = ("", "ai.onnx")
OWN_OPSET = 17  # of the nodes around a file that uses no operator of ONNX's own
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
WEIGHT_NAMES = ("w", "weight", "fidelity", "fidelity_ratio", "fidelity_weight", "onnx::Cast_1")
"""Names of CodeFormer's and VQFR's fidelity weight in published exports."""
DRAWS = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
NEVER_CONSTANT = ("Bernoulli", "Multinomial")  # what they draw depends on what they read
LONGEST_REASON = 240  # characters
# ONNX Runtime's codes, its name of the file, and the places in its own source.
_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Error in execution: |Load model from .*? failed: ?"
    r"|/\S+\.(?:cc|h):\d+ .*?\) (?:const )?(?:\[with .*?\] )?|\b\w+\.(?:cc|h):\d+ \w+ "
)


def load_model(file: Path) -> onnx.ModelProto:
    """Read the graph: nodes in order, functions inlined; weights in files beside it stay there.

    Raises InputNotFound, InvalidCheckpoint.
    """
    if not file.is_file():
        raise InputNotFound(f"{file} {'is no regular file' if file.exists() else 'does not exist'}: name an ONNX file")
    if problem := no_graph(file):
        raise InvalidCheckpoint(f"{file} {problem}")
    if (size := file.stat().st_size) > LARGEST_GRAPH:
        raise InvalidCheckpoint(
            f"{file} has {size:,} bytes, and an ONNX file at most {LARGEST_GRAPH:,}: export it with its weights in "
            "files beside it"
        )
    try:
        data = file.read_bytes()
        check_graph(data, FilesBeside(file.parent), file)
        model = onnx.load_from_string(data)
        _settle(model, file)
    except InvalidCheckpoint:
        raise
    except BundleInvalid as error:
        raise InvalidCheckpoint(str(error)) from error
    except Exception as error:  # protobuf's, onnx's and the file system's own types
        raise InvalidCheckpoint(
            f"{file} is no valid ONNX model: {reason(error)}. Export it again; if a newer ONNX than "
            f"{onnx.__version__} wrote it, upgrade `onnx`"
        ) from error
    return model


def load_weights(model: onnx.ModelProto, folder: Path) -> None:
    """Read the weights that lie in files beside a graph into it. Raises InvalidCheckpoint where a length is wrong."""
    stored = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    try:
        for tensor in stored:
            whole = tensor.data_type < TensorProto.UINT4  # from there on, elements have less than a byte
            if whole and not any(entry.key == "length" for entry in tensor.external_data):  # onnx reads to the end
                size = prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
                tensor.external_data.add(key="length", value=str(size))
        onnx.load_external_data_for_model(model, str(folder))
        for tensor in stored:
            to_array(tensor)
    except Exception as error:  # onnx's and the file system's own types
        raise InvalidCheckpoint(
            f"the weights beside the model cannot be read: {reason(error)}. Download them again, or export the model "
            "again"
        ) from error


def _settle(model: onnx.ModelProto, file: Path) -> None:
    """Normalize a graph to the form that `bfr wrap` reads, in place."""
    if not model.opset_import:
        raise InvalidCheckpoint(f"{file} does not say which opset it uses: export it again")
    if not model.graph.output:
        raise InvalidCheckpoint(f"{file} has no output: export it again")
    if not any(one.domain in ONNX_DOMAINS for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", OWN_OPSET))
    if (opset := model_opset(model)) < OLDEST_OPSET:
        raise InvalidCheckpoint(f"{file} uses opset {opset}: export it again with opset {OLDEST_OPSET} or later")
    if model.functions:
        defaults = {(one.domain, one.name, one.overload): one.attribute_proto for one in model.functions}
        for graph in (model.graph, *model.functions):  # onnx leaves out the values of attributes that no call gives
            for node in every_node(graph):
                given = {one.name for one in node.attribute}
                own = defaults.get((node.domain, node.op_type, node.overload), ())
                node.attribute.extend([one for one in own if one.name not in given])
        model.CopyFrom(inliner.inline_local_functions(model))
    for node in every_node(model.graph):  # the converter to half overlooks numbers that are no tensor
        for one in node.attribute if node.op_type == "Constant" else ():
            if one.name in ("value_float", "value_floats"):
                value = from_array(np.array(helper.get_attribute_value(one), np.float32))
                one.CopyFrom(helper.make_attribute("value", value))
    sort_nodes(model.graph)
    # Files of IR 3 name their weights among the inputs. Later ones give an input its default so.
    fixed = model.ir_version < 4
    constants = {tensor.name for tensor in model.graph.initializer if fixed or not _is_default(tensor)}
    for value in [value for value in model.graph.input if value.name in constants]:
        model.graph.input.remove(value)
    model.ir_version = max(model.ir_version, 4)
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and not tensor.HasField("shape"):
            sizes = [] if value.name in WEIGHT_NAMES else [None] * 4
            tensor.CopyFrom(helper.make_tensor_type_proto(tensor.elem_type, sizes).tensor_type)


def _is_default(tensor: TensorProto) -> bool:
    """Whether a stored tensor can be the default of a fidelity weight, if an input has its name."""
    number = tensor.data_type in FLOATS and prod(tensor.dims) == 1 and tensor.data_location != TensorProto.EXTERNAL
    return number and tensor.name in WEIGHT_NAMES and bool(np.isfinite(to_array(tensor)).all())


def system_name(name: str | None, file: Path) -> str:
    """Return the given name, else the file's. Raises InvalidOption for a name that a manifest does not allow."""
    found = re.sub(r"[^A-Za-z0-9_.+-]+", "-", file.stem).lstrip("-.+")[:100] or "wrapped" if name is None else name
    if not re.fullmatch(NAME_PATTERN, found):
        raise InvalidOption(f"name {found!r}: use at most 100 letters, digits and _ . + -, beginning with a letter")
    return found


def reason(error: BaseException) -> str:
    """Return the first line of an error's text without ONNX Runtime's codes, or the name of its class."""
    text = _NOISE.sub("", (str(error).splitlines() or [""])[0]).strip(" .")
    return text[:LONGEST_REASON] or type(error).__name__


def model_opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return next(int(one.version) for one in model.opset_import if one.domain in ONNX_DOMAINS)


def stored_tensors(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the tensors that a graph holds, by name: initializers, and those of Constant nodes."""
    nodes = [node for node in graph.node if node.op_type == "Constant"]
    found = {tensor.name: tensor for tensor in graph.initializer}
    return found | {node.output[0]: one.t for node in nodes for one in node.attribute if one.HasField("t")}


def parameter_count(model: onnx.ModelProto) -> int:
    """Return how many floating-point numbers the weights hold."""
    return sum(prod(tensor.dims) for tensor in stored_tensors(model.graph).values() if tensor.data_type in FLOATS)


def describe_variant(folder: Path, path: Path, model: onnx.ModelProto) -> Variant:
    """Return a bundle's entry of a graph, whose weights are beside it."""
    weights = (describe_file(folder, path.with_suffix(".safetensors")),)
    return Variant(graph=describe_file(folder, path), weights=weights, opset=model_opset(model))


def tensors(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Tensor, ...]:
    """A bundle's entries of a network's inputs or outputs, of whose shapes the batch is left out."""
    return tuple(Tensor(name=name, shape=("batch", *shape)) for name, shape in shapes.items())


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node behind those that it reads: converters to float16 append their casts at the end.

    A tensor inside a node's branches may share the name of the node's output; the node does not read itself.

    Raises graphlib.CycleError where nodes read each other.
    """
    made = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    before = {i: {made[name] for name in read_by(node) if name in made} - {i} for i, node in enumerate(graph.node)}
    if any(other >= i for i, others in before.items() for other in others):
        nodes = [graph.node[i] for i in TopologicalSorter(before).static_order()]
        del graph.node[:]
        graph.node.extend(nodes)


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those of the graphs in its branches included."""
    yield from (name for name in node.input if name)
    for graph in branches(node):
        for inner in graph.node:
            yield from read_by(inner)
        yield from (value.name for value in graph.output)


def branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs inside a node: the branches of If, the bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def drawing_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that draw random numbers.

    Raises InvalidOption for those that cannot become constants, and for layers that train: ONNX Runtime changes the
    averages of a BatchNormalization at each run.
    """
    constants = stored_tensors(model.graph)

    def trains(node: onnx.NodeProto) -> bool:
        if node.op_type == "BatchNormalization":
            return any(one.name == "training_mode" and one.i for one in node.attribute)
        if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
            return False
        mode = constants.get(node.input[2])
        return mode is None or bool(mode.external_data) or bool(to_array(mode).any())

    inner = [one for node in model.graph.node for graph in branches(node) for one in every_node(graph)]
    inner += [one for function in model.functions for one in every_node(function)]  # not inlined: of another opset
    others = [node for node in inner if node.op_type in DRAWS]
    others += [node for node in (*model.graph.node, *inner) if node.op_type in NEVER_CONSTANT or trains(node)]
    if others:
        raise InvalidOption(
            f"the model draws random numbers or trains ({others[0].op_type} {others[0].name!r}), so no two results "
            "agree: export it with `model.eval()` and constant noise"
        )
    return [node for node in model.graph.node if node.op_type in DRAWS]


def every_node(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph, those in their branches included."""
    for node in graph.node:
        yield node
        for branch in branches(node):
            yield from every_node(branch)


def check_size(what: str, shape: Sequence[int]) -> None:
    """Raise InvalidCheckpoint for a declared tensor that is too large for any machine."""
    if min(shape, default=1) < 1 or prod(shape) > 2 * LARGEST_ELEMENTS:
        raise InvalidCheckpoint(
            f"the model's {what} has the shape {' x '.join(map(str, shape))}, more than {2 * LARGEST_ELEMENTS:,} "
            "numbers: export it for a smaller size"
        )


def stand_in(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a deterministic node whose output has the shape and type of a random one."""
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    made, kind = list(node.output), attributes.get("dtype")
    if not node.input:
        if not (shape := attributes.get("shape")):
            raise InvalidCheckpoint(f"the random node {made[0]!r} has no shape: export the model again")
        check_size(f"noise {made[0]}", shape)
        zeros = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind or TensorProto.FLOAT))
        return helper.make_node("Constant", [], made, value=from_array(zeros))
    return (
        helper.make_node("Cast", node.input, made, to=kind) if kind else helper.make_node("Identity", node.input, made)
    )


def draw_once(node: onnx.NodeProto, number: int, like: NDArray[np.generic]) -> TensorProto:
    """Draw a node's random numbers, from a seed of its own.

    Args:
        node: The node.
        number: Which of the graph's draws it is.
        like: An array of the shape and type of its output.
    """
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    rng = np.random.default_rng([0, number])
    if node.op_type.startswith("RandomNormal"):
        drawn = rng.normal(attributes.get("mean", 0.0), attributes.get("scale", 1.0), like.shape)
    else:
        drawn = rng.uniform(attributes.get("low", 0.0), attributes.get("high", 1.0), like.shape)
    return from_array(drawn.astype(like.dtype), node.output[0])
