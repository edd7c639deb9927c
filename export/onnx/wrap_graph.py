"""An ONNX file's graph between nodes of our own, which read and make images as `bfr` does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from bfr.runtime.errors import InputNotFound, InvalidCheckpoint, InvalidOption
from bfr.runtime.restore.plan import DEGRADED, ESTIMATE

Range = tuple[float, float]
PREFIX = "wrapped/"  # of all names of the file, which may be ours
IMAGE_TYPES: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.UINT8: np.uint8,
}
OLDEST_OPSET = 13


@dataclass(frozen=True, slots=True)
class WrapOptions:
    """What an ONNX file expects and gives.

    input, output: the names of its image tensors; None where there is one. input_range, output_range: black and white.
    colour: the order of its channels. size: S of its input, where the file leaves it open. values: of its further
    inputs, by name, each filled with one number.
    """

    input: str | None = None
    output: str | None = None
    input_range: Range = (-1.0, 1.0)
    output_range: Range = (-1.0, 1.0)
    colour: Literal["rgb", "bgr"] = "rgb"
    size: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (black, white) in (("input", self.input_range), ("output", self.output_range)):
            if not black < white:
                raise InvalidOption(f"the {name} range {black:g}..{white:g} is empty: name black and white, as -1..1")
        if self.colour not in ("rgb", "bgr"):
            raise InvalidOption(f"colour {self.colour!r} is unknown: choose rgb or bgr")


@dataclass(frozen=True, slots=True)
class ImageTensor:
    """An image tensor of the file. channels_last: (batch, H, W, 3). side: H and W, None where the file leaves it open.

    batch: its fixed batch size, None where the file leaves it open.
    """

    name: str
    type: int
    channels_last: bool
    side: int | None
    batch: int | None


def load_model(file: Path) -> onnx.ModelProto:
    if not file.is_file():
        raise InputNotFound(f"{file} does not exist: name an ONNX file")
    try:
        model = onnx.load(file)
        onnx.checker.check_model(model, full_check=False)
    except Exception as error:  # protobuf's, onnx's and the file system's own types
        raise InvalidCheckpoint(
            f"{file} is not a whole ONNX model ({str(error).splitlines()[0]}): export it again, and keep the files of "
            "its weights beside it"
        ) from error
    if model_opset(model) < OLDEST_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OLDEST_OPSET)
        except Exception as error:
            raise InvalidCheckpoint(
                f"{file} is of opset {model_opset(model)}, which cannot be brought to {OLDEST_OPSET} ({error}): "
                "export it anew"
            ) from error
    return model


def model_opset(model: onnx.ModelProto) -> int:
    return next(int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx"))


def find_image(model: onnx.ModelProto, wanted: str | None, what: Literal["input", "output"]) -> ImageTensor:
    constants = {tensor.name for tensor in model.graph.initializer}
    found = [v for v in (model.graph.input if what == "input" else model.graph.output) if v.name not in constants]
    images = [one for one in map(_as_image, found) if one and (wanted is None or one.name == wanted)]
    if len(images) != 1:
        there = "; ".join(_described(value) for value in found)
        problem = f"no image is called {wanted!r}" if wanted else f"{len(images)} could be the image"
        raise InvalidOption(f"of the {what}s {problem}: choose one with --{what}. There are: {there}")
    return images[0]


def _as_image(value: onnx.ValueInfoProto) -> ImageTensor | None:
    tensor = value.type.tensor_type
    dims = [dim.dim_value or None for dim in tensor.shape.dim]
    if len(dims) != 4 or tensor.elem_type not in IMAGE_TYPES or 3 not in (dims[1], dims[3]):
        # An open shape, as some outputs have, is taken for (batch, 3, H, W).
        if tensor.elem_type in IMAGE_TYPES and (len(dims) == 0 or (len(dims) == 4 and dims[1] is None)):
            return ImageTensor(value.name, tensor.elem_type, False, None, None)
        return None
    last = dims[1] != 3
    height, width = (dims[1], dims[2]) if last else (dims[2], dims[3])
    if height != width:
        return None
    return ImageTensor(value.name, tensor.elem_type, last, height, dims[0])


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = "x".join(str(dim.dim_value or dim.dim_param or "?") for dim in tensor.shape.dim)
    kind = TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name.removeprefix(PREFIX)} ({kind} {shape or 'number'})"


def choose_side(file: Path, source: ImageTensor, wanted: int | None) -> int:
    if source.side is None and wanted is None:
        raise InvalidOption(f"{file.name} leaves the size of its input open: choose one with --size, as 512")
    if source.side is not None and wanted not in (None, source.side):
        raise InvalidOption(f"{file.name} takes {source.side}x{source.side} and no other: leave --size out")
    side = source.side or wanted or 0
    if side < 1:
        raise InvalidOption(f"size {side} is out of range: choose 1 or more")
    return side


def wrap_graph(
    model: onnx.ModelProto, source: ImageTensor, target: ImageTensor, options: WrapOptions, side: int
) -> onnx.ModelProto:
    """The file's graph between ours: `degraded` in, `estimate` out, every further input a constant."""
    wrapped = compose.add_prefix(model, PREFIX)
    graph = wrapped.graph
    constants = {tensor.name for tensor in graph.initializer}
    further = [v for v in graph.input if v.name not in constants and v.name != PREFIX + source.name]
    for value in further:
        graph.initializer.append(_constant(value, options.values))
    if unknown := options.values.keys() - {value.name.removeprefix(PREFIX) for value in further}:
        raise InvalidOption(f"the model has no further input {min(unknown)!r}: leave it out")
    before = _Nodes(DEGRADED, PREFIX + source.name, "in")
    black, white = options.input_range
    before.colour(options.colour)
    before.affine(white - black, black)
    if source.channels_last:
        before.add("Transpose", perm=[0, 2, 3, 1])
    if source.type == TensorProto.UINT8:
        before.add("Round")
        before.add("Clip", before.scalar(0.0), before.scalar(255.0))
    if source.type != TensorProto.FLOAT:
        before.add("Cast", to=source.type)
    after = _Nodes(PREFIX + target.name, ESTIMATE, "out")
    if target.type != TensorProto.FLOAT:
        after.add("Cast", to=TensorProto.FLOAT)
    if target.channels_last:
        after.add("Transpose", perm=[0, 3, 1, 2])
    black, white = options.output_range
    after.affine(2.0 / (white - black), -1.0 - 2.0 * black / (white - black))
    after.colour(options.colour)
    after.add("Clip", after.scalar(-1.0), after.scalar(1.0))
    nodes = [*before.finished(), *graph.node, *after.finished()]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.constants, *after.constants])
    graph.input.append(
        helper.make_tensor_value_info(DEGRADED, TensorProto.FLOAT, [source.batch or "batch", 3, side, side])
    )
    graph.output.append(helper.make_tensor_value_info(ESTIMATE, TensorProto.FLOAT, ["batch", 3, None, None]))
    return wrapped


class _Nodes:
    """A chain of nodes from one tensor to another."""

    def __init__(self, begin: str, end: str, name: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.last, self.end, self.name = begin, end, name

    def scalar(self, value: float | list[int]) -> str:
        array = np.array(value, np.int64 if isinstance(value, list) else np.float32)
        name = f"{self.name}/constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> None:
        made = f"{self.name}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *inputs], [made], name=made, **attributes))
        self.last = made

    def affine(self, factor: float, shift: float) -> None:
        if factor != 1.0:
            self.add("Mul", self.scalar(factor))
        if shift != 0.0:
            self.add("Add", self.scalar(shift))

    def colour(self, order: str) -> None:
        if order == "bgr":
            self.add("Gather", self.scalar([2, 1, 0]), axis=1)

    def finished(self) -> list[onnx.NodeProto]:
        """The nodes, the last of which makes the end."""
        if not self.nodes:
            self.add("Identity")
        self.nodes[-1].output[0] = self.end
        return self.nodes


def _constant(value: onnx.ValueInfoProto, values: Mapping[str, float]) -> TensorProto:
    name = value.name.removeprefix(PREFIX)
    if name not in values:
        raise InvalidOption(f"the model reads {_described(value)} as well: give its value with --set {name}=NUMBER")
    tensor = value.type.tensor_type
    shape = [dim.dim_value or 1 for dim in tensor.shape.dim]
    array = np.full(shape, values[name], helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return numpy_helper.from_array(array, value.name)
