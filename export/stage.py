"""What a bundle's network is made of: a torch module with named inputs and outputs."""

from typing import ClassVar

from torch import Tensor, nn


class Stage(nn.Module):
    """A module that is exported as one network of a bundle.

    kind: its name in the manifest, by which `bfr.export.reference` makes it anew. outputs: their names, in the order of
    what `forward` returns; its inputs are named as `forward`'s arguments are.
    """

    kind: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        """Inputs to trace and count with, by name, in the order of `forward`: float32, the first axis the batch.

        size: the side of the images or latents that the network works on.
        """
        raise NotImplementedError
