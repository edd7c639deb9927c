"""The folder of jobs, so that what was accepted survives a restart. All files are their owner's alone.

JOBS/incoming/ID/          an upload under way; JOBS/incoming/ID.lock is held by its process
JOBS/open/ID/              a job that is queued or runs; `lock` in it is held by the process that works on it
JOBS/ended/ID/             a job that has ended; it is read for requests alone, and deleted when its time has passed
JOBS/deleted/ID/           what is being deleted
ID/request.json            what was asked
ID/input.SUFFIX            the file that was sent
ID/state.json              where it is; not there: it is queued
ID/out/                    the result and the report of the run

A job moves from one folder to the next by a rename, which happens or does not.
"""

import asyncio
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.serve.jobs.job import Job, JobRequest, Status, private

PARTS = ("incoming", "open", "ended", "deleted")
LEAST_FREE = 100_000_000  # bytes of the disk below which no job is taken
_ID = re.compile(r"[0-9a-f]{32}")
_OF_THE_DISK = "lost+found"  # where it is a disk of its own
_CHUNK = 1 << 20  # bytes


class JobStore:
    """The jobs of a folder. Servers may share it: each job is worked on by one of them."""

    def __init__(self, folder: Path) -> None:
        """Make the folders. Raises InvalidOption if they cannot be written, or the folder holds something else."""
        self.folder = folder
        other = [name for name in _names(folder) if name not in (*PARTS, _OF_THE_DISK) and not name.startswith(".")]
        if other:  # /tmp or a home folder would be closed to others
            raise InvalidOption(
                f"the folder of jobs, {folder.absolute()}, holds other files ({min(other)}): choose a folder for jobs "
                "alone with --jobs"
            )
        try:
            for path in (folder, *(folder / part for part in PARTS)):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                with suppress(PermissionError):  # a mounted disk may be another user's
                    path.chmod(0o700)
            probe = folder / f".probe-{token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InvalidOption(
                f"the folder of jobs, {folder}, cannot be written ({error.strerror}): name another one with --jobs"
            ) from None

    async def add(self, request: JobRequest, body: AsyncIterator[bytes]) -> Job:
        """Write a job, whole or not at all.

        Args:
            request: What was asked for.
            body: The input, in parts.

        Raises:
            OSError: The disk is full, or the folder cannot be written; what `body` raises is passed on.
        """
        job = Job(token_hex(16), self.folder, request)
        job = replace(job, folder=self.folder / "incoming" / job.id)
        with _locked(self.folder / "incoming" / f"{job.id}.lock"):
            try:
                job.folder.mkdir(mode=0o700)
                with open(job.input, "xb", opener=private) as file:
                    held = bytearray()
                    async for chunk in body:
                        held += chunk
                        if len(held) >= _CHUNK:
                            if self.free() < 0:
                                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                            await asyncio.to_thread(file.write, bytes(held))
                            held.clear()
                    await asyncio.to_thread(file.write, held)
                    await asyncio.to_thread(_sync, file)
                await asyncio.to_thread(_describe, job)
                target = self.folder / "open" / job.id
                job.folder.rename(target)  # not in a thread: whoever is cancelled finds it accepted, or not
                return replace(job, folder=target)
            except BaseException:
                shutil.rmtree(job.folder, ignore_errors=True)
                raise

    def get(self, name: str, parts: tuple[str, ...] = ("open", "ended")) -> Job | None:
        """The job of an id, None if there is none. Nothing but an id is ever made a path."""
        if not _ID.fullmatch(name):
            return None
        for part in (*parts, *parts[1:]):  # a job may move to the last one between two looks
            folder = self.folder / part / name
            with suppress(OSError, ValueError, TypeError, KeyError):
                found = json.loads((folder / "request.json").read_bytes())
                photo = dict(found["photo"])
                photo.pop("detector", None)  # of an earlier version: its server's own
                return Job(name, folder, JobRequest(**{**found, "photo": PhotoOptions(**photo)}))
        return None

    def waiting(self) -> list[Job]:
        """The jobs that are left to do, the oldest first, and among them those whose process has died."""
        return self._jobs("open")

    def of(self, owner: str) -> list[Job]:
        """All jobs of an owner, the newest first."""
        found = {job.id: job for part in ("open", "ended") for job in self._jobs(part) if job.request.owner == owner}
        return sorted(found.values(), key=lambda job: -job.request.created)

    def count(self) -> int:
        """How many jobs have not ended."""
        return sum(1 for _ in filter(_ID.fullmatch, _names(self.folder / "open")))

    def end(self, job: Job, status: Status) -> None:
        """Keep the last status of a job. Raises OSError."""
        job.write(status)
        os.utime(job.folder)  # its time begins
        job.folder.rename(self.folder / "ended" / job.id)

    def remove(self, name: str) -> None:
        """Delete the job of an id, even while a process works on it: what that writes later is lost."""
        for part in ("open", "ended"):
            with suppress(OSError):
                (self.folder / part / name).rename(self.folder / "deleted" / name)
        shutil.rmtree(self.folder / "deleted" / name, ignore_errors=True)

    @contextmanager
    def taken(self, job: Job) -> Iterator[bool]:
        """Hold a job. Yields whether this process has it now; another process may work on it."""
        with ExitStack() as held:
            try:
                held.enter_context(_locked(job.folder / "lock", keep=True))
                ours = (job.folder / "request.json").is_file()
            except (BlockingIOError, FileNotFoundError):
                ours = False
            yield ours

    def sweep(self, seconds: float) -> None:
        """Delete what ended longer ago, and what a crash or an interrupted DELETE left; nothing but jobs."""
        for name in {name.removesuffix(".lock") for name in _names(self.folder / "incoming")}:
            if _ID.fullmatch(name):
                with suppress(OSError), _locked(self.folder / "incoming" / f"{name}.lock"):
                    shutil.rmtree(self.folder / "incoming" / name, ignore_errors=True)
        for name in filter(_ID.fullmatch, _names(self.folder / "deleted")):
            shutil.rmtree(self.folder / "deleted" / name, ignore_errors=True)
        for name in filter(_ID.fullmatch, _names(self.folder / "open")):
            folder = self.folder / "open" / name
            if not (folder / "request.json").exists():  # what a deleted job's process wrote afterwards
                shutil.rmtree(folder, ignore_errors=True)
        for name in filter(_ID.fullmatch, _names(self.folder / "ended")):
            with suppress(OSError):
                if time.time() - (self.folder / "ended" / name).stat().st_mtime > seconds:
                    self.remove(name)

    def free(self) -> int:
        """Bytes that may be written to the disk until it counts as full; below 0 it does."""
        with suppress(OSError):
            return shutil.disk_usage(self.folder).free - LEAST_FREE
        return -1

    def _jobs(self, part: str) -> list[Job]:
        found = [job for name in _names(self.folder / part) if (job := self.get(name, (part,)))]
        return sorted(found, key=lambda job: (job.request.created, job.id))


def _describe(job: Job) -> None:
    """Write what was asked for. Called in a thread."""
    with open(job.folder / "request.json", "x", opener=private) as file:
        json.dump(asdict(job.request), file, default=dict)
        _sync(file)


@contextmanager
def _locked(path: Path, *, keep: bool = False) -> Iterator[None]:
    """Hold a lock, a file that is created, and ends with the process. keep: leave the file at the end.

    Raises BlockingIOError where another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            if not keep:
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _names(folder: Path) -> list[str]:
    with suppress(OSError):
        return [entry.name for entry in os.scandir(folder)]
    return []


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
