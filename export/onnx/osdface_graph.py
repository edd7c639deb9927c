"""The arithmetic between OSDFace's ONNX files, which becomes part of their graphs (`bfr.export.onnx.wrap_osdface`)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from bfr.export.onnx.wrap_graph import Nodes, put_between, rename
from bfr.export.onnx.wrap_load import model_opset
from bfr.runtime.diffusion.solvers import Column

STEP_INPUTS = ("x", "h1", "h2", "t", "row", "noise", "context")


@dataclass(frozen=True, slots=True)
class File:
    """A graph of the release.

    Attributes:
        name: Name of the file.
        network: What it is called in the bundle.
        reads: Its inputs, and what the bundle calls each.
        output: Its output.
        makes: The outputs that it has in the bundle.
    """

    name: str
    network: str
    reads: Mapping[str, str]
    output: str
    makes: tuple[str, ...]


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
    latents = ("x", "h1", "h2", "noise", "x_next", "x0", "latent_state")
    known = {**shapes, **dict.fromkeys(latents, shapes["latent"]), "t": (), "row": (len(Column),)}
    steps = one.network == "denoiser"
    inputs = {ours: known[ours] for ours in (STEP_INPUTS if steps else one.reads.values())}
    outputs = {ours: known[ours] for ours in one.makes}
    names = {value.name for value in (*graph.input, *graph.initializer)} | {n for o in graph.node for n in o.output}
    rename(graph, {name: f"file/{name}" for name in names if name})
    before = [Nodes(ours, f"file/{name}", opset) for name, ours in one.reads.items()]
    after = _step(opset) if steps else [Nodes(f"file/{one.output}", next(iter(outputs)), opset)]
    if steps:
        before[1].add("Cast", to=TensorProto.INT64)
    elif one.network == "encoder":
        before[0].affine(2.0, -1.0)
    elif one.network == "decoder":
        after[0].affine(2.0, -1.0)
        after[0].clip(-1.0, 1.0)
    put_between(graph, before, after, inputs, outputs)
    return inputs, outputs


def _step(opset: int) -> list[Nodes]:
    """A step of any linear solver after the file's eps, see `bfr.runtime.diffusion.solvers`."""
    columns = [Nodes("row", column.name, opset) for column in Column]
    for column, nodes in zip(Column, columns, strict=True):
        nodes.add("Slice", *(nodes.constant(np.array([bound], np.int64)) for bound in (column, column + 1, 1)))
        nodes.add("Reshape", nodes.constant(np.array([-1, 1, 1, 1], np.int64)))
    terms = {"C": "x0", "D": "file/noise_pred", "E": "h1", "G": "h2", "F": "x", "S": "noise"}
    made = [("Mul", ["A", "x"], "kept"), ("Mul", ["B", "file/noise_pred"], "removed")]
    made.append(("Sub", ["kept", "removed"], "x0"))
    made += [("Mul", [column, value], f"term.{column}") for column, value in terms.items()]
    made.append(("Sum", [f"term.{column}" for column in terms], "x_next"))
    rest = Nodes("x", "x_next", opset)
    rest.nodes += [helper.make_node(kind, read, [name], name=f"bfr/{name}") for kind, read, name in made]
    return [*columns, rest]
