"""The images of a run through one pipeline, on this machine (`run.py`) and on a cluster (`cluster/bulk/worker.py`)."""

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.errors import explain_failure
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import Image, byte_limit, read_image
from bfr.runtime.images.headers import header_size
from bfr.runtime.jobs.faces import clean_face_folder, face_files, face_folder
from bfr.runtime.jobs.faults import Guarded, ends_run, name_notes, shown
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import Entry, rounded
from bfr.runtime.jobs.sources import Item
from bfr.runtime.jobs.stages import Picture, finish, prepare, read_item
from bfr.runtime.jobs.store import Store, read_bytes, version_of
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.inputs import mask_of, read_mask
from bfr.runtime.restore.pipeline import FaceRestorer, Pipeline, Prepared

PIXELS_PER_BYTE = 8  # of a compressed photograph, about; for those whose header would cost another read


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
        """Yield what became of each item, in their order.

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

    def version(self, item: Item) -> str | None:
        """What changes when an item does, or its mask."""
        mask = self.masks.get(item.key)
        return item.version if mask is None else f"{item.version} with {version_of(mask)}"

    def _weigh(self, item: Item) -> int:
        """Pixels of the result, from the header; of an object, which would be read twice, from its bytes."""
        if item.path is None:
            pixels = min(PIXELS_PER_BYTE * (item.bytes or 0), self.options.max_pixels)
        else:
            width, height = header_size(item.path) or (0, 0)
            pixels = width * height
        return pixels * (self.editor.options.upscale**2 if self.editor else 1)

    def _prepare(self, item: Item) -> Prepared[tuple[Item, Picture]]:
        picture = Picture(
            item.key, partial(read_bytes, item.source, byte_limit(self.options.max_pixels)), version=self.version(item)
        )
        made = prepare(picture, partial(self.read, item), self.editor, partial(self._inputs, item))
        return Prepared((item, picture), made.crops, inputs=made.inputs)

    def _inputs(self, item: Item, image: Image) -> Mapping[str, NDArray[Any]]:
        if (path := self.masks.get(item.key)) is None:
            return {}
        drawn = read_image(path, max_pixels=self.options.max_pixels).pixels
        return {"mask": mask_of(image.pixels, read_mask(drawn))}  # one of another size fails alone

    def _finish(self, payload: tuple[Item, Picture], results: Sequence[Restored]) -> Entry:
        """Paste, write, and enter what became of an image. Raises WriteFailed where no other could be written."""
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
            errors.append(shown(partial(self._write_faces, output, picture, results)))
        if picture.image is not None:
            errors.append(shown(partial(self.show, item, picture.image.pixels, made.pixels)))
        picture.seconds["write"] += time.perf_counter() - begin
        notes, error = (*made.entry.notes, *name_notes(item, output)), "; ".join(filter(None, errors)) or None
        return replace(made.entry, notes=notes, output_version=version, error=error)

    def _write_faces(self, output: str, picture: Picture, results: Sequence[Restored]) -> None:
        clean_face_folder(self.options.out / face_folder(output))
        for name, data in face_files(output, picture.faces or (), results):
            self.store.write(name, data)
