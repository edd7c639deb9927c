"""A run over files: read, restore, write, report. One bad file never ends it."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.batch import Restored
from bfr.runtime.encode import same_suffix, write_image
from bfr.runtime.errors import BfrError, InvalidOption, WriteFailed
from bfr.runtime.files import clean_leftovers, write_bytes
from bfr.runtime.folder import Item, choose_targets
from bfr.runtime.image import header_size, read_image
from bfr.runtime.image_work import Photo, finish_photo, prepare_photo, rounded, side_threads
from bfr.runtime.job_options import FORMATS, JobOptions
from bfr.runtime.media import is_video, output_suffix
from bfr.runtime.page import write_page
from bfr.runtime.photo import PhotoRestorer
from bfr.runtime.pictures import comparison_paths, page_rows, side_by_side, write_previews
from bfr.runtime.pipeline import Pipeline, Work
from bfr.runtime.report import Entry, Report, describe_run, describe_settings, earlier_entries, write_report
from bfr.runtime.restorer import Restorer

__all__ = ["FORMATS", "JobOptions", "Progress", "run_job"]

Progress = Callable[[float, str], None]
"""Called with how many inputs are done, fractions for those under way, and the name of one of them."""


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


class _Job:
    def __init__(
        self, restorer: Restorer | PhotoRestorer, items: Sequence[Item], options: JobOptions, progress: Progress
    ) -> None:
        self.photo = restorer if isinstance(restorer, PhotoRestorer) else None
        self.restorer = restorer.restorer if isinstance(restorer, PhotoRestorer) else restorer
        self.items, self.options, self.progress = items, options, progress
        self.named = {str(item.source): item for item in items}
        self.targets: dict[Path, Path] = {}
        self.comparisons: dict[Path, Path] = {}
        self.entries: dict[Path, Entry] = {}
        self.stale: dict[Path, Entry] = {}
        self.reached = 0.0  # inputs, with the shares of those that the networks are done with in part
        wanted = {name: getattr(options, name) for name in ("seed", "format", "quality", "metadata", "codec", "crf")}
        if self.photo:
            photo = asdict(self.photo.options)
            wanted |= {"photo": photo, "detector": self.photo.detector.name, "background": self.photo.background.name}
        self.settings = describe_settings(self.restorer, wanted)

    def run(self) -> Report:
        begin = time.perf_counter()
        options = self.options
        self.targets, refused = choose_targets(self.items, options.out, self._suffix)
        self.entries = {source: Entry(str(source), "failed", error=error) for source, error in refused.items()}
        self.comparisons = comparison_paths(self.targets)
        todo = [item for item in self.items if item.source in self.targets]
        if options.resume:
            todo = self._resumed(todo)
        for folder in {options.out, *(target.parent for target in self.targets.values())}:
            if folder.is_dir():
                clean_leftovers(folder)
        # Should this run be killed, what lies there from before must not pass for its results.
        error = "the run ended before it was restored"
        self.stale = {
            i.source: Entry(str(i.source), "failed", error=error) for i in todo if self.targets[i.source].exists()
        }
        facts = {**describe_run(self.restorer), "network_seconds": 0.0, "seconds": 0.0}
        write_report(self._report(facts), options.out)  # a killed run can be resumed, with these settings
        self.reached = float(len(self.entries))
        try:
            self._images([item for item in todo if not is_video(item.source)])
            for item in todo:
                if is_video(item.source):
                    self._video(item)
        finally:
            network = sum(
                entry.seconds.get("network", 0.0) for entry in self.entries.values() if entry.status != "skipped"
            )
            facts |= {"network_seconds": round(network, 3), "seconds": round(time.perf_counter() - begin, 3)}
            report = self._report(facts)
            write_report(report, options.out)
            if options.html:
                names = {str(item.source): item.name for item in self.items}
                rows = page_rows(options.out, [names[entry.source] for entry in report.entries], report)
                write_page(options.out, rows, {**report.settings, **report.facts})
        return report

    def _report(self, facts: dict[str, Any]) -> Report:
        known = {**self.stale, **self.entries}
        return Report(tuple(known[i.source] for i in self.items if i.source in known), self.settings, facts)

    def _suffix(self, item: Item) -> str:
        if is_video(item.source):
            return output_suffix(item.source.suffix)
        return same_suffix(item.source) if self.options.format == "same" else self.options.format

    def _resumed(self, items: Sequence[Item]) -> list[Item]:
        """What is left to do; the rest becomes skipped entries, as the earlier run reported them."""
        earlier = earlier_entries(self.options.out, self.settings)
        todo = []
        for item in items:
            target = self.targets[item.source]
            known = earlier.get(str(item.source))
            if not target.is_file() or (known and known.output is None):
                todo.append(item)
                continue
            output = target.relative_to(self.options.out).as_posix()
            known = known or Entry(str(item.source), "skipped")
            self.entries[item.source] = replace(known, status="skipped", output=output)
        return todo

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
                self._show(item, photo.image.pixels, result.pixels)
            photo.seconds["write"] += time.perf_counter() - begin
        except WriteFailed:
            raise
        except BfrError as error:
            entry = Entry(photo.source, "failed", seconds=rounded(photo.seconds), error=str(error))
        else:
            entry = result.entry(photo, target.relative_to(options.out).as_posix())
        self.entries[item.source] = entry
        return bool(results)

    def _show(self, item: Item, before: NDArray[Any], after: NDArray[Any]) -> None:
        """Write what shows a result beside its source, where it is wanted."""
        if self.options.compare:
            write_image(self.comparisons[item.source], side_by_side(before, after))
        if self.options.html:
            write_previews(self.options.out, item.name, before, after)

    def _video(self, item: Item) -> None:
        finished, target, options = len(self.entries), self.targets[item.source], self.options
        try:
            if self.photo is None:
                raise InvalidOption("a video was given as an aligned face: leave --aligned out")
            from bfr.runtime.film import restore_video  # raises MissingDependency

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
                target.relative_to(options.out).as_posix(),
                width=film.width,
                height=film.height,
                faces=film.faces,
                frames=film.frames,
                seconds=rounded(film.seconds),
                precision=self.restorer.precision,
                error=film.error,
            )
            if film.stills:
                self._show(item, *film.stills)
        self.progress(finished + 1, item.name)
