"""The arithmetic between OSDFace's ONNX files, which becomes part of their graphs (`bfr.export.onnx.wrap_osdface`)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from bfr.export.onnx.wrap_graph import Nodes, put_between, rename
from bfr.export.onnx.wrap_load import model_opset
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
    one: File, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Put a graph of the release between nodes of our own.

    Args:
        one: Which graph it is.
        model: The graph; it is changed.
        shapes: The shapes of one image's `degraded`, `latent`, `context` and `restored`, without the batch.

    Returns:
        The shapes of the inputs and outputs that it has then, by name, without the batch.
    """
    graph, opset = model.graph, model_opset(model)
    inputs, outputs = _interfaces(shapes)[one.network]
    names = {value.name for value in (*graph.input, *graph.initializer)} | {n for o in graph.node for n in o.output}
    rename(graph, {name: f"file/{name}" for name in names if name})
    reads = dict(zip(("x", "t", "context") if one.network == "denoiser" else inputs, one.inputs, strict=True))
    before = [Nodes(ours, f"file/{name}", opset) for ours, name in reads.items()]
    if one.network == "denoiser":
        before[1].add("Cast", to=TensorProto.INT64)
        after, constants = _step(opset)
    else:
        if one.network == "encoder":
            before[0].affine(2.0, -1.0)
        chain = Nodes(f"file/{one.output}", *outputs, opset)
        if one.network == "decoder":
            chain.affine(2.0, -1.0)
            chain.clip(-1.0, 1.0)
        after, constants = chain.finished(), chain.constants
    put_between(graph, before, after, constants, inputs, outputs)
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


def _step(opset: int) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """A step of any linear solver after the file's eps, see `bfr.runtime.diffusion.solvers`: nodes and constants."""
    columns = [Nodes("row", column.name, opset) for column in Column]
    for column, nodes in zip(Column, columns, strict=True):
        nodes.add("Slice", *(nodes.constant(np.array([bound], np.int64)) for bound in (column, column + 1, 1)))
        nodes.add("Reshape", nodes.constant(np.array([-1, 1, 1, 1], np.int64)))
    terms = {"C": "x0", "D": "file/noise_pred", "E": "h1", "G": "h2", "F": "x", "S": "noise"}
    made = [
        ("Mul", ["A", "x"], "kept"),
        ("Mul", ["B", "file/noise_pred"], "removed"),
        ("Sub", ["kept", "removed"], "x0"),
    ]
    made += [("Mul", [column, value], f"term.{column}") for column, value in terms.items()]
    made.append(("Sum", [f"term.{column}" for column in terms], "x_next"))
    nodes = [node for chain in columns for node in chain.finished()]
    nodes += [helper.make_node(kind, read, [name], name=f"bfr/{name}") for kind, read, name in made]
    return nodes, [constant for chain in columns for constant in chain.constants]
