"""What clients of `bfr serve` are given: restored images and jobs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bfr.runtime.files import write_bytes
from bfr.runtime.images.decode import decode_image


@dataclass(frozen=True, slots=True)
class Result:
    """A restored image.

    Attributes:
        data: The file.
        faces: How many were restored.
        failed: How many could not be.
        seconds: Stage -> seconds there.
        notes: What the server dropped, reduced or reinterpreted of the image.
        sharp: How many faces were left because they are sharp already.
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
    notes: tuple[str, ...] = ()
    sharp: int = 0

    def save(self, path: str | Path) -> Path:
        """Write the file as it came, replacing one of that name; returns the path. Raises WriteFailed."""
        write_bytes(Path(path), self.data)
        return Path(path)

    @property
    def pixels(self) -> NDArray[np.unsignedinteger]:
        """(H, W, 3) uint8 RGB, or uint16 where a PNG has 16 bits. Each access decodes again."""
        return decode_image(self.data, name="the server's answer").pixels


@dataclass(frozen=True, slots=True)
class Job:
    """Long work, of a video for example.

    Attributes:
        share: 0 to 1.
        created: ISO 8601.
        error: Why it failed, or what of it did; of a queued one, why the server does not begin it.
        warped: How many of the faces were warped from a key frame.
    """

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    share: Annotated[float, Field(ge=0, le=1)]
    created: str
    error: str | None = None
    result: str | None = None
    faces: Annotated[int, Field(ge=0)] | None = None
    warped: Annotated[int, Field(ge=0)] | None = None
    frames: Annotated[int, Field(ge=0)] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state not in ("queued", "running")
