"""What a run does with images and how it writes its results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from bfr.runtime.diffusion.noise import WORD
from bfr.runtime.faces.options import PhotoOptions, Selection, Upscale
from bfr.runtime.images.decode import MAX_PIXELS
from bfr.runtime.images.encode import QUALITY
from bfr.runtime.images.formats import BY_SUFFIX, WRITTEN
from bfr.runtime.options import Options, field_of
from bfr.runtime.restore.options import OpenOptions
from bfr.runtime.restore.restorer import DEFAULT_SEED
from bfr.runtime.video.options import VideoOptions

FORMATS = ("same", *(one.suffixes[0] for one in WRITTEN))


def _suffix_of(name: Any) -> Any:
    """The suffix that results get, of a format's name with or without the dot: `JPEG` and `.jpeg` are `.jpg`."""
    found = BY_SUFFIX.get(f".{name.lower().removeprefix('.')}") if isinstance(name, str) else None
    return found.suffixes[0] if found in WRITTEN else name


if TYPE_CHECKING:
    Format = str
else:
    Format = Annotated[Literal[FORMATS], BeforeValidator(_suffix_of)]


class JobOptions(Options):
    """How a run writes its results."""

    out: Path = Field(
        default=Path("restored"),
        description="Output folder; for one image also a file name with a suffix, or - for standard output.",
    )
    seed: int = Field(
        default=DEFAULT_SEED, ge=0, le=WORD, description="Seed of the noise. The same seed gives the same bytes."
    )
    format: Format = Field(
        default="same", description="Format of images; same: the source's if bfr can write it, else PNG."
    )
    quality: int = Field(
        default=QUALITY, ge=1, le=100, description="JPEG and WebP quality. Higher is better and larger."
    )
    metadata: bool = Field(default=True, description="Keep metadata: EXIF, XMP, IPTC, comments, density.")
    compare: bool = Field(default=False, description="Write a before/after picture beside each result.")
    crops: bool = Field(
        default=False, description="For photographs, also write each face crop, before and after, into NAME.faces."
    )
    boxes: bool = Field(default=False, description="Draw boxes around the detected faces of photographs.")
    html: bool = Field(default=False, description="Write report.html, with before/after sliders.")
    resume: bool = Field(
        default=False,
        description="Keep results of an earlier run with the same settings if their sources are unchanged.",
    )
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, description="Refuse images and frames with more pixels.")
    codec: Literal["h264", "hevc", "vp9"] | None = Field(
        default=None, description="Video codec. Default: by the suffix."
    )
    crf: int | None = Field(
        default=None, ge=0, le=63, description="Constant rate factor of videos. Lower is better and larger."
    )
    key_frames: int = field_of(VideoOptions, "key_frames")


class RestoreOptions(Options):
    """What a client of a server chooses for an image or a video; the rest is the server's to decide."""

    seed: int = field_of(JobOptions, "seed")
    bundle: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="Name of one of the server's bundles. Default: the server's."
    )
    preset: Annotated[str, Field(max_length=64)] | None = field_of(OpenOptions, "preset")
    mode: Literal["photo", "aligned"] = Field(
        default="photo", description="photo: a photograph with any number of faces; aligned: one aligned face."
    )
    faces: Selection = field_of(PhotoOptions, "faces")
    upscale: Upscale = field_of(PhotoOptions, "upscale")
    blend: float = field_of(PhotoOptions, "blend")
    keep_colour: bool = field_of(PhotoOptions, "keep_colour")
    restore_sharp: bool = field_of(PhotoOptions, "restore_sharp")
    key_frames: int = field_of(VideoOptions, "key_frames")
