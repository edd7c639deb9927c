"""Addresses, and the clock that tells how old a frame is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest

from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.live import source as module
from bfr.runtime.live.counts import Counts
from bfr.runtime.live.options import LiveOptions, check_sink, kind_of
from bfr.runtime.live.source import Arrived, Clock, Source


def test_a_frame_that_waited_in_a_buffer_is_known_to_be_old() -> None:
    clock = Clock()
    assert clock.came(10.0, 500.0) == 500.0
    assert clock.came(10.1, 500.3) == pytest.approx(500.1, abs=1e-3)  # decoded 0.2 s after its time
    assert clock.came(10.2, 500.3) == pytest.approx(500.2, abs=1e-3)
    assert clock.came(10.4, 500.35) == pytest.approx(500.35)  # sooner than all before: it sets the clock
    assert clock.came(10.5, 500.6) == pytest.approx(500.45, abs=1e-3)
    assert clock.came(None, 700.0) == 700.0


def test_a_sender_that_begins_anew_and_one_whose_clock_is_fast() -> None:
    clock = Clock()
    clock.came(100.0, 5.0)
    assert clock.came(0.0, 6.0) == 6.0
    clock = Clock()
    for second in range(3600):
        came = clock.came(second * (1 - 5e-5), 1000.0 + second)
        assert 1000.0 + second - came < 1e-3  # its clock loses 0.18 s in an hour: no delay


def test_a_stream_whose_key_frames_are_rare_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its decoder shows nothing before the first one that comes."""
    now = 0.0

    def decode(packet: int) -> list[Any]:
        nonlocal now
        now += 1.0
        if packet < first:
            raise av.InvalidDataError(1, "no key frame yet")
        return [SimpleNamespace(time=None)]

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    stream = SimpleNamespace(codec_context=SimpleNamespace(name="h264"), decode=decode)
    container: Any = SimpleNamespace(streams=SimpleNamespace(video=[stream]), demux=lambda _stream: range(100))
    source, first = Source("udp://127.0.0.1:5000", LiveOptions(), Counts()), 40
    assert len(list(source._decoded(container))) == 60
    first = 100
    with pytest.raises(ValueError, match="no frame of it can be decoded"):
        list(source._decoded(container))


def test_another_size_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    source = Source("rtsp://user:word@127.0.0.1/a", LiveOptions(), Counts())
    for width in (160, 160, 320, 320, 160):
        source._put(Arrived(SimpleNamespace(width=width, height=64), 0.0))  # type: ignore[arg-type]
    assert ["320 x 64" in record.message for record in caplog.records] == [True]
    assert "word" not in caplog.text


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("/dev/video0", "camera"),
        ("/dev/v4l/by-id/usb-cam", "camera"),
        ("rtsp://user:word@10.0.0.2:554/stream1", "rtsp"),
        ("RTSP://camera/1", "rtsp"),
        ("udp://0.0.0.0:5000", "udp"),
    ],
)
def test_sources(source: str, kind: str) -> None:
    assert kind_of(source) == kind


@pytest.mark.parametrize(
    "source", ["film.mp4", "/home/a/film.mp4", "http://host/a.m3u8", "concat:/etc/passwd", "udp://host", "udp://:x", ""]
)
def test_what_is_no_source(source: str) -> None:
    with pytest.raises(InvalidOption):
        kind_of(source)


def test_sinks(tmp_path: Path) -> None:
    there = tmp_path / "there.mkv"
    there.touch()
    for sink in ("udp://127.0.0.1:5000", "rtsp://host/a", "window", "http://127.0.0.1:8090", "http://localhost:1/a"):
        check_sink(sink, overwrite=False)
    check_sink("http://0.0.0.0:8090/0123456789abcdef", overwrite=False)
    check_sink(str(tmp_path / "new.MP4"), overwrite=False)
    check_sink(str(there), overwrite=True)
    with pytest.raises(InvalidOption, match="exists"):
        check_sink(str(there), overwrite=False)
    with pytest.raises(InvalidOption, match="everybody in the network"):
        check_sink("http://0.0.0.0:8090/short", overwrite=False)
    for sink in ("a.avi", "ftp://host/a.mp4", "http://127.0.0.1", "udp://127.0.0.1", "-"):
        with pytest.raises(InvalidOption):
            check_sink(sink, overwrite=False)


def test_a_camera_is_asked_for_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """How FFmpeg is called; no camera was at hand."""
    asked: dict[str, Any] = {}

    def opened(name: str, _mode: str, **more: Any) -> Any:
        asked.update(more, name=name)
        raise OSError("no camera here")

    monkeypatch.setattr(av, "open", opened)
    source = Source("/dev/video0", LiveOptions(size="1280x720", rate=30, reconnect=0), Counts())
    with source:
        assert list(source.frames()) == []
    with pytest.raises(InputNotFound, match=r"no frame came \(no camera here"):
        source.check()
    assert (asked["name"], asked["format"]) == ("/dev/video0", "v4l2")
    assert (asked["options"]["video_size"], asked["options"]["framerate"]) == ("1280x720", "30")


def test_options() -> None:
    with pytest.raises(InvalidOption, match="max_delay"):
        LiveOptions(max_delay=0)
    with pytest.raises(InvalidOption, match="size"):
        LiveOptions(size="large")


def test_counts_without_a_frame() -> None:
    counts = Counts()
    assert counts.line.startswith("no signal, 0.0 frames/s")
    assert counts.summary(0.0)["frames_per_second"] == 0
    counts.show(0.5)
    counts.show(0.1)
    assert (counts.delay, counts.worst, counts.summary(4.0)["delay_mean"]) == (0.1, 0.5, 0.3)
