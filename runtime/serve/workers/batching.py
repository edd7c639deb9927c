"""Dynamic batching with fair queueing: faces of different requests go through the networks together, and take turns.

A request's next face has a start tag, and batches are formed of the lowest ones: start-time fair queueing (Goyal, Vin
and Cheng, 1996). A face that arrives beside a photograph of many has the tag of the photograph's next one.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from numpy.typing import NDArray

from bfr.runtime.serve.orders import FaceOrder, Finished, Group

LOSSES = 2  # workers that a face may be given to


class Lost(Exception):
    """The workers that a face was given to have ended."""

    kind: Final = "lost"


class Failed(Exception):
    """The networks could not restore a batch; the text says why."""

    kind: Final = "failed"


@dataclass(slots=True, eq=False)
class Face:
    """A face on its way.

    Attributes:
        begun: `time.monotonic()` when its batch began.
        losses: Workers that ended with it.
    """

    pixels: NDArray[Any]
    key: int | None
    ticket: "Ticket"
    future: "asyncio.Future[Finished]"
    arrived: float
    begun: float = 0.0
    share: float = 0.0
    losses: int = 0

    def fail(self, error: Exception) -> None:
        """Answer it with an error."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class Ticket:
    """The faces of a request or of a job's batch.

    Attributes:
        number: Number by arrival.
        tag: Start tag of the next one.
    """

    order: FaceOrder
    number: int
    tag: float
    faces: list[Face] = field(default_factory=list)
    waiting: deque[Face] = field(default_factory=deque)

    @property
    def share(self) -> float:
        """How much of the denoising is done, 0 to 1."""
        return sum(face.share for face in self.faces) / max(1, len(self.faces))

    async def wait(self, seconds: float) -> bool:
        """Wait for all faces, at most so many seconds; whether all are answered."""
        pending = [face.future for face in self.faces if not face.future.done()]
        if pending:
            await asyncio.wait(pending, timeout=seconds)
        return all(face.future.done() for face in self.faces)

    def results(self) -> list[Finished]:
        """In the order of the faces. Raises Lost and Failed."""
        return [face.future.result() for face in self.faces]

    def abandon(self) -> None:
        """Drop the faces: those that are queued leave, and a batch of dropped faces ends after its step."""
        for face in self.faces:
            if not face.future.cancel() and not face.future.cancelled():
                face.future.exception()  # looked at, so that asyncio does not report it
        self.waiting.clear()


class Batcher:
    """The queue of faces before the workers. For asyncio: all methods are called on one event loop."""

    def __init__(self, *, size: int, linger: float = 0.0) -> None:
        """Make an empty queue.

        Args:
            size: Faces of a batch, at most.
            linger: Seconds that a batch waits to be filled.
        """
        self.size, self.linger = size, linger
        self._tickets: list[Ticket] = []
        self._again: deque[Face] = deque()  # of workers that ended
        self._numbers = itertools.count()
        self._now = 0.0  # the virtual time: start tag of the face that was taken last
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """How many faces wait."""
        return len(self._again) + sum(len(ticket.waiting) for ticket in self._tickets)

    def submit(self, images: Sequence[NDArray[Any]], order: FaceOrder) -> Ticket:
        """Queue faces, (S, S, 3) each."""
        self._drop_empty()  # where no worker runs, nothing else does
        loop, now = asyncio.get_running_loop(), time.monotonic()
        ticket = Ticket(order, next(self._numbers), self._now + self._cost(order))
        ticket.faces = [
            Face(image, key, ticket, loop.create_future(), now)
            for image, key in zip(images, order.keys or [None] * len(images), strict=True)
        ]
        ticket.waiting.extend(ticket.faces)
        self._tickets.append(ticket)
        self._changed.set()
        return ticket

    async def take(self, full: Callable[[], bool] = lambda: False) -> list[Face]:
        """Wait for the next faces of one group, a batch at most.

        Args:
            full: Whether only a full batch is taken; called again after `wake`.
        """
        while True:
            if self.linger and 0 < len(self) < self.size and not full():
                await asyncio.sleep(self.linger)
            if (len(self) >= self.size or not full()) and (faces := self._choose()):
                return faces
            self._changed.clear()
            await self._changed.wait()

    def wake(self) -> None:
        """Have each `take` look again."""
        self._changed.set()

    def put_back(self, calls: Sequence[Sequence[Face]], launched: int = 1) -> None:
        """Queue the faces of a worker that ended, or failed at them, again: each alone, since one may have caused it.

        Args:
            calls: In the order in which it was given them; those that were not on its device count no loss.
            launched: Calls that were on its device at most. A face that has a loss was there alone.
        """
        alone = [any(face.losses for face in faces) for faces in calls]
        for number, faces in enumerate(calls):
            lost = not number or (number < launched and not any(alone[: number + 1]))
            for face in faces:
                face.losses += lost
                if face.losses >= LOSSES:
                    face.fail(Lost(f"the {LOSSES} workers that it was given to have ended"))
                elif not face.future.done():
                    self._again.append(face)
        self._changed.set()

    def fail_all(self, error: Exception) -> None:
        """Answer all faces that wait with an error."""
        for face in (*self._again, *(face for ticket in self._tickets for face in ticket.waiting)):
            face.fail(error)
        self._tickets.clear()
        self._again.clear()

    def _cost(self, order: FaceOrder) -> float:
        """What a face adds to its ticket's tag: the requests of its sender that wait, over the sender's weight."""
        waiting = sum(one.order.sender.name == order.sender.name for one in self._tickets)
        return waiting / order.sender.weight

    def _choose(self) -> list[Face]:
        while self._again:
            if not (face := self._again.popleft()).future.done():
                return [face]
        self._drop_empty()
        taken: list[Face] = []
        group: Group | None = None
        while len(taken) < self.size:
            fitting = [one for one in self._tickets if one.waiting and group in (None, one.order.group)]
            if not fitting:
                break
            ticket = min(fitting, key=lambda one: (not one.order.urgent, one.tag, one.number))
            group = ticket.order.group
            taken.append(ticket.waiting.popleft())
            if ticket.order.urgent:
                self._now = max(self._now, ticket.tag)
            ticket.tag += self._cost(ticket.order)
        self._drop_empty()
        return taken

    def _drop_empty(self) -> None:
        """Forget the tickets whose faces were taken or abandoned."""
        self._tickets = [one for one in self._tickets if one.waiting]
