"""The newest frame of a camera or stream. A thread decodes all frames and keeps one: an older one is dropped."""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from bfr.runtime.errors import InputNotFound
from bfr.runtime.images.decode import MAX_PIXELS
from bfr.runtime.install import importing
from bfr.runtime.live.counts import Counts
from bfr.runtime.live.options import LiveOptions, kind_of
from bfr.runtime.text import without_secrets
from bfr.runtime.video.container import DECODERS, threads_of
from bfr.runtime.video.read import converter_matrix

with importing("PyAV", "video"):
    import av
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.reformatter import Interpolation

_log = logging.getLogger("bfr")
OPEN_SECONDS, SILENT_SECONDS = 10.0, 5.0  # after which a source that does not answer, or sends nothing, is lost
BEHIND_SECONDS = 3.0  # frames that are late for so long wait in buffers before us: opening anew empties them
FIRST_SECONDS = 60.0  # for the first frame: a decoder shows none before a key frame, and these may be rare
PAUSES = (0.2, 5.0)  # seconds between two attempts: the first, which doubles, and the longest
_DRIFT = 1e-4  # seconds a second by which a camera's clock may run faster than this one
# What a source may be, and what an RTSP session may hold.
_OPTIONS = {
    "format_whitelist": "rtsp,sdp,rtp,mpegts,video4linux2,v4l2",
    "codec_whitelist": ",".join(sorted(DECODERS)),
    "max_pixels": str(MAX_PIXELS),
    "fflags": "nobuffer",
    "flags": "low_delay",
}


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """A frame, and when it came, in seconds of time.monotonic(); see `Clock`."""

    frame: VideoFrame
    came: float

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB; quickly converted, a level or two off."""
        frame = self.frame
        matrix = None if frame.format.is_rgb else converter_matrix(frame.colorspace, frame.width, frame.height)
        array = frame.to_ndarray(format="rgb24", src_colorspace=matrix, interpolation=Interpolation.BILINEAR)
        return np.asarray(array, np.uint8)

    @property
    def age(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self.came


class Clock:
    """Tells when a frame would have come had nothing held it up, by its own time.

    The frame that came soonest after its time sets the offset between the two clocks. So a frame that waited in a
    buffer of the network, the system or the decoder is known to be old when it is decoded.
    """

    def __init__(self) -> None:
        self._offset = self._now = 0.0
        self._last: float | None = None

    def came(self, seconds: float | None, now: float) -> float:
        """When a frame came.

        Args:
            seconds: Its own time, None if it has none.
            now: When it was decoded.
        """
        if seconds is None:
            return now
        if self._last is None or seconds < self._last:  # the sender restarted
            self._offset = now - seconds
        self._offset = min(self._offset + _DRIFT * (now - self._now), now - seconds)
        self._last, self._now = seconds, now
        return seconds + self._offset


class Source:
    """An open source; within `with`, a thread reads it, and reopens it after a loss."""

    def __init__(self, address: str, options: LiveOptions, counts: Counts) -> None:
        """Raises InvalidOption for an address that is none."""
        self.address, self.options, self.counts = address, options, counts
        self._name = without_secrets(address)
        self._kind = kind_of(address)
        self._thread = threading.Thread(target=self._read, name="bfr-live", daemon=True)
        self._change = threading.Condition()
        self._newest: Arrived | None = None
        self._ended = self._frames = False
        self._sizes: set[tuple[int, int]] = set()
        self._stop = threading.Event()
        self._why = "nothing was sent"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(2 * SILENT_SECONDS)

    def frames(self, wait: float = 0.05) -> Iterator[Arrived | None]:
        """Yield the newest frame, or None if none came for `wait` seconds; ends with the source."""
        while True:
            with self._change:
                if self._newest is None and not self._ended:
                    self._change.wait(wait)
                found, self._newest = self._newest, None
                if found is None and self._ended:
                    return
            yield found

    def check(self) -> None:
        """Raise InputNotFound if no frame came at all."""
        if not self._frames:
            raise InputNotFound(f"{self.address}: no frame came ({self._why}): check the address, and that it sends")

    def _read(self) -> None:
        lost, pause = time.monotonic(), PAUSES[0]
        while not self._stop.is_set():
            try:
                with self._open() as container:
                    _log.info("reading %s", self._name)
                    for arrived in self._decoded(container):
                        lost, pause = time.monotonic(), PAUSES[0]
                        self._put(arrived)
                self._why = "it ended"
            except (av.FFmpegError, OSError, ValueError) as error:  # ValueError: it gives no frames, or late ones
                self._why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self.counts.connected = False
            _log.info("%s is lost: %s", self._name, self._why)
            if time.monotonic() - lost >= self.options.reconnect:
                break
            self._stop.wait(pause)
            pause = min(2 * pause, PAUSES[1])
        with self._change:
            self._ended = True
            self._change.notify()

    def _put(self, arrived: Arrived) -> None:
        self.counts.reconnects += self._frames and not self.counts.connected
        self.counts.connected = self._frames = True
        size = arrived.frame.width, arrived.frame.height
        if self._sizes and size not in self._sizes:
            _log.warning("%s now sends %d x %d pixels: files and streams keep their first size", self._name, *size)
        self._sizes.add(size)
        with self._change:
            self.counts.dropped += self._newest is not None
            self._newest = arrived
            self._change.notify()

    def _open(self) -> InputContainer:
        options, chosen, kind = dict(_OPTIONS), self.options, self._kind
        if kind == "rtsp":
            # Over TCP: a firewall that lets the session through lets the pictures through, and none is torn.
            options |= {"rtsp_transport": "tcp", "protocol_whitelist": "rtsp,rtsps,rtp,srtp,tcp,tls,udp,crypto"}
        elif kind == "udp":
            options |= {"overrun_nonfatal": "1", "fifo_size": "50000", "protocol_whitelist": "udp"}
        else:
            options |= {"video_size": chosen.size} if chosen.size else {}
            options |= {"framerate": str(chosen.rate)} if chosen.rate else {}
        return av.open(
            self.address,
            "r",
            format={"camera": "v4l2", "udp": "mpegts", "rtsp": "rtsp"}[kind],
            options=options,
            timeout=(OPEN_SECONDS, SILENT_SECONDS),
            metadata_errors="replace",
        )

    def _decoded(self, container: InputContainer) -> Iterator[Arrived]:
        """The frames of a container until it ends or the stream is stopped. Raises ValueError where it gives none."""
        stream = container.streams.video[0] if container.streams.video else None
        if stream is None:
            raise ValueError("it holds no video")
        stream.codec_context.thread_type = threads_of(stream.codec_context.name)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        clock, in_time = Clock(), time.monotonic()
        patience, why = FIRST_SECONDS, "no frame of it can be decoded"
        for packet in container.demux(stream):
            if self._stop.is_set():
                return
            frames: list[VideoFrame] = []
            try:
                frames = stream.decode(packet)
            except av.FFmpegError:
                self.counts.damaged += 1
            now = time.monotonic()
            for frame in frames:
                patience, why = BEHIND_SECONDS + self.options.max_delay, "its frames come too late"
                arrived = Arrived(frame, clock.came(frame.time, now))
                if now - arrived.came <= self.options.max_delay:
                    in_time = now
                yield arrived
            if now - in_time > patience:
                raise ValueError(why)
