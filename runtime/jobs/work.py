"""One image around the networks: read, prepare, finish; and the images of a run through one pipeline.

A run over files (`run.py`), one over a cluster (`cluster/bulk/worker.py`) and the server (`serve/workers/photos.py`)
share them: their results are the same bytes.
"""

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.errors import InvalidImage, RestorationFailed, explain_failure
from bfr.runtime.faces.background import Lanczos
from bfr.runtime.faces.paste import to_grey
from bfr.runtime.faces.photo import AlignedFace, PhotoEditor, PhotoRestorer
from bfr.runtime.images.decode import Image, byte_limit, decode_image, read_file, read_image
from bfr.runtime.images.encode import encode_noted
from bfr.runtime.images.formats import check_sides, format_of
from bfr.runtime.images.headers import header_size
from bfr.runtime.jobs.faces import draw_boxes, face_folder, write_faces
from bfr.runtime.jobs.faults import Guarded, ends_run, name_notes, shown
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import Entry, rounded
from bfr.runtime.jobs.sources import Item
from bfr.runtime.jobs.store import Store, read_bytes, version_of
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.inputs import mask_of, read_mask
from bfr.runtime.restore.pipeline import FaceRestorer, Pipeline, Prepared

PIXELS_PER_BYTE = 8  # of a compressed photograph, about; for those whose header would cost another read


@dataclass(slots=True, eq=False)
class Picture:
    """An image between reading and writing.

    Attributes:
        source: Its path or URL, as reports have it.
        original: Gives the bytes of its file.
        seconds: Stage -> seconds.
        image: None until it is read.
        faces: None if the image is an aligned face itself.
        error: Why it was refused.
        cause: What was raised then.
        version: The version of its file when it was read.
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
        editor: Finds the faces; None if the image is an aligned face itself.
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
        editor: As in `prepare`.
        output: Name of the result, whose suffix decides the format.
        quality: Quality of lossy formats, 1 to 100.
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
        pixels = to_grey(pixels) if image.colourless else pixels
    else:
        restored = editor.paste(image, picture.faces, results)
        pixels = restored.pixels
        picture.seconds |= restored.seconds
        if boxes:
            draw_boxes(pixels, picture.faces, editor.options.upscale)
    begin = time.perf_counter()
    suffix, data = PurePosixPath(output).suffix, b""
    notes: tuple[str, ...] = ()
    untouched = not results and not (boxes and picture.faces)
    if editor and metadata and untouched and editor.options.upscale == 1 and isinstance(editor.background, Lanczos):
        data = picture.original()  # nothing was done to its pixels
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
    if (item.bytes or 0) > (limit := byte_limit(max_pixels)):
        raise InvalidImage(
            f"{item.key} has {item.bytes} bytes, more than the {limit} of an image of {max_pixels} pixels: "
            "make it smaller"
        )
    return decode_image(read_bytes(item.source, limit), name=item.key, max_pixels=max_pixels)


class ImageWork:
    """Restores the images of a run through one pipeline, which reads and writes beside the networks."""

    def __init__(
        self,
        worker: FaceRestorer | PhotoRestorer,
        store: Store,
        outputs: Mapping[str, str],
        options: JobOptions,
        *,
        masks: Mapping[str, Path] | None = None,
        show: Callable[[Item, Any, Any], None] = lambda _item, _before, _after: None,
        enter: Callable[[Entry], None] = lambda _entry: None,
    ) -> None:
        """Note what restores, and where results go.

        Args:
            worker: A PhotoRestorer for photographs, a FaceRestorer for aligned faces.
            store: The output folder.
            outputs: Key of an item -> its result, relative to `store`.
            options: How results are written.
            masks: Key of an item -> its mask.
            show: Called with an item, its pixels and those of its result once that is written.
            enter: Called by a writer's thread with the entry of an item as soon as its result is in its place.
        """
        self.editor = worker if isinstance(worker, PhotoRestorer) else None
        self.restorer = worker.restorer if isinstance(worker, PhotoRestorer) else worker
        self.store, self.outputs, self.options, self.masks = store, outputs, options, masks or {}
        self.show, self.enter = show, enter

    def restore(
        self, items: Sequence[Item], on_step: Callable[[int, list[Picture]], None] | None = None
    ) -> Generator[Entry, None, None]:
        """Yield the outcome of each item, in their order.

        Args:
            items: Images to restore.
            on_step: See `Pipeline`.

        Raises:
            WriteFailed: No result can be written any more.
        """
        threads = max(1, min(4, (os.cpu_count() or 1) // 4))  # that read, and as many that write
        pipeline = Pipeline[Item, tuple[Item, Picture], Entry](
            Guarded(self.restorer),
            self._prepare,
            self._finish,
            seed=self.options.seed,
            pixels_of=self._pixels_of,
            readers=threads,
            writers=threads,
            on_step=on_step and (lambda done, pairs: on_step(done, [picture for _, picture in pairs])),
        )
        with closing(pipeline.run(items)) as entries:
            yield from entries

    def read(self, item: Item) -> Image:
        """Read an image. Raises InputNotFound and InvalidImage."""
        return read_item(item, self.options.max_pixels)

    def version(self, item: Item) -> str | None:
        """What changes when an item does, or its mask."""
        mask = self.masks.get(item.key)
        return item.version if mask is None else f"{item.version} with {version_of(mask)}"

    def _pixels_of(self, item: Item) -> int:
        """Pixels of the result, from the header; of an object, which would be read twice, from its bytes."""
        if item.path is None:
            pixels = min(PIXELS_PER_BYTE * (item.bytes or 0), self.options.max_pixels)
        else:
            width, height = header_size(item.path) or (0, 0)
            pixels = width * height
        return pixels * (self.editor.options.upscale**2 if self.editor else 1)

    def _prepare(self, item: Item) -> Prepared[tuple[Item, Picture]]:
        def original() -> bytes:
            data = read_bytes(item.source, byte_limit(self.options.max_pixels))
            if self.version(item) != picture.version:
                raise InvalidImage(f"{item.key} was changed after it was read: restore it again")
            return data

        picture = Picture(item.key, original, version=self.version(item))
        made = prepare(picture, partial(self._read_fitting, item), self.editor, partial(self._inputs, item))
        return Prepared((item, picture), made.crops, inputs=made.inputs)

    def _read_fitting(self, item: Item) -> Image:
        """Read an image. Raises InvalidOption if its result is too large for its format, before the networks run."""
        image = self.read(item)
        (height, width), upscale = image.pixels.shape[:2], self.editor.options.upscale if self.editor else 1
        check_sides(width * upscale, height * upscale, PurePosixPath(self.outputs[item.key]).suffix)
        return image

    def _inputs(self, item: Item, image: Image) -> Mapping[str, NDArray[Any]]:
        if (path := self.masks.get(item.key)) is None:
            return {}
        drawn = read_image(path, max_pixels=self.options.max_pixels).pixels
        return {"mask": mask_of(image.pixels, read_mask(drawn))}  # one of another size fails alone

    def _finish(self, payload: tuple[Item, Picture], results: Sequence[Restored]) -> Entry:
        """Paste and write an image, and enter its outcome. Raises WriteFailed if no other could be written."""
        item, picture = payload
        try:
            entry = self._write(item, picture, results)
        except Exception as error:
            if ends_run(error):
                raise
            entry = Entry(item.key, "failed", seconds=picture.seconds, error=explain_failure(error))
        entry = rounded(entry)
        self.enter(entry)
        return entry

    def _write(self, item: Item, picture: Picture, results: Sequence[Restored]) -> Entry:
        output = self.outputs[item.key]
        shared = self.options.model_dump(include={"quality", "metadata", "boxes"})
        made = finish(picture, results, self.editor, output=output, **shared)
        begin = time.perf_counter()
        self.store.write(output, made.data)
        version, errors = self.store.version(output), [made.entry.error]
        if self.options.crops:
            folder = self.options.out / face_folder(output)
            errors.append(shown(partial(write_faces, folder, picture.faces or (), results)))
        if picture.image is not None:
            errors.append(shown(partial(self.show, item, picture.image.pixels, made.pixels)))
        picture.seconds["write"] += time.perf_counter() - begin
        notes, error = (*made.entry.notes, *name_notes(item, output)), "; ".join(filter(None, errors)) or None
        return replace(made.entry, notes=notes, output_version=version, error=error)
