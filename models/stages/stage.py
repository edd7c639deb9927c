"""The base of a bundle's networks: a torch module with named inputs and outputs."""

from typing import ClassVar

import torch
from torch import Tensor, nn

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Stage(nn.Module):
    """A module that is exported as one network of a bundle.

    Attributes:
        kind: Its name in the manifest, by which `bfr.models.stages.kinds` builds it.
        outputs: Their names, in the order of what `forward` returns; its inputs are named as `forward`'s arguments are.
        wraps: The attribute that holds the network, whose state dict is the checkpoint's; names of stored weights do
            not begin with it.
        autograd: Whether `forward` calls autograd. `traceable` then returns the module to trace.
    """

    kind: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    wraps: ClassVar[str] = ""
    autograd: ClassVar[bool] = False

    def __init__(self, network: nn.Module | None = None) -> None:
        """Build the stage.

        Args:
            network: The network, which becomes the attribute `wraps`.
        """
        super().__init__()
        if self.wraps:
            setattr(self, self.wraps, network)

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """Return inputs to trace and count with, by name, in the order of `forward`: float32, the first axis the batch.

        Args:
            size: Side of the images or latents that the network works on.
            batch: Length of the first axis.
        """
        raise NotImplementedError

    def traceable(self, size: int) -> nn.Module:
        """Return the module to trace instead: the same arithmetic and the same names of weights."""
        del size
        return self


class ImageStage(Stage):
    """A stage that reads one image: degraded (B, 3, S, S) in [0, 1]."""

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        return {"degraded": random(batch, 3, size, size)}


def as_tuple(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a stage's `forward` returned, as a tuple also where it is one tensor."""
    return (made,) if isinstance(made, Tensor) else made


def random(*shape: int) -> Tensor:
    """Values in [0, 1), the same for the same shape."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))
