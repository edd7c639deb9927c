"""The live loop: take the newest frame, restore as many faces as time allows, then show or drop it."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

from bfr.runtime.faces.photo import PhotoRestorer, RestoredPhoto
from bfr.runtime.images.decode import Image
from bfr.runtime.live.counts import Counts
from bfr.runtime.live.options import LiveOptions
from bfr.runtime.live.sinks import Sink, drawn
from bfr.runtime.live.source import Arrived, Source
from bfr.runtime.video.follow import Follower
from bfr.runtime.video.propagate import KeyFrames, complete, count_warped, fresh
from bfr.runtime.video.track import Tracked, Tracker

_KEEP = 0.8  # of an earlier time in the estimate of the next, where it took less
_FORGET = 0.98  # of it, at each frame that leaves no time for a face
_log = logging.getLogger("bfr")


class Estimate:
    """How long something takes: at once more where it took more, and slowly less."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def add(self, seconds: float) -> None:
        """Take in what it took."""
        self.seconds = max(seconds, _KEEP * self.seconds + (1 - _KEEP) * seconds)


class Live:
    """A stream that is being restored. Faces keep their noise from frame to frame, as in videos."""

    def __init__(self, photo: PhotoRestorer, options: LiveOptions, sinks: Sequence[Sink], counts: Counts) -> None:
        self.photo, self.options, self.sinks, self.counts = photo, options, sinks, counts
        self._follower = Follower(partial(photo.find, turns=False))
        self._tracker, self._keys = Tracker(), KeyFrames(options.key_frames)
        self._showing = Estimate()
        self._warned = False
        blank = np.full((photo.size, photo.size, 3), 128, np.uint8)
        for _ in range(2):  # the first call sets the networks up
            begin = time.perf_counter()
            photo.restorer.run([blank])
        self._face = Estimate(time.perf_counter() - begin)

    def take(self, arrived: Arrived, begin: float) -> None:
        """Restore and show a frame, or drop it where it would be shown too late.

        Args:
            arrived: The frame.
            begin: When the stream began, seconds of `time.monotonic`.

        Raises:
            WriteFailed: A sink cannot be written.
        """
        counts, most = self.counts, self.options.max_delay
        if arrived.age > most:
            counts.late += 1
            return
        made, warped = self._restored(arrived)
        if arrived.age + self._showing.seconds > most:
            counts.late += 1
            self._showing.add(0)  # one slow sink must not end the showing
            return
        showing = time.perf_counter()
        overlay = self.options.overlay and any(sink.watched for sink in self.sinks)
        marked = drawn(made.pixels, counts.line) if overlay else made.pixels
        for sink in self.sinks:
            sink.write(marked if sink.watched else made.pixels, arrived.came - begin)
        self._showing.add(time.perf_counter() - showing)
        counts.faces += len(made.faces)
        counts.warped += warped
        counts.failed += len(made.errors)
        counts.show(arrived.age)

    def _restored(self, arrived: Arrived) -> tuple[RestoredPhoto, int]:
        """A frame with its faces restored, and how many of these were warped from a key frame."""
        photo, pixels = self.photo, arrived.pixels
        followed = self._follower.follow(pixels, arrived.came)
        if followed.cut:
            self._tracker.reset()
        tracked = self._chosen(self._tracker.update(followed.faces, arrived.came), arrived)
        faces = photo.crop(pixels, [one.face for one in tracked])
        begin = time.perf_counter()
        sources = self._keys.sources(faces, tracked)
        crops, keys = fresh(sources)
        called = time.perf_counter()
        restored = photo.restorer.run(crops, keys=keys) if crops else []
        network = time.perf_counter() - called
        results = complete(sources, restored)
        made = photo.paste(Image(pixels), faces, results)
        if crops:  # what a face takes that is not warped
            others = time.perf_counter() - begin - network
            self._face.add(network / len(crops) + others / len(faces))
        return made, count_warped(sources, results)

    def _chosen(self, tracked: list[Tracked], arrived: Arrived) -> list[Tracked]:
        """The faces that can be restored in time: the largest."""
        time_left = self.options.max_delay - arrived.age - self._showing.seconds
        most = max(0, int(time_left / max(self._face.seconds, 1e-6)))
        if len(tracked) <= most:
            return tracked
        self.counts.left += len(tracked) - most
        if most == 0:
            if not self._warned:
                _log.warning(
                    "a face takes %.2f s here, and --max-delay leaves %.2f s: faces stay as they are; raise it",
                    self._face.seconds,
                    time_left,
                )
                self._warned = True
            self._face.seconds *= _FORGET  # what was slow once is tried again
        return sorted(tracked, key=lambda one: one.face.eye_distance, reverse=True)[:most]


def run_live(
    photo: PhotoRestorer,
    source: str,
    sinks: Sequence[Sink],
    options: LiveOptions,
    counts: Counts,
    tell: Callable[[str], None] = lambda _line: None,
) -> float:
    """Restore a stream until it ends, a window is closed, or Ctrl-C.

    Args:
        photo: What restores its frames.
        source: A camera or an address, see `kind_of`.
        sinks: The sinks of the frames; they are closed here.
        options: See LiveOptions.
        counts: What is counted meanwhile.
        tell: Called with a line on the state, at each frame and while none comes.

    Returns:
        Seconds that it took.

    Raises:
        InputNotFound: No frame came.
        WriteFailed: A sink cannot be written; what was written until then is whole.
    """
    with ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.close)
        live = Live(photo, options, sinks, counts)
        begin = time.monotonic()
        with Source(source, options, counts) as stream:
            try:
                for arrived in stream.frames():
                    if arrived is not None:
                        live.take(arrived, begin)
                    for sink in sinks:
                        sink.idle()
                    tell(counts.line)
                    over = options.duration is not None and time.monotonic() - begin >= options.duration
                    if over or any(sink.closed for sink in sinks):
                        break
                stream.check()
            except KeyboardInterrupt:  # how a person ends it
                pass
        return time.monotonic() - begin
