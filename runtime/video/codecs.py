"""Encoders of videos: which container holds them, with which settings, and how many bits they keep."""

from dataclasses import dataclass

import numpy as np

from bfr.runtime.errors import InvalidOption, MissingDependency
from bfr.runtime.install import importing, install_command
from bfr.runtime.video.formats import OUTPUT_SUFFIXES

with importing("PyAV", "video"):
    from av.codec import Codec


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder of FFmpeg.

    Attributes:
        library: Its name.
        suffixes: Suffixes of the containers that hold its codec.
        crf: Default constant rate factor; 0 is the best.
        worst_crf: The largest.
        even: Whether width and height must be even.
        options: Options of the encoder.
        depth: Bits a sample, at most.
        tag: Tag of the codec in .mp4 and .mov, if players need another than FFmpeg's.
    """

    library: str
    suffixes: tuple[str, ...]
    crf: int
    worst_crf: int
    even: bool
    options: dict[str, str]
    depth: int = 8
    tag: str | None = None


# x264's "superfast" with the rate control of "veryfast" takes half of its time; see docs/decisions/photographs.md.
CODECS = {
    "h264": Encoder(
        "libx264",
        (".mp4", ".mov", ".mkv"),
        17,
        51,
        even=True,
        options={"preset": "superfast", "x264-params": "mbtree=1:rc-lookahead=10"},
    ),
    "hevc": Encoder(
        "libx265",
        (".mp4", ".mov", ".mkv"),
        18,
        51,
        even=True,
        options={"preset": "veryfast", "x265-params": "log-level=error"},
        depth=10,
        tag="hvc1",
    ),
    "vp9": Encoder(
        "libvpx-vp9", (".mp4", ".mkv", ".webm"), 16, 63, even=False, options={"row-mt": "1", "cpu-used": "4"}, depth=10
    ),
}


def default_codec(suffix: str, depth: int) -> str:
    """The default codec of a container: HEVC for more than 8 bits if this PyAV has it."""
    if suffix == ".webm":
        return "vp9"
    return "hevc" if depth > 8 and _is_built(CODECS["hevc"]) else "h264"


def choose_encoder(suffix: str, codec: str, crf: int | None) -> Encoder:
    """Return the encoder of a codec.

    Args:
        suffix: Suffix of the container, one of OUTPUT_SUFFIXES.
        codec: A key of CODECS.
        crf: Constant quality, None for the codec's default.

    Raises:
        InvalidOption: Container, codec and quality do not fit together.
        MissingDependency: This PyAV was built without the encoder.
    """
    if suffix not in OUTPUT_SUFFIXES:
        raise InvalidOption(f"videos are not written as {suffix!r}: choose one of {', '.join(OUTPUT_SUFFIXES)}")
    if codec not in CODECS:
        raise InvalidOption(f"codec {codec!r} is not offered: choose --codec {' or '.join(CODECS)}")
    encoder = CODECS[codec]
    if suffix not in encoder.suffixes:
        fit = [name for name, other in CODECS.items() if suffix in other.suffixes]
        raise InvalidOption(f"{suffix} does not hold {codec}: choose --codec {' or '.join(fit)}, or another format")
    if crf is not None and not isinstance(crf, int | np.integer):
        raise InvalidOption(f"crf {crf!r} is not accepted: a whole number is needed")
    if crf is not None and not 0 <= crf <= encoder.worst_crf:
        raise InvalidOption(f"crf {crf} is out of range: choose between 0 and {encoder.worst_crf} for {codec}")
    if not _is_built(encoder):
        raise MissingDependency(
            f"this PyAV was built without {encoder.library}: choose another --codec, or install one that has it "
            f"({install_command('video')})"
        )
    return encoder


def _is_built(encoder: Encoder) -> bool:
    try:
        Codec(encoder.library, "w")
    except ValueError:
        return False
    return True


def depth_of(encoder: Encoder) -> int:
    """The bits a sample that are written with it; libvpx may have been built with 8 alone."""
    formats = Codec(encoder.library, "w").video_formats or ()
    return encoder.depth if any(one.name == "yuv420p10le" for one in formats) else 8
