"""A run over files: read, restore, write, report. One bad file never ends it."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bfr.runtime.errors import BfrError, InvalidOption, explain_failure
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.jobs.base import Progress, Run
from bfr.runtime.jobs.faults import ends_run, name_notes, shown, warnings_of
from bfr.runtime.jobs.options import FORMATS, JobOptions
from bfr.runtime.jobs.report import Entry, Report, describe_passed_over, describe_run, describe_settings, rounded
from bfr.runtime.jobs.sources import Item, find_masks
from bfr.runtime.jobs.stages import Picture
from bfr.runtime.jobs.work import ImageWork
from bfr.runtime.restore.pipeline import FaceRestorer

if TYPE_CHECKING:
    from bfr.runtime.video.restore import Film

__all__ = ["FORMATS", "JobOptions", "Progress", "run_job"]


def run_job(
    restorer: FaceRestorer | PhotoRestorer,
    items: Sequence[Item],
    options: JobOptions,
    *,
    mask: Path | None = None,
    passed_over: Mapping[str, str] | None = None,
    progress: Progress = lambda _done, _name: None,
) -> Report:
    """Restore `items` into the output folder and write `report.json` there.

    A PhotoRestorer takes photographs and videos, a Restorer aligned faces. A file that cannot be read or restored is a
    failed entry.

    Args:
        restorer: What restores.
        items: From `find_images`.
        options: How results are written.
        mask: Of systems that inpaint aligned faces: a mask for all pictures, or a folder with one of each picture's
            name; white is to be inpainted. Without it, pixels that are 0 in all channels are, as published.
        passed_over: Files that `find_inputs` passed over, for the report.
        progress: See `Progress`.

    Raises:
        InvalidOption: Before any work, for a result that would replace its source, options that differ from those of
            the run that is resumed, and a mask for a system that takes none.
        InputNotFound: A mask is missing.
        WriteFailed: The output folder cannot be written: what was finished until then stays, and `resume` goes on.
    """
    return _LocalRun(restorer, items, options, mask, progress, passed_over or {}).run()


class _LocalRun(Run):
    def __init__(
        self,
        restorer: FaceRestorer | PhotoRestorer,
        items: Sequence[Item],
        options: JobOptions,
        mask: Path | None,
        progress: Progress,
        passed_over: Mapping[str, str],
    ) -> None:
        self.worker, self.photo = restorer, restorer if isinstance(restorer, PhotoRestorer) else None
        self.restorer = restorer.restorer if isinstance(restorer, PhotoRestorer) else restorer
        self.named = {item.key: item.name for item in items}
        self.reached = 0.0  # inputs, with the shares of those that the networks are done with in part
        self.shares: dict[str, float] = {}
        self.interrupted: Exception | None = None  # by the caller's progress
        if not self.photo and (flags := [f"--{name}" for name in ("crops", "boxes") if getattr(options, name)]):
            raise InvalidOption(f"{', '.join(flags)} is for faces of photographs: leave it out, or --aligned")
        wanted: dict[str, Any] = options.model_dump(include={"seed", "format", "quality", "metadata", "codec", "crf"})
        wanted |= {"boxes": True} if options.boxes else {}
        if self.photo:
            photo = self.photo.options.model_dump(exclude={"detector", "background"})
            wanted |= {"photo": photo, "detector": self.photo.detector.name, "background": self.photo.background.name}
        self.masks: dict[str, Path] = {}
        if mask is not None:
            manifest = self.restorer.bundle.manifest
            if self.photo or "mask" not in {one.name for one in manifest.inputs}:
                raise InvalidOption(
                    f"{manifest.system} takes no mask here: leave it out, or name a bundle that inpaints"
                )
            self.masks, wanted["masks"] = find_masks(items, mask), str(mask)
        settings = describe_settings(self.restorer, wanted)
        facts = {**describe_run(self.restorer), "passed_over": describe_passed_over(passed_over)}
        super().__init__(items, options, progress, settings=settings, facts=facts)
        self.work = ImageWork(
            self.worker,
            self.store,
            self.outputs,
            self.options,
            masks=self.masks,
            show=self.show,
            enter=self.enter,
        )

    def version(self, item: Item) -> str | None:
        return self.work.version(item)

    def restore(self, items: Sequence[Item]) -> None:
        self.reached = float(len(self.entries))
        with closing(self.work.restore([item for item in items if not item.is_video], self._step)) as entries:
            for entry in entries:
                self.reached += 1 - self.shares.pop(entry.source, 0.0)
                self.progress(round(self.reached, 6), self.named[entry.source])
        for item in items:
            if item.is_video:
                self.enter(rounded(self._video(item)))
                self.progress(len(self.entries), item.name)

    def _step(self, done: int, pictures: list[Picture]) -> None:
        steps = self.restorer.plan.steps
        shares = [1 / max(1, len(picture.faces or ())) for picture in pictures]
        moved = sum(shares) * (done / steps if steps else 1.0)
        self.progress(round(self.reached + moved, 6), self.named[pictures[0].source])
        if done == steps:
            self.reached += moved
            for picture, share in zip(pictures, shares, strict=True):
                self.shares[picture.source] = self.shares.get(picture.source, 0.0) + share

    def _video(self, item: Item) -> Entry:
        """Restore a video. Raises what ends the run."""
        try:
            return self._film(item)
        except Exception as error:
            if ends_run(error) or error is self.interrupted:
                raise
            return Entry(item.key, "failed", error=explain_failure(error))

    def _film(self, item: Item) -> Entry:
        finished, options, target = len(self.entries), self.options, self.target(item)
        output, version = self.outputs[item.key], item.version

        def advance(share: float) -> None:
            try:
                self.progress(finished + share, item.name)
            except BfrError:
                raise
            except Exception as error:  # of the caller, who may end the run by it
                self.interrupted = error
                raise

        if self.photo is None or item.path is None:
            raise InvalidOption("a video was given as an aligned face: leave --aligned out")
        from bfr.runtime.video.restore import restore_video  # raises MissingDependency

        with warnings_of("bfr.runtime.video") as heard:
            film = restore_video(
                self.photo,
                item.path,
                target,
                seed=options.seed,
                metadata=options.metadata,
                codec=options.codec,
                crf=options.crf,
                max_pixels=options.max_pixels,
                progress=advance,
            )
        notes = [*_film_notes(film, item.path, target, heard), *name_notes(item, output)]
        if options.crops or options.boxes:
            flags = [f"--{name}" for name in ("crops", "boxes") if getattr(options, name)]
            notes.append(f"{' and '.join(flags)}: for photographs only")
        errors = [film.error, shown(partial(self.show, item, *film.stills)) if film.stills else None]
        return Entry(
            item.key,
            "restored" if film.faces else "no face",
            output,
            width=film.width,
            height=film.height,
            faces=film.faces,
            frames=film.frames,
            seconds=film.seconds,
            precision=self.restorer.precision,
            error="; ".join(filter(None, errors)) or None,
            notes=tuple(notes),
            source_version=version,
            output_version=self.store.version(output),
        )


def _film_notes(film: "Film", source: Path, target: Path, heard: Sequence[str]) -> list[str]:
    """What the video's modules warned of but for its errors; nothing where the file was copied as it is."""
    if not film.faces and source.stat().st_size == target.stat().st_size:
        return []
    notes = [note.removeprefix(str(source)).lstrip(": ") for note in heard]
    return [note for note in notes if note.partition(":")[0] not in (film.error or "")]
