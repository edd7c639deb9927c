"""Long work on disk: one folder a job, so that what was accepted survives a restart.

JOBS/ID/request.json   what was asked; the job exists from the moment this folder has its name
JOBS/ID/input.SUFFIX   the file that was sent
JOBS/ID/state.json     written by the worker alone; not there: the job is queued
JOBS/ID/cancel         somebody does not want it any more
JOBS/ID/out/           the result and the report of the run
"""

import asyncio
import json
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal, get_args

from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.files import atomic_folder, write_bytes

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled")
MOST_ATTEMPTS = 3  # a job that ended its worker so often is not tried again
_ID = re.compile(r"[0-9a-f]{32}")
_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What was asked for. created: seconds since 1970. suffix: of the input."""

    created: float
    preset: str
    seed: int
    aligned: bool
    photo: PhotoOptions
    format: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Status:
    """Where a job is. share: 0 to 1. result: the name of the file below `out`. attempts: how often it was begun."""

    state: JobState = "queued"
    share: float = 0.0
    error: str | None = None
    result: str | None = None
    faces: int | None = None
    frames: int | None = None
    attempts: int = 0
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job of a store."""

    id: str
    folder: Path
    request: JobRequest

    @property
    def status(self) -> Status:
        """As the worker wrote it last."""
        try:
            found = json.loads((self.folder / "state.json").read_bytes())
            status = Status(**found)
            if status.state not in get_args(JobState):
                raise ValueError(status.state)
        except (OSError, ValueError, TypeError):
            status = Status()
        if self.cancelled and status.state not in ENDED:
            return replace(status, state="cancelled")
        return status

    @property
    def input(self) -> Path:
        """The file that was sent."""
        return self.folder / f"input{self.request.suffix}"

    @property
    def out(self) -> Path:
        """Where the run writes."""
        return self.folder / "out"

    @property
    def cancelled(self) -> bool:
        """Whether somebody does not want it any more."""
        return (self.folder / "cancel").exists()

    @property
    def result(self) -> Path | None:
        """The restored file, once it is there; never one of another folder."""
        name = self.status.result
        return self.out / name if name and "/" not in name else None

    def write(self, status: Status) -> None:
        """By the worker alone. Raises WriteFailed."""
        write_bytes(self.folder / "state.json", json.dumps(asdict(status)).encode())

    def describe(self) -> dict[str, Any]:
        """As the server tells it."""
        status = self.status
        return {
            "id": self.id,
            "state": status.state,
            "share": round(status.share, 4),
            "created": datetime.fromtimestamp(self.request.created, UTC).isoformat(timespec="seconds"),
            "error": status.error,
            "result": f"/jobs/{self.id}/result" if status.state == "done" else None,
            "faces": status.faces,
            "frames": status.frames,
        }


class JobStore:
    """The jobs of a folder. Processes share it: whoever takes jobs in, and the one worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def add(self, request: JobRequest, body: AsyncIterator[bytes]) -> Job:
        """Keep a job whose input is `body`, whole or not at all. Raises WriteFailed, and what `body` does."""
        job = Job(token_hex(16), self.folder, request)
        target = self.folder / job.id
        # On an event loop: whatever touches the disk runs in a thread.
        with ExitStack() as stack:
            temporary = await asyncio.to_thread(stack.enter_context, atomic_folder(target))
            file = stack.enter_context((temporary / job.input.name).open("wb"))
            held = bytearray()
            async for chunk in body:
                held += chunk
                if len(held) >= _CHUNK:
                    await asyncio.to_thread(file.write, bytes(held))
                    held.clear()
            await asyncio.to_thread(file.write, bytes(held))
            (temporary / "request.json").write_text(json.dumps(asdict(request), default=dict))
            await asyncio.to_thread(stack.close)  # synced, and given its name
        return replace(job, folder=target)

    def get(self, name: str) -> Job | None:
        """The job of an id, None where there is none. Nothing but an id is ever made a path."""
        if not _ID.fullmatch(name):
            return None
        folder = self.folder / name
        try:
            found = json.loads((folder / "request.json").read_bytes())
            return Job(name, folder, JobRequest(**{**found, "photo": PhotoOptions(**found["photo"])}))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def jobs(self) -> list[Job]:
        """All of them, the oldest first."""
        with suppress(OSError):
            found = [job for path in self.folder.iterdir() if (job := self.get(path.name))]
            return sorted(found, key=lambda job: (job.request.created, job.id))
        return []

    def waiting(self) -> list[Job]:
        """Those that are left to do, the oldest first; one that a worker left half-way is one of them."""
        return [job for job in self.jobs() if job.status.state not in ENDED]

    def remove(self, job: Job) -> None:
        """Delete a job. One that is worked on is marked, and deleted by the worker."""
        with suppress(OSError):
            (job.folder / "cancel").touch()
        if job.status.attempts == 0 or job.status.ended is not None:
            shutil.rmtree(job.folder, ignore_errors=True)

    def clean(self, seconds: float) -> None:
        """Delete what ended longer ago, or was cancelled."""
        for job in self.jobs():
            ended = job.status.ended
            if job.cancelled or (ended is not None and time.time() - ended > seconds):
                shutil.rmtree(job.folder, ignore_errors=True)


def check_folder(folder: Path) -> None:
    """Make the folder of jobs. Raises InvalidOption where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidOption(
            f"the folder of jobs, {folder}, cannot be written ({error.strerror}): name another one with --jobs"
        ) from None
