"""The steps of one image around the networks: read, prepare, finish.

A run over files (`work.py`), one over a cluster (`cluster/bulk/worker.py`) and the server (`serve/workers/photos.py`)
share them: their results are the same bytes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.errors import InvalidImage, RestorationFailed, explain_failure
from bfr.runtime.faces.background import Lanczos
from bfr.runtime.faces.paste import to_grey
from bfr.runtime.faces.photo import AlignedFace, PhotoEditor
from bfr.runtime.images.decode import Image, byte_limit, decode_image, read_file
from bfr.runtime.images.encode import encode_noted
from bfr.runtime.images.formats import format_of
from bfr.runtime.jobs.faces import draw_boxes
from bfr.runtime.jobs.faults import ends_run
from bfr.runtime.jobs.report import Entry
from bfr.runtime.jobs.sources import Item
from bfr.runtime.jobs.store import read_bytes
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.pipeline import Prepared


@dataclass(slots=True, eq=False)
class Picture:
    """An image between reading and writing.

    Attributes:
        source: Its path or URL, as reports have it.
        original: Gives the bytes of its file.
        seconds: By stage.
        image: None until it is read.
        faces: None where the image is an aligned face itself.
        error: Why it was refused.
        cause: What was raised then.
        version: Of its file when it was read.
    """

    source: str
    original: Callable[[], bytes]
    seconds: dict[str, float] = field(default_factory=dict)
    image: Image | None = None
    faces: list[AlignedFace] | None = None
    error: str | None = None
    cause: Exception | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A restored image: (H, W, 3) pixels, the bytes of its file, and what is reported of it."""

    pixels: NDArray[Any]
    data: bytes
    entry: Entry


def prepare(
    picture: Picture,
    read: Callable[[], Image],
    editor: PhotoEditor | None,
    inputs: Callable[[Image], Mapping[str, NDArray[Any]]] = lambda _image: {},
) -> Prepared[Picture]:
    """Read an image and align its faces. Whatever is raised becomes `picture.error`, but for a lost device.

    Args:
        picture: Gets image, faces and seconds.
        read: Reads and decodes the file.
        editor: Finds the faces; None where the image is an aligned face itself.
        inputs: Reads the pictures for the system's other inputs, such as `mask`; for aligned faces.
    """
    begin = time.perf_counter()
    try:
        picture.image = image = read()
        given = inputs(image)
        picture.seconds["read"] = time.perf_counter() - begin
        if editor is None:
            return Prepared(picture, [image.pixels], inputs=given)
        begin = time.perf_counter()
        picture.faces = editor.align(image.pixels)
        picture.seconds["align"] = time.perf_counter() - begin
    except Exception as error:
        if ends_run(error):
            raise
        picture.error, picture.cause = explain_failure(error), error
        return Prepared(picture)
    return Prepared(picture, [face.crop for face in picture.faces if not face.left])


def finish(
    picture: Picture,
    results: Sequence[Restored],
    editor: PhotoEditor | None,
    *,
    output: str,
    quality: int,
    metadata: bool,
    boxes: bool = False,
) -> Encoded:
    """Paste the faces and encode the result; a photograph without any may stay as it is, byte for byte.

    Args:
        picture: Gets the seconds of the networks, of pasting and of encoding.
        results: Those of the faces, in their order.
        editor: As of `prepare`.
        output: Name of the result, whose suffix decides the format.
        quality: Of lossy formats, 1 to 100.
        metadata: Keep what the source says beside its pixels.
        boxes: Draw boxes around the faces of a photograph.

    Raises:
        RestorationFailed: The image was refused, or no face of it could be restored.
        BfrError: The result cannot be encoded.
    """
    for result in results:
        for stage, seconds in result.seconds.items():
            picture.seconds[stage] = picture.seconds.get(stage, 0.0) + seconds
    image = picture.image
    errors = tuple(result.error or "unknown" for result in results if result.pixels is None)
    if image is None or picture.error or (errors and len(errors) == len(results)):
        raise RestorationFailed(picture.error or errors[0])
    left = sum(face.left for face in picture.faces or ())
    if editor is None or picture.faces is None:
        pixels: NDArray[Any] = results[0].pixels  # type: ignore[assignment]
        pixels = to_grey(pixels) if image.grey else pixels
    else:
        restored = editor.paste(image, picture.faces, results)
        pixels = restored.pixels
        picture.seconds |= restored.seconds
        if boxes:
            draw_boxes(pixels, picture.faces, editor.options.upscale)
    begin = time.perf_counter()
    suffix = PurePosixPath(output).suffix
    untouched = not results and not (boxes and picture.faces)
    if editor and metadata and untouched and editor.options.upscale == 1 and isinstance(editor.background, Lanczos):
        data = picture.original()  # nothing was done to its pixels
    else:
        data = b""
    notes: tuple[str, ...] = ()
    if (found := format_of(data)) is None or suffix not in found.suffixes:
        data, lost = encode_noted(pixels, suffix, like=image, quality=quality, metadata=metadata)
        notes = (*image.notes, *lost)
    picture.seconds["write"] = time.perf_counter() - begin
    entry = Entry(
        picture.source,
        "restored" if results else "already sharp" if left else "no face",
        output,
        width=pixels.shape[1],
        height=pixels.shape[0],
        faces=len(results) - len(errors),
        sharp=left or None,
        seconds=picture.seconds,
        precision=", ".join(sorted({result.precision for result in results})) or None,
        error=f"{len(errors)} of {len(results)} faces failed: {errors[0]}" if errors else None,
        notes=notes,
        source_version=picture.version,
    )
    return Encoded(pixels, data, entry)


def read_item(item: Item, max_pixels: int) -> Image:
    """Read an image from a disk or an object store. Raises InputNotFound and InvalidImage."""
    if item.path is not None:
        return decode_image(read_file(item.path, max_pixels=max_pixels), name=item.key, max_pixels=max_pixels)
    if item.bytes is not None and item.bytes > (limit := byte_limit(max_pixels)):
        raise InvalidImage(
            f"{item.key} has {item.bytes} bytes, more than the {limit} of an image of {max_pixels} pixels: "
            "make it smaller"
        )
    data = read_bytes(item.source, byte_limit(max_pixels))
    return decode_image(data, name=item.key, max_pixels=max_pixels)
