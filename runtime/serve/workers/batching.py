"""Dynamic batching: faces of different requests that wait together go through the networks together."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.restore.batch import Restored

Pixels = NDArray[Any]
OnShare = Callable[[float], None]
"""Called after each denoising step with the share that is done, 0 to 1. Raises `Abandoned` where the batch may end."""


class Expired(Exception):
    """A face waited longer than its request may take; the networks never saw it."""


class Abandoned(Exception):
    """Nobody waits for any face of a batch any more."""


@dataclass(frozen=True, slots=True)
class Group:
    """What the faces of a batch have in common: the preset and the seed of the noise."""

    preset: str
    seed: int


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a face.

    waited: seconds in the queue. batch: how many faces went through the networks with it, told by the first one of each
    batch alone, 0 by the others, so that batches can be counted.
    """

    restored: Restored
    waited: float
    batch: int


Run = Callable[[Group, Sequence[Pixels], Sequence[int | None], OnShare], Sequence[Restored]]
"""Restores some faces, (H, W, 3) each with the key of its noise. Runs in a thread of its own, one call at a time."""


@dataclass(slots=True, eq=False)
class _Face:
    pixels: Pixels
    key: int | None
    group: Group
    urgent: bool
    deadline: float  # of time.monotonic()
    arrived: float
    future: "asyncio.Future[Finished]"
    share: float = 0.0


@dataclass(slots=True, eq=False)
class Ticket:
    """Faces that somebody waits for."""

    faces: list[_Face] = field(default_factory=list)

    @property
    def share(self) -> float:
        """How much of the denoising is done, 0 to 1."""
        return sum(face.share for face in self.faces) / max(1, len(self.faces))

    async def wait(self, seconds: float) -> bool:
        """Wait for all faces, at most so long; whether nothing is left to wait for."""
        pending = [face.future for face in self.faces if not face.future.done()]
        if pending:
            await asyncio.wait(pending, timeout=seconds)
        return all(face.future.done() for face in self.faces)

    def results(self) -> list[Finished]:
        """In the order of the faces. Raises Expired, and what the networks raised."""
        return [face.future.result() for face in self.faces]

    def abandon(self) -> None:
        """Nobody waits any more: queued faces leave, and a batch of abandoned faces ends after its step."""
        for face in self.faces:
            if not face.future.cancel() and not face.future.cancelled():
                face.future.exception()  # looked at, so that asyncio does not report it


class Batcher:
    """Forms batches of one group, the oldest urgent face first.

    Faces that are not urgent, those of long jobs, fill batches and go when nobody else waits. For asyncio: all methods
    are called on one event loop.
    """

    def __init__(self, run: Run, *, size: int, linger: float = 0.0, ahead: int = 1) -> None:
        """size: faces of a batch, at most. linger: seconds that one waits to be filled. ahead: batches that one call of
        `run` may be given, for devices that work on one while the next is prepared.
        """
        self.size, self.linger, self.ahead = size, linger, ahead
        self._run = run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bfr-networks")
        self._queue: list[_Face] = []
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many faces wait."""
        return len(self._queue)

    def submit(
        self,
        images: Sequence[Pixels],
        group: Group,
        *,
        seconds: float,
        keys: Sequence[int | None] | None = None,
        urgent: bool = True,
    ) -> Ticket:
        """Queue faces, (H, W, 3) each; `seconds`: how long they may wait."""
        loop, now = asyncio.get_running_loop(), time.monotonic()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        ticket = Ticket(
            [
                _Face(image, key, group, urgent, now + seconds, now, loop.create_future())
                for image, key in zip(images, keys or [None] * len(images), strict=True)
            ]
        )
        self._queue += ticket.faces
        self._arrived.set()
        return ticket

    async def close(self) -> None:
        """End the thread once its batch is through; faces that wait are never answered."""
        if self._worker:
            self._worker.cancel()
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if self.linger and len(self._queue) < self.size:
                await asyncio.sleep(self.linger)
            faces = self._take(time.monotonic())
            if not faces:
                self._arrived.clear()
                continue
            try:
                results = await loop.run_in_executor(self._thread, self._batch, faces)
            except Abandoned:
                continue
            except Exception as error:
                for face in faces:
                    if not face.future.done():
                        face.future.set_exception(error)
                continue
            first = True
            for i, (face, (result, begun)) in enumerate(zip(faces, results, strict=True)):
                first = first or i % self.size == 0
                if face.future.done():
                    continue  # nobody waits; the next one tells of the batch
                batch = min(self.size, len(faces) - i // self.size * self.size) if first else 0
                face.future.set_result(Finished(result, begun - face.arrived, batch))
                first = False

    def _take(self, now: float) -> list[_Face]:
        """The next batch; what nobody waits for, or may wait no longer, leaves the queue."""
        waiting = []
        for face in self._queue:
            if face.future.done():
                continue
            if face.deadline <= now:
                face.future.set_exception(Expired("the request waited longer than it may take"))
            else:
                waiting.append(face)
        waiting.sort(key=lambda face: not face.urgent)  # stable: the oldest first among equals
        taken = [face for face in waiting if face.group == waiting[0].group][: self.size * self.ahead]
        left = set(map(id, taken))
        self._queue = [face for face in waiting if id(face) not in left]
        return taken

    def _batch(self, faces: Sequence[_Face]) -> list[tuple[Restored, float]]:
        """In the thread: each result, and when the batch began."""

        def on_share(share: float) -> None:
            if all(face.future.cancelled() for face in faces):
                raise Abandoned
            for face in faces:
                face.share = share

        begun = time.monotonic()
        images, keys = [face.pixels for face in faces], [face.key for face in faces]
        return [(result, begun) for result in self._run(faces[0].group, images, keys, on_share)]
