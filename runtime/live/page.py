"""A page that shows a live stream as motion JPEG, and its counts at /metrics for Prometheus."""

import logging
import socket
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidOption
from bfr.runtime.live.counts import Counts
from bfr.runtime.live.sinks import Sink
from bfr.runtime.serve.options import is_local

VIEWERS = 8
THREADS = 64  # of the process: beyond them new connections are closed
QUALITY = 85  # of JPEG
IDLE_SECONDS = 10  # after which who has sent no whole request, and a viewer that takes nothing, is let go
_BOUNDARY = "frame"
_log = logging.getLogger("bfr")
_HTML = """<!doctype html><meta charset="utf-8"><title>bfr live</title>
<style>body{{margin:0;background:#111}}img{{display:block;max-width:100vw;max-height:100vh;margin:auto}}</style>
<img src="{base}/stream" alt="The restored stream">"""


class _Server(ThreadingHTTPServer):
    """Answers each connection in a thread."""

    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type["_Handler"]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.reading: dict[Any, float] = {}  # connections without a request yet, and when they came
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if threading.active_count() > THREADS:
            self.shutdown_request(request)
        else:
            self.reading[request] = time.monotonic()
            super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Let go who sends a byte of a request now and then, and would hold a thread so."""
        for request, came in list(self.reading.items()):
            if time.monotonic() - came > IDLE_SECONDS:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        self.reading.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Most are clients that break off: the terminal shows the stream."""
        _log.debug("a viewer's request failed", exc_info=True)


class Page(Sink):
    """A server of the page."""

    watched = True

    def __init__(self, address: str, counts: Counts) -> None:
        """Begin to serve.

        Args:
            address: http://HOST:PORT/PATH, checked by `check_sink`.
            counts: What /metrics shows.

        Raises:
            InvalidOption: The port cannot be listened on.
        """
        url = urlsplit(address)
        host = url.hostname or ""
        self.base, self.counts = url.path.rstrip("/"), counts
        self.local = is_local(host)
        self.change = threading.Condition()
        self.jpeg: bytes | None = None
        self.number = self.viewers = 0
        self.ended = False
        page = self

        class Handler(_Handler):
            of = page

        try:
            self.server = _Server(host, url.port or 0, Handler)
        except OSError as error:
            raise InvalidOption(f"{address} cannot be listened on ({error.strerror}): choose another port") from error
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.server.server_address[1]}{self.base}/"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.1,), name="bfr-page", daemon=True)
        self._thread.start()

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:  # noqa: ARG002
        """See Sink; encodes only while a client is connected."""
        if not self.viewers:
            return
        _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        with self.change:
            self.jpeg, self.number = data.tobytes(), self.number + 1
            self.change.notify_all()

    def close(self) -> None:
        """See Sink."""
        with self.change:
            self.ended = True
            self.change.notify_all()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    of: Page
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        page = self.of
        page.server.reading.pop(self.connection, None)
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        # DNS rebinding: a script of another site could reach this page by its own host name, and see the camera.
        if page.local and not is_local(host):
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path in (page.base, f"{page.base}/"):
            self._answer("text/html; charset=utf-8", _HTML.format(base=page.base).encode())
        elif self.path == f"{page.base}/metrics":
            self._answer("text/plain; version=0.0.4; charset=utf-8", page.counts.metrics().encode())
        elif self.path == f"{page.base}/stream":
            self._stream()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: a viewer is no event."""

    def _answer(self, kind: str, body: bytes) -> None:
        self._begin(kind, {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _begin(self, kind: str, more: dict[str, str]) -> None:
        self.send_response(HTTPStatus.OK)
        headers = {"Content-Type": kind, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **more}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _stream(self) -> None:
        """Send each newest frame; those that came while the last was sent are skipped."""
        page = self.of
        with page.change:
            if page.viewers >= VIEWERS:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
                return
            page.viewers += 1
            sent = page.number
        try:
            self._begin(f"multipart/x-mixed-replace; boundary={_BOUNDARY}", {})
            while True:
                with page.change:
                    while page.number == sent and not page.ended:
                        page.change.wait()
                    if page.ended:
                        return
                    data, sent = page.jpeg or b"", page.number
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
        except OSError:  # the viewer left
            return
        finally:
            with page.change:
                page.viewers -= 1
