"""The options of restoring a photograph."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from bfr.runtime.options import Options

Selection = Literal["all", "largest", "centre"]
Detail = Literal["auto", "photo", "crop"]
_Scale = Literal[1, 2, 4]
UPSCALES: tuple[int, ...] = get_args(_Scale)
Upscale = Annotated[
    _Scale, BeforeValidator(lambda value: int(value) if isinstance(value, str) and value.isdecimal() else value)
]
"""Also accepts text, because a query and the command line have only text."""


class PhotoOptions(Options):
    """What is done with a photograph."""

    faces: Selection = Field(default="all", description="Which faces to restore.")
    min_eye_distance: float = Field(default=5.0, ge=0, description="Skip faces with fewer pixels between the eyes.")
    max_faces: int = Field(
        default=256, ge=1, description="Restore at most this many faces of a photograph, those with the best scores."
    )
    upscale: Upscale = Field(default=1, description="Factor by which width and height are enlarged.")
    background: Path | None = Field(
        default=None,
        description="Bundle of one network that enlarges the rest of the picture. Default: Lanczos.",
    )
    blend: float = Field(
        default=1.0, ge=0, le=1, description="Strength: 0 leaves faces as they were, 1 is fully restored."
    )
    keep_colour: bool = Field(default=False, description="Keep the faces' colours and light; restore only structure.")
    detail: Detail = Field(
        default="auto",
        description="The photograph's detail in faces larger than the network's output: auto keeps what is stronger "
        "than the noise, photo keeps all of it, crop none.",
    )
    restore_sharp: bool = Field(default=False, description="Also restore faces that are already sharp.")
