"""The real HTTP interface over a fake of what restores: what it restores, it sharpens.

One server a process; each `fake_server()` block puts its own state behind it. Tests set the state's attributes while it
runs: `delay` draws work out, `faults` are answered first, one a request, `key` is asked for. `seen` has every request.
"""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from PIL import Image as Pillow
from PIL import ImageFilter
from starlette.responses import JSONResponse

from bfr.runtime.serve.http.api import make_api
from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.http.schemas import describe
from bfr.runtime.serve.jobs.job import Job, Status
from bfr.runtime.serve.jobs.store import JobStore
from bfr.runtime.serve.keys import Key, Keys
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Answer, Order, Progress, Refusal
from bfr.runtime.serve.systems import NO_LOOP, System

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}
STEPS = {"balanced": 4, "best": 20, "fast": 1}
SECONDS = {"queue": 0.012, "read": 0.004, "align": 0.02, "network": 0.31, "paste": 0.005, "write": 0.006}


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
    """What the server does, and what came to it. folder: of its jobs."""

    folder: Path
    url: str = ""
    key: str | None = None
    jobs: bool = True
    delay: float = 0.0  # seconds of a restoration
    presets: dict[str, int] = field(default_factory=lambda: dict(STEPS))  # names and steps; the first is the default
    second: bool = False  # whether another bundle is served, too
    faces: int = 1
    failed: int = 0
    sharp: int = 0
    ready: bool = True
    cut: bool = False  # results of jobs end in the middle
    result: bytes | None = None  # instead of the sharpened image
    instead: dict[str, Any] = field(default_factory=dict)  # path -> JSON that is answered there
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    cancelled: int = 0  # requests whose client left before the answer
    deleted: list[str] = field(default_factory=list)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._front = Front(ServeOptions(backend="onnxruntime-cpu"))
        self._engine = FakeEngine(JobStore(self.folder))
        self._front.open(self._restore, self._engine)

    @property
    def front(self) -> Front:
        """The front, as the attributes are now."""
        front = self._front
        front.options = ServeOptions(backend="onnxruntime-cpu", jobs=self.folder if self.jobs else None)
        front.keys = Keys([Key.parse(f"{self.key} name=me", "test")] if self.key else [])
        system = front.systems["mini"]
        made = {
            name: system.bundle.preset(None, spacing="time", start=400, steps=n) for name, n in self.presets.items()
        }
        system.presets = made or {NO_LOOP: system.bundle.preset()}
        front.systems = {"mini": system}
        if self.second:  # of one preset
            front.systems["second"] = System("second", system.bundle, {"only": system.bundle.preset()})
        self._engine.missing = None if self.ready else "a worker is not there: ask again"
        return front

    def posts(self, path: str = "/restore") -> list[Seen]:
        """The images that were sent."""
        return [seen for seen in self.seen if seen.method == "POST" and seen.path == path]

    def info(self) -> dict[str, Any]:
        """As `GET /info` tells it."""
        return describe(self.front)

    async def _restore(self, data: bytes, order: Order) -> AsyncGenerator[Progress | Answer | Refusal, None]:
        self.most_at_once = max(self.most_at_once, len(self._front.visits))
        answered = False
        try:
            for step in range(10):
                yield Progress("restoring" if step > 1 else "queued", max(0, step - 2) / 8)
                await asyncio.sleep(self.delay / 10)
            answer = sharpened(self.result or data, order)
            answered = True
            if answer is None:
                yield Refusal("invalid", "image is damaged or truncated: copy or convert it again")
            else:
                yield Answer(*answer, self.faces, self.failed, dict(SECONDS), sharp=self.sharp)
        finally:
            self.cancelled += not answered

    def further(self, job: Job) -> None:
        """A job goes on whenever somebody asks for it: queued, running, half done, done or failed."""
        if job.lacks(self.front.systems):
            return
        status, body = job.status, job.input.read_bytes()
        store = self._engine.jobs
        if status.state == "queued":
            job.write(Status("running"))
        elif status.share < 0.5:
            job.write(Status("running", 0.5))
        elif body.startswith(b"broken"):
            store.end(job, Status("failed", 0.5, error="the video is damaged: copy it again"))
        elif status.state == "running":
            job.out.mkdir(exist_ok=True)
            (job.out / job.input.name).write_bytes(body[::-1])
            store.end(job, Status("done", 1.0, result=job.input.name, faces=6, frames=3))


@dataclass
class FakeEngine:
    """What is below the front: the folder of jobs, and whether anything is missing."""

    jobs: JobStore
    missing: str | None = None
    faces: int = 0
    backend: str = "onnxruntime-cpu"

    def lacking(self) -> str | None:
        """As of `Engine`."""
        return self.missing

    def wake(self) -> None:
        """As of `Engine`."""

    async def cancel(self, _job: str) -> None:
        """As of `Engine`."""

    def count(self, _metrics: object) -> None:
        """As of `Engine`."""


def sharpened(data: bytes, order: Order) -> tuple[bytes, str] | None:
    """The result's bytes and suffix; None of what is no image."""
    try:
        with Pillow.open(BytesIO(data)) as image:
            own = next((suffix for suffix, name in FORMATS.items() if name == image.format), ".png")
            made = image.convert("RGB").filter(ImageFilter.UnsharpMask(3, 150))
    except OSError:
        return None
    suffix, scale, stream = order.suffix or own, order.photo.upscale, BytesIO()
    made.resize((made.width * scale, made.height * scale)).save(stream, FORMATS[suffix])
    return stream.getvalue(), suffix


class Faulty:
    """ASGI: the interface of the current FakeServer, with the faults that it is told to have."""

    current: FakeServer

    def __init__(self) -> None:
        self.api = make_api(lambda: self.current.front)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        fake, path, body = self.current, scope["path"], bytearray()
        noted = False

        def note() -> None:
            nonlocal noted
            if not noted:
                noted = True
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                query = dict(parse_qsl(scope["query_string"].decode()))
                fake.seen.append(Seen(scope["method"], path, query, headers, bytes(body), time.monotonic()))

        async def receiving() -> Any:
            message = await receive()
            body.extend(message.get("body", b""))
            if not message.get("more_body"):
                note()
            return message

        async def sending(message: Any) -> None:
            note()
            if fake.cut and path.endswith("/result") and message["type"] == "http.response.body":
                await send({**message, "body": message["body"][: len(message["body"]) // 2], "more_body": True})
                send.__self__.transport.close()
                return
            if scope["method"] == "DELETE" and message.get("status") == HTTPStatus.NO_CONTENT:
                fake.deleted.append(path.rpartition("/")[2])
            await send(message)

        if scope["method"] == "POST" and fake.faults:
            fault = fake.faults.pop(0)
            while (await receiving()).get("more_body"):
                pass
            if fault.status:
                await problem(fault)(scope, receive, send)
            else:
                send.__self__.transport.abort()
            return
        if path in fake.instead:
            await JSONResponse(fake.instead[path])(scope, receive, send)
            return
        if scope["method"] == "GET" and path.startswith("/jobs/") and (job := JobStore(fake.folder).get(path[6:])):
            fake.further(job)
        await self.api(scope, receiving, sending)


def problem(fault: Fault) -> JSONResponse:
    """A fault's answer."""
    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    content = {"title": HTTPStatus(fault.status).phrase, "status": fault.status, "detail": fault.detail}
    return JSONResponse(content, fault.status, headers, media_type="application/problem+json")


@cache
def running() -> tuple[Faulty, str]:
    """The server of this process, and its address."""
    app, bound = Faulty(), socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", proxy_headers=False))
    threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True).start()
    return app, f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def fake_server(**settings: Any) -> Iterator[FakeServer]:
    """A server on the loopback address, for as long as the block lasts."""
    app, url = running()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        app.current = FakeServer(Path(folder), url, **settings)
        yield app.current
