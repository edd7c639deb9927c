"""What stands between HTTP and the replicas: who is let in, who waits, who left, and what it was all about."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, TypeVar

from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.images.formats import WRITTEN
from bfr.runtime.restore.plan import make_plan
from bfr.runtime.serve.http.metrics import Metrics
from bfr.runtime.serve.http.problems import Problem
from bfr.runtime.serve.http.requests import RestoreQuery
from bfr.runtime.serve.jobs.store import JobStore
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Answer, Order, Progress, Refusal, State
from bfr.runtime.serve.workers.faces import NO_LOOP, served_presets
from bfr.runtime.serve.workers.handles import ReplicaLost

Restore = Callable[[bytes, Order], AsyncGenerator[Progress | Answer | Refusal, None]]
"""As `PhotoServer.restore`, wherever that is."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""As ASGI has it: the next event of a connection."""

T = TypeVar("T")
LONGEST_RETRY = 60  # seconds
_log = logging.getLogger("bfr.serve")


@dataclass(slots=True, eq=False)
class Visit:
    """A request in the house."""

    id: str
    order: int
    state: State = "reading"
    share: float = 0.0


class Front:
    """One process that answers requests. All methods are called on its event loop."""

    def __init__(self, options: ServeOptions) -> None:
        """Opens the bundle for what it says of itself; raises the BfrErrors of that."""
        self.options = options
        bundle = self.bundle = Bundle.open(options.bundle or default_bundle())
        self.presets = served_presets(bundle, options)
        self.default_preset = next(iter(self.presets))
        self.metrics = Metrics(system=bundle.manifest.system, bundle=bundle.hash)
        self.jobs = JobStore(options.jobs) if options.jobs else None
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self.lacking: str | None = None  # replicas that are not there just now
        self.backend = options.backend
        self.visits: dict[str, Visit] = {}
        self._restore: Restore | None = None
        self._numbers = 0
        self._pace: float | None = None  # seconds between two answers under load, smoothed
        self._last_answer = 0.0
        self._empty = asyncio.Event()
        self._empty.set()
        self.metrics.ready.set_function(lambda: self.why_not_ready() is None)

    def open(self, restore: Restore) -> None:
        """Take work from now on: the replicas are there, and warm."""
        self._restore, self.state = restore, "ready"

    async def drain(self, seconds: float) -> bool:
        """Take no more work, and wait for what is in the house; whether all of it was answered in that time."""
        self.state = "draining"
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def why_not_ready(self) -> str | None:
        """None where new work is taken."""
        if self.state == "draining":
            return "the server is about to end: ask another one, or this one again once it was started anew"
        if self.state == "starting":
            return "the server is starting and warms its networks up: ask again"
        return self.lacking

    @contextmanager
    def admit(self, name: str) -> Iterator[Visit]:
        """Let a request in, or raise the Problem 503 at once."""
        if (reason := self.why_not_ready()) and self.state != "ready":
            raise Problem(503, self.state, reason, retry_after=10 if self.state == "draining" else 2)
        if len(self.visits) >= self.options.queue:
            raise Problem(
                503,
                "overload",
                f"{len(self.visits)} requests are in the house, which is all that this server takes: ask again later",
                retry_after=self.retry_after(),
            )
        if name in self.visits:
            raise Problem(
                422, "request id", f"a request with the id {name} is under way: give each its own X-Request-Id"
            )
        self._numbers += 1
        visit = self.visits[name] = Visit(name, self._numbers)
        self._empty.clear()
        self._count()
        try:
            yield visit
        finally:
            del self.visits[name]
            if not self.visits:
                self._empty.set()
            self._count()

    async def restore(self, visit: Visit, data: bytes, order: Order) -> Answer:
        """The restored image. Cancelled, it drops what is queued. Raises Problem."""
        assert self._restore is not None  # noqa: S101  (let in when ready)
        visit.state = "queued"
        try:
            async with asyncio.timeout(max(0.0, order.deadline - time.time())):
                async with aclosing(self._restore(data, order)) as steps:
                    async for step in steps:
                        if isinstance(step, Answer):
                            self._answered()
                            self.metrics.answered(step)
                            return step
                        if isinstance(step, Refusal):
                            raise self._refused(step)
                        visit.state, visit.share = step.state, step.share
                        self._count()
        except TimeoutError:
            raise self._refused(Refusal("expired", "")) from None
        except ReplicaLost as error:
            _log.error("request %s: %s", visit.id, error)
            raise Problem(
                503, "replica lost", "the process that worked on the image was lost, twice: ask again", retry_after=5
            ) from error
        raise Problem(500, "no answer", "the image was not answered: see the server's log")

    def ahead(self, visit: Visit) -> int:
        """How many requests came before this one and are not answered yet."""
        return sum(other.order < visit.order for other in self.visits.values())

    def retry_after(self) -> int:
        """Seconds after which there may be room, from how fast answers came of late."""
        return max(1, min(LONGEST_RETRY, math.ceil((self._pace or 0.5) * len(self.visits) / 2)))

    def describe(self) -> dict[str, Any]:
        """What `GET /info` tells."""
        manifest, options = self.bundle.manifest, self.options
        loops = {} if NO_LOOP in self.presets else self.presets
        return {
            "system": manifest.system,
            "title": manifest.title,
            "licence": manifest.licence.name,
            "bundle": self.bundle.hash,
            "image_size": manifest.image_size,
            "backend": self.backend,
            "presets": {
                name: {"steps": make_plan(self.bundle, one).steps, "description": str(one)}
                for name, one in loops.items()
            },
            "default_preset": self.default_preset if loops else None,
            "defaults": RestoreQuery().model_dump(),
            "options": RestoreQuery.model_json_schema()["properties"],
            "limits": {
                "body_bytes": options.body_bytes,
                "job_bytes": options.job_bytes,
                "pixels": options.max_pixels,
                "timeout_seconds": options.timeout,
                "queue": options.queue,
            },
            "formats": [one.media_type for one in WRITTEN],
            "api_key": bool(options.keys),
            "jobs": self.jobs is not None,
            "version": version("bfr-runtime"),
        }

    def _refused(self, refusal: Refusal) -> Problem:
        self.metrics.images.labels("failed").inc()
        if refusal.kind == "expired":
            detail = f"the image was not restored within {self.options.timeout:g} s, the limit here: ask again later"
            return Problem(503, "expired", detail, retry_after=self.retry_after())
        if refusal.kind == "invalid":
            return Problem(422, "invalid image", refusal.detail)
        return Problem(500, "failed", refusal.detail)

    def _answered(self) -> None:
        now = time.monotonic()
        gap, self._last_answer = now - self._last_answer, now
        if len(self.visits) > 1:  # an idle server's gaps say nothing of its pace
            self._pace = gap if self._pace is None else 0.8 * self._pace + 0.2 * gap

    def _count(self) -> None:
        self.metrics.in_house.set(len(self.visits))
        self.metrics.queued.set(sum(visit.state in ("queued", "reading") for visit in self.visits.values()))


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection; for a request whose body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of a coroutine, which is cancelled where the client leaves. Raises ClientGone."""
    task, gone = asyncio.create_task(work), asyncio.create_task(until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


class ClientGone(Exception):
    """Nobody waits for the answer any more."""
