"""Admission control, and what is known of the requests in flight; between HTTP and what restores."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from bfr.runtime.serve.http.metrics import Metrics
from bfr.runtime.serve.http.problems import Problem
from bfr.runtime.serve.http.uploads import Uploads
from bfr.runtime.serve.keys import Key, Keys
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Answer, Order, Progress, Refusal, Sender, State
from bfr.runtime.serve.systems import System, open_systems
from bfr.runtime.timeouts import timeout

Restore = Callable[[bytes, Order], AsyncGenerator[Progress | Answer | Refusal, None]]
"""As `Photos.restore`."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""As ASGI has it: the next event of a connection."""

T = TypeVar("T")
LONGEST_RETRY = 60  # seconds
JOB_UPLOADS = 8  # files of jobs that arrive at once
_log = logging.getLogger("bfr.serve")


@dataclass(slots=True, eq=False)
class Visit:
    """A request.

    Attributes:
        owner: Whose it is, see `Front.owner`.
        placed: Its body is here, and it is one of those that the queue's length counts.
    """

    id: str
    owner: str = ""
    state: State = "reading"
    share: float = 0.0
    placed: bool = False


class Front:
    """One process that answers requests. All methods are called on its event loop.

    Attributes:
        systems: What is served, the default first.
        keys: The API keys.
        names: Names by which clients reach the server; without an API key others are refused.
        engine: What restores, see `bfr.runtime.serve.engine`; None until it is ready.
    """

    def __init__(self, options: ServeOptions, keys: Keys | None = None, names: tuple[str, ...] = ()) -> None:
        """Open the bundles for their settings; no network is loaded.

        Args:
            options: What is served, and the limits.
            keys: The API keys; None for those of `options.keys`.
            names: The server's names, see the class.

        Raises:
            BfrError: A bundle or a preset is refused.
        """
        self.options, self.names = options, names
        self.keys = Keys([Key.parse(line, "keys", hashed=True) for line in options.keys]) if keys is None else keys
        self.systems: dict[str, System] = open_systems(options)
        self.metrics = Metrics(self.systems)
        self.uploads = Uploads(options.upload_bytes)
        self.engine: Any = None
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self.visits: dict[str, Visit] = {}  # by their ids, in the order of arrival
        self.job_uploads: list[str] = []  # whose they are
        self.over = asyncio.Event()  # past the drain limit
        self._restore: Restore | None = None
        self._pace: float | None = None  # seconds between two answers under load, smoothed
        self._last_answer = 0.0
        self.unanswered = 0  # requests of any route
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    def open(self, restore: Restore, engine: Any = None) -> None:
        """Take work from now on, unless the server is about to end."""
        self._restore, self.engine = restore, engine
        if self.state == "starting":
            self.state = "ready"

    async def drain(self, seconds: float) -> bool:
        """Take no more work, and wait so many seconds for the requests in flight; return whether all were answered.

        Those that are left are answered 503.
        """
        self.state = "draining"
        try:
            async with timeout(seconds):
                await self._all_answered.wait()
        except asyncio.TimeoutError:
            self.over.set()
            return False
        return True

    def why_not_ready(self) -> str | None:
        """None if all parts work and new work is taken."""
        if self.state == "draining":
            return "the server is about to end: ask another one, or this one again once it was started anew"
        if self.state == "starting":
            return "the server is starting and warms its networks up: ask again"
        return self.engine.lacking() if self.engine else None

    def check_state(self) -> None:
        """Raise Problem 503 where no work is taken now."""
        if self.state != "ready":
            close = self.state == "draining"
            raise Problem(503, self.state, self.why_not_ready() or "", retry_after=10 if close else 2, close=close)

    def check_room(self, owner: str) -> None:
        """Raise Problem 503 if the server takes no more requests of an owner; called before the body is read.

        The requests of one API key keep no other key out: each may have one in flight.
        """
        self.check_state()
        placed, faces = self.placed, self.engine.faces if self.engine else 0
        first = owner and not any(visit.placed and visit.owner == owner for visit in self.visits.values())
        if (placed >= self.options.queue and not first) or faces >= self.options.face_queue:
            raise Problem(
                503,
                "overload",
                f"{placed} requests with {faces} faces are in flight, which is all that this server takes: ask again "
                "later",
                retry_after=self.retry_after(),
            )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request of any route, uploads and downloads of jobs too, as one that `drain` waits for."""
        self.unanswered += 1
        self._all_answered.clear()
        try:
            yield
        finally:
            self.unanswered -= 1
            if not self.unanswered:
                self._all_answered.set()

    @property
    def placed(self) -> int:
        """How many requests have a place in the queue."""
        return sum(visit.placed for visit in self.visits.values())

    def owner(self, sender: Sender) -> str:
        """Whose a sender's jobs and requests are: the API key's; without any keys they are everybody's."""
        return sender.name if self.keys else ""

    @contextmanager
    def admit(self, name: str, owner: str = "") -> Iterator[Visit]:
        """Let a request in, whose body is not read yet. Raises Problem."""
        self.check_room(owner)
        if name in self.visits:
            raise Problem(
                422, "request id", f"a request with the id {name} is in flight: give each its own X-Request-Id"
            )
        visit = self.visits[name] = Visit(name, owner)
        try:
            yield visit
        finally:
            del self.visits[name]

    def place(self, visit: Visit) -> None:
        """Give a request whose body is here its place in the queue. Raises Problem 503."""
        self.check_room(visit.owner)
        if not self.placed:
            self._last_answer = time.monotonic()  # the pause that ends now says nothing of the pace
        visit.placed, visit.state = True, "queued"

    @contextmanager
    def job_place(self, owner: str) -> Iterator[None]:
        """Hold one of the uploads of jobs that may be under way at once; each key may have one. Raises Problem 503."""
        own = self.job_uploads.count(owner)
        if (own and len(self.job_uploads) >= JOB_UPLOADS) or (owner and own >= JOB_UPLOADS // 2):
            raise Problem(503, "overload", "too many files of jobs arrive just now: try again later", retry_after=10)
        self.job_uploads.append(owner)
        try:
            yield
        finally:
            self.job_uploads.remove(owner)

    async def restore(self, visit: Visit, data: bytes, order: Order) -> Answer:
        """Restore an image. Cancelled, it drops what is queued.

        Args:
            visit: The request, whose state follows the work.
            data: The image file.
            order: What is done with it.

        Raises:
            Problem: 422 for an image that cannot be restored, else 503.
        """
        assert self._restore is not None  # noqa: S101  (let in when ready)
        try:
            limit = max(0.0, order.deadline - time.monotonic())
            async with timeout(limit), aclosing(self._restore(data, order)) as steps:
                async for step in steps:
                    if isinstance(step, Answer):
                        self._answered()
                        self.metrics.answered(step)
                        return step
                    if isinstance(step, Refusal):
                        raise self._refused(step)
                    visit.state, visit.share = step.state, step.share
        except asyncio.TimeoutError:
            raise self._refused(Refusal("expired", "")) from None
        raise self._refused(Refusal("failed", "the image was not answered: see the server's log"))

    async def unless_over(self, work: Coroutine[Any, Any, T], receive: Receive | None = None) -> T:
        """Await a coroutine, which is cancelled past the drain limit and when the client leaves.

        Args:
            work: The coroutine.
            receive: `receive` of a request whose body was read; None does not watch the client.

        Raises:
            ClientGone: The client has closed the connection.
            Problem: 503, the drain limit has passed.
        """
        task, over = asyncio.create_task(work), asyncio.create_task(self.over.wait())
        gone = {asyncio.create_task(until_gone(receive))} if receive else set()
        try:
            await asyncio.wait({task, over, *gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if over.done():
                detail = "the server ended before the image was restored: ask another one, or this one again"
                raise Problem(503, "draining", detail, retry_after=5, close=True)
            raise ClientGone
        finally:
            for other in (over, *gone):
                other.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def ahead(self, visit: Visit) -> int:
        """How many requests came before this one and are not answered yet."""
        return list(self.visits).index(visit.id)

    def retry_after(self) -> int:
        """Seconds after which there may be room, from how fast answers came of late."""
        return max(1, min(LONGEST_RETRY, math.ceil((self._pace or 0.5) * len(self.visits) / 2)))

    def render_metrics(self) -> bytes:
        """The counters, in Prometheus' text format."""
        metrics = self.metrics
        metrics.in_flight.set(self.placed)
        metrics.queued.set(sum(visit.state in ("queued", "reading") for visit in self.visits.values() if visit.placed))
        metrics.body_bytes.set(self.uploads.taken)
        metrics.ready.set(self.why_not_ready() is None)
        if self.engine:
            self.engine.count(metrics)
        return metrics.render()

    def _refused(self, refusal: Refusal) -> Problem:
        self.metrics.images.labels("failed").inc()
        kind, detail = refusal.kind, refusal.detail
        if kind == "invalid":
            return Problem(422, "invalid image", detail)
        if kind == "expired":
            detail = f"the image was not restored within {self.options.timeout:g} s, the limit here: try again later"
        if kind in ("overload", "expired"):
            return Problem(503, kind, detail, retry_after=self.retry_after())
        if kind == "lost":
            detail = "the processes that worked on the image have ended: ask again"
        return Problem(503, "worker lost" if kind == "lost" else kind, detail, retry_after=5, close=True)

    def _answered(self) -> None:
        now = time.monotonic()
        gap, self._last_answer = now - self._last_answer, now
        if len(self.visits) > 1:  # an idle server's gaps say nothing of its pace
            self._pace = gap if self._pace is None else 0.8 * self._pace + 0.2 * gap


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection; for a request whose body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class ClientGone(Exception):
    """The client has closed the connection."""
