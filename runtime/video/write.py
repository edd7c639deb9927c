"""Write a video: restored frames, encoded, beside the sound and the subtitles of the source as they were."""

import logging
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from bfr.runtime.install import importing
from bfr.runtime.video.codecs import Encoder, choose_encoder, default_codec, depth_of
from bfr.runtime.video.container import open_container
from bfr.runtime.video.formats import CONTAINERS, VideoInfo
from bfr.runtime.video.frames import CONVERSION, Samples
from bfr.runtime.video.read import VideoReader, converter_matrix
from bfr.runtime.video.streams import StreamCopy, packet_time

with importing("PyAV", "video"):
    import av
    from av.filter import Graph
    from av.packet import Packet
    from av.video.format import VideoFormat
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_REORDERED = 1e9  # seconds that a frame is decoded before it is shown, at most: as long as its longest pause
_log = logging.getLogger(__name__)


class VideoWriter:
    """An open video of which frames are written one after the other, in constant memory.

    Colours are converted and tagged as `info` has them; if it has no tags there are none, and a player shows the
    result as it shows the source. Times are kept: gaps, varying rates, a begin before or after that of the sound.
    Within `with`, an exception leaves a file that is not whole: write to the name that `atomic_path` gives.
    """

    def __init__(
        self, path: Path, suffix: str, info: VideoInfo, *, codec: str | None = None, crf: int | None = None
    ) -> None:
        """Open the file.

        Few players know H.264 of 10 bits: it is written with 8, with a warning. H.264 and HEVC need even sizes here: of
        an odd size the last row or column is written twice, with a warning.

        Args:
            path: The file to write, of whatever name.
            suffix: Its container, one of OUTPUT_SUFFIXES.
            info: Size, rate, clock, colours and bits of what is written.
            codec: A key of CODECS; None is vp9 for .webm, hevc for more than 8 bits, else h264.
            crf: Constant quality, 0 is the best; None is the codec's default.

        Raises:
            InvalidOption: Container, codec and quality do not fit together.
            MissingDependency: This PyAV was built without the encoder.
            OSError: The file cannot be written; later calls raise it too.
        """
        codec = codec or default_codec(suffix, info.depth)
        encoder = choose_encoder(suffix, codec, crf)
        self._depth = min(info.depth, depth_of(encoder))
        if self._depth < info.depth:
            _log.warning(
                "%s is written with 8 bits a sample here: hevc keeps %d, in .mp4, .mov and .mkv", codec, info.depth
            )
        even = 2 if encoder.even else 1
        self._padding = -info.height % even, -info.width % even
        height, width = info.height + self._padding[0], info.width + self._padding[1]
        if any(self._padding):
            _log.warning("%s needs even sizes: %d x %d becomes %d x %d", codec, info.width, info.height, width, height)
        self._info, self._suffix = info, suffix
        self._colour = info.colour
        self._matrix = converter_matrix(info.colour.matrix, info.width, info.height)
        # An absolute name: in a relative one a colon would end the name of a protocol.
        self._output = av.open(
            str(path.absolute()),
            "w",
            format=CONTAINERS[suffix].muxer,
            container_options={"movflags": "faststart"} if suffix in (".mp4", ".mov") else {},
        )
        self._format = "yuv420p" if self._depth == 8 else "yuv420p10le"
        self._video = self._add_video(encoder, encoder.crf if crf is None else crf, width, height)
        self._siting = _left_sited(width, height, info)
        self._durations: dict[Fraction, int | None] = {}
        self._held: Packet[Any] | None = None
        self._end = self._delay = 0  # in ticks of the encoder
        self._sources = ExitStack()
        self._copy: StreamCopy | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = False
        with self._sources:
            try:
                if kind is None:
                    self._mux(self._video.encode(None))
                    self._mux_last()
                    self._copy_until(None)
                    whole = True
            finally:
                # Where an error is under way, that of ending the file would hide it.
                with nullcontext() if whole else suppress(av.FFmpegError):
                    self._output.close()

    def copy_streams_from(self, reader: VideoReader, *, keep_metadata: bool = True) -> None:
        """Take over sound and subtitles of the source, packet by packet, and its title and chapters; before any frame.

        Sound that the container cannot hold is re-encoded (AAC, in WebM Opus), and so is uncompressed sound in .mp4,
        which many players do not know there. Subtitles that it cannot hold are dropped, as are further pictures and
        data (of cameras). Warnings report all of that. Without `keep_metadata` title, place, date and chapters are
        dropped too.
        """
        source = self._sources.enter_context(open_container(reader.path))
        self._copy = StreamCopy(source, self._output, self._suffix, reader.path, keep_metadata=keep_metadata)

    def write(self, pixels: NDArray[Any], pts: int, time_base: Fraction, duration: int | None = None) -> None:
        """Append a frame.

        Args:
            pixels: (H, W, 3) RGB of the size in `info`, uint8, or uint16 where `info.depth` is 10.
            pts: When it is shown, in ticks; rises from frame to frame.
            time_base: Seconds a tick.
            duration: Ticks; None lasts until the next frame, and of the last one as long as usual.
        """
        if pixels.shape != (self._info.height, self._info.width, 3):
            raise ValueError(f"a frame of {pixels.shape} in a video of {self._info.width} x {self._info.height}")
        if any(self._padding):
            pixels = np.pad(pixels, [(0, self._padding[0]), (0, self._padding[1]), (0, 0)], mode="edge")
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), _rgb(self._info.depth))
        frame.pts, frame.time_base = pts, time_base
        self._siting.push(frame)
        frame = cast(VideoFrame, self._siting.pull()).reformat(
            format=self._format,
            dst_colorspace=self._matrix,
            dst_color_range=self._colour.range or 1,
            interpolation=CONVERSION,
        )
        self._encode(frame, pts, time_base, duration)

    def takes(self, samples: Samples) -> bool:
        """Whether `write_samples` may be called: nothing has to be converted."""
        info = self._info
        return samples.size == (info.width, info.height) and not any(self._padding) and samples.depth == self._depth

    def write_samples(self, samples: Samples, pts: int, time_base: Fraction, duration: int | None = None) -> None:
        """Append a frame of the source's own samples. Times are as of `write`."""
        self._encode(VideoFrame.from_ndarray(samples.planes, self._format), pts, time_base, duration)

    def _add_video(self, encoder: Encoder, crf: int, width: int, height: int) -> VideoStream:
        info, options = self._info, {**encoder.options, "crf": str(crf)}
        stream = self._output.add_stream(encoder.library, info.rate or 25, options, width=width, height=height)
        assert isinstance(stream, VideoStream)  # noqa: S101  (what these libraries encode)
        context = stream.codec_context
        context.pix_fmt, context.time_base, context.thread_type = self._format, info.time_base, "AUTO"
        context.colorspace, context.color_range = info.colour.matrix, info.colour.range
        context.color_primaries, context.color_trc = info.colour.primaries, info.colour.transfer
        if info.aspect:
            context.sample_aspect_ratio = info.aspect
        if encoder.tag and self._suffix != ".mkv":
            context.codec_tag = encoder.tag
        return stream

    def _encode(self, frame: VideoFrame, pts: int, time_base: Fraction, duration: int | None) -> None:
        frame.pts, frame.time_base = pts, time_base
        frame.colorspace, frame.color_range = self._colour.matrix, self._colour.range
        frame.color_primaries, frame.color_trc = self._colour.primaries, self._colour.transfer
        # The encoder reorders frames; its packets are told by their times.
        self._durations[Fraction(pts) * time_base] = duration
        self._mux(self._video.encode(frame))

    def _mux(self, packets: "Iterable[Packet[Any]]") -> None:
        for packet in packets:
            if packet.pts is not None:
                duration = self._durations.pop(packet.pts * packet.time_base, None)
                packet.duration = duration or packet.duration
                # libx265 never sets the decoding times of a video of one or two frames.
                if packet.dts is not None and not 0 <= (packet.pts - packet.dts) * packet.time_base < _REORDERED:
                    packet.dts = packet.pts
                self._end = max(self._end, packet.pts + (packet.duration or 0))
            if self._held is not None:
                self._write(self._held)
            elif packet.pts is not None and packet.dts is not None:
                self._delay = packet.pts - packet.dts
            self._held = packet

    def _mux_last(self) -> None:
        """.mp4 adds durations up in the order of decoding, whose last packet need not be the last shown."""
        if (packet := self._held) is None:
            return
        if self._suffix in (".mp4", ".mov") and packet.dts is not None:
            packet.duration = max(self._end - self._delay - packet.dts, packet.duration or 0)
        self._write(packet)

    def _write(self, packet: "Packet[Any]") -> None:
        self._copy_until(packet_time(packet))
        self._output.mux(packet)

    def _copy_until(self, seconds: Fraction | None) -> None:
        for packet in self._copy.until(seconds) if self._copy else ():
            self._output.mux(packet)


def _left_sited(width: int, height: int, info: VideoInfo) -> Graph:
    """Passes RGB frames on and says where their chroma will lie, for which PyAV has no attribute.

    Between the luma samples of a row is FFmpeg's default; decoders, and players, look at the left one of two. Colours
    would move by half a pixel.
    """
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(width=width, height=height, format=VideoFormat(_rgb(info.depth)), time_base=info.time_base),
        graph.add("setparams", "chroma_location=left"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _rgb(depth: int) -> str:
    return "rgb24" if depth == 8 else "rgb48le"
