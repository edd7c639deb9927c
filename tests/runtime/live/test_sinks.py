"""What a live stream is written to: files that are whole, streams that others receive, a page, a window."""

import http.client
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from streams import FACE, HEIGHT, WIDTH, free_port, picture

from bfr.runtime.errors import InvalidOption, MissingDependency, WriteFailed
from bfr.runtime.live import page as page_module
from bfr.runtime.live import sinks
from bfr.runtime.live.counts import Counts
from bfr.runtime.live.page import THREADS, VIEWERS, Page
from bfr.runtime.live.sinks import Encoded, Sent, Window, drawn
from bfr.runtime.video.read import VideoReader


def written(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        found = [frame.pixels for frame in reader.frames()]
        assert reader.damage is None
    return found


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_a_file_has_every_frame_at_its_time(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    sink = Encoded(str(path))
    times = [0.0, 0.04, 0.5, 0.5, 1.25]  # two at once: times must rise
    for index, seconds in enumerate(times):
        sink.write(picture(index), seconds)
    sink.close()
    with VideoReader(path) as reader:
        found = list(reader.frames())
    assert [frame.seconds for frame in found] == pytest.approx([0.0, 0.04, 0.5, 0.501, 1.25], abs=1e-6)
    for index, frame in enumerate(found):
        assert np.abs(frame.pixels[30, 20 + 2 * index].astype(int) - picture(index)[30, 20 + 2 * index]).max() < 16


def test_a_file_that_was_never_ended_can_be_played(tmp_path: Path) -> None:
    """As after a power cut."""
    path, copy = tmp_path / "a.mp4", tmp_path / "b.mp4"
    sink = Encoded(str(path))
    for index in range(120):
        sink.write(picture(index), index / 25)
    copy.write_bytes(path.read_bytes())
    with av.open(str(copy)) as container:
        assert len(list(container.decode(video=0))) >= 50
    sink.close()
    assert len(written(path)) == 120


def test_the_encoder_holds_no_frame_back(tmp_path: Path) -> None:
    sink, path = Encoded(str(tmp_path / "a.mkv")), tmp_path / "a.mkv"
    sink.write(picture(0), 0)
    assert path.exists()  # which is opened for the first packet
    assert sink._video is not None
    assert not sink._video.codec_context.has_b_frames
    assert sink._video.encode(None) == []
    sink.close()


def test_odd_and_changing_sizes(tmp_path: Path) -> None:
    sink = Encoded(str(tmp_path / "a.mkv"))
    sink.write(picture(0)[:-1, :-1], 0)
    sink.write(picture(1, width=320, height=128), 1)
    sink.close()
    assert [frame.shape for frame in written(tmp_path / "a.mkv")] == [(HEIGHT, WIDTH, 3)] * 2


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(WriteFailed, match=r"none/a\.mkv cannot be written"):
        Encoded(str(tmp_path / "none" / "a.mkv")).write(picture(0), 0)


@contextmanager
def receiver(url: str, count: int, **options: str) -> Iterator[list[np.ndarray]]:
    """Decodes frames of a stream in a thread, until there are `count`."""
    found: list[np.ndarray] = []

    def read() -> None:
        with av.open(url, options=options, timeout=(60, 60)) as container:
            for frame in container.decode(video=0):
                found.append(frame.to_ndarray(format="rgb24"))
                if len(found) >= count:
                    return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    yield found
    thread.join(60)


def write_on(sink: Sent) -> None:
    while True:
        sink.write(picture(0), 0)
        time.sleep(0.02)


def send(sink: Sent, found: list[np.ndarray], count: int) -> None:
    begin = time.monotonic()
    for index in range(2000):
        sink.write(picture(index), time.monotonic() - begin)
        time.sleep(0.02)
        if len(found) >= count:
            break
    sink.close()


@pytest.mark.server
def test_udp_is_received() -> None:
    url = f"udp://127.0.0.1:{free_port()}"
    with receiver(url, 8, analyzeduration="300000") as found:
        send(Sent(url, 5, Counts()), found, 8)
    assert len(found) >= 8
    assert found[-1].shape == (HEIGHT, WIDTH, 3)


@pytest.mark.server
def test_rtsp_is_pushed_to_a_server_which_may_come_later(caplog: pytest.LogCaptureFixture) -> None:
    url = f"rtsp://127.0.0.1:{free_port()}/live"
    sink = Sent(url, 600, Counts())
    while "trying again" not in caplog.text:
        sink.write(picture(0), 0)
        time.sleep(0.02)
    assert sink._counts.unsent > 0
    with receiver(url, 8, rtsp_flags="listen", listen_timeout="60") as found:
        send(sink, found, 8)
    assert len(found) >= 8


@pytest.mark.server
def test_an_rtsp_server_that_never_comes() -> None:
    sink = Sent(f"rtsp://user:secret@127.0.0.1:{free_port()}/live", 0, Counts())
    with pytest.raises(WriteFailed, match="server listens") as raised:
        write_on(sink)
    assert "secret" not in str(raised.value)
    sink.close()


@pytest.mark.server
def test_a_receiver_that_takes_nothing_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts the connection, and says no word."""
    monkeypatch.setattr(sinks, "STALLED_SECONDS", 1.0)
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.1)
    counts = Counts()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        sink = Sent(f"rtsp://127.0.0.1:{mute.getsockname()[1]}/live", 0, counts)
        with pytest.raises(WriteFailed, match="takes no more frames"):
            write_on(sink)
        sink.close()
    assert counts.unsent > 1


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page("http://127.0.0.1:0/some", Counts())
    yield made
    made.close()


def get(page: Page, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(page.address.split("/")[2], timeout=60)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


@pytest.mark.server
def test_the_page_shows_the_newest_frame_and_counts(page: Page) -> None:
    answer = get(page, "/some/")
    assert (answer.status, b'src="/some/stream"' in answer.read()) == (200, True)
    stream = get(page, "/some/stream")
    assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace")
    while not page.viewers:
        time.sleep(0.01)
    for index in range(3):
        page.write(picture(index), 0)
    seen = b""
    while seen.count(b"\xff\xd9") < 1:
        seen += stream.read1(65_536)
    begin = seen.index(b"\xff\xd8")
    image = cv2.imdecode(np.frombuffer(seen[begin:], np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(image[24, 30, ::-1].astype(int) - FACE).max() < 40
    page.counts.dropped = 7
    page.counts.show(0.25)
    text = get(page, "/some/metrics").read().decode()
    assert "bfr_live_dropped_total 7\n" in text
    assert "bfr_live_shown_total 1\n" in text
    assert "bfr_live_delay_seconds 0.25\n" in text


@pytest.mark.server
def test_metrics_are_of_the_format_of_prometheus(page: Page) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(get(page, "/some/metrics").read().decode()))
    assert {family.type for family in families} == {"counter", "gauge"}
    assert len(families) == 13


@pytest.mark.server
def test_the_page_is_for_this_machine_and_for_few(page: Page) -> None:
    assert get(page, "/some/stream", Host="evil.example").status == 403  # a name that was bound to 127.0.0.1
    assert get(page, "/").status == 404
    viewers = [get(page, "/some/stream") for _ in range(VIEWERS)]
    assert get(page, "/some/stream").status == 503
    for viewer in viewers:
        viewer.close()


@pytest.mark.server
def test_the_page_has_so_many_connections_and_no_tracebacks(page: Page, capfd: pytest.CaptureFixture[str]) -> None:
    there, threads = page.server.server_address[:2], threading.active_count()
    with socket.create_connection(there) as broken:
        broken.sendall(b"GET / HTTP/1.1\r\nHost: [\r\n\r\n")
        assert broken.recv(100) == b""
    silent = [socket.create_connection(there) for _ in range(THREADS)]
    with socket.create_connection(there) as late:
        assert late.recv(100) == b""
    for line in silent:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()  # reset
    while threading.active_count() > threads:
        time.sleep(0.01)
    assert capfd.readouterr().err == ""


@pytest.mark.server
def test_a_request_that_comes_byte_by_byte_holds_no_thread(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "IDLE_SECONDS", 0.3)
    with socket.create_connection(page.server.server_address[:2]) as slow, suppress(OSError):
        for _ in range(600):
            slow.sendall(b"G")
            time.sleep(0.1)
            if not page.server.reading:
                break
        assert slow.recv(1) == b""
    assert not page.server.reading


@pytest.mark.server
def test_a_page_at_an_ipv6_address() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    page = Page("http://[::1]:0", Counts())
    assert re.fullmatch(r"http://\[::1\]:\d+/", page.address)
    assert get(page, "/").status == 200
    page.close()


@pytest.mark.server
def test_a_port_that_is_taken(page: Page) -> None:
    with pytest.raises(InvalidOption, match="choose another port"):
        Page(page.address, Counts())


class FakeTk:
    """Python's tkinter, as far as it is used."""

    class TclError(Exception):
        pass

    def __init__(self) -> None:
        self.root = SimpleNamespace(
            title=lambda _: None,
            protocol=lambda _, call: setattr(self, "end", call),
            update=lambda: None,
            destroy=lambda: setattr(self, "gone", True),
        )
        self.images: list[bytes] = []
        self.label = SimpleNamespace(pack=lambda: None, configure=lambda **_: None)

    def Tk(self) -> Any:  # noqa: N802
        return self.root

    def Label(self, *_: Any, **__: Any) -> Any:  # noqa: N802
        return self.label

    def PhotoImage(self, *, data: bytes, **_: Any) -> Any:  # noqa: N802
        self.images.append(data)
        return object()


def test_a_window_shows_frames_and_ends_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    tk: Any = FakeTk()
    monkeypatch.setitem(sys.modules, "tkinter", tk)
    window = Window("a")
    window.write(picture(3), 0)
    shown = cv2.imdecode(np.frombuffer(tk.images[0], np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert (shown[..., ::-1] == picture(3)).all()
    assert not window.closed
    tk.end()
    window.idle()
    assert window.closed
    window.close()
    assert tk.gone


def test_a_window_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Any) -> Any:
        raise FakeTk.TclError("no display name")

    monkeypatch.setattr(FakeTk, "Tk", none)
    monkeypatch.setitem(sys.modules, "tkinter", FakeTk())
    with pytest.raises(MissingDependency, match="no display name"):
        Window("a")
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(MissingDependency, match="python3-tk"):
        Window("a")


def test_text_is_drawn_into_a_copy() -> None:
    before = np.full((120, 640, 3), 90, np.uint8)
    after = drawn(before, "5.0 frames/s")
    assert (before == 90).all()
    assert (after[:60] == 90).all()
    assert after.max() > 200
