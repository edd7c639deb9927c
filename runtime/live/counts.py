"""What a live stream did: for the terminal, the picture, and Prometheus."""

import time
from collections import deque

_WINDOW = 2.0  # seconds over which frames are counted for their rate


class Counts:
    """Counters of a stream, see `_COUNTERS`. connected: whether the source sends frames.

    delay, worst, total: seconds from arrival to showing: of the last frame, the largest, and of all together.
    """

    def __init__(self) -> None:
        self.shown = self.dropped = self.late = self.unsent = self.faces = self.warped = self.left = self.failed = 0
        self.damaged = self.reconnects = 0
        self.connected = False
        self.delay = self.worst = self.total = 0.0
        self._times: deque[float] = deque()
        self._began = time.monotonic()

    def show(self, delay: float) -> None:
        """Count a frame that was shown `delay` seconds after it came."""
        self.shown += 1
        self.delay, self.worst, self.total = delay, max(self.worst, delay), self.total + delay
        self._times.append(time.monotonic())

    @property
    def rate(self) -> float:
        """Frames a second, lately."""
        now = time.monotonic()
        while self._times and self._times[0] < now - _WINDOW:
            self._times.popleft()
        return len(self._times) / max(min(_WINDOW, now - self._began), 0.1)

    @property
    def line(self) -> str:
        """The state as one line."""
        state = "" if self.connected else "no signal, "
        return (
            f"{state}{self.rate:.1f} frames/s, delay {self.delay * 1000:.0f} ms (at most {self.worst * 1000:.0f}), "
            f"dropped {self.dropped}, late {self.late}"
        )

    def summary(self, seconds: float) -> dict[str, float]:
        """All counts of a stream that took `seconds`."""
        return {
            "seconds": round(seconds, 3),
            "frames_per_second": round(self.shown / seconds, 2) if seconds else 0.0,
            "delay_mean": round(self.total / self.shown, 4) if self.shown else 0.0,
            "delay_max": round(self.worst, 4),
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def metrics(self) -> str:
        """The counts in Prometheus' text format."""
        lines = []
        for name, text in _COUNTERS.items():
            lines += [f"# HELP bfr_live_{name}_total {text}", f"# TYPE bfr_live_{name}_total counter"]
            lines.append(f"bfr_live_{name}_total {getattr(self, name)}")
        gauges = {"frames_per_second": self.rate, "delay_seconds": self.delay, "connected": int(self.connected)}
        for name, value in gauges.items():
            lines += [f"# TYPE bfr_live_{name} gauge", f"bfr_live_{name} {value:g}"]
        return "\n".join(lines) + "\n"


_COUNTERS = {
    "shown": "Frames that were sent to the sinks",
    "dropped": "Frames that a newer one replaced",
    "late": "Frames that would have been shown too late",
    "unsent": "Frames that the receiver of a sink was too slow for",
    "faces": "Faces that were restored",
    "warped": "Faces that were warped from a key frame, of those restored",
    "left": "Faces that were left as they were, for want of time",
    "failed": "Faces that could not be restored",
    "damaged": "Packets that could not be decoded",
    "reconnects": "Times that the source was opened again",
}
