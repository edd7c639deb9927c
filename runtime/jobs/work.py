"""What is done with one image around the networks: read it and find its faces, then paste them and encode the result.

A run over files (`job.py`), one over a cluster (`bulk/worker.py`) and the server (`serve/photos.py`) share it: their
results are the same bytes.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.errors import BfrError, RestorationFailed
from bfr.runtime.faces.background import Lanczos
from bfr.runtime.faces.paste import to_grey
from bfr.runtime.faces.photo import AlignedFace, PhotoEditor
from bfr.runtime.images.decode import Image
from bfr.runtime.images.encode import encode_image
from bfr.runtime.images.formats import format_of
from bfr.runtime.jobs.report import Entry, Status
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.pipeline import Work


@dataclass(slots=True, eq=False)
class Photo:
    """An image on its way: read, or refused.

    source: its path or URL. original: gives the bytes of its file. faces: None where the image is an aligned face
    itself. seconds: by stage. error: why it was refused.
    """

    source: str
    original: Callable[[], bytes]
    seconds: dict[str, float] = field(default_factory=dict)
    image: Image | None = None
    faces: list[AlignedFace] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What became of an image: (H, W, 3) pixels, the bytes of its file, and what is reported of it."""

    pixels: NDArray[Any]
    data: bytes
    status: Status
    faces: int
    precision: str | None
    error: str | None

    def entry(self, photo: Photo, output: str) -> Entry:
        """The entry of the report. output: relative to the output folder."""
        return Entry(
            photo.source,
            self.status,
            output,
            width=self.pixels.shape[1],
            height=self.pixels.shape[0],
            faces=self.faces,
            seconds=rounded(photo.seconds),
            precision=self.precision,
            error=self.error,
        )


def prepare_photo(photo: Photo, read: Callable[[], Image], editor: PhotoEditor | None) -> Work[Photo]:
    """Read an image and align its faces; without a PhotoEditor it is a face itself. A BfrError is kept as `error`."""
    begin = time.perf_counter()
    try:
        photo.image = image = read()
        photo.seconds["read"] = time.perf_counter() - begin
        if editor is None:
            return Work(photo, [image.pixels])
        begin = time.perf_counter()
        photo.faces = editor.align(image.pixels)
        photo.seconds["align"] = time.perf_counter() - begin
    except BfrError as error:
        photo.error = str(error)
        return Work(photo)
    return Work(photo, [face.crop for face in photo.faces])


def finish_photo(
    photo: Photo,
    results: Sequence[Restored],
    editor: PhotoEditor | None,
    *,
    suffix: str,
    quality: int,
    metadata: bool,
) -> Result:
    """Paste the faces and encode the result as `suffix`; a photograph without any may stay as it is, byte for byte.

    Seconds of the networks and of pasting are added to `photo.seconds`. Raises RestorationFailed where the image was
    refused or no face of it could be restored, other BfrErrors where it cannot be encoded.
    """
    for result in results:
        for stage, seconds in result.seconds.items():
            photo.seconds[stage] = photo.seconds.get(stage, 0.0) + seconds
    image = photo.image
    errors = tuple(result.error or "unknown" for result in results if result.pixels is None)
    if image is None or photo.error or (errors and len(errors) == len(results)):
        raise RestorationFailed(photo.error or errors[0])
    if editor is None or photo.faces is None:
        pixels: NDArray[Any] = results[0].pixels  # type: ignore[assignment]
        pixels = to_grey(pixels) if image.grey else pixels
    else:
        restored = editor.paste(image, photo.faces, results)
        pixels = restored.pixels
        photo.seconds |= restored.seconds
    begin = time.perf_counter()
    data = photo.original() if metadata and _is_unchanged(photo, editor) else b""
    if (found := format_of(data)) is None or suffix not in found.suffixes:
        data = encode_image(pixels, suffix, like=image, quality=quality, metadata=metadata)
    photo.seconds["write"] = time.perf_counter() - begin
    return Result(
        pixels,
        data,
        "restored" if results else "no face",
        len(results) - len(errors),
        ", ".join(sorted({result.precision for result in results})) or None,
        f"{len(errors)} of {len(results)} faces failed: {errors[0]}" if errors else None,
    )


def side_threads() -> int:
    """How many threads read, and how many write, beside the networks."""
    return max(1, min(4, (os.cpu_count() or 1) // 4))


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds by stage, as reports have them."""
    return {stage: round(value, 4) for stage, value in seconds.items()}


def _is_unchanged(photo: Photo, editor: PhotoEditor | None) -> bool:
    """Whether nothing was done to the pixels: no face, nothing enlarged."""
    return (
        photo.faces == []
        and editor is not None
        and editor.options.upscale == 1
        and isinstance(editor.background, Lanczos)
    )
