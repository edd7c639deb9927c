"""How far a build is, and how it is stopped."""

import threading
import time

import pytest

from bfr.export.tensorrt import progress
from bfr.export.tensorrt.progress import Meter, Tick, still_working, watched


def test_the_remaining_time_follows_from_the_steps_of_all_open_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    meter = Meter("denoiser in fp16", "parsing")
    assert str(meter.tick()) == "denoiser in fp16: parsing, 0:00 elapsed, remaining time unknown"
    meter.start("Building", None, 4)
    meter.step("Building", 0)
    meter.start("Timing", "Building", 10)
    for step in range(5):
        assert meter.step("Timing", step)
    now[0] = 130.0
    tick = meter.tick()
    assert tick.phase == "Timing"
    assert tick.remaining == pytest.approx(30 * (1 - 0.375) / 0.375)  # one step of four, and half of the second
    assert str(tick) == "denoiser in fp16: Timing, 0:30 elapsed, about 0:50 remain"
    meter.finish("Timing")
    meter.step("Building", 3)
    assert meter.tick().remaining == 0
    meter.cancelled.set()
    assert not meter.step("Building", 3)


def test_a_phase_without_steps_has_no_remaining_time() -> None:
    meter = Meter("x")
    meter.start("long", None, 0)
    assert meter.tick().remaining is None
    assert meter.step("never started", 3)


def test_watched_work_reports_while_it_sleeps_and_gives_its_result() -> None:
    ticks: list[Tick] = []

    def work() -> int:
        while len(ticks) < 5:
            time.sleep(0.01)
        return 7

    assert watched(work, Meter("x"), ticks.append, interval=0.05) == 7
    assert not still_working()


def test_what_work_raises_is_raised() -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        watched(work, Meter("x"), lambda _: None)


@pytest.mark.parametrize("listens", [True, False])
def test_an_interrupt_cancels_and_waits_no_longer_than_it_must(monkeypatch: pytest.MonkeyPatch, listens: bool) -> None:
    monkeypatch.setattr(progress, "GRACE", 0.3)
    meter = Meter("x")

    enough = threading.Event()

    def work() -> None:
        while not (enough.wait(0.01) or (listens and meter.cancelled.is_set())):
            pass

    def interrupt(_: Tick) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(work, meter, interrupt, interval=0.05)
    assert meter.cancelled.is_set()
    assert still_working() != listens
    enough.set()
    while still_working():
        time.sleep(0.05)
