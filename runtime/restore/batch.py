"""The results of a batch of images, available now or later."""

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from bfr.runtime.bundle.manifest import Precision


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of one image.

    Attributes:
        pixels: (H, W, 3) RGB of the input's size and dtype, or None if it failed.
        seconds: Stage -> this image's share of the batch's time, in seconds.
        precision: Precision of the networks that computed it.
        error: Why it failed.
    """

    pixels: NDArray[Any] | None
    seconds: dict[str, float]
    precision: Precision
    error: str | None = None


class Pending(Protocol):
    """A batch whose results are fetched later."""

    @property
    def done(self) -> bool:
        """Whether the results can be fetched without a wait."""
        ...

    def finish(self) -> list[Restored]:
        """Wait for the batch; return a result for each image, in order. Call it once."""
        ...


@dataclass(frozen=True, slots=True)
class Finished:
    """A batch that was restored when it was launched."""

    results: list[Restored]
    done: bool = True

    def finish(self) -> list[Restored]:
        """See `Pending`."""
        return self.results
