"""Whole videos: faces are found in every frame, followed, restored with the noise of their track, and pasted back."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.errors import RestorationFailed
from bfr.runtime.faces.background import Lanczos
from bfr.runtime.faces.photo import AlignedFace, PhotoRestorer
from bfr.runtime.files import atomic_path
from bfr.runtime.images.decode import MAX_PIXELS, Image
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.pipeline import Pipeline, Prepared
from bfr.runtime.restore.restorer import DEFAULT_SEED
from bfr.runtime.video.frames import Frame
from bfr.runtime.video.read import VideoReader
from bfr.runtime.video.track import Tracker, is_cut, thumbnail
from bfr.runtime.video.write import VideoWriter


@dataclass(slots=True)
class Film:
    """What became of a video.

    width, height: of the result. frames: written. faces: restored, in all frames together. tracks: people followed.
    seconds: stage -> seconds; reading, finding faces, pasting and encoding run beside the networks.
    error: what was wrong with the source or a face, though the result is there. stills: the first frame with a face,
    before and after.
    """

    width: int
    height: int
    frames: int = 0
    faces: int = 0
    tracks: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    stills: tuple[NDArray[Any], NDArray[Any]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Shot:
    """A frame on its way, and its faces."""

    frame: Frame
    faces: list[AlignedFace]


def restore_video(
    photo: PhotoRestorer,
    source: Path,
    target: Path,
    *,
    seed: int = DEFAULT_SEED,
    metadata: bool = True,
    codec: str | None = None,
    crf: int | None = None,
    max_pixels: int = MAX_PIXELS,
    still_noise: bool = True,
    progress: Callable[[float], None] = lambda _share: None,
) -> Film:
    """Restore the faces of a video into `target`, which appears when it is whole; its suffix names the container.

    Sound, subtitles and times are the source's. Memory does not depend on the length. Of a source that is damaged, what
    can be decoded is restored, and `error` says so. A video without a face is copied where nothing else is asked for.
    still_noise: a face keeps its noise through all frames, so that its texture does not boil; False draws it anew for
    each frame, for comparison. codec, crf: see `VideoWriter`. progress: called with the share that is done, 0 to 1.
    Raises InputNotFound, InvalidImage, InvalidOption, WriteFailed, and RestorationFailed where there are faces and none
    could be restored.
    """
    with VideoReader(source, max_pixels=max_pixels) as reader, atomic_path(target) as temporary:
        upscale = photo.options.upscale
        info = replace(reader.info, width=reader.info.width * upscale, height=reader.info.height * upscale)
        film = Film(info.width, info.height)
        with VideoWriter(temporary, target.suffix, info, codec=codec, crf=crf) as writer:
            writer.copy_streams_from(reader, keep_metadata=metadata)
            shooting = _Shooting(photo, reader, writer, film, still_noise=still_noise)
            pipeline = Pipeline[None, _Shot, None](
                photo.restorer,
                shooting.read,
                shooting.write,
                seed=seed,
                weigh=lambda _: info.width * info.height,
            )
            expected = reader.info.frames or 0
            with closing(pipeline.run(repeat(None))) as frames:
                for _ in frames:
                    progress(min(1.0, film.frames / expected) if expected else 0.0)
        errors = [f"the source {reader.damage}"] if reader.damage else []
        if shooting.failed:
            total = shooting.failed + film.faces
            errors.append(f"{shooting.failed} of {total} faces failed, the first in {shooting.first_error}")
            if not film.faces:
                raise RestorationFailed(f"{source}: {'; '.join(errors)}")
        film.error = "; ".join(errors) or None
        as_it_was = not film.faces and metadata and codec is None and crf is None and reader.damage is None
        if (
            as_it_was
            and upscale == 1
            and isinstance(photo.background, Lanczos)
            and source.suffix.lower() == target.suffix
        ):
            shutil.copyfile(source, temporary)
    return film


class _Shooting:
    """What the reader's and the writer's threads do with each frame."""

    def __init__(
        self, photo: PhotoRestorer, reader: VideoReader, writer: VideoWriter, film: Film, *, still_noise: bool
    ) -> None:
        self.photo, self.writer, self.film, self.still_noise = photo, writer, film, still_noise
        self._frames: Iterator[Frame] = reader.frames()
        self._tracker = Tracker()
        self._previous: NDArray[Any] | None = None
        self._people: set[int] = set()
        self.failed, self.first_error = 0, ""

    def read(self, _: None) -> Prepared[_Shot] | None:
        """The next frame, its faces found and followed; None after the last."""
        begin = time.perf_counter()
        frame = next(self._frames, None)
        self._took("read", begin)
        if frame is None:
            return None
        begin = time.perf_counter()
        small = thumbnail(frame.pixels)
        if self._previous is not None and is_cut(self._previous, small):
            self._tracker.reset()
        self._previous = small
        found = self.photo.find(frame.pixels)
        tracked = self._tracker.update(found, frame.seconds)
        numbers = {id(one.face): one.track for one in tracked}
        faces = self.photo.crop(frame.pixels, [one.face for one in tracked])
        self._took("align", begin)
        keys = [numbers[id(face.face)] for face in faces]
        self._people.update(keys)
        self.film.tracks = len(self._people)
        return Prepared(_Shot(frame, faces), [face.crop for face in faces], keys if self.still_noise else None)

    def write(self, shot: _Shot, results: Sequence[Restored]) -> None:
        """Paste the faces of a frame and encode it."""
        film, frame = self.film, shot.frame
        for result in results:
            for stage, seconds in result.seconds.items():
                film.seconds[stage] = film.seconds.get(stage, 0.0) + seconds
        begin = time.perf_counter()
        restored = self.photo.paste(Image(frame.pixels), shot.faces, results)
        self._took("paste", begin)
        begin = time.perf_counter()
        self.writer.write(restored.pixels, frame.pts, frame.time_base)
        self._took("write", begin)
        if restored.faces and film.stills is None:
            film.stills = (frame.pixels, restored.pixels)
        if restored.errors and not self.failed:
            self.first_error = f"frame {frame.index}: {restored.errors[0]}"
        self.failed += len(restored.errors)
        film.frames += 1
        film.faces += len(restored.faces)

    def _took(self, stage: str, begin: float) -> None:
        self.film.seconds[stage] = self.film.seconds.get(stage, 0.0) + time.perf_counter() - begin
