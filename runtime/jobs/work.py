"""One image through read, prepare, networks, finish and report.

A run over files (`run.py`), one over a cluster (`cluster/bulk/worker.py`) and the server (`serve/workers/photos.py`)
share it: their results are the same bytes.
"""

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.errors import BfrError, InvalidImage, RestorationFailed, WriteFailed
from bfr.runtime.faces.background import Lanczos
from bfr.runtime.faces.paste import to_grey
from bfr.runtime.faces.photo import AlignedFace, PhotoEditor, PhotoRestorer
from bfr.runtime.images.decode import Image, byte_limit, decode_image, header_size, read_image
from bfr.runtime.images.encode import encode_image
from bfr.runtime.images.formats import format_of
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import Entry, rounded
from bfr.runtime.jobs.sources import Item
from bfr.runtime.jobs.store import Store, read_bytes
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.inputs import mask_of, read_mask
from bfr.runtime.restore.pipeline import FaceRestorer, Pipeline, Prepared

PIXELS_PER_BYTE = 8  # of a compressed photograph, about; for those whose header is not at hand


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
    """

    source: str
    original: Callable[[], bytes]
    seconds: dict[str, float] = field(default_factory=dict)
    image: Image | None = None
    faces: list[AlignedFace] | None = None
    error: str | None = None


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
    """Read an image and align its faces. A BfrError becomes `picture.error`.

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
    except BfrError as error:
        picture.error = str(error)
        return Prepared(picture)
    return Prepared(picture, [face.crop for face in picture.faces])


def finish(
    picture: Picture,
    results: Sequence[Restored],
    editor: PhotoEditor | None,
    *,
    output: str,
    quality: int,
    metadata: bool,
) -> Encoded:
    """Paste the faces and encode the result; a photograph without any may stay as it is, byte for byte.

    Args:
        picture: Gets the seconds of the networks, of pasting and of encoding.
        results: Those of the faces, in their order.
        editor: As of `prepare`.
        output: Name of the result, whose suffix decides the format.
        quality: Of lossy formats, 1 to 100.
        metadata: Keep the EXIF data.

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
    if editor is None or picture.faces is None:
        pixels: NDArray[Any] = results[0].pixels  # type: ignore[assignment]
        pixels = to_grey(pixels) if image.grey else pixels
    else:
        restored = editor.paste(image, picture.faces, results)
        pixels = restored.pixels
        picture.seconds |= restored.seconds
    begin = time.perf_counter()
    suffix = PurePosixPath(output).suffix
    if editor and metadata and not results and editor.options.upscale == 1 and isinstance(editor.background, Lanczos):
        data = picture.original()  # nothing was done to its pixels
    else:
        data = b""
    if (found := format_of(data)) is None or suffix not in found.suffixes:
        data = encode_image(pixels, suffix, like=image, quality=quality, metadata=metadata)
    picture.seconds["write"] = time.perf_counter() - begin
    entry = Entry(
        picture.source,
        "restored" if results else "no face",
        output,
        width=pixels.shape[1],
        height=pixels.shape[0],
        faces=len(results) - len(errors),
        seconds=picture.seconds,
        precision=", ".join(sorted({result.precision for result in results})) or None,
        error=f"{len(errors)} of {len(results)} faces failed: {errors[0]}" if errors else None,
    )
    return Encoded(pixels, data, entry)


def read_item(item: Item, max_pixels: int) -> Image:
    """Read an image from a disk or an object store. Raises InputNotFound and InvalidImage."""
    if item.path is not None:
        return read_image(item.path, max_pixels=max_pixels)
    if item.bytes is not None and item.bytes > (limit := byte_limit(max_pixels)):
        raise InvalidImage(
            f"{item.key} has {item.bytes} bytes, more than the {limit} of an image of {max_pixels} pixels: "
            "make it smaller"
        )
    return decode_image(read_bytes(item.source), name=item.key, max_pixels=max_pixels)


class ImageWork:
    """Restores the images of a run through one pipeline: the next are read, and results written, beside the networks.

    entries: what became of each item, by its key; filled by the writers' threads as soon as a result is there.
    """

    def __init__(
        self,
        worker: FaceRestorer | PhotoRestorer,
        store: Store,
        outputs: Mapping[str, str],
        options: JobOptions,
        *,
        entries: dict[str, Entry] | None = None,
        masks: Mapping[str, Path] | None = None,
        show: Callable[[Item, Any, Any], None] = lambda _item, _before, _after: None,
    ) -> None:
        """Take what restores and where results go.

        Args:
            worker: A PhotoRestorer for photographs, a FaceRestorer for aligned faces.
            store: The output folder.
            outputs: Key of an item -> its result, relative to `store`.
            options: How results are written.
            entries: Where to enter what became of the items.
            masks: Key of an item -> its mask.
            show: Called with an item, its pixels and those of its result once that is written.
        """
        self.editor = worker if isinstance(worker, PhotoRestorer) else None
        self.restorer = worker.restorer if isinstance(worker, PhotoRestorer) else worker
        self.store, self.outputs, self.options, self.masks, self.show = store, outputs, options, masks or {}, show
        self.entries = {} if entries is None else entries

    def restore(
        self, items: Sequence[Item], on_step: Callable[[int, list[Picture]], None] | None = None
    ) -> Generator[Entry, None, None]:
        """What became of each item, in their order. Raises WriteFailed. on_step: as of `Pipeline`."""
        threads = side_threads()
        pipeline = Pipeline[Item, tuple[Item, Picture], Entry](
            self.restorer,
            self._prepare,
            self._finish,
            seed=self.options.seed,
            weigh=self._weigh,
            readers=threads,
            writers=threads,
            on_step=on_step and (lambda done, pairs: on_step(done, [picture for _, picture in pairs])),
        )
        with closing(pipeline.run(items)) as entries:
            yield from entries

    def read(self, item: Item) -> Image:
        """Read an image. Raises InputNotFound and InvalidImage."""
        return read_item(item, self.options.max_pixels)

    def _weigh(self, item: Item) -> int:
        """Pixels of the result, from the header; of an object, which would be read twice, from its bytes."""
        if item.path is None:
            pixels = min(PIXELS_PER_BYTE * (item.bytes or 0), self.options.max_pixels)
        else:
            width, height = header_size(item.path) or (0, 0)
            pixels = width * height
        return pixels * (self.editor.options.upscale**2 if self.editor else 1)

    def _prepare(self, item: Item) -> Prepared[tuple[Item, Picture]]:
        picture = Picture(item.key, partial(read_bytes, item.source))
        made = prepare(picture, partial(self.read, item), self.editor, partial(self._inputs, item))
        return Prepared((item, picture), made.crops, inputs=made.inputs)

    def _inputs(self, item: Item, image: Image) -> Mapping[str, NDArray[Any]]:
        if (path := self.masks.get(item.key)) is None:
            return {}
        drawn = read_image(path, max_pixels=self.options.max_pixels).pixels
        return {"mask": mask_of(image.pixels, read_mask(drawn))}  # one of another size fails alone

    def _finish(self, payload: tuple[Item, Picture], results: Sequence[Restored]) -> Entry:
        """Paste, write, and enter what became of an image. Raises WriteFailed."""
        item, picture = payload
        output = self.outputs[item.key]
        try:
            made = finish(
                picture,
                results,
                self.editor,
                output=output,
                quality=self.options.quality,
                metadata=self.options.metadata,
            )
            begin = time.perf_counter()
            self.store.write(output, made.data)
            if picture.image is not None:
                self.show(item, picture.image.pixels, made.pixels)
            picture.seconds["write"] += time.perf_counter() - begin
            entry = made.entry
        except WriteFailed:
            raise
        except BfrError as error:
            entry = Entry(item.key, "failed", seconds=picture.seconds, error=str(error))
        self.entries[item.key] = entry = rounded(entry)
        return entry


def side_threads() -> int:
    """How many threads read, and how many write, beside the networks."""
    return max(1, min(4, (os.cpu_count() or 1) // 4))
