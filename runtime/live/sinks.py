"""The sinks of a live stream: a file, an outgoing stream, a window. `page.py` has the page."""

import logging
import math
import multiprocessing
import signal
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import MissingDependency, WriteFailed
from bfr.runtime.install import importing
from bfr.runtime.live.counts import Counts
from bfr.runtime.live.options import FILES, STREAMS
from bfr.runtime.text import without_secrets
from bfr.runtime.video.codecs import CODECS

with importing("PyAV", "video"):
    import av
    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

RGB8 = NDArray[np.uint8]
RETRY_SECONDS = 1.0
STALLED_SECONDS, CLOSE_SECONDS = 10.0, 3.0
_TICKS = 1000  # a second
_log = logging.getLogger("bfr")


class Sink:
    """What takes restored frames.

    Attributes:
        watched: A person looks at it: the counts are drawn into its frames.
        closed: The person has closed it, and so ended the stream.
    """

    watched = closed = False

    def write(self, pixels: RGB8, seconds: float) -> None:
        """Take an (H, W, 3) uint8 RGB frame, shown `seconds` after the begin. Raises WriteFailed."""
        raise NotImplementedError

    def idle(self) -> None:
        """Do what is to be done while no frame comes."""

    def close(self) -> None:
        """End what was written, so that it is whole."""


class Encoded(Sink):
    """H.264 in a file or stream, without a frame held back by the encoder.

    The picture keeps its first size; later frames of another size are scaled to it. A file's fragments can be played
    even where the process was killed.
    """

    def __init__(self, target: str) -> None:
        """target: a file or address, checked by `check_sink`; it is opened with the first frame."""
        self.target = target
        self._scheme = urlsplit(target).scheme.lower()
        self._output: OutputContainer | None = None
        self._video: VideoStream | None = None
        self._size: tuple[int, int] | None = None
        self._last = -1

    def write(self, pixels: RGB8, seconds: float) -> None:
        """See Sink. After an error the next frame reopens the target."""
        try:
            self._encode(pixels, seconds)
        except (av.FFmpegError, OSError) as error:
            self._drop()
            raise WriteFailed(
                f"{without_secrets(self.target)} cannot be written ({error.strerror or error}): check the name, the "
                "space on the disk, or that a server listens there"
            ) from error

    def close(self) -> None:
        """See Sink."""
        if self._output is not None and self._video is not None:
            with suppress(av.FFmpegError, OSError):  # a receiver that is gone needs no end
                self._output.mux(self._video.encode(None))
        self._drop()

    def _encode(self, pixels: RGB8, seconds: float) -> None:
        height, width = pixels.shape[:2]
        if self._size is None:
            self._size = width + width % 2, height + height % 2
        if self._output is None or self._video is None:
            self._output, self._video = self._open(*self._size)
            self._last = -1
        if (odd := (height % 2, width % 2)) != (0, 0):
            pixels = np.pad(pixels, [(0, odd[0]), (0, odd[1]), (0, 0)], mode="edge")
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
        frame = frame.reformat(*self._size, "yuv420p", dst_colorspace=1 if self._size[1] > 576 else 5)
        frame.pts = self._last = max(self._last + 1, round(seconds * _TICKS))
        frame.time_base = Fraction(1, _TICKS)
        self._output.mux(self._video.encode(frame))

    def _open(self, width: int, height: int) -> tuple[OutputContainer, VideoStream]:
        if self._scheme in STREAMS:
            name, muxer = self.target, STREAMS[self._scheme]
            settings = {"rtsp": {"rtsp_transport": "tcp"}, "udp": {"pkt_size": "1316", "flush_packets": "1"}}
            options = settings[self._scheme]
        else:
            name, muxer = str(Path(self.target).absolute()), FILES[Path(self.target).suffix.lower()]
            options = {"flush_packets": "1"}
            if muxer != "matroska":
                options["movflags"] = "frag_keyframe+empty_moov+default_base_moof"
        output = av.open(name, "w", format=muxer, options=options)
        encoder = CODECS["h264"]
        live = {"preset": encoder.options["preset"], "tune": "zerolatency", "crf": "20", "g": "50"}  # no look-ahead
        stream: Any = output.add_stream(encoder.library, 25, live, width=width, height=height)
        context = stream.codec_context
        context.pix_fmt, context.time_base = "yuv420p", Fraction(1, _TICKS)
        context.colorspace = context.color_primaries = context.color_trc = 1 if height > 576 else 5
        context.color_range = 1
        return output, stream

    def _drop(self) -> None:
        if self._output is not None:
            with suppress(av.FFmpegError, OSError):
                self._output.close()
        self._output = self._video = None


class Sent(Sink):
    """An Encoded stream in a separate process.

    PyAV holds the GIL while it connects to a receiver: one that does not answer would block this process and Ctrl-C.
    The process has one frame at a time; those that come meanwhile are left out, and those before it is ready. A
    receiver that is lost is tried again.
    """

    def __init__(self, target: str, patience: float, counts: Counts) -> None:
        """Start the process.

        Args:
            target: An address, checked by `check_sink`.
            patience: Seconds without success after which the receiver is given up.
            counts: Counts the frames that the receiver is too slow for.
        """
        self.target, self._patience, self._counts = target, patience, counts
        spawned = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawned.Pipe()
        self._process = spawned.Process(target=_send, args=(target, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._busy, self._failing = True, False
        self._taken = self._tried = math.inf  # when a frame was last taken, or given; the process begins with an answer

    def write(self, pixels: RGB8, seconds: float) -> None:
        """See Sink; also raises WriteFailed if the receiver accepted nothing for too long."""
        now = time.monotonic()
        try:
            if self._busy and self._pipe.poll():
                self._busy = False
                self._answered(self._pipe.recv(), now)
            if self._busy or (self._failing and now - self._tried < RETRY_SECONDS):
                self._counts.unsent += 1
                if self._busy and now - self._tried >= max(self._patience, STALLED_SECONDS):
                    raise WriteFailed(f"{without_secrets(self.target)} takes no more frames: check the server")
                return
            self._pipe.send((pixels, seconds))
        except (EOFError, BrokenPipeError) as error:
            raise WriteFailed(f"the process that sends to {without_secrets(self.target)} has died") from error
        self._busy, self._tried = True, now

    def close(self) -> None:
        """See Sink; ends the process if the receiver blocks it."""
        self._pipe.close()
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _answered(self, problem: str | None, now: float) -> None:
        if problem is None:
            self._taken, self._failing = now, False
            return
        if now - self._taken >= self._patience:
            raise WriteFailed(problem)
        if not self._failing:
            _log.warning("%s; trying again for %g s", problem, self._patience)
        self._failing = True


def _send(target: str, pipe: Any) -> None:
    """Write the frames that come through the pipe, and answer each with None or what was wrong; until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both, and the parent closes the pipe
    stream = Encoded(target)
    with suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            problem, (pixels, seconds) = None, pipe.recv()
            try:
                stream.write(pixels, seconds)
            except WriteFailed as error:
                problem = str(error)
            pipe.send(problem)
    stream.close()


class Window(Sink):
    """A window of the desktop; closing it ends the stream."""

    watched = True

    def __init__(self, title: str) -> None:
        """Raises MissingDependency if there is no Tk, or no screen."""
        try:
            import tkinter
        except ImportError as error:
            raise MissingDependency(
                "a window needs Python's tkinter: `apt install python3-tk`, or leave the window out for the page"
            ) from error
        self._tk = tkinter
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise MissingDependency(f"no window can be opened ({error}): leave it out for the page") from error
        self._root.title(title)
        self._root.protocol("WM_DELETE_WINDOW", self._end)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._image: Any = None

    def write(self, pixels: RGB8, seconds: float) -> None:  # noqa: ARG002
        """See Sink."""
        height, width = pixels.shape[:2]
        ppm = f"P6 {width} {height} 255 ".encode() + pixels.tobytes()
        self._image = self._tk.PhotoImage(data=ppm, format="ppm")
        self._label.configure(image=self._image)
        self.idle()

    def idle(self) -> None:
        """Handle the window's events."""
        if not self.closed:
            self._root.update()

    def close(self) -> None:
        """See Sink."""
        with suppress(self._tk.TclError):
            self._root.destroy()

    def _end(self) -> None:
        self.closed = True


def drawn(pixels: RGB8, text: str) -> RGB8:
    """A copy of a frame with a line of text at its lower edge."""
    pixels = pixels.copy()
    scale = max(0.4, pixels.shape[1] / 1600)
    at = (round(16 * scale), pixels.shape[0] - round(16 * scale))
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        width = max(1, round(thickness * scale))
        cv2.putText(pixels, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, width, cv2.LINE_AA)
    return pixels
