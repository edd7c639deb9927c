"""A server in threads that keeps `bfr serve`'s HTTP contract, without networks: what it restores, it sharpens.

Tests set its attributes while it runs: `delay` draws work out, `faults` are answered first, one a request, `key` is
asked for. Everything that came in is in `seen`.
"""

import json
import re
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from PIL import Image as Pillow
from PIL import ImageFilter

from bfr.runtime.jobs.options import RestoreOptions

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
PRESETS = {
    "balanced": {"steps": 4, "description": "Good detail in little time"},
    "best": {"steps": 20, "description": "The finest detail, five times as slow"},
    "fast": {"steps": 1, "description": "A first impression"},
}


@dataclass(frozen=True)
class Fault:
    """An answer that is no result. status 0: the connection is closed without a word. retry_after: of the header."""

    status: int
    detail: str = "the server is busy: try again in a moment"
    retry_after: str | None = None


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class FakeServer:
    """What the server does, and what came to it."""

    url: str = ""
    key: str | None = None
    jobs: bool = True
    delay: float = 0.0  # seconds of a restoration, in `steps` steps
    presets: dict[str, Any] = field(default_factory=lambda: dict(PRESETS))
    faces: int = 1
    failed: int = 0
    ready: bool = True
    cut: bool = False  # results of jobs end in the middle
    result: bytes | None = None  # instead of the sharpened image
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    cancelled: int = 0  # requests whose client left before the answer
    deleted: list[str] = field(default_factory=list)
    under_way: dict[str, dict[str, Any]] = field(default_factory=dict)
    most_at_once: int = 0
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    bodies: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def posts(self, path: str = "/restore") -> list[Seen]:
        """The images that were sent."""
        return [seen for seen in self.seen if seen.method == "POST" and seen.path == path]

    def info(self) -> dict[str, Any]:
        """As `GET /info` tells it."""
        return {
            "system": "mini",
            "title": "mini: a small restorer",
            "bundle": "0123456789abcdef" * 4,
            "image_size": 256,
            "backend": "onnxruntime-cpu",
            "presets": self.presets,
            "default_preset": "balanced" if self.presets else None,
            "defaults": RestoreOptions().model_dump(),
            "options": RestoreOptions.model_json_schema()["properties"],
            "licence": "Apache-2.0",
            "limits": {"body_bytes": 50_000_000, "job_bytes": 2_000_000_000, "timeout_seconds": 120.0, "queue": 64},
            "formats": list(FORMATS),
            "api_key": self.key is not None,
            "jobs": self.jobs,
            "version": "0.1.0",
        }


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    fake: FakeServer

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Clients leave in the middle; that is no error here."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    do_POST = do_DELETE = do_GET  # noqa: N815

    def _answer(self) -> None:
        address = urlsplit(self.path)
        body = self._body()
        query = dict(parse_qsl(address.query))
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, address.path, query, headers, body, time.monotonic())
        self.fake.seen.append(seen)
        match self.command, address.path:
            case "GET", "/":
                self._page()
            case "GET", "/info":
                self._json(self.fake.info())
            case "GET", "/ready":
                self._json({"ready": self.fake.ready}, 200 if self.fake.ready else 503)
            case _ if self.fake.key and headers.get("authorization") != f"Bearer {self.fake.key}":
                self._problem(Fault(401, "this server needs an API key: send Authorization: Bearer KEY"))
            case "POST", "/restore":
                self._restore(seen)
            case "GET", path if path.startswith("/requests/"):
                known = self.fake.under_way.get(path.rpartition("/")[2])
                self._json(known) if known else self._problem(Fault(404, "no such request is under way"))
            case _, path if path.startswith("/jobs"):
                self._job(seen)
            case _:
                self._problem(Fault(404, "there is nothing here"))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _page(self) -> None:
        from bfr.runtime.serve.http.page import page

        data, headers = page()
        self._send(200, data, headers)

    def _restore(self, seen: Seen) -> None:
        fake = self.fake
        if fake.faults:
            return self._problem(fake.faults.pop(0))
        request_id = seen.headers.get("x-request-id", f"server-made-{len(fake.seen)}")
        state = fake.under_way[request_id] = {"state": "queued", "share": 0.0, "ahead": 1}
        fake.most_at_once = max(fake.most_at_once, len(fake.under_way))
        try:
            for step in range(10):
                if step == 2:
                    state |= {"state": "restoring", "ahead": 0}
                state["share"] = max(0, step - 2) / 8
                if fake.delay and self._gone(fake.delay / 10):
                    fake.cancelled += 1
                    self.close_connection = True
                    return None
            answer = self._image(seen)
        finally:
            fake.under_way.pop(request_id, None)
        if answer is None:
            return self._problem(Fault(422, "image is damaged or truncated: copy or convert it again"))
        media_type, data = answer
        headers = {
            "Content-Type": media_type,
            "X-Bfr-Faces": str(fake.faces),
            "X-Bfr-Seed": seen.query.get("seed", "12345"),
            "X-Bfr-Preset": seen.query.get("preset", "balanced"),
            "X-Bfr-Bundle": fake.info()["bundle"],
            "X-Bfr-Seconds": "queue=0.012;read=0.004;align=0.020;network=0.310;paste=0.005;write=0.006",
            "X-Request-Id": request_id,
        }
        return self._send(200, data, headers | ({"X-Bfr-Faces-Failed": str(fake.failed)} if fake.failed else {}))

    def _gone(self, seconds: float) -> bool:
        """Wait; whether the client closed the connection meanwhile."""
        return bool(select.select([self.connection], [], [], seconds)[0])

    def _image(self, seen: Seen) -> tuple[str, bytes] | None:
        """The type and bytes of the result."""
        accept = seen.headers.get("accept", "*/*")
        try:
            with Pillow.open(BytesIO(self.fake.result or seen.body)) as image:
                own = next((t for t, name in FORMATS.items() if name == image.format), "image/png")
                media_type = accept if accept in FORMATS else own
                scale = int(seen.query.get("upscale", 1))
                made = image.convert("RGB").filter(ImageFilter.UnsharpMask(3, 150))
                made = made.resize((made.width * scale, made.height * scale))
        except OSError:
            return None
        stream = BytesIO()
        made.save(stream, FORMATS[media_type])
        return media_type, stream.getvalue()

    def _job(self, seen: Seen) -> None:
        fake, parts = self.fake, seen.path.strip("/").split("/")
        if seen.method == "POST":
            if fake.faults:
                return self._problem(fake.faults.pop(0))
            name = f"{len(fake.stored) + 1:032x}"
            fake.bodies[name] = (seen.headers["content-type"], seen.body)
            known = {"share": 0.0, "created": "2025-05-04T12:30:11+00:00", "error": None, "result": None}
            fake.stored[name] = {"id": name, "state": "queued", **known, "faces": None, "frames": None}
            return self._json(fake.stored[name], 202, {"Location": f"/jobs/{name}"})
        job = fake.stored.get(parts[1]) if len(parts) > 1 else None
        if job is None:
            return self._problem(Fault(404, "there is no such job: it may have been deleted"))
        if seen.method == "DELETE":
            fake.deleted.append(parts[1])
            del fake.stored[parts[1]]
            return self._send(204, b"", {})
        if parts[2:] == ["result"]:
            media_type, body = fake.bodies[parts[1]]
            return self._send(200, body[::-1], {"Content-Type": media_type}, cut=fake.cut)
        self._further(job)
        return self._json(job)

    def _further(self, job: dict[str, Any]) -> None:
        """A job goes on whenever somebody asks for it."""
        if job["state"] == "queued":
            job["state"] = "running"
        elif job["share"] < 0.5:
            job["share"] = 0.5
        elif self.fake.bodies[job["id"]][1].startswith(b"broken"):
            job |= {"state": "failed", "error": "the video is damaged: copy it again"}
        else:
            job |= {"state": "done", "share": 1.0, "faces": 6, "frames": 3, "result": f"/jobs/{job['id']}/result"}

    def _problem(self, fault: Fault) -> None:
        if not fault.status:
            self.close_connection = True
            return
        content = {
            "type": "about:blank",
            "title": HTTPStatus(fault.status).phrase,
            "status": fault.status,
            "detail": fault.detail,
            "request_id": self.headers.get("X-Request-Id", ""),
        }
        headers = {"Content-Type": "application/problem+json"}
        if fault.retry_after is not None:
            headers["Retry-After"] = fault.retry_after
        self._send(fault.status, json.dumps(content).encode(), headers)

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self._send(status, data, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, re.sub(r"[\r\n]", " ", value))
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut


@contextmanager
def fake_server(**settings: Any) -> Iterator[FakeServer]:
    """A server on the loopback address, for as long as the block lasts."""
    fake = FakeServer(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake}))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
