"""What a run writes of a photograph's faces beside the result: each as it was cut out and restored, and their boxes."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.photo import AlignedFace
from bfr.runtime.files import shortened
from bfr.runtime.images.encode import write_image
from bfr.runtime.jobs.sources import Item
from bfr.runtime.restore.batch import Restored

LINES_A_SIDE = 400  # the line of a box is this part of the picture's shorter side, one pixel at least


def face_folder(output: str) -> PurePosixPath:
    """Return the folder of a result's faces, `OUTPUT.faces`."""
    return (path := PurePosixPath(output)).with_name(shortened(path.name, suffix=".faces"))


def check_face_folders(out: Path, items: Sequence[Item], outputs: Mapping[str, str]) -> None:
    """Raise InvalidOption if a folder of faces is a link, or holds a result or an input, which would be replaced.

    Args:
        out: The output folder.
        items: The inputs.
        outputs: Key of an item -> its result, relative to `out`.
    """
    folders = {face_folder(output) for output in outputs.values()}
    if links := sorted(str(folder) for folder in folders if (out / folder).is_symlink()):
        raise InvalidOption(f"{', '.join(links)} in {out}: --crops writes into no link: remove it")
    written = {(out / folder).resolve() for folder in folders}
    for item in items:
        result = PurePosixPath(outputs.get(item.key, item.name))
        if folders & {*result.parents} or (item.path is not None and item.path.resolve().parent in written):
            raise InvalidOption(
                f"{item.key}: --crops would replace it, since faces are written into folders of this name: leave it "
                "out of the inputs, or choose another output folder"
            )


def write_faces(folder: Path, faces: Sequence[AlignedFace], results: Sequence[Restored]) -> None:
    """Write the faces as PNG files: `1.png` as it was cut out, `1.restored.png` as the networks made it.

    Deletes those that an earlier run wrote.

    Args:
        folder: See `face_folder`.
        faces: The faces from left to right. One that is left as it is, or that failed, has only its first file.
        results: Those of the faces that are not left, in their order.

    Raises:
        WriteFailed: The folder cannot be written.
    """
    for file in folder.glob("*.png"):
        if re.fullmatch(r"\d+(\.restored)?\.png", file.name):
            file.unlink()
    following = iter(results)
    for number, face in enumerate(faces, 1):
        write_image(folder / f"{number}.png", face.crop)
        restored = None if face.left else next(following).pixels
        if restored is not None:
            write_image(folder / f"{number}.restored.png", restored)


def draw_boxes(pixels: NDArray[Any], faces: Sequence[AlignedFace], scale: float) -> None:
    """Draw the box of each face, white between black lines.

    Args:
        pixels: (H, W, 3) of 8 or 16 bits; it is changed.
        faces: Faces, whose boxes are in pixels of the photograph.
        scale: H over the height of the photograph.
    """
    width, white = max(1, round(min(pixels.shape[:2]) / LINES_A_SIDE)), int(np.iinfo(pixels.dtype).max)
    for face in faces:
        left, top, right, bottom = (round(float(edge) * scale) for edge in face.face.box)
        for colour, line in ((0, 3 * width), (white, width)):
            cv2.rectangle(pixels, (left, top), (right, bottom), (colour, colour, colour), line)
