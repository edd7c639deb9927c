"""A job on disk: what was asked, where it is, and its files."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.serve.systems import System
from bfr.runtime.video.options import VideoOptions

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[JobState, ...] = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class JobRequest:
    """The request of a job.

    Attributes:
        created: Seconds since 1970.
        suffix: Suffix of the input.
        owner: Name of the API key.
    """

    created: float
    bundle: str
    preset: str
    seed: int
    aligned: bool
    photo: PhotoOptions
    suffix: str
    owner: str = ""
    key_frames: int = VideoOptions().key_frames


@dataclass(frozen=True, slots=True)
class Status:
    """Where a job is.

    Attributes:
        share: 0 to 1.
        result: The name of the file below `out`.
        attempts: How often it was begun.
    """

    state: JobState = "queued"
    share: float = 0.0
    error: str | None = None
    result: str | None = None
    faces: int | None = None
    warped: int | None = None
    frames: int | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A job of a store."""

    id: str
    folder: Path
    request: JobRequest

    @property
    def status(self) -> Status:
        """As it was written last. A power cut may have left a file that cannot be read."""
        with suppress(OSError, ValueError, TypeError), self.open("state.json") as file:
            status = Status(**json.load(file))
            if status.state in get_args(JobState):
                return status
        if self.folder.parent.name == "ended":
            return Status("failed", error="what became of it was lost as the server ended: send it again")
        return Status()

    def open(self, name: str) -> BinaryIO:
        """Open one of its files, also where the job has moved since it was found. Raises OSError."""
        try:
            return (self.folder / name).open("rb")
        except FileNotFoundError:
            return (self.folder.parents[1] / "ended" / self.id / name).open("rb")

    @property
    def input(self) -> Path:
        """The file that was sent."""
        return self.folder / f"input{self.request.suffix}"

    @property
    def out(self) -> Path:
        """Where the run writes."""
        return self.folder / "out"

    @property
    def result(self) -> str | None:
        """The name of the restored file, for `open`, once it is there; never one of another folder."""
        name = self.status.result
        return f"{self.out.name}/{name}" if name and "/" not in name else None

    def write(self, status: Status) -> None:
        """Keep a status. Raises OSError, also where the job was deleted: its folder is not made again."""
        temporary = self.folder / "state.part"
        with open(temporary, "w", opener=private) as file:
            json.dump(asdict(status), file)
        temporary.replace(self.folder / "state.json")

    def lacks(self, systems: Mapping[str, System]) -> str | None:
        """Say what a server that offers `systems` does not offer of what the job was sent for, if anything."""
        wanted = self.request
        if wanted.bundle in systems and wanted.preset in systems[wanted.bundle].presets:
            return None
        return (
            f"this server does not offer bundle {wanted.bundle!r} with preset {wanted.preset!r}: the job waits for one "
            "that does. Delete it and send it again for what `GET /info` lists, or ask the server's operator"
        )

    def describe(self, systems: Mapping[str, System]) -> dict[str, Any]:
        """Describe it as the `JobInfo` of a server that offers `systems`."""
        status = self.status
        waits = self.lacks(systems) if status.state == "queued" else None
        return {
            "id": self.id,
            "state": status.state,
            "share": round(status.share, 4),
            "created": datetime.fromtimestamp(self.request.created, timezone.utc).isoformat(timespec="seconds"),
            "error": status.error or waits,
            "result": f"/jobs/{self.id}/result" if status.state == "done" else None,
            "faces": status.faces,
            "warped": status.warped,
            "frames": status.frames,
        }


def private(path: str, flags: int) -> int:
    """Open a file that is its owner's alone, as the `opener` of `open`."""
    return os.open(path, flags, 0o600)
