"""Put an ONNX file's graph between nodes that convert images between the file's conventions and those of `bfr`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bfr.export.onnx.wrap_load import branches, every_node, model_opset, read_by, stored_tensors
from bfr.export.onnx.wrap_read import REFERENCE, ImageTensor, Interface, axes_of, filled, open_sizes
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.plan import DEGRADED, ESTIMATE, WEIGHT

OURS = "bfr/"  # what the names of our own tensors begin with
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")  # of every type, the first input's
KEEP_BOUNDS = (*MOVES, "Round", "Floor", "Cast")
SCALES = {"Mul": np.multiply, "Div": np.divide, "Add": np.add, "Sub": np.subtract}
Shape = Sequence[int | None]


def wrap_graph(model: onnx.ModelProto, face: Interface) -> None:
    """Put the file's graph between `bfr`'s nodes, in place: `degraded` in, `estimate` out.

    The input `reference` is a second image. The input `weight` is (batch, 1), of which the first value applies to the
    batch. Every other input becomes a constant.
    """
    graph, opset = model.graph, model_opset(model)
    values = {value.name: value for value in graph.input}
    renamed = _rename_ours(graph)
    before, sizes = [], dict[str, int]()
    for image, ours in ((face.source, DEGRADED), (face.reference, REFERENCE)):
        if image:
            before.append(Nodes(ours, renamed.get(image.name, image.name), opset))
            _read_image(before[-1], image, face)
            sizes |= open_sizes(axes_of(values[image.name]), image.shape(face.side))
    for stored in [one for one in graph.initializer if one.name in face.values]:
        graph.initializer.remove(stored)  # the default of an input
    for name, number in face.values.items():
        value, tensor = values[name], values[name].type.tensor_type
        if name != face.weight:
            kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            constant = filled(name, axes_of(value), number, kind, sizes)
            graph.initializer.append(numpy_helper.from_array(constant, value.name))
            continue
        nodes = Nodes(WEIGHT, value.name, opset)
        nodes.add("Gather", nodes.constant(np.int64(0)), axis=0)
        nodes.add("Reshape", nodes.constant(np.ones(len(tensor.shape.dim), np.int64)))
        only_cast = all(node.op_type == "Cast" for node in graph.node if value.name in read_by(node))
        if tensor.elem_type != TensorProto.FLOAT and not only_cast:  # a cast reads every type
            nodes.add("Cast", to=tensor.elem_type)
        before.append(nodes)
    after = Nodes(renamed.get(face.target.name, face.target.name), ESTIMATE, opset)
    _make_image(after, face)
    put_between(graph, before, [after], face.inputs, {ESTIMATE: (3, None, None)})
    _widen_bytes(graph)


def put_between(
    graph: onnx.GraphProto,
    before: Sequence["Nodes"],
    after: Sequence["Nodes"],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
) -> None:
    """Put a graph between nodes of our own, in place.

    Args:
        graph: The file's graph.
        before: Nodes that compute its inputs.
        after: Nodes that read its outputs.
        inputs: Shapes of the new float32 inputs, by name, without the batch.
        outputs: Shapes of the new outputs, likewise.
    """
    first, last = ([node for chain in chains for node in chain.finished()] for chains in (before, after))
    nodes = [*first, *graph.node, *last]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([constant for chain in (*before, *after) for constant in chain.constants])
    for values, ours in ((graph.input, inputs), (graph.output, outputs)):
        values.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", *shape)) for name, shape in ours.items()
        )


def fix_batch(graph: onnx.GraphProto, batch: int) -> None:
    """Give the inputs and outputs one batch size, in place."""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch


def _read_image(nodes: "Nodes", image: ImageTensor, face: Interface) -> None:
    """Convert (batch, 3, S, S) RGB in [0, 1] to the file's input."""
    if image.side not in (None, face.side):
        if nodes.opset < 11:
            raise InvalidOption(
                f"the second image has another side than the first, {image.side}: export with opset 11 or later"
            )
        scale = (image.side or face.side) / face.side
        nodes.add("Resize", "", nodes.constant(np.array([1, 1, scale, scale], np.float32)), mode="linear")
    nodes.colour(face.colour)
    black, white = face.input_range
    nodes.affine(white - black, black)
    if image.channels_last:
        nodes.add("Transpose", perm=[0, 2, 3, 1])
    if image.single:
        nodes.add("Reshape", nodes.constant(np.array(image.shape(face.side))))
    if image.type == TensorProto.UINT8:
        nodes.affine(1.0, 0.5)  # rounds, because the cast truncates
        nodes.clip(0.0, 255.0)
    if image.type != TensorProto.FLOAT:
        nodes.add("Cast", to=image.type)


def _make_image(nodes: "Nodes", face: Interface) -> None:
    """Convert the file's output to (batch, 3, T, T) RGB in [-1, 1]."""
    if face.target.type != TensorProto.FLOAT:
        nodes.add("Cast", to=TensorProto.FLOAT)
    if face.target.single:
        nodes.add("Reshape", nodes.constant(np.array((1, *face.target.shape(face.out_side)))))
    if face.target.channels_last:
        nodes.add("Transpose", perm=[0, 3, 1, 2])
    black, white = face.output_range
    nodes.affine(2.0 / (white - black), -1.0 - 2.0 * black / (white - black))
    nodes.colour(face.colour)
    nodes.clip(-1.0, 1.0)


def _widen_bytes(graph: onnx.GraphProto) -> None:
    """Make int32 of clipped bytes that are moved and cast again, in place: TensorRT has no bytes inside a graph."""
    readers, makers = dict[str, list[onnx.NodeProto]](), {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for name in {*read_by(node)}:
            readers.setdefault(name, []).append(node)
    constants = stored_tensors(graph)

    def only_moved(name: str) -> bool:
        names = [name]
        for one in names:  # which grow
            for reader in readers.get(one, ()):
                if reader.op_type in MOVES and [*read_by(reader)].index(one) == 0:
                    names.append(reader.output[0])
                elif reader.op_type != "Cast":
                    return False
        return True

    def bounds(name: str) -> list[np.floating[Any]]:
        """The least and the greatest value of a clipped tensor, scaled by constants since; none if they are unknown."""
        scales = []
        while (node := makers.get(name)) and node.op_type != "Clip":
            given = [numpy_helper.to_array(constants[one]) for one in node.input[1:] if one in constants]
            if node.op_type in SCALES and given:
                scales.append((SCALES[node.op_type], given[0]))
            elif node.op_type not in KEEP_BOUNDS:
                return []
            name = node.input[0]
        ends = [one.f for one in node.attribute if one.name in ("min", "max")] if node else []
        ends += [numpy_helper.to_array(constants[one]) for one in node.input[1:] if one in constants] if node else []
        for scale, constant in reversed(scales):
            ends = [end for one in ends for end in (np.min(scale(one, constant)), np.max(scale(one, constant)))]
            ends = [min(ends), max(ends)] if ends else []
        return ends if len(ends) == 2 else []

    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Cast" else ():
            is_byte = attribute.name == "to" and attribute.i == TensorProto.UINT8
            ends = bounds(node.input[0]) if is_byte and only_moved(node.output[0]) else []
            if ends and min(ends) > -1 and max(ends) < 256:  # the cast cuts off
                attribute.i = TensorProto.INT32


def _rename_ours(graph: onnx.GraphProto) -> dict[str, str]:
    """Rename the file's tensors that have one of `bfr`'s names; return old -> new."""
    names = {value.name for value in (*graph.input, *graph.initializer)}
    names |= {name for node in graph.node for name in (*read_by(node), *node.output)}
    ours = (DEGRADED, ESTIMATE, REFERENCE, WEIGHT, "__metadata__")  # the last is safetensors'
    renamed = {}
    for name in sorted(name for name in names if name in ours or name.startswith(OURS)):
        renamed[name] = f"file/{name}"
        while renamed[name] in names:
            renamed[name] = f"file/{renamed[name]}"
    for node in every_node(graph):
        if str(node.name).startswith(OURS):  # bytes, where it is no UTF-8
            node.name = ""
    rename(graph, renamed)
    return renamed


def rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Give tensors other names, old -> new, in place, in the graphs of its branches too."""
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
        for branch in branches(node):
            rename(branch, renamed)


class Nodes:
    """A chain of nodes of our own, from one tensor to another."""

    def __init__(self, begin: str, end: str, opset: int) -> None:
        """Begin a chain.

        Args:
            begin: The tensor that the first node reads.
            end: The tensor that the last node makes.
            opset: Opset of the graph that the nodes are for.
        """
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.last, self.end, self.opset = begin, end, opset
        self.name = f"{OURS}{begin}/{end}"

    def constant(self, value: Any) -> str:
        """Store a constant; returns its name."""
        name = f"{self.name}/constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> None:
        """Add a node that reads the last node's output, and `inputs`."""
        made = f"{self.name}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *inputs], [made], name=made, **attributes))
        self.last = made

    def affine(self, factor: float, shift: float) -> None:
        """Multiply, then add; nothing if that changes nothing."""
        if factor != 1.0:
            self.add("Mul", self.constant(np.float32(factor)))
        if shift != 0.0:
            self.add("Add", self.constant(np.float32(shift)))

    def colour(self, order: str) -> None:
        """Reverse the channels of (batch, 3, H, W) where `order` is `bgr`."""
        if order == "bgr":
            self.add("Gather", self.constant(np.array([2, 1, 0])), axis=1)

    def clip(self, low: float, high: float) -> None:
        """Limit values to [low, high]."""
        if self.opset >= 11:
            self.add("Clip", self.constant(np.float32(low)), self.constant(np.float32(high)))
        else:
            self.add("Clip", min=low, max=high)

    def finished(self) -> list[onnx.NodeProto]:
        """The nodes, the last of which makes the end."""
        if not self.nodes:
            self.add("Identity")
        self.nodes[-1].output[0] = self.end
        return self.nodes
