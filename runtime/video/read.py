"""Read a video: frames in the order of their showing, upright, one at a time. `write.py` writes."""

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
from typing_extensions import Self

from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.decode import MAX_PIXELS
from bfr.runtime.images.headers import check_size
from bfr.runtime.install import importing
from bfr.runtime.video.container import open_container, threads_of, video_stream
from bfr.runtime.video.formats import Colour, VideoInfo
from bfr.runtime.video.frames import FULL, Frame, Layout
from bfr.runtime.video.streams import demuxed, shift_of

with importing("PyAV", "video"):
    import av
    from av.sidedata.sidedata import SideDataContainer
    from av.sidedata.sidedata import Type as SideData
    from av.video.frame import VideoFrame

_TOLERANCE = 0.5  # seconds; durations are rounded and guessed: only a larger gap at the end is called damage
_SLANT = 0.05  # a turn by so much less than a quarter counts as one; radians
_HDR = (16, 18)  # transfer: PQ and HLG
# H.273's matrices -> the numbers of FFmpeg's converter, which knows no others.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
# What lies beside a frame's samples and no encoder here writes.
_BESIDE = {
    "A53_CC": "closed captions",
    "STEREO3D": "3D layout",
    "SPHERICAL": "360-degree layout",
    "MASTERING_DISPLAY_METADATA": "HDR10 metadata",
    "CONTENT_LIGHT_LEVEL": "HDR10 metadata",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
}
_log = logging.getLogger(__name__)


class VideoReader:
    """An open video, read once from its begin to its end.

    Of a broken file every frame is read that can be decoded; `damage` and a warning say what is missing.

    Attributes:
        info: What the video is.
        damage: What was found broken, or None; complete once `frames` has ended.
    """

    def __init__(self, path: Path, *, max_pixels: int = MAX_PIXELS) -> None:
        """Open a file and decode its first frame.

        Args:
            path: The file.
            max_pixels: Larger frames are refused.

        Raises:
            InputNotFound: There is no such file.
            InvalidImage: It is no video in a container of SUFFIXES, its frames are too large, or none can be decoded.
        """
        self.path = path
        self.damage: str | None = None
        with ExitStack() as stack:
            self._container = stack.enter_context(open_container(path, max_pixels=max_pixels))
            self._stream = video_stream(self._container, path)
            codec = self._stream.codec_context
            check_size((codec.width, codec.height), f"a frame of {path}", max_pixels)
            codec.options = {"max_pixels": str(max_pixels)}  # a stream may grow after its header
            codec.thread_type = threads_of(codec.name)
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is None:
                raise InvalidImage(f"{path}: not one of its frames can be decoded: copy it again or convert it")
            check_size((first.width, first.height), f"a frame of {path}", max_pixels)
            self._first = first
            self._turn = _display_matrix(first)
            self.info = self._describe(first)
            self._opened = stack.pop_all()
        (a, b), _ = self._turn
        if min(abs(a), abs(b)) > _SLANT * max(abs(a), abs(b)):
            _log.warning("%s is shown turned by other than quarters: it is read and written without the rest", path)
        if self.info.colour.transfer in _HDR:
            _log.warning("%s is HDR: networks know no HDR, its faces may come out too dark or too bright", path)
        beside = [data.type.name for data in cast(SideDataContainer, first.side_data)]
        if left := sorted({_BESIDE[name] for name in beside if name in _BESIDE}):
            _log.warning("%s: its %s cannot be written and is lost", path, " and ".join(left))
        if self._stream.metadata.get("alpha_mode") == "1" or any(c.is_alpha for c in first.format.components):
            _log.warning("%s is transparent in places: that is lost, and hidden colours show", path)
        grey = len(first.format.components) < 3  # without chroma, or with a palette
        if not grey and (first.format.chroma_width(2) > 1 or first.format.chroma_height(2) > 1):
            _log.warning("%s has finer colours (%s) than are written (4:2:0)", path, first.format.name)
        if first.interlaced_frame:
            _log.warning("%s is interlaced: its frames are restored as they are; deinterlace it first", path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def frames(self) -> Iterator[Frame]:
        """All frames, once, in constant memory; their times always rise. `damage` is complete at the end.

        Frames whose size changes on the way are scaled to the size of the first.
        """
        info = self.info
        layout = Layout(
            self._first.width,
            self._first.height,
            self._turn,
            None if self._first.format.is_rgb else converter_matrix(info.colour.matrix, info.width, info.height),
            info.colour.range or (FULL if self._first.format.name.startswith("yuvj") else 1),
            info.depth,
        )
        usual = max(1, round(1 / (info.rate * info.time_base))) if info.rate else 1
        last: Frame | None = None
        scaled, back = False, 0
        for index, frame in enumerate(chain([self._first], self._decoded)):
            scaled |= (frame.width, frame.height) != (layout.width, layout.height)
            pts = frame.pts
            if pts is None:  # broken files, and old containers
                pts = 0 if last is None else last.pts + (last.duration or usual)
            elif last is not None and pts <= last.pts:  # no container takes them like this
                back = max(back, last.pts - pts)
                pts = last.pts + 1
            if last is not None:
                yield last
            last = Frame(frame, layout, pts, info.time_base, index, frame.duration or None)
        if last is not None:
            end = None if self.damage else self._end()
            last.duration = end - last.pts if end is not None and end > last.pts else last.duration or usual
            yield last
        if back * info.time_base > _TOLERANCE:
            _log.warning(
                "%s: its clock goes back by %.1f s, as where recordings are joined: what follows plays too fast, and "
                "without sound; join them with a new clock first",
                self.path,
                float(back * info.time_base),
            )
        if scaled:
            _log.warning("%s changes its size: all frames are scaled to the first one's", self.path)
        if self.damage:
            _log.warning("%s %s: what can be decoded is used; copy or download it again", self.path, self.damage)

    def _decode(self) -> Iterator[VideoFrame]:
        broken, end = 0, Fraction(0)
        try:
            for packet in demuxed(self._container, ()):  # of all streams: the longest says where the file should end
                if (time := packet.dts if packet.pts is None else packet.pts) is not None:
                    end = max(end, (time + (packet.duration or 0)) * packet.time_base)
                if packet.stream is not self._stream:
                    continue
                broken += packet.is_corrupt
                try:
                    frames = self._stream.decode(packet)
                except av.FFmpegError:
                    broken += 1
                    continue
                for frame in frames:
                    broken += frame.is_corrupt
                    yield frame
        except (av.FFmpegError, OSError) as error:
            self.damage = f"cannot be read beyond {float(end):.2f} s ({error})"
            with suppress(av.FFmpegError):  # what the decoder holds back
                yield from self._stream.decode(None)
            return
        expected = Fraction(self._container.duration or 0, av.time_base)
        if "matroska" not in self._container.format.name:  # there the duration counts from 0
            expected += Fraction(self._container.start_time or 0, av.time_base) - shift_of(self._container)
        if end + _TOLERANCE < expected:
            self.damage = f"ends after {float(end):.2f} of {float(expected):.2f} s"
        elif broken:
            self.damage = f"is damaged in {broken} frame{'s' * (broken != 1)}"

    def _end(self) -> int | None:
        """When the last frame ends by the header, in ticks; its packet tells less where frames are reordered."""
        stream = self._stream
        if stream.duration:
            shift = shift_of(self._container) / self.info.time_base
            return round((stream.start_time or 0) + stream.duration - shift)
        try:  # Matroska
            hours, minutes, seconds = stream.metadata["DURATION"].split(":")
            end = Fraction(hours) * 3600 + Fraction(minutes) * 60 + Fraction(seconds)
        except (KeyError, ValueError):
            return None
        return int(end / self.info.time_base)

    def _describe(self, first: VideoFrame) -> VideoInfo:
        stream, container = self._stream, self._container
        assert stream.time_base is not None  # noqa: S101  (every stream of a file has one)
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / av.time_base
        (a, b), _ = self._turn
        size, aspect = (first.width, first.height), stream.sample_aspect_ratio
        if abs(a) < abs(b):
            size, aspect = size[::-1], 1 / aspect if aspect else None
        return VideoInfo(
            *size,
            rate=stream.average_rate or stream.guessed_rate or None,
            frames=stream.frames or None,
            seconds=seconds or None,
            rotation=round(math.degrees(math.atan2(b, a))) % 360,
            audio=len(container.streams.audio),
            codec=stream.codec_context.name,
            time_base=stream.time_base,
            colour=_colour(first, self.path),
            aspect=None if aspect == 1 else aspect,
            depth=10 if max(component.bits for component in first.format.components) > 8 else 8,
        )


def converter_matrix(matrix: int, width: int, height: int) -> int:
    """H.273's matrix as FFmpeg's converter counts; where a video names none, what players take for one of its size."""
    if matrix in _MATRICES:
        return _MATRICES[matrix]
    short, long = sorted((width, height))
    return 1 if long >= 1280 or short > 576 else 5


def _display_matrix(frame: VideoFrame) -> tuple[tuple[int, int], tuple[int, int]]:
    for data in cast(SideDataContainer, frame.side_data):
        if data.type is SideData.DISPLAYMATRIX:
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
            return (a, b), (c, d)
    return (1, 0), (0, 1)


def _colour(frame: VideoFrame, path: Path) -> Colour:
    if frame.format.is_rgb:  # written as what every player knows
        return Colour(1, 1, frame.color_primaries, frame.color_trc)
    colour = Colour(frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
    if colour.matrix != 2 and colour.matrix not in _MATRICES:
        raise InvalidImage(f"{path} has a colour matrix that is not supported (H.273's {colour.matrix}): convert it")
    return colour
