"""What the processes of a server tell each other: plain, small, frozen and picklable."""

from dataclasses import dataclass, field
from typing import Literal

from bfr.runtime.faces.options import PhotoOptions

State = Literal["queued", "reading", "restoring", "writing"]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done with an image.

    aligned: it is an aligned face, nothing else. suffix: .png, .jpg or .webp, None for the image's own format.
    deadline: seconds since 1970; faces that wait longer are dropped.
    """

    preset: str
    seed: int
    deadline: float
    aligned: bool = False
    photo: PhotoOptions = field(default_factory=PhotoOptions)
    suffix: str | None = None


@dataclass(frozen=True, slots=True)
class FaceOrder:
    """What is to be done with faces. keys: of their noise, see `Restorer.run`. urgent: a request waits for them."""

    preset: str
    seed: int
    deadline: float
    keys: tuple[int | None, ...] | None = None
    urgent: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a request is. share: of the denoising, 0 to 1."""

    state: State
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A restored image.

    data: of an image in the format that `suffix` names. faces, failed: how many were restored and how many could not
    be. seconds: stage -> seconds. batches: sizes of the batches that began with one of its faces.
    """

    data: bytes
    suffix: str
    faces: int
    failed: int
    seconds: dict[str, float]
    batches: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no image. kind: `invalid` is the sender's to mend, `expired` waited too long, `failed` is ours."""

    kind: Literal["invalid", "expired", "failed"]
    detail: str
