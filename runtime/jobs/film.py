"""A video of a run: restored as one file, with its entry of the report."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from bfr.runtime.errors import BfrError, InvalidOption, explain_failure
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.jobs.faults import ends_run, name_notes, shown, warnings_of
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import Entry, rounded
from bfr.runtime.jobs.sources import Item
from bfr.runtime.jobs.store import version_of

if TYPE_CHECKING:
    from bfr.runtime.video.restore import Film


def restore_film(
    restorer: PhotoRestorer | None,
    item: Item,
    output: str,
    options: JobOptions,
    *,
    show: Callable[[NDArray[Any], NDArray[Any]], None],
    progress: Callable[[float], None],
) -> Entry:
    """Restore a video and return its outcome.

    Args:
        restorer: Restores its frames; None if the run restores aligned faces.
        item: The video.
        output: Its result, relative to the output folder.
        options: How results are written.
        show: Called with a frame, (H, W, 3) RGB, as it was and as it became.
        progress: Called with the share that is done, 0 to 1. What it raises ends the run, but for a BfrError.

    Raises:
        DeviceLost, WriteFailed: No other file could be restored either.
    """
    interrupted: list[Exception] = []

    def advance(share: float) -> None:
        try:
            progress(share)
        except BfrError:
            raise
        except Exception as error:
            interrupted.append(error)
            raise

    try:
        version, target = item.version, options.out / output
        if restorer is None or item.path is None:
            raise InvalidOption("a video was given as an aligned face: leave --aligned out")
        from bfr.runtime.video.restore import restore_video  # raises MissingDependency

        chosen = options.model_dump(include={"seed", "metadata", "codec", "crf", "max_pixels", "key_frames"})
        with warnings_of("bfr.runtime.video") as heard:
            film = restore_video(restorer, item.path, target, **chosen, progress=advance)
        notes = [*_notes(film, item.path, target, heard), *name_notes(item, output)]
        if flags := [f"--{name}" for name in ("crops", "boxes") if getattr(options, name)]:
            notes.append(f"{' and '.join(flags)}: for photographs only")
        errors = [film.error, shown(partial(show, *film.stills)) if film.stills else None]
        entry = Entry(
            item.key,
            "restored" if film.faces else "no face",
            output,
            width=film.width,
            height=film.height,
            faces=film.faces,
            warped=film.warped or None,
            frames=film.frames,
            seconds=film.seconds,
            precision=restorer.restorer.precision,
            error="; ".join(filter(None, errors)) or None,
            notes=tuple(notes),
            source_version=version,
            output_version=version_of(target),
        )
        return rounded(entry)
    except Exception as error:
        if ends_run(error) or error in interrupted:
            raise
        return Entry(item.key, "failed", error=explain_failure(error))


def _notes(film: "Film", source: Path, target: Path, heard: Sequence[str]) -> list[str]:
    """What the video's modules warned of but for its errors; nothing if the file was copied as it is."""
    if not film.faces and source.stat().st_size == target.stat().st_size:
        return []
    notes = [note.removeprefix(str(source)).lstrip(": ") for note in heard]
    return [note for note in notes if note.partition(":")[0] not in (film.error or "")]
