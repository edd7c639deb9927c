"""Take the sound and the subtitles of one video over into another, in step with its frames."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from bfr.runtime.install import importing
from bfr.runtime.video.container import video_stream

with importing("PyAV", "video"):
    import av
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Discard, Stream

_OURS = frozenset({"encoder", "major_brand", "minor_version", "compatible_brands", "software"})
_OF_VIDEO = ("language", "title", "name", "handler_name", "HANDLER_NAME")  # words that still hold of a restored stream
_AAC_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)
_LAYOUTS = {1: "mono", 6: "5.1", 8: "7.1"}  # a container may say "2 channels", which encoders do not take
_BITS = 96_000  # a second and channel, of sound re-encoded
_GAP = 0.1  # seconds; times that are off by less are taken for rounding
_log = logging.getLogger(__name__)


def demuxed(container: InputContainer, streams: "Sequence[Stream]") -> "Iterator[Packet[Any]]":
    """The packets of some streams, all of the container's if none is named; their times are less `shift_of` it.

    A transport stream may get further streams on its way, of which PyAV raises IndexError: their packets are skipped.
    """
    shift = shift_of(container)
    while True:
        try:
            for packet in container.demux(list(streams)) if streams else container.demux():
                ticks = round(shift / packet.time_base) if shift else 0
                if packet.pts is not None:
                    packet.pts -= ticks
                if packet.dts is not None:
                    packet.dts -= ticks
                yield packet
        except IndexError:
            continue
        return


def shift_of(container: InputContainer) -> Fraction:
    """Seconds at which a transport or program stream begins, whose clock starts anywhere; 0 for other containers."""
    return (
        Fraction(container.start_time or 0, av.time_base) if container.format.name.startswith("mpeg") else Fraction(0)
    )


class StreamCopy:
    """Streams of an open source on their way into an output whose header is not written yet."""

    def __init__(
        self, source: InputContainer, output: OutputContainer, suffix: str, path: Path, *, keep_metadata: bool
    ) -> None:
        """Add the streams to the output, see `VideoWriter.copy_streams_from`.

        Args:
            source: An open video.
            output: The container that its streams go to.
            suffix: Suffix of the output's container.
            path: Path of the source, for messages.
            keep_metadata: Take over title, chapters and the like.
        """
        self._source, self._output, self._suffix, self._path = source, output, suffix, path
        self._targets: dict[int, Any] = {}
        self._clocks: dict[int, int] = {}  # of sound re-encoded: the next sample
        wanted = ("audio", "subtitle", "attachment") if suffix == ".mkv" else ("audio", "subtitle")
        main = video_stream(source, path)
        # FFmpeg marks the stream of an .mp4's chapters so.
        others = [one for one in source.streams if one.index != main.index and one.discard != Discard.all]
        if left := [one.type for one in others if one.type in ("video", "data")]:
            _log.warning("%s: its further streams (%s) are left out", path, ", ".join(left))
        for stream in source.streams:
            target = self._add(stream) if stream.type in wanted else None
            if target is None:
                stream.discard = Discard.all
                continue
            self._targets[stream.index] = target
            self._describe(stream, target, None if keep_metadata else ("language",))
        self._describe(main, output.streams.video[0], _OF_VIDEO if keep_metadata else ("language",))
        if keep_metadata:
            output.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in _OURS})
            output.set_chapters(source.chapters())
            if suffix in (".mp4", ".mov") and any(key.startswith("com.") for key in output.metadata):
                # Of phones: their place, make and model. FFmpeg writes all keys as these, or none of them.
                output.container_options["movflags"] += "+use_metadata_tags"
        self._packets = self._read()
        self._next = next(self._packets, None)

    def until(self, seconds: Fraction | None) -> "Iterator[Packet[Any]]":
        """The packets, ready for the output, up to a time, None for all that is left: none has to wait in memory."""
        while self._next is not None and (seconds is None or packet_time(self._next) <= seconds):
            yield self._next
            self._next = next(self._packets, None)

    def _add(self, stream: Stream) -> Any:
        """The stream of the output that takes `stream` over; None if it has to be left out."""
        codec = stream.codec_context.name if stream.codec_context else "unknown"
        if not (self._suffix == ".mp4" and codec.startswith("pcm_")):
            with suppress(ValueError):  # PyAV's word for a codec that the container does not take
                return self._output.add_stream_from_template(stream)
        if not isinstance(stream, AudioStream) or codec == "unknown":
            _log.warning("%s: its %s (%s) is left out: %s cannot hold it", self._path, stream.type, codec, self._suffix)
            return None
        library, rates = ("libopus", (48_000,)) if self._suffix == ".webm" else ("aac", _AAC_RATES)
        fewer = "" if stream.channels == 2 or stream.channels in _LAYOUTS else " in stereo"
        _log.warning("%s: its sound (%s) is re-encoded%s for %s", self._path, codec, fewer, self._suffix)
        self._clocks[stream.index] = -(1 << 62)
        layout = _LAYOUTS.get(stream.channels, "stereo")
        rate = stream.rate if stream.rate in rates else 48_000
        return self._output.add_stream(library, rate, layout=layout, bit_rate=_BITS * min(stream.channels, 8))

    def _describe(self, stream: Stream, target: Any, keys: Sequence[str] | None) -> None:
        """Give a stream of the output the words of its source, of these keys or all, and its part in the whole."""
        words = {key: word for key, word in stream.metadata.items() if keys is None or key in keys}
        if self._suffix in (".mp4", ".mov") and "name" in words:  # which FFmpeg writes from another key than it reads
            words["title"] = words.pop("name")
        target.metadata.update(words)
        target.disposition = stream.disposition

    def _read(self) -> "Iterator[Packet[Any]]":
        if not self._targets:  # PyAV would read all streams then
            return
        last: dict[int, int] = {}
        gaps = 0
        packets = demuxed(self._source, [stream for stream in self._source.streams if stream.index in self._targets])
        while (packet := self._next_packet(packets)) is not None:
            index = packet.stream.index
            target = self._targets[index]
            if index in self._clocks:
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    gaps += 1
                    continue
                for frame in frames:
                    yield from target.encode(self._timed(cast(AudioFrame, frame), index))
            elif packet.dts is not None:  # the last packet of each stream is empty
                # Two at one time stop a muxer, but subtitles may overlap.
                if index in last and packet.dts < last[index] + (target.type != "subtitle"):
                    continue
                last[index] = packet.dts
                packet.stream = target
                yield packet
        if gaps:
            _log.warning("%s: its sound is damaged in %d places: copy or download it again", self._path, gaps)
        for index in self._clocks:
            yield from self._targets[index].encode(None)

    def _next_packet(self, packets: "Iterator[Packet[Any]]") -> "Packet[Any] | None":
        try:
            return next(packets, None)
        except (av.FFmpegError, OSError) as error:
            _log.warning("%s: its sound cannot be read to the end (%s): copy it again", self._path, error)
            return None

    def _timed(self, frame: AudioFrame, index: int) -> AudioFrame:
        """A frame on the clock of its samples: those of containers are coarse, and would cut its parts wrongly."""
        rate, clock = frame.sample_rate, self._clocks[index]
        if frame.pts is not None and frame.time_base is not None:
            due = round(frame.pts * frame.time_base * rate)
            clock = due if due > clock + _GAP * rate else clock
        frame.pts, frame.time_base = clock, Fraction(1, rate)
        self._clocks[index] = clock + frame.samples
        return frame


def packet_time(packet: "Packet[Any]") -> Fraction:
    """When a packet is decoded, in seconds."""
    time = packet.dts if packet.dts is not None else packet.pts
    return (time or 0) * packet.time_base
