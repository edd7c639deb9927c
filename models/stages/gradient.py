"""A stage whose forward calls autograd -> the same computation without autograd, which can be exported.

The ONNX exporter takes the result of `torch.autograd.grad` for a constant, or fails. `make_fx` records the operators
that autograd runs, forward and backward, as one graph; the operators that exist for backward passes alone are replaced
by ones that ONNX has. Every array keeps a symbolic batch while it is recorded: no batch size can become a constant.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import SymInt, Tensor, fx, nn
from torch._decomp import get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from bfr.models.stages.stage import Stage

aten = torch.ops.aten

COPIES = (aten.detach.default, aten.clone.default)
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


def without_autograd(stage: Stage, size: int) -> fx.GraphModule:
    """Record what a stage computes, for any batch, as a module that does not call autograd.

    The module takes the stage's inputs under their names and in their order; it shares the stage's parameters and
    buffers, and names them alike. A network that depends on `train()` or on the values of its inputs cannot be
    recorded.

    Args:
        stage: The stage; it is put into evaluation mode.
        size: Side of the images or latents that it works on.

    Raises:
        RuntimeError: The batch, or a tensor, became a constant of the graph.
    """
    stage.eval()
    state = {**dict(stage.named_parameters()), **dict(stage.named_buffers())}
    environment = ShapeEnv(specialize_zero_one=True, duck_shape=True)
    fake = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=False)
    weights = {name: fake.from_tensor(value.detach(), static_shapes=True) for name, value in state.items()}
    inputs = {name: _symbolic(fake, value) for name, value in stage.examples(size).items()}

    def call(*values: Tensor) -> Any:
        own, given = dict(zip(weights, values, strict=False)), values[len(weights) :]
        return torch.func.functional_call(stage, own, given)

    with fake:
        recorded = make_fx(call, decomposition_table=_decompositions())(*weights.values(), *inputs.values())
    if any(cast(SymInt, value.shape[0]).node.maybe_as_int() is not None for value in inputs.values()):
        raise RuntimeError(f"{type(stage).__name__}: an operator made the batch a constant; the graph would be wrong")
    return _module(stage, recorded, list(weights), list(inputs))


def move(recorded: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """A module of `without_autograd` on another device, the constants that its graph makes included. Returns itself."""
    for node in recorded.graph.nodes:
        if "device" in node.kwargs:
            node.update_kwarg("device", device)
    recorded.recompile()
    return recorded.to(device)


def _symbolic(mode: FakeTensorMode, example: Tensor) -> Tensor:
    """A stand-in for `example` whose first axis alone is unknown; every such axis is the same unknown."""
    sizes = [DimDynamic.DUCK, *[DimDynamic.STATIC] * (example.ndim - 1)]
    return mode.from_tensor(example, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))


def _module(stage: nn.Module, recorded: fx.GraphModule, weights: list[str], inputs: list[str]) -> fx.GraphModule:
    """The recorded graph with the inputs alone as arguments; it reads the weights from `stage`'s children."""
    graph = recorded.graph
    baked = [node.target for node in graph.nodes if node.op == "get_attr"]
    if baked:
        raise RuntimeError(f"{type(stage).__name__}: tensors became constants of the graph: {baked[:5]}")
    for name, child in stage.named_children():
        recorded.add_module(name, child)
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for place, name in zip(places, [*weights, *inputs], strict=True):
        if name in inputs:
            place.name = place.target = name
            continue
        if place.users:
            with graph.inserting_after(places[-1]):
                weight = graph.get_attr(name)
            weight.meta = dict(place.meta)
            place.replace_all_uses_with(weight)
        graph.erase_node(place)
    _tidy(graph)
    recorded.recompile()
    return recorded.eval()


def _tidy(graph: fx.Graph) -> None:
    """Take out what only autograd needed, and have views infer the batch: the graph then computes no shapes."""
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_function" or not isinstance(source, fx.Node):
            continue
        same = node.target in (*VIEWS, aten.expand.default) and _shape(source) == _shape(node)
        if same or node.target in COPIES:
            node.replace_all_uses_with(source)
        elif node.target in VIEWS:
            sizes = [-1 if isinstance(size, fx.Node) else size for size in node.args[1]]
            if sizes.count(-1) > 1:
                sizes = node.args[1]
            # reshape, which takes any strides: the copies that views needed are gone
            with graph.inserting_before(node):
                view = graph.call_function(aten.reshape.default, (source, sizes))
            view.meta = dict(node.meta)
            node.replace_all_uses_with(view)
    graph.eliminate_dead_code()


def _shape(node: fx.Node) -> list[str]:
    """As text: comparing an unknown batch with a number would make it that number."""
    return [str(size) for size in node.meta["val"].shape]


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Replacements of the operators that the exporter does not support, or exports as many nodes."""
    known = [aten._prelu_kernel_backward, aten._softmax_backward_data, aten.sigmoid_backward, aten.silu_backward]
    return {
        **get_decompositions(known),
        aten.convolution_backward.default: _convolution_backward,
        aten.native_batch_norm_backward.default: _batch_norm_backward,
        aten.native_group_norm.default: _group_norm,
        aten.native_group_norm_backward.default: _group_norm_backward,
        aten.upsample_nearest2d_backward.default: _nearest_backward,
    }


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    _bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> tuple[Tensor | None, None, None]:
    """The gradient of a convolution's input: the transposed convolution with the same weights."""
    if transposed or mask[1] or mask[2]:
        raise RuntimeError("only the gradients of the inputs of ordinary convolutions are recorded")
    if not mask[0]:
        return None, None, None
    axes = range(len(stride))
    reach = [dilation[axis] * (weight.shape[axis + 2] - 1) + 1 for axis in axes]
    size = [(gradient.shape[axis + 2] - 1) * stride[axis] - 2 * padding[axis] + reach[axis] for axis in axes]
    missing = [x.shape[axis + 2] - size[axis] for axis in axes]  # rows that the stride did not reach
    result = aten.convolution.default(gradient, weight, None, stride, padding, dilation, True, missing, groups)
    return result, None, None


def _nearest_backward(
    gradient: Tensor, output_size: list[int], input_size: list[int], *_scales: float | None
) -> Tensor:
    """The gradient of an enlargement by whole numbers: the sum over each pixel's copies."""
    _, channels, height, width = input_size
    down, across = output_size[0] // height, output_size[1] // width
    if (height * down, width * across) != tuple(output_size):
        raise RuntimeError("only enlargements by whole numbers are recorded")
    return gradient.reshape(-1, channels, height, down, width, across).sum((3, 5))


def _batch_norm_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    _mean: Tensor,
    variance: Tensor,
    _batch_mean: Tensor,
    _batch_rstd: Tensor,
    train: bool,
    eps: float,
    mask: list[bool],
) -> tuple[Tensor, None, None]:
    """The gradient of the input of a batch norm in evaluation mode: a product with one number a channel."""
    if train or mask[1] or mask[2]:
        raise RuntimeError("only the gradients of the inputs of batch norms in evaluation mode are recorded")
    scale = weight * torch.rsqrt(variance + eps)
    return gradient * scale.reshape(-1, *[1] * (x.ndim - 2)), None, None


def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, batch: int, channels: int, area: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, H, W) -> the same, and each group's mean and reciprocal standard deviation, (B, groups)."""
    grouped = x.reshape(batch, groups, channels // groups * area)
    mean = grouped.mean(2, keepdim=True)
    centred = grouped - mean
    rstd = torch.rsqrt((centred * centred).mean(2, keepdim=True) + eps)
    result = (centred * rstd).reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    return result, mean.squeeze(2), rstd.squeeze(2)


def _group_norm_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    batch: int,
    channels: int,
    area: int,
    groups: int,
    mask: list[bool],
) -> tuple[Tensor, None, None]:
    """The gradient of a group norm's input."""
    if mask[1] or mask[2]:
        raise RuntimeError("only the gradients of the inputs of group norms are recorded")
    shape = (batch, groups, channels // groups * area)
    unit = (x.reshape(shape) - mean[:, :, None]) * rstd[:, :, None]
    inner = (gradient * weight[:, None, None]).reshape(shape)
    along = unit * (inner * unit).mean(2, keepdim=True)
    return (rstd[:, :, None] * (inner - inner.mean(2, keepdim=True) - along)).reshape(x.shape), None, None
