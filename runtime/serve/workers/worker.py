"""A worker process as the server sees it: started, given calls of faces, stopped."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bfr.runtime.errors import RestorationFailed
from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve import logs
from bfr.runtime.serve.keys import KEY_VARIABLE
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.workers.batching import Face, Failed
from bfr.runtime.serve.workers.wire import BUFFER, Message, pack, read, unpack_results

MODULE = "bfr.runtime.serve.workers.process"
END = 5.0  # seconds that a process may take to end once its line is closed
_log = logging.getLogger("bfr.serve")


class WorkerLost(Exception):
    """The process ended, or its device is lost."""


class Child:
    """A process of ours and the line to it. It inherits no API key, and nothing but the line and the two outputs."""

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

    async def send(self, content: dict[str, Any], arrays: Sequence[Any] = ()) -> None:
        """Send a message. Raises OSError where the process has ended."""
        self.writer.writelines(pack(content, arrays))
        await self.writer.drain()

    async def receive(self) -> Message:
        """The next message. Raises EOFError, or OSError, where the process has ended."""
        return await read(self.reader)

    async def ended(self) -> None:
        """Return once the process has ended; for one that has nothing to say."""
        with suppress(OSError):
            await self.reader.read(1)

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
        """Bytes of memory that it has; 0 where that is not known."""
        with suppress(OSError, ValueError):
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return 0


class Worker:
    """The process of one device.

    Attributes:
        facts: What it said when it was warm: `backend`, `ahead`, `warm_up_seconds`; None before and after.
        busy: Seconds that its calls took.
        memory: Free and total bytes of its device, as of the last call; None for a CPU.
    """

    def __init__(self, options: ServeOptions, index: int, number: int) -> None:
        """index: the number of the GPU. number: of the worker."""
        self.number = number
        self._setup = {"options": options.model_dump(mode="json"), "index": index}
        self.facts: dict[str, Any] | None = None
        self.busy = 0.0
        self.memory: tuple[int, int] | None = None
        self.child: Child | None = None

    def spawn(self) -> None:
        """Start the process, which begins to import at once; `start` waits for it."""
        if self.child is None:
            self.child = Child(MODULE)

    async def start(self) -> None:
        """Wait until it is warm. Raises RestorationFailed with the reason where it does not get there."""
        self.spawn()
        child = self.child
        assert child is not None  # noqa: S101
        try:
            await child.open()
            await child.send(self._setup)
            answer, _ = await child.receive()
        except (EOFError, OSError):
            status = await self.end()
            raise RestorationFailed(f"a worker could not start ({_ended(status)}): see the log above") from None
        except asyncio.CancelledError:
            await self.end(0)
            raise
        if "failed" in answer:
            await self.end()
            raise RestorationFailed(f"the networks could not be started: {answer['failed']}")
        self.facts = answer["ready"]

    async def run(self, faces: Sequence[Face]) -> list[Restored]:
        """Restore faces of one group. Their `share` follows the work, which ends where nobody waits for any of them.

        Raises:
            WorkerLost: The process ended.
            Failed: The networks could not restore them.
        """
        child = self.child
        assert child is not None  # noqa: S101
        group = faces[0].ticket.order.group
        content = {"group": [group.bundle, group.preset, group.seed], "keys": [face.key for face in faces]}

        def stop_when_alone(_: object) -> None:
            if all(face.future.cancelled() for face in faces):
                with suppress(OSError):
                    child.writer.writelines(pack({}))

        for face in faces:
            face.future.add_done_callback(stop_when_alone)
        try:
            await child.send(content, [face.pixels for face in faces])
            while True:
                answer, arrays = await child.receive()
                for face in faces if "share" in answer else ():
                    face.share = answer["share"]
                if "lost" in answer:
                    raise WorkerLost(answer["lost"])
                if "seconds" in answer:
                    break
        except (EOFError, OSError):
            raise WorkerLost(_ended(await self.end())) from None
        finally:
            for face in faces:
                face.future.remove_done_callback(stop_when_alone)
        self.busy += answer["seconds"]
        self.memory = answer.get("memory")
        if "error" in answer:
            raise Failed(answer["error"])
        return unpack_results(answer.get("results", ()), arrays)

    async def end(self, seconds: float = END) -> int:
        """End the process; its exit status."""
        child, self.child, self.facts = self.child, None, None
        return await child.end(seconds) if child else 0


def _ended(status: int) -> str:
    """How a process ended."""
    return f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status}"
