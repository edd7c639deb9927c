"""A stream over the loopback is restored as it comes: newest frames, in time, through losses, to a clean end."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from streams import HEIGHT, SIDE, WIDTH, RtspServer, Sender, free_port, picture

from bfr.runtime.errors import InputNotFound
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.live.counts import Counts
from bfr.runtime.live.options import LiveOptions
from bfr.runtime.live.run import Live, run_live
from bfr.runtime.live.source import Arrived
from bfr.runtime.video.read import VideoReader

Maker = Callable[..., PhotoRestorer]
PATIENT = {"max_delay": 20.0}  # of a loaded machine


def place_of(frame: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, ...]:
    """The left edge of what has a colour, within what encoding costs; nothing where there is none."""
    near = (np.abs(frame.astype(int) - colour).max(axis=2) < 24).nonzero()
    return (int(near[1].min()),) if near[0].size > 100 else ()


@pytest.mark.server
def test_udp_is_restored_and_ends_where_it_is_told_to(photo: Maker, kept: Any, fakes: Any) -> None:
    address, sink, counts = f"udp://127.0.0.1:{free_port()}", kept(12), Counts()
    with Sender(address):
        run_live(photo(), address, [sink], LiveOptions(**PATIENT), counts)
    assert sink.ended
    assert all(frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8 for frame in sink.frames)
    assert place_of(sink.frames[-1], fakes.restored)
    assert sink.times == sorted(sink.times)
    assert counts.shown == 12
    assert counts.faces > 0  # a receiver that comes in the middle has damaged frames first


@pytest.mark.server
def test_frames_are_dropped_not_queued(photo: Maker, kept: Any) -> None:
    """Networks that take three frames' time: each result is of the newest frame, and none is shown too late."""
    address, sink, counts = f"udp://127.0.0.1:{free_port()}", kept(10), Counts()
    with Sender(address) as sender:
        run_live(photo(slow=0.12), address, [sink], LiveOptions(max_delay=5), counts)
        sent = sender.sent
    assert counts.dropped > 0
    assert counts.shown == 10
    assert counts.shown + counts.dropped + counts.late <= sent
    assert counts.worst <= 5


@pytest.mark.server
def test_what_would_come_too_late_is_not_shown(photo: Maker, kept: Any) -> None:
    address, sink, counts = f"udp://127.0.0.1:{free_port()}", kept(), Counts()
    with Sender(address):
        run_live(photo(find=0.3), address, [sink], LiveOptions(max_delay=0.2, duration=2), counts)
    assert sink.frames == []
    assert counts.late > 0
    assert counts.shown == 0


@pytest.mark.server
def test_a_lost_stream_is_opened_again(photo: Maker, kept: Any) -> None:
    counts = Counts()

    class Patient(kept):  # type: ignore[misc]
        """Ends when frames have come from a second session."""

        @property
        def closed(self) -> bool:
            return counts.reconnects >= 1 and counts.shown > shown_first

        def idle(self) -> None:
            nonlocal shown_first
            if not counts.reconnects:
                shown_first = counts.shown

    sink, shown_first = Patient(), 0
    with RtspServer(75) as server:
        run_live(photo(), server.url, [sink], LiveOptions(reconnect=60, **PATIENT), counts)
        assert server.clients >= 2
    assert counts.reconnects >= 1
    assert len(sink.frames) == counts.shown > shown_first
    assert sink.times == sorted(sink.times)
    assert sink.ended


@pytest.mark.server
def test_a_stream_that_is_not_opened_again_ends_with_a_whole_file(
    photo: Maker, kept: Any, fakes: Any, tmp_path: Path
) -> None:
    from bfr.runtime.live.sinks import Encoded

    target, counts = tmp_path / "a.mp4", Counts()
    with RtspServer(75) as server:
        run_live(photo(), server.url, [Encoded(str(target))], LiveOptions(reconnect=0, **PATIENT), counts)
    with VideoReader(target) as reader:
        frames = [frame.pixels for frame in reader.frames()]
        assert reader.damage is None
    assert len(frames) == counts.shown > 0
    assert place_of(frames[-1], fakes.restored)


@pytest.mark.server
def test_a_source_that_sends_nothing(photo: Maker, kept: Any) -> None:
    sink = kept()
    with pytest.raises(InputNotFound, match="no frame came"):
        run_live(photo(), f"rtsp://127.0.0.1:{free_port()}/x", [sink], LiveOptions(reconnect=0), Counts())
    assert sink.ended


@pytest.mark.server
def test_ctrl_c_ends_it_cleanly(photo: Maker, kept: Any) -> None:
    class Interrupted(kept):  # type: ignore[misc]
        def write(self, pixels: Any, seconds: float) -> None:
            super().write(pixels, seconds)
            raise KeyboardInterrupt

    address, sink = f"udp://127.0.0.1:{free_port()}", Interrupted()
    with Sender(address):
        run_live(photo(), address, [sink], LiveOptions(**PATIENT), Counts())
    assert (len(sink.frames), sink.ended) == (1, True)


class Frame:
    """Of PyAV, as far as it is used here."""

    def __init__(self, pixels: Any) -> None:
        self.array = pixels
        self.height, self.width = pixels.shape[:2]
        self.colorspace = 2
        self.format = type("Format", (), {"is_rgb": True})

    def to_ndarray(self, **_: Any) -> Any:
        return self.array


def arrived(pixels: Any, age: float = 0.0) -> Arrived:
    return Arrived(Frame(pixels), time.monotonic() - age)  # type: ignore[arg-type]


def test_of_more_faces_than_there_is_time_for_the_largest_are_restored(photo: Maker, kept: Any, fakes: Any) -> None:
    frame = picture(0, width=240, height=120)
    frame[40:104, 140:204] = fakes.face
    sink, counts = kept(), Counts()
    live = Live(photo(), LiveOptions(max_delay=60), [sink], counts)
    live._face.seconds = 40.0
    live.take(arrived(frame), 0.0)
    assert (counts.faces, counts.left) == (1, 1)
    after = sink.frames[0]
    assert np.abs(after[72, 172].astype(int) - fakes.restored).max() < 12
    assert (after[16 + SIDE // 2, 8 + SIDE // 2] == fakes.face).all()
    live._face.seconds = 0.001
    live.take(arrived(frame), 0.0)
    assert (counts.faces, counts.left) == (3, 1)


def test_where_no_face_fits_the_frame_passes_and_a_warning_says_so_once(
    photo: Maker, kept: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sink, counts = kept(), Counts()
    live = Live(photo(), LiveOptions(max_delay=30), [sink], counts)
    for _ in range(2):
        live._face.seconds = 100.0
        live.take(arrived(picture(0)), 0.0)
    assert (sink.frames[0] == picture(0)).all()
    assert (counts.shown, counts.faces, counts.left) == (2, 0, 2)
    assert [record.message for record in caplog.records if "--max-delay" in record.message][1:] == []
    assert "a face takes 100.00 s here" in caplog.text
    assert live._face.seconds < 100  # and is tried again some day


def test_a_frame_that_waited_too_long_costs_nothing(photo: Maker, kept: Any) -> None:
    sink, counts = kept(), Counts()
    worker = photo()
    live = Live(worker, LiveOptions(max_delay=1), [sink], counts)
    calls = len(worker.restorer.calls)  # type: ignore[attr-defined]
    live.take(arrived(picture(0), age=2), 0.0)
    assert (counts.late, sink.frames, len(worker.restorer.calls)) == (1, [], calls)  # type: ignore[attr-defined]


def test_a_face_keeps_its_noise(photo: Maker, kept: Any) -> None:
    worker, counts = photo(), Counts()
    live = Live(worker, LiveOptions(max_delay=60), [kept()], counts)
    for index in range(3):
        live.take(arrived(picture(index)), 0.0)
    assert worker.restorer.calls[-3:] == [[0], [0], [0]]  # type: ignore[attr-defined]


def test_between_key_frames_faces_are_warped(photo: Maker, kept: Any, fakes: Any) -> None:
    worker, counts, sink = photo(), Counts(), kept()
    live = Live(worker, LiveOptions(max_delay=60, key_frames=3), [sink], counts)
    before = len(worker.restorer.calls)  # type: ignore[attr-defined]
    for index in range(4):
        live.take(arrived(picture(index)), 0.0)
    assert worker.restorer.calls[before:] == [[0], [0]]  # type: ignore[attr-defined]
    assert (counts.faces, counts.warped) == (4, 2)
    assert all(place_of(frame, fakes.restored) for frame in sink.frames)


def test_warped_faces_do_not_make_the_others_seem_slow(
    photo: Maker, kept: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, counts, clock = photo(), Counts(), [0.0]
    run, paste = worker.restorer.run, worker.paste

    def run_in_ten(crops: Any, **named: Any) -> Any:
        clock[0] += 10 * len(crops)
        return run(crops, **named)

    def paste_in_one(image: Any, faces: Any, results: Any) -> Any:
        clock[0] += len(faces)
        return paste(image, faces, results)

    monkeypatch.setattr("bfr.runtime.live.run.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(worker.restorer, "run", run_in_ten)
    monkeypatch.setattr(worker, "paste", paste_in_one)
    live = Live(worker, LiveOptions(max_delay=60, key_frames=3), [kept()], counts)
    frames = [picture(index, width=480, height=240) for index in range(2)]  # so large that a face is no cut
    frames[1][40:104, 140:204] = fakes.face
    for frame, age in zip(frames, (2.0, 0.0), strict=True):  # so that the second is looked at, too
        live._face.seconds = 0.0
        live.take(arrived(frame, age), 0.0)
        assert live._face.seconds == pytest.approx(11)
    assert (counts.faces, counts.warped) == (3, 1)


def test_the_counts_are_drawn_for_people_alone(photo: Maker, kept: Any) -> None:
    seen, sent = kept(watched=True), kept()
    Live(photo(), LiveOptions(max_delay=60), [seen, sent], Counts()).take(arrived(picture(0)), 0.0)
    assert (seen.frames[0] != sent.frames[0]).any()
    plain = kept(watched=True)
    live = Live(photo(), LiveOptions(max_delay=60, overlay=False), [plain], Counts())
    live.take(arrived(picture(0)), 0.0)
    assert (plain.frames[0] == sent.frames[0]).all()
