"""Live streams over the loopback: a sender of transport streams, and a small RTSP server, both in threads."""

import re
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

WIDTH, HEIGHT, SIDE = 160, 64, 32
FACE = (230, 30, 30)
Array = NDArray[Any]


def free_port() -> int:
    """A UDP and TCP port that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        return int(udp.getsockname()[1])


def picture(index: int, *, width: int = WIDTH, height: int = HEIGHT) -> Array:
    """A frame: grey-green, with a face that moves."""
    frame = np.full((height, width, 3), (40, 90, 40), np.uint8)
    left = 8 + 2 * (index % 20)
    frame[16 : 16 + SIDE, left : left + SIDE] = FACE
    return frame


class Encoder:
    """Frames, encoded and sent as they come."""

    def __init__(self, url: str, muxer: str, size: tuple[int, int], rate: int) -> None:
        self.output = av.open(url, "w", format=muxer)
        options = {"preset": "ultrafast", "tune": "zerolatency", "g": "5", "crf": "10"}
        self.stream: Any = self.output.add_stream("libx264", rate, options, width=size[0], height=size[1])
        self.stream.pix_fmt = "yuv420p"

    def send(self, pixels: Array) -> None:
        self.output.mux(self.stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))

    def close(self) -> None:
        self.output.close()


class Sender(threading.Thread):
    """Sends `draw(0)`, `draw(1)`, ... at a pace, `count` of them or until it is stopped; within `with` it runs."""

    def __init__(
        self, url: str, draw: Callable[[int], Array] = picture, *, muxer: str = "mpegts", rate: int = 25, count: int = 0
    ) -> None:
        super().__init__(daemon=True)
        self.url, self.draw, self.muxer, self.rate, self.count = url, draw, muxer, rate, count
        self.sent = 0
        self.halt = threading.Event()

    def run(self) -> None:
        first = self.draw(0)
        encoder = Encoder(self.url, self.muxer, (first.shape[1], first.shape[0]), self.rate)
        begin = time.monotonic()
        while not self.halt.is_set() and not (self.count and self.sent >= self.count):
            encoder.send(self.draw(self.sent))
            self.sent += 1
            self.halt.wait(max(0.0, begin + self.sent / self.rate - time.monotonic()))
        encoder.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.halt.set()
        self.join(10)


class RtspServer:
    """A camera: gives each client `count` frames over its TCP connection (RFC 2326, 10.12), then hangs up.

    clients: how many have come.
    """

    def __init__(self, count: int, *, port: int = 0, rate: int = 25) -> None:
        self.count, self.rate, self.clients = count, rate, 0
        self._listener = socket.create_server(("127.0.0.1", port))
        self.url = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/camera"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.clients += 1
            with connection:
                try:
                    self._serve(connection)
                except OSError:
                    continue

    def _serve(self, connection: socket.socket) -> None:
        sdp = (
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
            "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track0\r\n"
        )
        more = {
            "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
            "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n",
            "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
        }
        data = b""
        while part := connection.recv(4096):
            data += part
            while b"\r\n\r\n" in data:
                head, data = data.split(b"\r\n\r\n", 1)
                method, number = head.split()[0].decode(), re.search(rb"CSeq: (\d+)", head)
                assert number
                answer = (
                    f"RTSP/1.0 200 OK\r\nCSeq: {int(number[1])}\r\n{more.get(method, 'Session: 1' + chr(13) + chr(10))}"
                )
                connection.sendall((answer + "\r\n" + (sdp if method == "DESCRIBE" else "")).encode())
                if method == "PLAY":
                    self._play(connection)
                    return

    def _play(self, connection: socket.socket) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
            packets.bind(("127.0.0.1", 0))
            packets.settimeout(1)
            url = f"rtp://127.0.0.1:{packets.getsockname()[1]}?rtcpport={free_port()}"
            with Sender(url, muxer="rtp", rate=self.rate, count=self.count) as sender:
                while sender.is_alive():
                    try:
                        packet = packets.recv(65_536)
                    except TimeoutError:
                        continue
                    connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
