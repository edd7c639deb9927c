"""A run over files: read, restore, write, report. One bad file never ends it."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

from bfr.runtime.errors import BfrError, InvalidOption, WriteFailed
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.files import write_bytes
from bfr.runtime.images.decode import header_size, read_image
from bfr.runtime.jobs.files import FileRun, Progress
from bfr.runtime.jobs.options import FORMATS, JobOptions
from bfr.runtime.jobs.report import Entry, Report, describe_run, describe_settings
from bfr.runtime.jobs.sources import Item
from bfr.runtime.jobs.work import Photo, finish_photo, prepare_photo, rounded, side_threads
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.pipeline import Pipeline, Work
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.video.formats import is_video

__all__ = ["FORMATS", "JobOptions", "Progress", "run_job"]


def run_job(
    restorer: Restorer | PhotoRestorer,
    items: Sequence[Item],
    options: JobOptions,
    *,
    progress: Progress = lambda _done, _name: None,
) -> Report:
    """Restore `items` into the output folder and write `report.json` there.

    A PhotoRestorer takes photographs and videos, a Restorer aligned faces. A file that cannot be read or restored is a
    failed entry. Raises InvalidOption before any work for a result that would replace its source or options that
    differ from those of the run that is resumed, and WriteFailed where the output folder cannot be written: what was
    finished until then stays, and `resume` goes on from there.
    """
    return _Job(restorer, items, options, progress).run()


class _Job(FileRun):
    def __init__(
        self, restorer: Restorer | PhotoRestorer, items: Sequence[Item], options: JobOptions, progress: Progress
    ) -> None:
        self.photo = restorer if isinstance(restorer, PhotoRestorer) else None
        self.restorer = restorer.restorer if isinstance(restorer, PhotoRestorer) else restorer
        self.named = {str(item.source): item for item in items}
        self.reached = 0.0  # inputs, with the shares of those that the networks are done with in part
        wanted = {name: getattr(options, name) for name in ("seed", "format", "quality", "metadata", "codec", "crf")}
        if self.photo:
            photo = asdict(self.photo.options)
            wanted |= {"photo": photo, "detector": self.photo.detector.name, "background": self.photo.background.name}
        settings = describe_settings(self.restorer, wanted)
        super().__init__(items, options, progress, settings=settings, facts=describe_run(self.restorer))

    def restore(self, items: Sequence[Item]) -> None:
        self.reached = float(len(self.entries))
        self._images([item for item in items if not is_video(item.source)])
        for item in items:
            if is_video(item.source):
                self._video(item)

    def _images(self, items: Sequence[Item]) -> None:
        threads = side_threads()
        pipeline = Pipeline[Item, Photo, bool](
            self.restorer,
            self._read,
            self._finish,
            seed=self.options.seed,
            weigh=self._weigh,
            readers=threads,
            writers=threads,
            on_step=self._step,
        )
        with closing(pipeline.run(items)) as finished:
            for item, had_faces in zip(items, finished, strict=True):
                self.reached += not had_faces
                self.progress(round(self.reached, 6), item.name)

    def _step(self, done: int, photos: list[Photo]) -> None:
        steps = self.restorer.plan.steps
        share = sum(1 / max(1, len(photo.faces or ())) for photo in photos) * (done / steps if steps else 1.0)
        self.progress(round(self.reached + share, 6), self.named[photos[0].source].name)
        if done == steps:
            self.reached += share

    def _weigh(self, item: Item) -> int:
        width, height = header_size(item.source) or (0, 0)
        return width * height * (self.photo.options.upscale**2 if self.photo else 1)

    def _read(self, item: Item) -> Work[Photo]:
        photo = Photo(str(item.source), item.source.read_bytes)
        return prepare_photo(photo, lambda: read_image(item.source, max_pixels=self.options.max_pixels), self.photo)

    def _finish(self, photo: Photo, results: Sequence[Restored]) -> bool:
        """Paste, write, and enter what became of an image; whether the networks were needed. Raises WriteFailed."""
        item, options = self.named[photo.source], self.options
        target = self.targets[item.source]
        try:
            result = finish_photo(
                photo,
                results,
                self.photo,
                suffix=target.suffix,
                quality=options.quality,
                metadata=options.metadata,
            )
            begin = time.perf_counter()
            write_bytes(target, result.data)
            if photo.image is not None:
                self.show(item, photo.image.pixels, result.pixels)
            photo.seconds["write"] += time.perf_counter() - begin
        except WriteFailed:
            raise
        except BfrError as error:
            entry = Entry(photo.source, "failed", seconds=rounded(photo.seconds), error=str(error))
        else:
            entry = result.entry(photo, self.output(item))
        self.entries[item.source] = entry
        return bool(results)

    def _video(self, item: Item) -> None:
        finished, target, options = len(self.entries), self.targets[item.source], self.options
        try:
            if self.photo is None:
                raise InvalidOption("a video was given as an aligned face: leave --aligned out")
            from bfr.runtime.video.restore import restore_video  # raises MissingDependency

            film = restore_video(
                self.photo,
                item.source,
                target,
                seed=options.seed,
                metadata=options.metadata,
                codec=options.codec,
                crf=options.crf,
                max_pixels=options.max_pixels,
                progress=lambda share: self.progress(finished + share, item.name),
            )
        except WriteFailed:
            raise
        except BfrError as error:
            self.entries[item.source] = Entry(str(item.source), "failed", error=str(error))
        else:
            self.entries[item.source] = Entry(
                str(item.source),
                "restored" if film.faces else "no face",
                self.output(item),
                width=film.width,
                height=film.height,
                faces=film.faces,
                frames=film.frames,
                seconds=rounded(film.seconds),
                precision=self.restorer.precision,
                error=film.error,
            )
            if film.stills:
                self.show(item, *film.stills)
        self.progress(finished + 1, item.name)
