"""The interface of face detectors: YuNet, or one that a caller gives."""

from typing import Any, Protocol

from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Face


class Detector(Protocol):
    """Finds faces. Several threads may call it at once."""

    name: str

    def detect(self, pixels: NDArray[Any]) -> list[Face]:
        """The faces of an (H, W, 3) uint8 RGB image, best first, in its pixels."""
        ...

    def refine(self, pixels: NDArray[Any], face: Face) -> Face:
        """The same face with landmarks from a second pass, if the detector has one."""
        ...
