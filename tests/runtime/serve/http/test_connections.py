"""Connections of clients that are slow, many or greedy, against the HTTP server itself."""

import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from bfr.runtime.serve.http import connections
from bfr.runtime.serve.http.connections import HEADER_BYTES, MOST_CHUNKS, limited

WAIT = b"POST /wait HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
Connect = Callable[..., socket.socket]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers POST before its body is there, /refuse for good, and GET /large with more than a socket holds."""
    if scope["path"] == "/wait":
        await receive()
        await asyncio.sleep(0.6)
    while scope["path"] == "/whole" and (await receive()).get("more_body"):
        pass
    body = b"x" * 30_000_000 if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] if scope["path"] == "/refuse" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(most: int, header_seconds: float) -> Iterator[Connect]:
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=limited(most, header_seconds),
            h11_max_incomplete_event_size=HEADER_BYTES,
            ws="none",
            lifespan="off",
            log_config=None,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    opened: list[socket.socket] = []

    def connect(data: bytes = b"") -> socket.socket:
        opened.append(socket.create_connection(bound.getsockname(), timeout=20))
        opened[-1].sendall(data)
        return opened[-1]

    connect.server = server  # type: ignore[attr-defined]
    yield connect
    for line in opened:
        line.close()
    server.should_exit = True
    thread.join(20)
    bound.close()


def answer(line: socket.socket) -> bytes:
    """All that comes until the connection is closed, or reset."""
    found = b""
    try:
        while piece := line.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def test_headers_that_do_not_end_are_given_up() -> None:
    with serving(10, 0.3) as connect:
        line = connect(b"GET / HTTP/1.1\r\nHost: a\r\n")
        assert answer(line).startswith(b"HTTP/1.1 408")
        assert answer(connect()).startswith(b"HTTP/1.1 408")


def test_a_second_request_may_not_take_longer_either() -> None:
    with serving(10, 0.3) as connect:
        line = connect(GET)
        assert b"200 OK" in line.recv(1000)
        line.sendall(GET[:20])
        assert answer(line).startswith(b"HTTP/1.1 408")


def test_a_request_that_is_worked_on_may_take_longer_than_its_headers() -> None:
    with serving(10, 0.2) as connect:
        line = connect(WAIT)
        assert answer(line).endswith(b"ok")


def test_headers_longer_than_the_limit_are_refused_as_they_come() -> None:
    with serving(10, 20) as connect:
        line = connect(b"GET / HTTP/1.1\r\n")
        try:
            for _ in range(100):
                line.sendall(b"X: " + b"x" * HEADER_BYTES + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return
        assert b"400" in answer(line)


@pytest.mark.parametrize(
    "text", [b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n"]
)
def test_long_headers_that_come_whole_are_refused_too(text: bytes) -> None:
    with serving(10, 20) as connect:
        line = connect(text % (b"x" * HEADER_BYTES))
        refused = answer(line)
        assert refused.startswith(b"HTTP/1.1 400")
        assert b"the line and the headers are too long" in refused
        line = connect(text.replace(b"Host", b"Connection: close\r\nHost") % (b"x" * (HEADER_BYTES - 200)))
        assert not answer(line).startswith(b"HTTP/1.1 400")


def chunked(sizes: list[int]) -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (size, b"x" * size) for size in sizes) + b"0\r\n\r\n"


def test_a_body_of_tiny_chunks_is_refused_and_one_of_large_ones_is_not() -> None:
    """The parser takes 20 microseconds a chunk, on the event loop."""
    with serving(10, 20) as connect:
        for sizes, status in (([1] * 50_000, b"400"), ([5000, 1] * 2000, b"200"), ([1] * MOST_CHUNKS, b"200")):
            line = connect(chunked(sizes))
            assert answer(line)[9:12] == status


REFUSED = b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 99000000\r\n\r\n"


@pytest.mark.parametrize("begin", [REFUSED, b"nonsense\r\n\r\n"])
def test_a_client_that_still_sends_sees_why_it_was_refused(begin: bytes) -> None:
    with serving(10, 20) as connect:
        line = connect(begin)
        for _ in range(20):
            line.sendall(bytes(1_000_000))
        assert answer(line).startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))


@pytest.mark.parametrize(("limit", "value"), [("LINGER", 0.2), ("LINGER_BYTES", 1_000_000)])
def test_what_is_discarded_has_a_limit(monkeypatch: pytest.MonkeyPatch, limit: str, value: float) -> None:
    monkeypatch.setattr(connections, limit, value)
    with serving(10, 20) as connect:
        line = connect(REFUSED)

        def send() -> None:
            for _ in range(99):
                line.sendall(bytes(1_000_000))
                time.sleep(0.01)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send()


def test_nonsense_after_an_answer_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    with serving(10, 20) as connect:
        line = connect(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert b"200 OK" in line.recv(1000)
        line.sendall(b"nonsense\r\n")
        answer(line)
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_past_the_limit_the_idlest_connection_is_closed_and_a_busy_one_stays() -> None:
    with serving(3, 20) as connect:
        busy = connect(WAIT)
        other = connect(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert b"200 OK" in answer(other)  # the server has read what was sent before
        open_ones = connect.server.server_state.connections  # type: ignore[attr-defined]
        while len(open_ones) > 1:
            time.sleep(0.01)
        idle = [connect() for _ in range(2)]
        while len(open_ones) < 3:
            time.sleep(0.01)
        for line in idle:
            line.sendall(b"GET / HTTP/1.1\r\n")
        new = connect(GET)
        assert b"200 OK" in new.recv(1000)
        (closed,) = select.select(idle, [], [], 10)[0]  # which of the two was read first is the kernel's choice
        assert answer(closed) == b""
        assert answer(busy).endswith(b"ok")


def test_past_the_limit_a_slow_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "GRACE", 0.0)
    with serving(3, 20) as connect:
        head = b"POST /whole HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n"
        slow = []
        for _ in range(3):
            slow.append(connect(head + b"x"))
            time.sleep(0.1)
        other = connect(GET)
        assert b"200 OK" in other.recv(1000)
        assert answer(slow[0]) == b""
        slow[1].sendall(b"x" * 99998)
        assert b"200 OK" in slow[1].recv(1000)


async def test_a_client_that_reads_slowly_is_not_cut_off() -> None:
    """The server's own buffer stays as it is for long: the system asks for more only when a third of its is free."""
    looks: list[Callable[[], None]] = []
    aborted: list[bool] = []

    class Transport(asyncio.Transport):
        def get_write_buffer_size(self) -> int:
            return 10_000_000

        def abort(self) -> None:
            aborted.append(True)

    protocol = limited(3, 20)(uvicorn.Config(app, h11_max_incomplete_event_size=HEADER_BYTES), ServerState(), {})
    protocol.loop = SimpleNamespace(time=time.monotonic, call_later=lambda _seconds, look: looks.append(look))
    with socket.create_server(("127.0.0.1", 0)) as bound, socket.create_connection(bound.getsockname()) as client:
        line, _ = bound.accept()
        with line:
            line.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    line.send(bytes(1 << 16))
            protocol.connection_made(Transport({"socket": line}))
            protocol.pause_writing()
            for _ in range(3):
                before = protocol._unread()
                while before - protocol._unread() < connections.LEAST_READ * connections.READ_SECONDS:
                    client.recv(1 << 16)
                looks.pop()()
                assert aborted == []
            looks.pop()()
            assert aborted == [True]


async def test_many_connections_of_one_moment_keep_the_limit() -> None:
    """The system hands out up to 2048 at once, before the first closed one is gone."""
    config = uvicorn.Config(app, h11_max_incomplete_event_size=HEADER_BYTES)
    state, make, closed = ServerState(), limited(3, 20), []

    class Transport(asyncio.Transport):
        def abort(self) -> None:
            closed.append(self)

    for _ in range(9):
        make(config, state, {}).connection_made(Transport())
    assert len(set(closed)) == 6


def test_a_request_that_came_with_another_one_is_not_idle() -> None:
    with serving(1, 20) as connect:
        line = connect(GET + WAIT)
        assert b"200 OK" in line.recv(1000)
        other = connect()
        assert answer(other) == b""
        assert answer(line).endswith(b"ok")


def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 0.3)
    with serving(10, 20) as connect:
        line = connect()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        open_ones = connect.server.server_state.connections  # type: ignore[attr-defined]
        while not open_ones:
            time.sleep(0.01)
        while open_ones:  # though the client is still there
            time.sleep(0.01)
