"""Names of video formats, and the facts that reader and writer share. Needs no PyAV and decodes nothing."""

from dataclasses import dataclass
from fractions import Fraction

from bfr.runtime.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class Container:
    """A container that bfr reads, and also writes if it names FFmpeg's `muxer`."""

    media_type: str
    muxer: str | None = None


CONTAINERS = {
    ".mp4": Container("video/mp4", "mp4"),
    ".mov": Container("video/quicktime", "mov"),
    ".mkv": Container("video/x-matroska", "matroska"),
    ".webm": Container("video/webm", "webm"),
    ".avi": Container("video/x-msvideo"),
    ".m4v": Container("video/x-m4v"),
    ".3gp": Container("video/3gpp"),
    ".3g2": Container("video/3gpp2"),
    ".ts": Container("video/mp2t"),
    ".mts": Container("video/mp2t"),
    ".m2ts": Container("video/mp2t"),
    ".mpg": Container("video/mpeg"),
    ".mpeg": Container("video/mpeg"),
    ".wmv": Container("video/x-ms-wmv"),
}
SUFFIXES = tuple(CONTAINERS)
OUTPUT_SUFFIXES = tuple(suffix for suffix, one in CONTAINERS.items() if one.muxer)
HEAD = 600  # bytes that tell a container: three packets of a transport stream
# Brands of ISO files that hold pictures or sound alone.
_NO_VIDEO = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis", b"jp2 ", b"jpx ",
             b"crx ", b"M4A ", b"M4B ", b"M4P ", b"F4A "}  # fmt: skip
MEDIA_TYPES = {suffix: one.media_type for suffix, one in CONTAINERS.items()}


@dataclass(frozen=True, slots=True)
class Colour:
    """How samples mean colours: code points of ITU-T H.273, 2 where the file says nothing.

    Attributes:
        range: 1 limited (16 to 235), 2 full, 0 if the file says nothing (then it is limited).
    """

    matrix: int = 2
    range: int = 0
    primaries: int = 2
    transfer: int = 2


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video is, upright.

    Attributes:
        width: Pixels.
        height: Pixels.
        rate: Frames a second, on average where it varies.
        frames: As the header has them, which may be wrong, or None.
        seconds: As the header has them, which may be wrong, or None.
        rotation: Degrees clockwise by which stored frames were turned (already applied).
        audio: How many audio streams.
        codec: Codec of the video stream.
        time_base: Seconds a tick.
        aspect: Width of a pixel by its height, None for square.
        depth: Bits a sample, 8 or 10.
    """

    width: int
    height: int
    rate: Fraction | None
    frames: int | None
    seconds: float | None
    rotation: int
    audio: int
    codec: str
    time_base: Fraction
    colour: Colour = Colour()
    aspect: Fraction | None = None
    depth: int = 8


def suffix_of(head: bytes) -> str | None:
    """The suffix that a video should have by the first HEAD bytes of its file; None if it is none of CONTAINERS.

    Pictures and sound alone share these containers: HEIC, AVIF, JPEG 2000, M4A are None.
    """
    found = None
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand not in _NO_VIDEO:
            found = {b"qt  ": ".mov", b"M4V ": ".m4v"}.get(brand, ".3gp" if brand[:2] == b"3g" else ".mp4")
    elif head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):
        found = ".mov"
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        found = ".webm" if b"webm" in head[:64] else ".mkv"
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        found = ".avi"
    elif head[:4] in (b"\0\0\1\xba", b"\0\0\1\xb3"):
        found = ".mpg"
    elif head[:8] == b"\x30\x26\xb2\x75\x8e\x66\xcf\x11":
        found = ".wmv"
    elif head[::188][:3] == b"GGG":  # a byte of sync each packet
        found = ".ts"
    elif head[4::192][:3] == b"GGG":
        found = ".mts"
    return found if found in CONTAINERS else None


def output_suffix(source: str) -> str:
    """The container that a video with suffix `source` becomes: its own where it is written, else .mp4.

    Raises InvalidOption for a suffix that is not one of SUFFIXES.
    """
    suffix = source.lower()
    if suffix not in SUFFIXES:
        raise InvalidOption(f"{source!r} is not the suffix of a video: choose one of {', '.join(SUFFIXES)}")
    return suffix if suffix in OUTPUT_SUFFIXES else ".mp4"
