"""The progress of a build: its phases, its remaining time, and its cancellation."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

INTERVAL = 0.5  # seconds between two reports
GRACE = 8.0  # seconds within which work must end after Ctrl-C
THREAD = "bfr-build"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tick:
    """The progress of a piece of work. Seconds since it began, and an estimate of what remains, if there is one."""

    what: str
    phase: str
    elapsed: float
    remaining: float | None

    def __str__(self) -> str:
        left = "remaining time unknown" if self.remaining is None else f"about {clock(self.remaining)} remain"
        return f"{self.what}: {self.phase}, {clock(self.elapsed)} elapsed, {left}"


Report = Callable[[Tick], None]


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@dataclass(slots=True)
class _Phase:
    name: str
    parent: str | None
    steps: int
    done: int = 0


class Meter:
    """The phases of one piece of work, written by its thread and read by the one that reports."""

    def __init__(self, what: str, phase: str = "starting") -> None:
        self.what, self._phase = what, phase
        self.cancelled = threading.Event()
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}  # the open ones, outermost first

    def say(self, phase: str) -> None:
        """Name the present phase, if nothing counts its steps."""
        with self._lock:
            self._phase = phase

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins, as a step of `parent`."""
        with self._lock:
            self._phases[name] = _Phase(name, parent, max(steps, 1))

    def step(self, name: str, step: int) -> bool:
        """Step number `step` of a phase is done; whether the work should go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
        return not self.cancelled.is_set()

    def finish(self, name: str) -> None:
        """A phase ends."""
        with self._lock:
            self._phases.pop(name, None)

    def tick(self) -> Tick:
        """Return the progress of the work."""
        with self._lock:
            phases = list(self._phases.values())
            phase = phases[-1].name if phases else self._phase
        elapsed = time.monotonic() - self._begin
        done = _fraction(phases)
        # The first steps are quick and few: an estimate from them alone would be far too short.
        remaining = elapsed * (1.0 - done) / done if done > 0.05 and elapsed > 2.0 else None
        return Tick(self.what, phase, elapsed, remaining)


def _fraction(phases: list[_Phase]) -> float:
    """How much of the outermost phase is done, 0 to 1; an open phase is the next step of the one around it."""
    done, inner = 0.0, None
    for phase in reversed(phases):
        inside = done if inner is not None and inner.parent == phase.name else 0.0
        done, inner = min((phase.done + inside) / phase.steps, 1.0), phase
    return done


def watched(work: Callable[[], T], meter: Meter, report: Report, *, interval: float = INTERVAL) -> T:
    """Do the work in a separate thread, and report its progress.

    At Ctrl-C the meter is cancelled, and the work gets GRACE seconds to end; then KeyboardInterrupt is raised whether
    it did or not, see `still_working`.

    Args:
        work: The work; what it raises is raised here.
        meter: Its phases.
        report: Called with the progress.
        interval: Seconds between two calls of `report`.

    Returns:
        The result of the work.
    """
    # Not Thread.join: an interrupt inside it makes Python 3.11 take a running thread for an ended one.
    ended: Future[T] = Future()

    def run() -> None:
        try:
            ended.set_result(work())
        except BaseException as error:
            ended.set_exception(error)

    thread = threading.Thread(target=run, name=THREAD, daemon=True)
    thread.start()
    try:
        while not wait([ended], interval).done:
            report(meter.tick())
    except BaseException:
        meter.cancelled.set()
        if wait([ended], GRACE).done:
            thread.join()
        raise
    thread.join()
    return ended.result()


def still_working() -> bool:
    """Whether work that was cancelled has not ended: the process must then end without waiting for it."""
    return any(thread.name == THREAD for thread in threading.enumerate())


def monitor(trt: Any, meter: Meter) -> Any:
    """TensorRT's progress monitor that writes to a meter, and cancels the build when the meter is cancelled."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class of the bindings
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            meter.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return meter.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            meter.finish(phase_name)

    return Monitor()
