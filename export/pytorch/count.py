"""The outputs and operations of a stage, found without computing it: tensors on PyTorch's device `meta`."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bfr.models.stages.stage import Stage, as_tuple


def output_examples(stage: Stage, size: int) -> dict[str, Tensor]:
    """Return a stage's outputs for its examples, by name, as tensors without values."""
    with torch.device("meta"), torch.no_grad():
        meta = copy.deepcopy(stage).to("meta")
        made = meta(**{name: value.to("meta") for name, value in stage.examples(size, 1).items()})
    return dict(zip(stage.outputs, as_tuple(made), strict=True))


def gflop(stage: Stage, size: int) -> float:
    """Billions of floating point operations of one call on one image, 2 per multiply-add."""
    counter = _Operations()
    with counter:
        output_examples(stage, size)
    return counter.total / 1e9


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Adds up floating point operations, those of gradients too, which torch's own FlopCounterMode refuses."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result
