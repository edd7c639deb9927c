"""Messages between the parts of a server."""

from dataclasses import dataclass, field
from typing import Literal

from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.restore.batch import Restored

State = Literal["queued", "reading", "restoring", "writing"]


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a request, for fair queueing.

    Attributes:
        name: Name of the API key, else the client's address; requests of one name share its turns.
        weight: Turns in relation to those of others.
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

    Attributes:
        group: Bundle, preset and seed.
        deadline: A time of `time.monotonic()`, at which the work on it ends.
        aligned: The image is an aligned face and nothing else.
        photo: How faces of a photograph are found and pasted.
        suffix: .png, .jpg or .webp, None for the image's own format.
        sender: The sender, for fair queueing.
    """

    group: Group
    deadline: float
    aligned: bool = False
    photo: PhotoOptions = field(default_factory=PhotoOptions)
    suffix: str | None = None
    sender: Sender = Sender()


@dataclass(frozen=True, slots=True)
class FaceOrder:
    """What is to be done with faces.

    Attributes:
        group: Bundle, preset and seed.
        keys: Keys of their noise, see `Restorer.run`.
        urgent: They are of a request; faces of jobs go when no request waits.
        sender: The sender, for fair queueing.
    """

    group: Group
    keys: tuple[int | None, ...] | None = None
    urgent: bool = True
    sender: Sender = Sender()


@dataclass(frozen=True, slots=True)
class Finished:
    """The outcome of a face, which waited so many seconds in the queue."""

    restored: Restored
    waited: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a request is.

    Attributes:
        share: Share of the denoising, 0 to 1.
    """

    state: State
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A restored image.

    Attributes:
        data: An image file in the format that `suffix` names.
        faces: How many were restored.
        failed: How many could not be.
        seconds: Stage -> seconds.
        notes: What of the image was left out, reduced or read in another way than the file says.
        sharp: How many faces were left because they are sharp already.
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

    Attributes:
        kind: `invalid`: the image is at fault. `overload`: too many faces are in flight. `expired`: it waited longer
            than it may. `lost`: two workers ended with it. `failed`: the server is at fault.
        detail: The reason in words, and what the sender can do.
    """

    kind: Literal["invalid", "overload", "expired", "lost", "failed"]
    detail: str
