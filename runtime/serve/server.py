"""`bfr serve`: one process for HTTP and one for each device, from their start to their end."""

import asyncio
import gc
import logging
import math
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from bfr.runtime.errors import InvalidOption, RestorationFailed
from bfr.runtime.serve.engine import Engine
from bfr.runtime.serve.http.api import make_api
from bfr.runtime.serve.http.connections import HEADER_BYTES, limited
from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.http.traces import tracer
from bfr.runtime.serve.keys import Keys
from bfr.runtime.serve.options import ListenOptions, ServeOptions
from bfr.runtime.serve.workers.pool import Pool

GRACE = 5  # seconds for connections to end after the drain limit
BACKLOG = 2048  # connections that the system holds until they are taken
ACCEPTED = 128  # of them, how many are taken before those past the limit are closed
FILES = 3  # open files of a connection that downloads a result
OWN_FILES = 512  # open files of a server beside its connections
SWITCH = 0.0005  # seconds after which a thread that decodes lets the event loop run; Python's default is ten times that
_log = logging.getLogger("bfr.serve")


def serve_forever(options: ServeOptions, listen: ListenOptions, keys: Keys) -> int:
    """Serve until SIGTERM, SIGINT, or SIGHUP of a terminal that is closed.

    After the first signal the server accepts no new work, finishes requests in flight within `listen.drain` seconds,
    and answers the others with 503. A second signal ends it at once. The exit status is 0 where all requests were
    answered.

    Raises:
        InvalidOption: The address is in use, or the folder of jobs cannot be written.
        RestorationFailed: The workers do not start, or cannot be restarted.
        BfrError: A bundle is refused.
    """
    os.umask(0o077)  # files that are written are readable by their owner alone
    allow_files(FILES * listen.connections + OWN_FILES)
    sys.setswitchinterval(SWITCH)
    tracer()
    options = options.fetched()
    listening = _listen(listen.host, listen.port)
    pool = Pool(options)
    engine = Engine(options, pool)
    pool.spawn()  # the workers start while this process does
    try:
        return asyncio.run(_Server(options, listen, keys, listening, engine).run())
    finally:
        listening.close()


def allow_files(count: int) -> None:
    """Raise this process's limit of open files to a count, or as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


class _Http(uvicorn.Server):
    """The HTTP server, without its own handlers of signals."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(BACKLOG)  # the system's; asyncio takes as many at once as it was told

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server:
    def __init__(
        self, options: ServeOptions, listen: ListenOptions, keys: Keys, listening: socket.socket, engine: Engine
    ) -> None:
        self.options, self.listen, self.keys = options, listen, keys
        self.listening, self.engine = listening, engine
        self.signals = 0

    async def run(self) -> int:
        begin, self.ending = time.perf_counter(), asyncio.Event()
        names = (*(name.lower() for name in self.listen.names), self.listen.host.lower())
        try:
            self.front = Front(self.options, self.keys, names)
        except BaseException:
            await self.engine.stop()
            raise
        self.http = http = _Http(
            uvicorn.Config(
                make_api(lambda: self.front),
                http=limited(self.listen.connections, self.listen.header_seconds),
                h11_max_incomplete_event_size=HEADER_BYTES,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                backlog=ACCEPTED,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=GRACE,
            )
        )
        hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # under nohup it goes on
        for number in (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if hangs_up else ())):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)
        answering = asyncio.create_task(http.serve(sockets=[self.listening]))
        working = asyncio.create_task(self._work(begin))
        signalled = asyncio.create_task(self.ending.wait())
        done = True
        try:
            await asyncio.wait({answering, working, signalled}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                _log.info("ending: no new work is taken, %d requests are in flight", self.front.unanswered)
                end = time.monotonic() + self.listen.drain
                if done := await self._drained():  # the last bytes of answers may still be on their way to slow clients
                    http.config.timeout_graceful_shutdown = max(GRACE, math.ceil(end - time.monotonic()))
                _log.info("all requests were answered" if done else "ended before all requests were answered")
        finally:
            self.front.state = "draining"
            self.front.over.set()
            http.should_exit = True
            failed = working.done() and not working.cancelled() and working.exception()
            working.cancel()
            await asyncio.wait({answering, working})
            signalled.cancel()
            await self.engine.stop()
        if failed:
            raise failed
        return 0 if done else 1

    async def _work(self, begin: float) -> None:
        """Start the engine, and raise what ends the server."""
        await self.engine.start(self.front)
        gc.collect()
        gc.freeze()  # these objects stay: a full collection of them held the event loop for 20 to 60 milliseconds
        host, port = self.listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        _log.info("ready at %s on %s after %.1f s", url, self.engine.backend, time.perf_counter() - begin)
        await self.engine.failed()
        raise RestorationFailed("a part of the server has ended: see the log")

    async def _drained(self) -> bool:
        """Whether all requests were answered in time; False at once on a second signal."""
        task = asyncio.create_task(self.front.drain(self.listen.drain))
        while not task.done() and self.signals < 2:
            await asyncio.wait({task}, timeout=0.1)
        return not task.cancel() and task.result()

    def _signalled(self) -> None:
        self.signals += 1
        self.http.force_exit = self.signals > 1
        self.front.state = "draining"  # at once, before anything else is done
        self.ending.set()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InvalidOption."""
    listening = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter for what can be no host name
        if listening:
            listening.close()
        reason = getattr(error, "strerror", error)
        raise InvalidOption(
            f"cannot listen on {host}, port {port} ({reason}): choose another with --host and --port"
        ) from None
    return listening
