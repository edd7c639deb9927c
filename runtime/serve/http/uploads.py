"""Bodies in memory: their budget, and their reading. Slow uploads hold no more of it than what they sent."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bfr.runtime.serve.http.problems import Problem

LEAST_RATE = 50_000  # bytes a second; uploads that are slower give way when the budget is used up
GRACE = 1.0  # seconds in which an upload may be slower


@dataclass(slots=True, eq=False)
class Upload:
    """A body in memory.

    Attributes:
        begun: `time.monotonic()` at its beginning.
        ended: It is complete.
        parts: What has arrived.
        given_up: Another one took its room.
    """

    bytes: int = 0
    parts: list[Any] = field(default_factory=list)
    begun: float = 0.0
    ended: bool = False
    given_up: bool = False

    @property
    def slow(self) -> bool:
        """Whether it arrives slower than it must where room is short."""
        seconds = time.monotonic() - self.begun
        return not self.ended and seconds > GRACE and self.bytes < LEAST_RATE * seconds


class Uploads:
    """The budget of all bodies in memory."""

    def __init__(self, limit: int) -> None:
        """Make an empty budget. limit: bytes."""
        self.limit, self.taken = limit, 0
        self._all: set[Upload] = set()

    @contextmanager
    def admit(self, announced: int) -> Iterator[Upload]:
        """Let a body in that says to have so many bytes; its room is given back at the end. Raises Problem 503."""
        upload = Upload(begun=time.monotonic())
        self._check(announced)
        self._all.add(upload)
        try:
            yield upload
        finally:
            self._all.discard(upload)
            self.taken -= upload.bytes

    def add(self, upload: Upload, count: int) -> None:
        """More bytes of a body have arrived. Raises Problem 503, and 408 where it was slow and another needs room."""
        if upload.given_up:
            raise Problem(408, "slow body", "the body arrived too slowly while the server is busy: send it faster")
        self._check(count)
        upload.bytes += count
        self.taken += count

    def _check(self, count: int) -> None:
        for one in list(self._all):
            if self.taken + count <= self.limit:
                return
            if one.slow:
                one.given_up = True
                self.taken -= one.bytes
                one.bytes = 0
                one.parts.clear()
        if self.taken + count > self.limit:
            raise Problem(
                503,
                "overload",
                f"{self.taken} bytes of images are in memory, {self.limit} are the limit here: try again later",
                retry_after=2,
            )


async def collect(chunks: AsyncIterator[bytes], uploads: Uploads, upload: Upload, most: int) -> bytes:
    """A body, counted as it arrives. Raises Problem 408, 413 and 503."""
    async for chunk in chunks:
        if upload.bytes + len(chunk) > most:
            raise too_large(most)
        uploads.add(upload, len(chunk))
        upload.parts.append(chunk)
    upload.ended = True
    data = b"".join(upload.parts)
    upload.parts.clear()
    return data


def too_large(most: int) -> Problem:
    """A body that has more bytes than it may."""
    return Problem(413, "body size", f"the body has more than {most} bytes, the limit here: send a smaller file")
