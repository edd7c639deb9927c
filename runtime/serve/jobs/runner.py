"""Runs the jobs of a folder one at a time, each in a separate process."""

import asyncio
import errno
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bfr.runtime.serve.jobs.job import ENDED, Job, Status
from bfr.runtime.serve.jobs.store import JobStore
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import FaceOrder, Group, Refusal
from bfr.runtime.serve.systems import System
from bfr.runtime.serve.workers.pool import RestoreFaces
from bfr.runtime.serve.workers.wire import pack_results
from bfr.runtime.serve.workers.worker import Child
from bfr.runtime.timeouts import timeout

MODULE = "bfr.runtime.serve.jobs.process"
MOST_ATTEMPTS = 3  # a job that ended its process so often is not tried again
POLL = 30.0  # seconds between two looks for the jobs of other servers, and for what is to be deleted
LOOK = 1.0  # seconds between two looks at what a job has written
PAUSE = 5.0  # seconds after the disk failed
HANGS = 1800.0  # seconds after which a process that says nothing has failed; a large frame may take minutes
_log = logging.getLogger("bfr.serve")


class Exceeded(Exception):
    """A job went past one of its limits, or hangs."""


class JobRunner:
    """Runs the jobs of a store: owners take turns, each with the oldest of theirs.

    Its faces fill batches, and go alone when no request waits.
    """

    def __init__(
        self,
        options: ServeOptions,
        store: JobStore,
        restore_faces: RestoreFaces,
        systems: Mapping[str, System],
        *,
        batch: int,
        on_end: Callable[[str], None] = lambda _state: None,
    ) -> None:
        """Make the runner; `run` starts it.

        Args:
            options: The limits of jobs.
            store: The folder of jobs.
            restore_faces: See `Pool.restore`.
            systems: What the server offers.
            batch: Faces that the workers restore at once.
            on_end: Called with the state of each job that has ended.
        """
        self.options, self.store, self.batch, self.on_end = options, store, batch, on_end
        self._restore_faces, self.systems = restore_faces, systems
        self._silent_since = math.inf  # when the process of the job was last heard; it is not while it waits for faces
        self._turns: dict[str, float] = {}  # when the last job of an owner was begun
        self._passed_over: set[str] = set()  # jobs that wait for another server
        self._wake = asyncio.Event()
        self._current: tuple[str, asyncio.Task[Status]] | None = None
        self.trouble: str | None = None  # what keeps jobs from being done

    def wake(self) -> None:
        """Have `run` look for a job that was added."""
        self._wake.set()

    async def cancel(self, name: str) -> None:
        """End the process of a job, where it is the one that runs; it is to be deleted then."""
        if self._current and self._current[0] == name:
            task = self._current[1]
            task.cancel("deleted")
            await asyncio.wait({task})

    async def run(self) -> None:
        """Work until it is cancelled; the job under way stays queued then."""
        while True:
            try:
                done = await self._look()
                self.trouble = None
            except OSError as error:
                self.trouble = f"jobs cannot be worked on: {error.strerror}"
                _log.error("jobs: %s", error)
                await asyncio.sleep(PAUSE)
                continue
            if not done:
                with suppress(asyncio.TimeoutError):  # not wait_for, which loses a cancellation as the event comes
                    async with timeout(POLL):
                        await self._wake.wait()
                self._wake.clear()

    async def _look(self) -> bool:
        """Do the next job that no other process works on; return whether there was one. Raises OSError."""
        await asyncio.to_thread(self.store.sweep, 3600 * self.options.keep_jobs)
        waiting = await asyncio.to_thread(self.store.waiting)
        for job in sorted(waiting, key=lambda job: self._turns.get(job.request.owner, 0.0)):
            if not self._offered(job):
                continue
            with self.store.taken(job) as ours:
                if ours:
                    self._turns[job.request.owner] = time.monotonic()
                    await self._do(job)
                    return True
        return False

    def _offered(self, job: Job) -> bool:
        """Whether this server has the bundle and the preset of a job; else it waits for one that has."""
        lack = job.lacks(self.systems)
        if lack and job.id not in self._passed_over:
            self._passed_over.add(job.id)
            _log.warning("job %s: %s", job.id, lack)
        return lack is None

    async def _do(self, job: Job) -> None:
        before = job.status
        queued = replace(before, state="queued", share=0.0)
        status = replace(before, state="running", share=0.0, attempts=before.attempts + 1)
        try:
            if before.state in ENDED:  # ended, and the rename was lost with its process
                self.store.end(job, before)
                return
            if status.attempts > MOST_ATTEMPTS:
                error = f"the job ended its process {MOST_ATTEMPTS} times: the file may be damaged"
                await self._end(job, replace(before, state="failed", error=error))
                return
            job.write(status)
            _log.info("job %s: begun, attempt %d", job.id, status.attempts)
            task = asyncio.create_task(self._work(job, status))
            self._current = job.id, task
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:  # the server ends, which is not the job's fault
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled():
                    task.exception()
                with suppress(OSError):
                    job.write(queued)
                raise
            finally:
                self._current = None
            if not task.cancelled():
                await self._end(job, task.result())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            _log.error("job %s: its process ended", job.id)
        except FileNotFoundError:
            _log.info("job %s was deleted", job.id)
        except OSError:  # no process could be started, or the disk failed: not the job's fault
            if job.status.state not in ENDED:  # else only its rename is lost
                with suppress(OSError):
                    job.write(queued)
            raise

    async def _end(self, job: Job, status: Status) -> None:
        await asyncio.to_thread(self.store.end, job, status)
        self.on_end(status.state)
        _log.info("job %s: %s", job.id, status.error or status.state)

    async def _work(self, job: Job, status: Status) -> Status:
        """Run the process of a job. Raises EOFError if it ended without an answer."""
        await asyncio.to_thread(shutil.rmtree, job.out, True)
        child = Child(MODULE)
        try:
            await child.open()
            talking = asyncio.create_task(self._talk(child, job, status))
            watching = asyncio.create_task(self._watch(job))
            try:
                await asyncio.wait({talking, watching}, return_when=asyncio.FIRST_COMPLETED)
                if talking.done():
                    return talking.result()
                return replace(status, state="failed", error=str(watching.exception()))
            finally:
                for task in (talking, watching):
                    task.cancel()
                await asyncio.gather(talking, watching, return_exceptions=True)
        finally:
            await child.end(0)

    async def _talk(self, child: Child, job: Job, status: Status) -> Status:
        """Answer the messages of a job's process until it has ended.

        Raises EOFError or OSError where the process ended; ChildProcessError before it looked at the job.
        """
        request = job.request
        setup = {
            "options": self.options.model_dump(mode="json", exclude={"keys"}),
            "request": {**asdict(request), "photo": request.photo.model_dump(mode="json")},
            "folder": str(job.folder),
            "batch": self.batch,
        }
        self._silent_since = time.monotonic()
        try:
            await child.send(setup)
            await child.receive()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise ChildProcessError(errno.ECHILD, "their process ends as it starts: see the log") from None
        while True:
            self._silent_since = time.monotonic()
            message, arrays = await child.receive()
            self._silent_since = math.inf
            if "ended" in message:
                ended = replace(status, **message["ended"])
                return replace(ended, error=ended.error and _without_paths(job, ended.error))
            if "share" in message:
                status = replace(status, share=message["share"])
                job.write(status)
            elif arrays:
                group = Group(request.bundle, request.preset, message["seed"])
                order = FaceOrder(group, keys=tuple(message["keys"]), urgent=False)
                await self._answer(child, order, arrays)

    async def _answer(self, child: Child, order: FaceOrder, faces: list[Any]) -> None:
        async with aclosing(self._restore_faces(faces, order)) as steps:
            async for step in steps:
                if isinstance(step, Refusal):
                    await child.send({"refused": step.detail})
                elif isinstance(step, float):
                    await child.send({"share": step})
                else:
                    results, pixels = pack_results([one.restored for one in step])
                    await child.send({"results": results}, pixels)

    async def _watch(self, job: Job) -> None:
        """Raise Exceeded where a job takes too long, writes too much, or hangs."""
        end, most = time.monotonic() + 3600 * self.options.job_hours, self.options.job_output
        while time.monotonic() < end:
            await asyncio.sleep(LOOK)
            written = await asyncio.to_thread(_bytes_in, job.out)
            if written > most:
                raise Exceeded(f"the result has more than {most} bytes, the limit here: send the file in parts")
            if time.monotonic() - self._silent_since > HANGS:
                raise Exceeded(f"it did nothing for {HANGS:g} s: the file may be damaged")
            if not job.folder.exists():
                raise Exceeded("it was deleted")
            if self.store.free() < 0:
                raise Exceeded("the disk of the jobs is full, or gone: ask the operator, and send it again later")
        raise Exceeded(f"the job took more than {self.options.job_hours:g} h, the limit here: send the file in parts")


def _bytes_in(folder: Path) -> int:
    """Bytes of the files below a folder, whose files and folders may vanish meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).stat().st_size
    return total


def _without_paths(job: Job, error: str) -> str:
    """An error without the server's own paths."""
    return error.replace(f" in {job.out}", "").replace(f"{job.folder}/", "").replace(str(job.folder), "the job")
