"""An ONNX file's graph between nodes of our own, which read and make images as `bfr` does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bfr.export.onnx.wrap_load import branches, model_opset, read_by
from bfr.export.onnx.wrap_read import ImageTensor, Interface, constant_of
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.plan import DEGRADED, ESTIMATE, WEIGHT

REFERENCE = "reference"
OURS = "bfr/"  # what the names of our own tensors begin with


def wrap_graph(model: onnx.ModelProto, interface: Interface) -> onnx.ModelProto:
    """The file's graph between ours, changed in place: `degraded` in, `estimate` out.

    A second image is read as `reference`, the weight as `weight`, (batch, 1) of which the first counts; every other
    input becomes a constant.
    """
    graph, face, opset = model.graph, interface, model_opset(model)
    renamed = _rename_ours(graph)
    for value in graph.input:
        if value.name in {renamed.get(name, name) for name in face.values if name != face.weight}:
            original = next(name for name in face.values if renamed.get(name, name) == value.name)
            graph.initializer.append(numpy_helper.from_array(constant_of(value, face.values[original]), value.name))
    chains = []
    for image, ours in ((face.source, DEGRADED), (face.reference, REFERENCE)):
        if image:
            nodes = _Nodes(ours, renamed.get(image.name, image.name), f"{OURS}{ours}", opset)
            _read_image(nodes, image, face)
            chains.append(nodes)
    if face.weight:
        name = renamed.get(face.weight, face.weight)
        value = next(value for value in graph.input if value.name == name)
        nodes = _Nodes(WEIGHT, name, f"{OURS}{WEIGHT}", opset)
        nodes.add("Gather", nodes.constant(np.int64(0)), axis=0)
        nodes.add("Reshape", nodes.constant(np.ones(len(value.type.tensor_type.shape.dim), np.int64)))
        kind = value.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT and not _only_cast(graph, name):  # a cast reads every type
            nodes.add("Cast", to=kind)
        chains.append(nodes)
    after = _Nodes(renamed.get(face.target.name, face.target.name), ESTIMATE, f"{OURS}{ESTIMATE}", opset)
    _make_image(after, face)
    own = list(graph.node)
    nodes_before = [node for chain in chains for node in chain.finished()]
    graph_nodes = onnx.GraphProto()
    graph_nodes.node.extend([*nodes_before, *own, *after.finished()])
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(graph_nodes.node)
    graph.initializer.extend([constant for chain in (*chains, after) for constant in chain.constants])
    batch = face.source.batch or "batch"
    picture = [batch, 3, face.side, face.side]
    for chain in chains:
        shape = [batch, 1] if chain.begin == WEIGHT else picture
        graph.input.append(helper.make_tensor_value_info(chain.begin, TensorProto.FLOAT, shape))
    graph.output.append(helper.make_tensor_value_info(ESTIMATE, TensorProto.FLOAT, ["batch", 3, None, None]))
    return model


def _read_image(nodes: "_Nodes", image: ImageTensor, face: Interface) -> None:
    """From (batch, 3, S, S) RGB in [0, 1] to what the file reads."""
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
    if image.type == TensorProto.UINT8:
        nodes.round()
        nodes.clip(0.0, 255.0)
    if image.type != TensorProto.FLOAT:
        nodes.add("Cast", to=image.type)


def _make_image(nodes: "_Nodes", face: Interface) -> None:
    """From what the file makes to (batch, 3, T, T) RGB in [-1, 1]."""
    if face.target.type != TensorProto.FLOAT:
        nodes.add("Cast", to=TensorProto.FLOAT)
    if face.target.channels_last:
        nodes.add("Transpose", perm=[0, 3, 1, 2])
    black, white = face.output_range
    nodes.affine(2.0 / (white - black), -1.0 - 2.0 * black / (white - black))
    nodes.colour(face.colour)
    nodes.clip(-1.0, 1.0)


def _only_cast(graph: onnx.GraphProto, name: str) -> bool:
    return all(node.op_type == "Cast" for node in graph.node if name in read_by(node))


def _rename_ours(graph: onnx.GraphProto) -> dict[str, str]:
    """Give tensors of the file whose names are ours other names; returns old -> new."""
    names = {value.name for value in (*graph.input, *graph.initializer)}
    names |= {name for node in graph.node for name in (*read_by(node), *node.output)}
    ours = (DEGRADED, ESTIMATE, REFERENCE, WEIGHT, "__metadata__")  # the last is safetensors'
    taken = {name for name in names if name in ours or name.startswith(OURS)}
    renamed = {name: f"file/{name}" for name in taken}
    if renamed:
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


class _Nodes:
    """A chain of nodes from one tensor to another."""

    def __init__(self, begin: str, end: str, name: str, opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.begin, self.last, self.end, self.name, self.opset = begin, begin, end, name, opset

    def constant(self, value: Any) -> str:
        name = f"{self.name}/constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> None:
        made = f"{self.name}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *inputs], [made], name=made, **attributes))
        self.last = made

    def affine(self, factor: float, shift: float) -> None:
        if factor != 1.0:
            self.add("Mul", self.constant(np.float32(factor)))
        if shift != 0.0:
            self.add("Add", self.constant(np.float32(shift)))

    def colour(self, order: str) -> None:
        if order == "bgr":
            self.add("Gather", self.constant(np.array([2, 1, 0])), axis=1)

    def round(self) -> None:
        if self.opset >= 11:
            self.add("Round")
        else:
            self.add("Add", self.constant(np.float32(0.5)))
            self.add("Floor")

    def clip(self, low: float, high: float) -> None:
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
