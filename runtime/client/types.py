"""What clients of `bfr serve` are given: results, jobs; and what they send and pause for."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.images.decode import decode_image

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """A restored image.

    data: the file. faces: how many were restored; failed: how many could not be. seconds: stage -> seconds there.
    """

    data: bytes = field(repr=False)
    media_type: str
    faces: int
    failed: int
    seed: int
    preset: str
    bundle: str
    seconds: dict[str, float]
    request_id: str

    @property
    def pixels(self) -> NDArray[np.unsignedinteger]:
        """(H, W, 3) uint8 RGB, or uint16 where a PNG has 16 bits. Decoded anew each time."""
        return decode_image(self.data, name="the server's answer").pixels


@dataclass(frozen=True, slots=True)
class Job:
    """Long work, of a video for example. share: 0 to 1. created: ISO 8601. error: why it failed, or what of it did."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    share: float
    created: str
    error: str | None = None
    result: str | None = None
    faces: int | None = None
    frames: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """To be sent. body: a path is of a file. into: where the body of a 200 goes, whole or not at all.

    seconds: to wait for the next bytes, in either direction; for the whole answer too where `bounded`.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Path = b""
    into: Path | None = None
    seconds: float = 60.0
    bounded: bool = True


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing happens for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever it says. headers: by names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """Nothing came back. sent: the server may have the request."""

    reason: str
    sent: bool


Call = Generator[Request | Pause, Answer | Lost | None, T]
