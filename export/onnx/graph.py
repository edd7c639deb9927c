"""torch module -> ONNX graph with its weights in a safetensors file beside it.

The graph refers to the tensors of that file by offset (ONNX external data), under the checkpoint's own names: the same
file serves ONNX Runtime, TensorRT's parser and PyTorch, and is the safe copy of the checkpoint.
"""

import json
import logging
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import Tensor, nn

from bfr.export.options import ExportOptions, Opset
from bfr.models.networks.blocks import AttentionBlock, GroupNorm32
from bfr.models.stages.stage import Stage
from bfr.runtime.errors import InvalidOption

OPSETS: tuple[int, ...] = get_args(Opset)
# 20: the newest that ONNX Runtime runs wholly on CUDA, whose provider has no GroupNormalization of opset 21; TensorRT
# and TensorRT-RTX read it too.
DEFAULT_OPSET: int = ExportOptions().opset
NORMALIZATION_OPSET = 21  # the first whose GroupNormalization is one node; TensorRT takes it from 10.9 on
ATTENTION_OPSET = 23  # the first that has attention as one operator; TensorRT takes it from 10.14 on
EXTERNAL_FROM = 1024  # elements: smaller tensors stay in the graph
# Types of the weights that are stored beside it: those of safetensors but for the ones that ONNX packs.
STORED = {*range(TensorProto.FLOAT, TensorProto.UINT4)} - {TensorProto.STRING, TensorProto.COMPLEX128}


def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    store_half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> tuple[Path, Path]:
    """Write an .onnx file and the .safetensors file of its weights; their paths. Raises InvalidOption for the opset.

    Args:
        module: The stage to trace, in evaluation mode.
        inputs: Name -> example, in the order of `module.forward`. The first axis is the batch and stays dynamic, the
            others are fixed. It must be 2 in the examples: the exporter would take an axis of 1 for a constant.
        outputs: Names of what `module.forward` returns, in its order.
        path: The .onnx file.
        opset: The ONNX opset.
        store_half: Store float32 weights as half and widen them in the graph, which then computes in float32.
        metadata: Entries that describe the file, see `bfr.export.onnx.metadata`.
    """
    if opset not in OPSETS:
        raise InvalidOption(f"opset {opset} is not offered: choose one of {', '.join(map(str, OPSETS))}")
    if any(example.shape[0] != 2 for example in inputs.values()):
        raise ValueError("examples are of batch 2")
    module = module.eval()
    state, wraps = module.state_dict(), getattr(module, "wraps", "")
    prefix = f"{wraps}." if wraps else ""
    with _quiet(), torch.no_grad(), _operators_of(module, opset):
        size = next(iter(inputs.values())).shape[-1]
        program = torch.onnx.export(
            module.traceable(size) if isinstance(module, Stage) else module,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: "batch"} for _ in inputs),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    saved = save_graph(program.model_proto, path, state=state, prefix=prefix, store_half=store_half, metadata=metadata)
    onnx.checker.check_model(path, full_check=False)
    return saved


def save_graph(
    model: onnx.ModelProto,
    path: Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    prefix: str = "",
    store_half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> tuple[Path, Path]:
    """Write a graph, and beside it the .safetensors file of its large tensors.

    Args:
        model: The graph; it is changed.
        path: The .onnx file.
        state: Tensors to store beside those of the graph.
        prefix: A prefix that the names of weights lose in the file.
        store_half: As in `export_graph`.
        metadata: As in `export_graph`.

    Returns:
        The paths of the graph and of its weights.
    """
    _strip_traces(model)
    helper.set_model_props(model, dict(metadata or {}))
    weights = path.with_suffix(".safetensors")
    _move_weights(model, state or {}, weights, prefix=prefix, store_half=store_half)
    onnx.save(model, path)
    return path, weights


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which contain source lines and paths of the exporting machine."""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    for thing in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
        *model.functions,
    ):
        del thing.metadata_props[:]
        thing.doc_string = ""
    del graph.value_info[:]  # loading the graph infers the shapes anew


def _move_weights(
    model: onnx.ModelProto, state: Mapping[str, Tensor], path: Path, *, prefix: str, store_half: bool
) -> None:
    """Move the initializers of `model` into a safetensors file and refer to them there.

    The file also holds the module's tensors that the graph does not name, because the exporter merged or folded them.
    So the file loads like the checkpoint.
    """
    _rename_folded(model, state)
    _unfold_transposes(model, state, prefix)
    large = [
        tensor
        for tensor in model.graph.initializer
        if int(np.prod(tensor.dims)) >= EXTERNAL_FROM and tensor.data_type in STORED
    ]
    arrays = {tensor.name.removeprefix(prefix): numpy_helper.to_array(tensor) for tensor in large}
    for name, value in state.items():
        arrays.setdefault(name.removeprefix(prefix), value.detach().cpu().numpy())
    if store_half:
        arrays = {
            name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in arrays.items()
        }
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)  # scalars stay scalars
    path.chmod(0o644)  # safetensors makes its files private; a bundle is data to copy and install
    offsets = _offsets(path)
    casts = []
    for tensor in large:
        name = tensor.name
        array = arrays[name.removeprefix(prefix)]
        if store_half and tensor.data_type == TensorProto.FLOAT:
            tensor.name, tensor.data_type = f"{name}.half", TensorProto.FLOAT16
            casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"widen/{name}", to=TensorProto.FLOAT))
        _refer(tensor, path.name, *offsets[name.removeprefix(prefix)], array)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _rename_folded(model: onnx.ModelProto, state: Mapping[str, Tensor]) -> None:
    """Rename weights that the exporter changed by folding a batch normalization into them.

    Under the checkpoint's names, the file must hold the checkpoint's values.
    """
    renamed = {}
    for tensor in model.graph.initializer:
        own = state.get(tensor.name)
        if own is not None and not np.array_equal(numpy_helper.to_array(tensor), own.detach().cpu().numpy()):
            name = tensor.name
            renamed[name] = tensor.name = f"{name}.folded"
    for node in model.graph.node if renamed else ():
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def _unfold_transposes(model: onnx.ModelProto, state: Mapping[str, Tensor], prefix: str) -> None:
    """Replace each weight that the exporter transposed by a Transpose of the checkpoint's weight.

    Otherwise the file would hold such weights twice: a third of a transformer's. Runtimes fold the node at load.
    """
    matrices: dict[tuple[int, ...], list[str]] = {}
    for name, value in state.items():
        if value.ndim == 2 and value.numel() >= EXTERNAL_FROM:
            matrices.setdefault(tuple(value.shape), []).append(name)
    there, nodes = {tensor.name for tensor in model.graph.initializer}, []
    for tensor in list(model.graph.initializer):
        if len(tensor.dims) != 2 or tensor.name in state or tensor.name.removeprefix(prefix) in state:
            continue
        array, (rows, columns) = numpy_helper.to_array(tensor), tensor.dims
        for name in matrices.get((columns, rows), ()):
            own = state[name].detach().cpu().numpy()
            if own.dtype == array.dtype and np.array_equal(own.T, array):
                model.graph.initializer.remove(tensor)
                if name not in there:
                    model.graph.initializer.append(numpy_helper.from_array(own, name))
                    there.add(name)
                nodes.append(
                    helper.make_node("Transpose", [name], [tensor.name], name=f"unfold/{tensor.name}", perm=[1, 0])
                )
                break
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _refer(tensor: TensorProto, file: str, offset: int, length: int, array: NDArray[np.generic]) -> None:
    if length != array.nbytes:
        raise RuntimeError(f"{tensor.name}: {length} bytes in {file}, {array.nbytes} expected")
    for kept in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(kept)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def _offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Tensor name -> (offset in the file, length), bytes."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {
        name: (8 + size + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def module_versions(*modules: str) -> dict[str, str]:
    """The versions of modules, by name; ONNX Runtime's from the module, because several distributions install it."""
    return {
        name: str(import_module(name).__version__) if name == "onnxruntime" else metadata.version(name)
        for name in modules
    }


@contextmanager
def _operators_of(module: nn.Module, opset: int) -> Iterator[None]:
    """Let the blocks of a module use the operators for half normalization and attention that an opset has."""
    blocks = [block for block in module.modules() if isinstance(block, AttentionBlock | GroupNorm32)]
    for block in blocks:
        if isinstance(block, AttentionBlock):
            block.explicit = opset < ATTENTION_OPSET
        else:
            block.narrow = opset >= NORMALIZATION_OPSET
    try:
        yield
    finally:
        for block in blocks:
            delattr(block, "explicit" if isinstance(block, AttentionBlock) else "narrow")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which warns about its own internals and about packages that an export does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
