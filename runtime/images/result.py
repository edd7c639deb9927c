"""A picture that was made of another one: saved, compared, shown."""

from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image as Pillow
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidOption
from bfr.runtime.images.decode import Image
from bfr.runtime.images.encode import QUALITY, encode_image, write_image

GAP = 8  # pixels between the two halves of a comparison


class Result:
    """Saves, compares and shows a result. A child holds `pixels`, (H, W, 3) RGB, and `source`, the image before."""

    __slots__ = ()
    pixels: NDArray[Any]
    source: Image

    def save(self, path: str | Path, *, quality: int = QUALITY, metadata: bool = True) -> Path:
        """Write it in the format of the suffix, replacing a file of that name, and return the path.

        Args:
            path: The file.
            quality: 1 to 100, of lossy formats.
            metadata: Whether the source's metadata are kept.

        Raises:
            InvalidOption: The name, the suffix or the quality.
            WriteFailed: The file cannot be written.
        """
        if not isinstance(path, str | PathLike):
            raise InvalidOption(f"an object of type {type(path).__name__} was given: name a file, or use to_pil()")
        write_image(Path(path), self._whole(), like=self.source, quality=quality, metadata=metadata)
        return Path(path)

    def compare(self) -> NDArray[Any]:
        """Before and after side by side: (H, 2W and a white gap, 3) RGB uint8 or uint16."""
        return side_by_side(self.source.pixels, self._whole())

    def to_pil(self) -> Pillow.Image:
        """Return the result as a PIL image of 8 bits."""
        pixels = self._whole()
        return Pillow.fromarray(pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8))

    def _repr_png_(self) -> bytes:
        return encode_image(self._whole(), ".png")

    def _whole(self) -> NDArray[Any]:
        return np.rint(self.pixels * 65535).astype(np.uint16) if self.pixels.dtype == np.float32 else self.pixels


def side_by_side(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    """Two (H, W, 3) images of one dtype -> (H, 2W + GAP, 3) with a white gap; the first is resized to the second."""
    height, width = after.shape[:2]
    if before.shape != after.shape:
        before = cv2.resize(before, (width, height), interpolation=cv2.INTER_CUBIC)
    gap = np.full((height, GAP, 3), np.iinfo(after.dtype).max, after.dtype)
    return np.concatenate([before, gap, after], axis=1)
