"""What the parts of a server tell each other: plain, small and frozen."""

from dataclasses import dataclass, field
from typing import Literal

from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.restore.batch import Restored

State = Literal["queued", "reading", "restoring", "writing"]


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a request, for fair queueing.

    name: of the API key, else the client's address; requests of one name share its turns.
    weight: turns in relation to those of others.
    """

    name: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Group:
    """What the faces of a batch have in common: the bundle's name, the preset, and the seed of the noise."""

    bundle: str
    preset: str
    seed: int


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done with an image.

    aligned: it is an aligned face, nothing else. suffix: .png, .jpg or .webp, None for the image's own format.
    deadline: of `time.monotonic()`; faces that wait longer are dropped.
    """

    group: Group
    deadline: float
    aligned: bool = False
    photo: PhotoOptions = field(default_factory=PhotoOptions)
    suffix: str | None = None
    sender: Sender = Sender()


@dataclass(frozen=True, slots=True)
class FaceOrder:
    """What is to be done with faces. keys: of their noise, see `Restorer.run`. urgent: a request waits for them."""

    group: Group
    deadline: float
    keys: tuple[int | None, ...] | None = None
    urgent: bool = True
    sender: Sender = Sender()


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a face. waited: seconds in the queue."""

    restored: Restored
    waited: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a request is. share: of the denoising, 0 to 1."""

    state: State
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A restored image.

    data: of an image in the format that `suffix` names. faces, failed: how many were restored and how many could not
    be. seconds: stage -> seconds. notes: what of the image was left out, reduced or taken otherwise than it says.
    sharp: faces that were left because they are sharp already.
    """

    data: bytes
    suffix: str
    faces: int
    failed: int
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
    sharp: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no image.

    kind: `invalid` is the sender's to mend, `overload` met too many faces in flight, `expired` waited too long, `lost`
    ended two workers, `failed` is the server's fault.
    """

    kind: Literal["invalid", "overload", "expired", "lost", "failed"]
    detail: str
