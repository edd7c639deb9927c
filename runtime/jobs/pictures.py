"""Pictures that show a result beside its source: comparisons, and the previews of the HTML page."""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
from numpy.typing import NDArray

from bfr.runtime.files import shortened, write_bytes
from bfr.runtime.images.encode import encode_image
from bfr.runtime.jobs.cards import preview_paths
from bfr.runtime.jobs.sources import folded

LONGEST = 1024  # pixels of a preview
QUALITY = 85  # of the previews, WebP


def comparison_names(outputs: Mapping[str, str], is_input: Callable[[str], bool]) -> dict[str, str]:
    """Key -> name of its comparison, `a.compare.png` beside `a.jpg`; it replaces no result, no other one and no input.

    Args:
        outputs: Key of an item -> its result, relative to the output folder.
        is_input: Whether a name in the output folder is a file that the run reads.
    """
    taken = set(map(folded, outputs.values()))
    names = {}
    for key, output in outputs.items():
        path = PurePosixPath(output)
        while True:
            path = path.with_name(shortened(path.stem, suffix=".compare.png"))
            if folded(name := path.as_posix()) not in taken and not is_input(name):
                break
        taken.add(folded(name))
        names[key] = name
    return names


def write_previews(folder: Path, name: str, before: NDArray[Any], after: NDArray[Any]) -> None:
    """Write the two previews of an item below an output folder, WebP of 8 bits and one size. Raises WriteFailed."""
    height, width = after.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    for path, pixels in zip(preview_paths(name), (before, after), strict=True):
        shown = pixels
        if pixels.shape[1::-1] != size:
            method = cv2.INTER_AREA if pixels.shape[1] > size[0] else cv2.INTER_CUBIC
            shown = cv2.resize(pixels, size, interpolation=method)
        write_bytes(folder / path, encode_image(shown, ".webp", quality=QUALITY))
