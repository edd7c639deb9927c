"""The limits of pictures, for requests and jobs alike."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.errors import InvalidImage
from bfr.runtime.faces.detect import Detector
from bfr.runtime.faces.geometry import Face
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoEditor, PhotoRestorer
from bfr.runtime.restore.pipeline import FaceRestorer

ALIGNED_PIXELS = 2048 * 2048
"""Most pixels of an aligned face: the worker scales it and its result while other requests wait."""


def check_size(size: tuple[int, int] | None, upscale: int, most: int, what: str = "the image") -> int:
    """The pixels of an image or frame and its result together.

    Args:
        size: Width and height, from the header; None if it has none, and the decoder says what is wrong.
        upscale: Width and height of the result in relation to those of the image.
        most: The pixels that either may have.
        what: What it is called.

    Raises:
        InvalidImage: Either has too many.
    """
    if size is None:
        return 0
    count, scale = size[0] * size[1], upscale**2
    if count * scale > most:
        raise InvalidImage(
            f"{what} has {size[0]} x {size[1]} pixels{f', {scale} times as many enlarged' if scale > 1 else ''}: "
            f"{most} are the limit here. Make it smaller{', or enlarge less' if scale > 1 else ''}"
        )
    return count * (1 + scale)


class _Limited(PhotoEditor):
    """Refuses photographs and frames with too many faces, before any is cut out."""

    most: int

    def find(self, photograph: NDArray[Any], *, turns: bool = True) -> list[Face]:
        """Find faces, see `PhotoEditor.find`. Raises InvalidImage if there are more than `most`."""
        faces = super().find(photograph, turns=turns)
        if len(faces) > self.most:
            raise InvalidImage(
                f"more than {self.most} faces were found, the limit here: choose faces=largest or faces=centre, send "
                "parts of the picture, or raise --max-faces of the server"
            )
        return faces


class LimitedEditor(_Limited):
    """The steps around the networks for one request."""

    def __init__(
        self, size: int, options: PhotoOptions, *, detector: Detector, most: int, admit: Callable[[int], None]
    ) -> None:
        """Open the background that the options name.

        Args:
            size: Side of crops, pixels.
            options: How faces are found and pasted.
            detector: Finds the faces.
            most: Faces of a photograph.
            admit: Called with their number before a face is cut out; raises where these are too many for now.
        """
        super().__init__(size, _up_to(options, most), detector=detector)
        self.most, self.admit = most, admit

    def find(self, photograph: NDArray[Any], *, turns: bool = True) -> list[Face]:
        """Find faces, see `PhotoEditor.find`. Raises InvalidImage, and what `admit` raises."""
        faces = super().find(photograph, turns=turns)
        self.admit(len(faces))
        return faces


class LimitedRestorer(_Limited, PhotoRestorer):
    """A PhotoRestorer for jobs. most: faces of a photograph or frame."""

    def __init__(self, restorer: FaceRestorer, options: PhotoOptions, *, most: int) -> None:
        super().__init__(restorer, _up_to(options, most))
        self.most = most


def _up_to(photo: PhotoOptions, most: int) -> PhotoOptions:
    """Options that find one face too many at most, so that a photograph of more can be refused."""
    return photo.model_copy(update={"max_faces": most + 1})
