"""The arithmetic between OSDFace's ONNX files, which becomes part of their graphs (`bfr.export.onnx.wrap_osdface`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from bfr.export.onnx.wrap_graph import rename
from bfr.runtime.diffusion.solvers import Column
from bfr.runtime.restore.plan import DEGRADED


@dataclass(frozen=True, slots=True)
class File:
    """A graph of the release: its name, what it is called in the bundle, its inputs, its output."""

    name: str
    network: str
    inputs: tuple[str, ...]
    output: str


def enclose(
    one: File, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], batch: int | str
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Put the graph between nodes of our own, in place; returns the inputs and outputs that it has then, by name."""
    graph = model.graph
    inputs, outputs = _interfaces(shapes)[one.network]
    names = {value.name for value in (*graph.input, *graph.initializer)} | {n for o in graph.node for n in o.output}
    rename(graph, {name: f"file/{name}" for name in names if name})
    nodes = _Arithmetic()
    if one.network == "encoder":
        nodes.make("Mul", [DEGRADED, nodes.number(2.0)], "twice")
        nodes.make("Sub", ["twice", nodes.number(1.0)], "file/lq_neg1_1")
        after = [("Identity", ["file/latent"], "latent")]
    elif one.network == "embedder":
        nodes.make("Identity", [DEGRADED], "file/lq_0_1")
        after = [("Identity", ["file/prompt_embeds"], "context")]
    elif one.network == "decoder":
        nodes.make("Identity", ["latent_state"], "file/x0_latent")
        after = [
            ("Mul", ["file/image_0_1", nodes.number(2.0)], "twice"),
            ("Sub", ["twice", nodes.number(1.0)], "signed"),
            ("Clip", ["signed", nodes.number(-1.0), nodes.number(1.0)], "restored"),
        ]
    else:
        nodes.make("Identity", ["x"], "file/latent")
        nodes.make("Identity", ["context"], "file/prompt_embeds")
        nodes.make("Cast", ["t"], "file/timestep", to=TensorProto.INT64)
        after = nodes.step()
    own = list(graph.node)
    before = list(nodes.nodes)
    nodes.nodes.clear()
    for kind, read, made in after:
        nodes.make(kind, read, made)
    copied = onnx.GraphProto()
    copied.node.extend([*before, *own, *nodes.nodes])
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(copied.node)
    graph.initializer.extend(nodes.constants)
    for values, ours in ((graph.input, inputs), (graph.output, outputs)):
        values.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape]) for name, shape in ours.items()
        )
    return inputs, outputs


def _interfaces(
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]]:
    """Network -> the shapes of its inputs and outputs in the bundle, without the batch."""
    image, latent, context = shapes["degraded"], shapes["latent"], shapes["context"]
    states = dict.fromkeys(("x", "h1", "h2"), latent)
    step = {**states, "t": (), "row": (len(Column),), "noise": latent, "context": context}
    return {
        "encoder": ({DEGRADED: image}, {"latent": latent}),
        "embedder": ({DEGRADED: image}, {"context": context}),
        "denoiser": (step, {"x_next": latent, "x0": latent}),
        "decoder": ({"latent_state": latent}, {"restored": shapes["restored"]}),
    }


class _Arithmetic:
    """Nodes and constants of our own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: Any) -> str:
        name = f"bfr/constant.{len(self.constants)}"
        self.constants.append(from_array(np.asarray(value), name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.float32(value))

    def make(self, kind: str, read: list[str], made: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, read, [made], name=f"bfr/{made}", **attributes))

    def step(self) -> list[tuple[str, list[str], str]]:
        """A step of any linear solver after the file's eps, see `bfr.runtime.diffusion.solvers`."""
        shape = self.constant(np.array([-1, 1, 1, 1], np.int64))
        made: list[tuple[str, list[str], str]] = []
        for column in Column:
            bounds = [self.constant(np.array([bound], np.int64)) for bound in (column, column + 1, 1)]
            made.append(("Slice", ["row", *bounds], f"row.{column.name}"))
            made.append(("Reshape", [f"row.{column.name}", shape], column.name))
        made += [("Mul", ["A", "x"], "kept"), ("Mul", ["B", "file/noise_pred"], "removed")]
        made += [("Sub", ["kept", "removed"], "x0")]
        terms = {"C": "x0", "D": "file/noise_pred", "E": "h1", "G": "h2", "F": "x", "S": "noise"}
        made += [("Mul", [column, value], f"term.{column}") for column, value in terms.items()]
        made.append(("Sum", [f"term.{column}" for column in terms], "x_next"))
        return made
