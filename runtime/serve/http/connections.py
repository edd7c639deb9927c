"""Limits before authentication: of connections, of the size and time of headers, and of tiny chunks."""

import asyncio
import fcntl
import math
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from bfr.runtime.serve.http.uploads import GRACE, LEAST_RATE

HEADER_BYTES = 32_768  # of a request's line and headers
LINGER, LINGER_BYTES = 5.0, 1 << 26  # seconds and bytes of the rest of a refused body that are read and discarded
READ_SECONDS, LEAST_READ = 30.0, 5_000  # seconds in which a client takes fewer bytes of its answer, a second
MOST_CHUNKS, LEAST_CHUNK = 1000, 64  # so many chunks of a body have so many bytes on average; the parser is in Python
LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _Transport:
    """A transport that is closed by `close`, called with its own method."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[Callable[[], None]], None]) -> None:
        self._transport, self.close = transport, partial(close, transport.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(H11Protocol):
    """An HTTP connection. It is idle until the headers of a request are complete, and again after its answer.

    Beyond `most` connections the one that is idle, or sends a body slowly, for longest is closed, so that slow clients
    cannot block others.
    """

    most = 1000
    header_seconds = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        self._idle_since: float | None = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._discarded: int | None = None  # bytes since the answer to a body that was refused
        super().connection_made(_Transport(transport, self._linger))  # type: ignore[arg-type]
        self.conn.next_event = self._next_event  # type: ignore[method-assign]
        if len(self.connections) > self.most:
            known = {one: one._spare() for one in self.connections if isinstance(one, Connection)}
            oldest = min(known, key=lambda one: known[one])
            self.connections.discard(oldest)  # now, before others of this moment look for one
            oldest.transport.abort()
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        for timer in (self._timer, self._reading):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if not self._is_busy() and self._timer is None:  # the next request of a connection has begun
            self._await_headers()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn's protocol, which calls it as it handles an error of h11. Cuts off an answer that has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(f"{msg} {str(sys.exc_info()[1])!a}")
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """See uvicorn's RequestResponseCycle."""
        self._idle_since = self.loop.time()
        if self.conn.their_state is h11.SEND_BODY and self._timer is None:  # the rest of it is discarded
            self._timer = self.loop.call_later(LINGER, self.transport.abort)
        super().on_response_complete()
        self._is_busy()  # with a request that was sent behind this one

    def pause_writing(self) -> None:
        """See asyncio.Protocol: the client reads its answer more slowly than it is sent."""
        super().pause_writing()
        self._watch_reader(self._unread())

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        if self._reading:
            self._reading.cancel()

    def _linger(self, close: Callable[[], None]) -> None:
        """Close the connection; while a client still sends its body, end this side alone, and discard the rest.

        A socket that is closed with unread bytes is reset, and the client may lose its answer (RFC 9112, section 9.6).
        """
        if self._discarded is None and self.conn.their_state in (h11.SEND_BODY, h11.ERROR):
            self._discarded = 0
            self._stop_timer()
            self._timer = self.loop.call_later(LINGER, self.transport.abort)
            if self.cycle:  # after a 400 for what it sends, its request is over
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.flow.resume_reading()
            with suppress(OSError):  # the client has gone, which is read next
                self.transport.write_eof()
        else:
            close()

    def _spare(self) -> float:
        """Since when the connection is idle, or its request came whose body arrives slowly; infinity for others."""
        if self._idle_since is not None:
            return self._idle_since
        seconds = self.loop.time() - self._begun
        slow = self.conn.their_state is h11.SEND_BODY and self._body < LEAST_RATE * (seconds - GRACE)
        return self._begun if slow else math.inf

    def _is_busy(self) -> bool:
        """Whether a request is under way; then the connection is not idle."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        self._idle_since = None
        self._stop_timer()
        return True

    def _next_event(self) -> Any:
        """As of h11. Raises RemoteProtocolError for a body of tiny chunks, which would hold the event loop.

        And for too long a line and headers: h11 counts what has arrived only until they are complete.
        """
        event = h11.Connection.next_event(self.conn)
        if isinstance(event, h11.Request):
            self._chunks = self._body = 0
            self._begun = self.loop.time()
            if len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers) > HEADER_BYTES:
                raise h11.RemoteProtocolError("the line and the headers are too long")
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body += len(event.data)
            if self._chunks > MOST_CHUNKS and self._body < LEAST_CHUNK * self._chunks:
                raise h11.RemoteProtocolError("the body comes in tiny chunks")
        return event

    def _unread(self) -> int:
        """The bytes that the client has not taken yet: here, and in the system, which holds up to some megabytes."""
        queued = fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _watch_reader(self, before: int) -> None:
        def look() -> None:
            if before - (now := self._unread()) < min(before, LEAST_READ * READ_SECONDS):
                self.transport.abort()
            else:
                self._watch_reader(now)

        self._reading = self.loop.call_later(READ_SECONDS, look)

    def _await_headers(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.header_seconds, self._late)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.write(LATE)
            self.transport.close()


def limited(most: int, header_seconds: float) -> type[Connection]:
    """The connections of a server.

    Args:
        most: At once.
        header_seconds: That a request's line and headers may take.
    """
    limits: dict[str, Any] = {"most": most, "header_seconds": header_seconds}
    return type("LimitedConnection", (Connection,), limits)
