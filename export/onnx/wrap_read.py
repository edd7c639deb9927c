"""What an ONNX file is: its graph, its images, its further inputs, and where it draws random numbers."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from bfr.export.options import WrapOptions
from bfr.runtime.bundle.manifest import NAME_PATTERN
from bfr.runtime.bundle.onnx import FilesBeside, check_graph
from bfr.runtime.errors import BundleInvalid, InputNotFound, InvalidCheckpoint, InvalidOption

Range = tuple[float, float]
IMAGE_TYPES: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
    TensorProto.UINT8: np.uint8,
}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
OLDEST_OPSET = 7  # the oldest that ONNX Runtime runs; from it on Mul and Add broadcast
DRAWS = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
WEIGHT_NAMES = ("w", "weight", "fidelity", "fidelity_ratio", "fidelity_weight", "onnx::Cast_1")
"""Names of CodeFormer's and VQFR's fidelity weight in published exports."""
STARTS = {  # how files that people take for ONNX begin
    b"\x80": "a pickle of PyTorch",
    b"PK\x03\x04": "a zip archive, as PyTorch writes its checkpoints",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"<": "a web page: the download was answered with one",
    b"ORTM": "a model in ONNX Runtime's own format",
    b"ftrt": "an engine of TensorRT",
}


@dataclass(frozen=True, slots=True)
class ImageTensor:
    """An image tensor of the file.

    Attributes:
        channels_last: (batch, H, W, 3).
        side: H and W, None where the file leaves it open.
        batch: Its fixed batch size, None where the file leaves it open.
    """

    name: str
    type: int
    channels_last: bool
    side: int | None
    batch: int | None


@dataclass(frozen=True, slots=True)
class Interface:
    """How a file is read and written.

    Attributes:
        reference: A second image.
        side: S of `source` and T of `target`.
        out_side: S of `source` and T of `target`.
        weight: The name of an input that every run may set.
        values: Values of the inputs that become constants, and the default of the weight.
    """

    source: ImageTensor
    target: ImageTensor
    reference: ImageTensor | None
    side: int
    out_side: int
    input_range: Range
    output_range: Range
    colour: str
    weight: str | None
    values: Mapping[str, float]


def load_model(file: Path) -> onnx.ModelProto:
    """The graph, its nodes in order; weights that lie in files beside it stay there.

    Raises InputNotFound, InvalidCheckpoint.
    """
    if not file.is_file():
        raise InputNotFound(f"{file} does not exist: name an ONNX file")
    with file.open("rb") as opened:
        start = opened.read(32).lstrip()
    for begin, what in STARTS.items():
        if start.startswith(begin):
            raise InvalidCheckpoint(f"{file} is {what}. `bfr wrap` takes ONNX files: export the network with ONNX")
    try:
        data = file.read_bytes()
        check_graph(data, FilesBeside(file.parent), file.name)
        model = onnx.load_from_string(data)
        sort_nodes(model.graph)
        # Files of IR 3 name their weights among the inputs.
        constants = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in constants]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, 4)
        for value in model.graph.output:
            value.type.tensor_type.shape.SetInParent()  # which the checker asks for, and a run tells
        opset = model_opset(model)
        if not any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
            onnx.checker.check_model(model, full_check=False)
    except Exception as error:  # protobuf's, onnx's and the file system's own types
        if isinstance(error, BundleInvalid) and error.__cause__ is None:  # a whole file that is refused
            raise InvalidCheckpoint(str(error)) from error
        raise InvalidCheckpoint(
            f"{file} is not a whole ONNX model ({first_line(error)}): export it again, and keep the files of "
            "its weights beside it"
        ) from error
    if opset < OLDEST_OPSET:
        raise InvalidCheckpoint(f"{file} uses opset {opset}: export it again with opset {OLDEST_OPSET} or later")
    return model


def system_name(name: str | None, file: Path) -> str:
    """The name that was given, else the file's. Raises InvalidOption for one that a manifest does not take."""
    found = re.sub(r"[^A-Za-z0-9_.+-]+", "-", file.stem).lstrip("-.+")[:100] or "wrapped" if name is None else name
    if not re.fullmatch(NAME_PATTERN, found):
        raise InvalidOption(f"name {found!r}: letters, digits and _ . + - are taken, 100 at most, a letter first")
    return found


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def model_opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return next(int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx"))


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node behind those that it reads: converters to float16 append their casts at the end."""
    made = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    order: list[int] = []
    state = [0] * len(graph.node)  # 1: its inputs are being placed, 2: placed
    for first in range(len(graph.node)):
        stack = [first]
        while stack:
            i = stack[-1]
            waiting = [made[name] for name in read_by(graph.node[i]) if name in made and state[made[name]] == 0]
            if state[i] == 0 and waiting:
                state[i] = 1
                stack += waiting
                continue
            stack.pop()
            if state[i] != 2:
                state[i] = 2
                order.append(i)
    if order != list(range(len(order))):
        nodes = [graph.node[i] for i in order]
        copied = onnx.GraphProto()
        copied.node.extend(nodes)
        del graph.node[:]
        graph.node.extend(copied.node)


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


def find_inputs(model: onnx.ModelProto, options: WrapOptions) -> tuple[ImageTensor, ImageTensor | None]:
    """The image to restore, and the second image where one is named."""
    values = list(model.graph.input)
    images = {one.name: one for one in map(as_image, values) if one}
    there = "; ".join(map(_described, values))
    for flag, wanted in (("--input", options.input), ("--reference", options.reference)):
        if wanted is not None and wanted not in images:
            raise InvalidOption(f"no image input is called {wanted!r}: choose another with {flag}. There are: {there}")
    others = [name for name in images if name != options.reference]
    if options.input is None and len(others) != 1:
        raise InvalidOption(
            f"{len(others)} inputs could be the image: choose it with --input, and a second picture that the "
            f"network reads with --reference. There are: {there}"
        )
    return images[options.input or others[0]], images[options.reference] if options.reference else None


def as_image(value: onnx.ValueInfoProto) -> ImageTensor | None:
    """Return a tensor that can hold square RGB images, (B, 3, S, S) or (B, S, S, 3); None for any other."""
    tensor = value.type.tensor_type
    dims = [dim.dim_value or None for dim in tensor.shape.dim]
    if len(dims) != 4 or tensor.elem_type not in IMAGE_TYPES or 3 not in (dims[1], dims[3]):
        return None
    last = dims[1] != 3
    height, width = (dims[1], dims[2]) if last else (dims[2], dims[3])
    return ImageTensor(value.name, tensor.elem_type, last, height, dims[0]) if height == width else None


def find_output(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], side: int, wanted: str | None
) -> tuple[ImageTensor, int]:
    """Find the image that the file makes.

    Of several, it is the first of the input's side, else the first: programs that run such files take that one.

    Args:
        model: The file.
        shapes: Shapes of all outputs, as a run gave them.
        side: Side of the input image, in pixels.
        wanted: Name of the output to take, None to choose.

    Returns:
        The output, and its side in pixels.

    Raises:
        InvalidOption: No output is an image, or none has that name.
    """
    images = {}
    for value in model.graph.output:
        shape = shapes[value.name]
        last = len(shape) == 4 and shape[1] != 3
        if len(shape) == 4 and shape[3 if last else 1] == 3 and value.type.tensor_type.elem_type in IMAGE_TYPES:
            height, width = (shape[1], shape[2]) if last else (shape[2], shape[3])
            if height == width:
                images[value.name] = ImageTensor(value.name, value.type.tensor_type.elem_type, last, height, None)
    there = "; ".join(f"{name} ({'x'.join(map(str, shape)) or 'number'})" for name, shape in shapes.items())
    if not images or (wanted is not None and wanted not in images):
        problem = f"no image is called {wanted!r}" if wanted else "none is an image, (batch, 3, T, T)"
        raise InvalidOption(f"of the outputs {problem}: choose one with --output. There are: {there}")
    found = images[wanted] if wanted else next((i for i in images.values() if i.side == side), None)
    found = found or next(iter(images.values()))
    return found, found.side or 0


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = "x".join(str(dim.dim_value or dim.dim_param or "?") for dim in tensor.shape.dim)
    kind = TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} ({kind} {shape or 'number'})"


def find_values(
    model: onnx.ModelProto, images: tuple[ImageTensor | None, ...], given: Mapping[str, float]
) -> tuple[str | None, dict[str, float]]:
    """The name of the weight that runs may set, where there is one, and the values of all further inputs."""
    names = {image.name for image in images if image}
    further = {value.name: value for value in model.graph.input if value.name not in names}
    if unknown := given.keys() - further.keys():
        raise InvalidOption(f"the model has no further input {min(unknown)!r}: leave it out")
    weights = [name for name, value in further.items() if name in WEIGHT_NAMES and _is_number(value)]
    weight = weights[0] if len(weights) == 1 else None
    values = {weight: 0.5} | dict(given) if weight else dict(given)
    if missing := further.keys() - values.keys():
        name = min(missing)
        raise InvalidOption(
            f"the model reads {_described(further[name])} as well: give its value with --set {name}=NUMBER"
        )
    return weight, values


def _is_number(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.elem_type in FLOATS and all(dim.dim_value in (0, 1) for dim in tensor.shape.dim)


def constant_of(value: onnx.ValueInfoProto, number: float) -> np.ndarray[Any, Any]:
    """An input filled with one number; sizes that it leaves open are 1."""
    tensor = value.type.tensor_type
    shape = [dim.dim_value or 1 for dim in tensor.shape.dim]
    return np.full(shape, number, helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def drawing_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that draw random numbers. Raises InvalidOption for those that cannot become constants."""
    found = [node for node in model.graph.node if node.op_type in DRAWS]
    hidden = [inner for node in model.graph.node for graph in branches(node) for inner in graph.node]
    other = [n for n in hidden if n.op_type in DRAWS]
    other += [n for n in (*model.graph.node, *hidden) if n.op_type in ("Bernoulli", "Multinomial")]
    if other:
        raise InvalidOption(
            f"the model draws random numbers ({other[0].op_type} {other[0].name!r}), so that no two results agree: "
            "export it with constant noise"
        )
    return found


def freeze_draws(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Replace nodes that draw random numbers by constants, drawn once from seed 0.

    Args:
        model: The graph; it is changed.
        shapes: Shapes of what the nodes draw, by output.
    """
    for i, node in enumerate(drawing_nodes(model)):
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        rng, shape = np.random.default_rng([0, i]), shapes[node.output[0]]
        if node.op_type.startswith("RandomNormal"):
            drawn = rng.normal(attributes.get("mean", 0.0), attributes.get("scale", 1.0), shape)
        else:
            drawn = rng.uniform(attributes.get("low", 0.0), attributes.get("high", 1.0), shape)
        kind = helper.tensor_dtype_to_np_dtype(attributes.get("dtype", TensorProto.FLOAT))
        model.graph.initializer.append(numpy_helper.from_array(drawn.astype(kind), node.output[0]))
        model.graph.node.remove(node)
