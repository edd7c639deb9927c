"""Whole videos: faces are found and followed, restored with the noise of their track, and pasted back."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidOption, RestorationFailed
from bfr.runtime.faces.background import Lanczos
from bfr.runtime.faces.photo import AlignedFace, PhotoRestorer
from bfr.runtime.files import atomic_path
from bfr.runtime.images.decode import MAX_PIXELS, Image
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.pipeline import Pipeline, Prepared
from bfr.runtime.restore.restorer import DEFAULT_SEED
from bfr.runtime.video.follow import EVERY, Followed, follow
from bfr.runtime.video.formats import HEAD, suffix_of
from bfr.runtime.video.frames import Frame
from bfr.runtime.video.options import VideoOptions
from bfr.runtime.video.propagate import KeyFrames, Source, complete, count_warped, fresh
from bfr.runtime.video.read import VideoReader
from bfr.runtime.video.track import Tracked, Tracker
from bfr.runtime.video.write import VideoWriter

MOST_REPEATS = 250  # of a frame that are noted, so that a long still shows its progress


@dataclass(slots=True)
class Film:
    """What became of a video.

    Attributes:
        width: Width of the result.
        height: Height of the result.
        frames: Written.
        faces: Restored, in all frames together, repeated ones too.
        warped: How many of them were warped from a key frame.
        tracks: People followed.
        seconds: Stage -> seconds: decode, find (faces, and follow them), crop, flow (from key frames), network, warp,
            paste, encode; all but the networks run beside them.
        error: What was wrong with the source or a face, though the result is there.
        stills: The first frame with a face, before and after.
    """

    width: int
    height: int
    frames: int = 0
    faces: int = 0
    warped: int = 0
    tracks: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    stills: tuple[NDArray[Any], NDArray[Any]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Shot:
    """A frame on its way, and what its faces are made from. pixels: None if faces are pasted into its samples."""

    frame: Frame
    pixels: NDArray[Any] | None
    sources: list[Source]

    @property
    def faces(self) -> list[AlignedFace]:
        return [source.face for source in self.sources]


def restore_video(
    photo: PhotoRestorer,
    source: Path | str,
    target: Path | str,
    *,
    seed: int = DEFAULT_SEED,
    metadata: bool = True,
    codec: str | None = None,
    crf: int | None = None,
    max_pixels: int = MAX_PIXELS,
    key_frames: int = VideoOptions().key_frames,
    still_noise: bool = True,
    progress: Callable[[float], None] = lambda _share: None,
) -> Film:
    """Restore the faces of a video into `target`, which appears when it is whole; its suffix names the container.

    A frame that equals the previous one, sample for sample, gets the same result.

    Sound, subtitles and times are the source's, and so are all samples that no face touches, up to the encoder's error.
    Memory does not depend on the length. Of a source that is damaged, what can be decoded is restored, and `error` says
    so. A video without a face is copied if nothing else is asked for.

    Args:
        photo: What restores the frames' faces.
        source: The video.
        target: The file to write.
        seed: Seed of the noise, 0 .. 2**32 - 1.
        metadata: Keep the source's metadata.
        codec: See `VideoWriter`.
        crf: See `VideoWriter`.
        max_pixels: Pixels of a frame; larger ones are refused.
        key_frames: See `VideoOptions.key_frames`.
        still_noise: A face keeps its noise through all frames, which reduces flicker. False draws it again
            for each frame, for comparison.
        progress: Called for each frame that is written, repeated ones too, with the share that is done, 0 to 1.

    Raises:
        InputNotFound: The source does not exist.
        InvalidImage: The source is no video, or exceeds a limit.
        InvalidOption: The container or the codec is not offered, `key_frames` is below 1, or the target is the source.
        RestorationFailed: There are faces and none could be restored.
        WriteFailed: The target cannot be written.
    """
    if not isinstance(photo, PhotoRestorer):
        raise InvalidOption(f"an object of type {type(photo).__name__} was given: make a PhotoRestorer of the Restorer")
    source, target, key_frames = Path(source), Path(target), VideoOptions(key_frames=key_frames).key_frames
    with VideoReader(source, max_pixels=max_pixels) as reader, atomic_path(target) as temporary:
        if target.exists() and target.samefile(source):
            raise InvalidOption(f"{target} is the source and would be overwritten: choose another name")
        upscale = photo.options.upscale
        info = replace(reader.info, width=reader.info.width * upscale, height=reader.info.height * upscale)
        film = Film(info.width, info.height)
        with VideoWriter(temporary, target.suffix, info, codec=codec, crf=crf) as writer:
            writer.copy_streams_from(reader, keep_metadata=metadata)
            frames = _Frames(photo, reader, writer, film, key_frames=key_frames, still_noise=still_noise)
            pipeline = Pipeline[None, _Shot, None](
                photo.restorer,
                frames.read,
                frames.write,
                seed=seed,
                pixels_of=lambda _: info.width * info.height,
                ahead=min(key_frames, EVERY) - 1,
            )
            expected, reported = reader.info.frames or 0, 0
            with closing(pipeline.run(repeat(None))) as restored:
                for _ in restored:
                    while reported < film.frames:
                        reported += 1
                        progress(min(1.0, reported / expected) if expected else 0.0)
        film.error = _faults(source, reader.damage, frames)
        as_it_was = not film.faces and metadata and codec is None and crf is None and reader.damage is None
        if as_it_was and upscale == 1 and isinstance(photo.background, Lanczos) and _kind(source) == target.suffix:
            shutil.copyfile(source, temporary)
    return film


def _faults(source: Path, damage: str | None, frames: "_Frames") -> str | None:
    """What was wrong with a video of which there is a result. Raises RestorationFailed if no face was restored."""
    faults = [f"the source {damage}"] if damage else []
    if frames.failed:
        restored = frames.film.faces
        faults.append(f"{frames.failed} of {frames.failed + restored} faces failed, the first in {frames.first_error}")
        if not restored:
            raise RestorationFailed(f"{source}: {'; '.join(faults)}")
    return "; ".join(faults) or None


def _kind(path: Path) -> str | None:
    """The suffix that a file should have by its content."""
    with path.open("rb") as file:
        return suffix_of(file.read(HEAD))


class _Frames:
    """The work of the reader's and the writer's threads on each frame."""

    def __init__(
        self,
        photo: PhotoRestorer,
        reader: VideoReader,
        writer: VideoWriter,
        film: Film,
        *,
        key_frames: int,
        still_noise: bool,
    ) -> None:
        self.photo, self.writer, self.film, self.still_noise = photo, writer, film, still_noise
        # Faces alone are converted to RGB and back, if nothing else is done to the frames.
        self.partly = photo.options.upscale == 1 and isinstance(photo.background, Lanczos)
        find = partial(photo.find, turns=False)
        self._followed: Iterator[Followed[Frame]] = follow(self._decoded(reader), lambda frame: frame.quick, find)
        self._tracker, self._keys = Tracker(), KeyFrames(key_frames)
        self._people: set[int] = set()
        self.failed, self.first_error = 0, ""

    def read(self, _: None) -> Prepared[_Shot] | None:
        """The next frame, its faces found and followed; None after the last."""
        decoded = self.film.seconds.get("decode", 0.0)
        begin = time.perf_counter()
        followed = next(self._followed, None)
        if followed is not None:
            if followed.cut:
                self._tracker.reset()
            tracked = self._tracker.update(followed.faces, followed.frame.seconds)
        # The frames after it were decoded on the way.
        self._took("find", begin + self.film.seconds.get("decode", 0.0) - decoded)
        if followed is None:
            return None
        with self._timed("crop"):
            pixels, faces = self._cut_out(followed.frame, tracked)
        with self._timed("flow"):
            sources = self._keys.sources(faces, tracked)
        self._people.update(source.track for source in sources)
        self.film.tracks = len(self._people)
        crops, keys = fresh(sources)
        return Prepared(_Shot(followed.frame, pixels, sources), crops, keys if self.still_noise else None)

    def write(self, shot: _Shot, results: Sequence[Restored]) -> None:
        """Paste the faces of a frame and encode it."""
        film, frame = self.film, shot.frame
        for result in results:  # of the networks alone
            for stage, seconds in result.seconds.items():
                film.seconds[stage] = film.seconds.get(stage, 0.0) + seconds
        samples, pixels = frame.samples, shot.pixels
        with self._timed("warp"):
            results = complete(shot.sources, results)
        restored = [result for result in results if result.pixels is not None]
        errors = [result.error or "unknown" for result in results if result.pixels is None]
        with self._timed("paste"):
            if pixels is not None:
                pixels = self.photo.paste(Image(pixels, grey=frame.grey), shot.faces, results).pixels
            elif samples is not None and restored:
                samples, options = samples.copy(), self.photo.options
                patches = self.photo.patches(shot.faces, results, grey=frame.grey)
                samples.paste(patches, colour=not frame.grey, blend=options.blend, detail=options.detail)
        shown = [(frame.pts, frame.duration), *frame.repeats]
        with self._timed("encode"):
            for pts, duration in shown:
                if pixels is not None:
                    self.writer.write(pixels, pts, frame.time_base, duration)
                elif samples is not None:
                    self.writer.write_samples(samples, pts, frame.time_base, duration)
        film.frames += len(shown)
        if restored and film.stills is None:
            after = pixels if pixels is not None or samples is None else samples.rgb()
            film.stills = None if after is None else (_eight(frame.pixels), _eight(after))
        if errors and not self.failed:
            self.first_error = f"frame {frame.index}: {errors[0]}"
        self.failed += len(errors) * len(shown)
        film.faces += len(restored) * len(shown)
        film.warped += count_warped(shot.sources, results) * len(shown)

    def _cut_out(self, frame: Frame, tracked: list[Tracked]) -> tuple[NDArray[Any] | None, list[AlignedFace]]:
        """Align the faces of a frame; all of it is converted only where its samples do not go back as they are."""
        photo, samples = self.photo, frame.samples
        found = [one.face for one in tracked]
        if self.partly and samples is not None and self.writer.takes(samples):
            return None, photo.crop_by(samples.crop, found)
        pixels = frame.pixels
        return pixels, photo.crop(pixels, found)

    def _decoded(self, reader: VideoReader) -> Iterator[Frame]:
        frames = _merged(reader.frames())
        while True:
            with self._timed("decode"):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._took(stage, begin)

    def _took(self, stage: str, begin: float) -> None:
        self.film.seconds[stage] = self.film.seconds.get(stage, 0.0) + time.perf_counter() - begin


def _merged(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The frames that differ from the previous one; equal ones are listed in its `repeats`."""
    last = next(frames, None)
    for frame in frames:
        if last is not None and len(last.repeats) < MOST_REPEATS and frame.equals(last):
            last.repeats.append((frame.pts, frame.duration))
            continue
        if last is not None:
            yield last
        last = frame
    if last is not None:
        yield last


def _eight(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
