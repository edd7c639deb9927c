"""A worker process as the server sees it: started, given calls of faces, stopped."""

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bfr.runtime.errors import RestorationFailed
from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve import logs
from bfr.runtime.serve.keys import KEY_VARIABLE
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.workers.batching import Face, Failed
from bfr.runtime.serve.workers.wire import BUFFER, Message, pack, read, unpack_results

MODULE = "bfr.runtime.serve.workers.process"
END = 5.0  # seconds that a process may take to end once its line is closed


class WorkerLost(Exception):
    """The process ended, or its device is lost."""


class Child:
    """A child process and the socket to it. The process inherits that socket and the two outputs, and no API key."""

    def __init__(self, module: str) -> None:
        """Start it; `open` makes the line usable."""
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=logs.output(),
                pass_fds=[theirs.fileno()],
                env={name: value for name, value in os.environ.items() if name != KEY_VARIABLE},
            )

    async def open(self) -> None:
        """Attach the line to the event loop."""
        self.reader, self.writer = await asyncio.open_connection(sock=self._socket, limit=BUFFER)

    def write(self, content: dict[str, Any], arrays: Sequence[Any] = ()) -> None:
        """Send a message, which waits in memory until the process reads it."""
        self.writer.writelines(pack(content, arrays))

    async def send(self, content: dict[str, Any], arrays: Sequence[Any] = ()) -> None:
        """Send a message and wait until most of it is sent. Raises OSError if the process has ended."""
        self.write(content, arrays)
        await self.writer.drain()

    async def receive(self) -> Message:
        """The next message. Raises EOFError, or OSError, where the process has ended."""
        return await read(self.reader)

    async def end(self, seconds: float = END) -> int:
        """Close the line and wait for the process, which is killed after so many seconds; its exit status."""
        with suppress(AttributeError, OSError):
            self.writer.close()
        try:
            return await asyncio.to_thread(self.process.wait, seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return await asyncio.to_thread(self.process.wait)

    @property
    def resident(self) -> int:
        """Bytes of memory that it has; 0 if that is not known."""
        with suppress(OSError, ValueError):
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return 0


@dataclass(slots=True, eq=False)
class Call:
    """Faces of one group that were sent to a worker, and its answer; none if all of them were cancelled."""

    faces: Sequence[Face]
    answer: "asyncio.Future[list[Restored]]"

    def begin(self) -> None:
        """Note that the worker computes it from now on."""
        for face in self.faces:
            face.begun = time.monotonic()


class Worker:
    """The process of one device. It answers its calls in their order.

    Attributes:
        facts: What the process reported after its warm-up: `backend`, `calls`, `warm_up_seconds`; None before and
            after.
        calls: Calls in flight, by number. The worker computes the first; on a GPU the second is launched behind it.
        busy: Seconds that its calls took.
        memory: Free and total bytes of its device, as of the last call; None for a CPU.
        heard: `time.monotonic()` of its last message, or of a later call that it was given while it had none.
    """

    def __init__(self, options: ServeOptions, index: int, number: int) -> None:
        """Make the worker; `spawn` starts its process.

        Args:
            options: What is served.
            index: Number of the GPU.
            number: The worker's number.
        """
        self.number = number
        self._setup = {"options": options.model_dump(mode="json"), "index": index}
        self.facts: dict[str, Any] | None = None
        self.calls: dict[int, Call] = {}
        self.busy = 0.0
        self.memory: tuple[int, int] | None = None
        self.heard = 0.0
        self.child: Child | None = None
        self._numbers = itertools.count()

    def spawn(self) -> Child:
        """Start the process, which begins to import at once; `start` waits for it. Raises RestorationFailed."""
        if self.child is None:
            try:
                self.child = Child(MODULE)
            except OSError as error:  # the system has no room for another process or file just now
                raise RestorationFailed(f"a worker could not be started: {error.strerror}") from error
        return self.child

    async def start(self) -> None:
        """Wait until it is warm. Raises RestorationFailed with the reason if it fails before."""
        child = self.spawn()
        try:
            await child.open()
            await child.send(self._setup)
            answer, _ = await child.receive()
        except (EOFError, OSError):
            status = await self.end()
            raise RestorationFailed(f"a worker could not start ({ended(status)}): see the log above") from None
        except asyncio.CancelledError:
            await self.end(0)
            raise
        if "failed" in answer:
            await self.end()
            raise RestorationFailed(f"the networks could not be started: {answer['failed']}")
        self.facts = answer["ready"]

    @property
    def silent(self) -> float:
        """Seconds for which it has had a call and said nothing."""
        return time.monotonic() - self.heard if self.calls else 0.0

    async def run(self, faces: Sequence[Face]) -> list[Restored]:
        """Restore faces of one group, and update their `share`. The work stops once all of their futures are cancelled.

        Cancelled, as it is when the process has ended, it leaves its call in `calls`. Returns one result a face; none
        if the work was stopped. Raises Failed where the networks could not restore them.
        """
        child = self.child
        assert child is not None  # noqa: S101
        number, call = next(self._numbers), Call(faces, asyncio.get_running_loop().create_future())
        if not self.calls:
            self.heard = time.monotonic()
            call.begin()
        self.calls[number] = call

        def stop_when_alone(_: object) -> None:
            if all(face.future.cancelled() for face in faces):
                child.write({"stop": number})

        for face in faces:
            face.future.add_done_callback(stop_when_alone)
        group = faces[0].ticket.order.group
        content = {
            "call": number,
            "group": [group.bundle, group.preset, group.seed],
            "keys": [face.key for face in faces],
            "alone": any(face.losses for face in faces),
        }
        try:
            with suppress(OSError):  # `listen` notices that the process has ended
                await child.send(content, [face.pixels for face in faces])
            return await call.answer
        finally:
            for face in faces:
                face.future.remove_done_callback(stop_when_alone)

    async def listen(self) -> NoReturn:
        """Take the answers of calls. Raises WorkerLost as soon as the process has ended; `end` gives its status."""
        child = self.child
        assert child is not None  # noqa: S101
        try:
            while True:
                answer, arrays = await child.receive()
                self.heard = time.monotonic()
                if "lost" in answer:
                    raise WorkerLost(answer["lost"])
                number, call = next(iter(self.calls.items()))
                if "share" in answer:
                    for face in call.faces:
                        face.share = answer["share"]
                    continue
                del self.calls[number]
                for following in itertools.islice(self.calls.values(), 1):
                    following.begin()
                self.busy += answer["seconds"]
                self.memory = answer.get("memory")
                if call.answer.done():
                    continue
                if "error" in answer:
                    call.answer.set_exception(Failed(answer["error"]))
                else:
                    call.answer.set_result(unpack_results(answer.get("results", ()), arrays))
        except (EOFError, OSError):
            raise WorkerLost from None

    async def end(self, seconds: float = END) -> int:
        """End the process; its exit status."""
        child, self.child, self.facts = self.child, None, None
        return await child.end(seconds) if child else 0


def ended(status: int) -> str:
    """How a process ended."""
    return f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status}"
