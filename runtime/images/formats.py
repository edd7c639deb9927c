"""The image formats, a row each; other modules read all facts about a format here.

A new format is a row. Only what Pillow cannot do with it (16-bit colour, say) is code in `decode.py` or `encode.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import Z_RLE

from bfr.runtime.errors import InvalidOption

EXIF_PREFIX = b"Exif\0\0"  # before the TIFF structure in a JPEG, and in nothing else


@dataclass(frozen=True, slots=True)
class Format:
    """An image format that is read, and written where `options` is given.

    Attributes:
        name: Pillow's name of the format.
        media_type: The HTTP media type.
        suffixes: In lower case; results get the first.
        begin: Regular expression for the first 16 bytes of a file.
        options: Arguments of Pillow's `save`; None if results are not written in this format.
        lossy: Whether `save` takes a quality, 1 to 100.
        alpha: Whether a result may have alpha.
        deep: Whether a result may have 16 bits a sample.
        longest_side: Largest width and height that can be written, pixels.
        exif_prefix: What stands before the TIFF structure of the EXIF data.
        longest_part: Largest EXIF, XMP, IPTC or comment that can be written, bytes, with what stands before it.
        metadata: The fields of `Metadata` that a result may have.
    """

    name: str
    media_type: str
    suffixes: tuple[str, ...]
    begin: bytes
    options: Mapping[str, Any] | None = field(default=None, hash=False)
    lossy: bool = False
    alpha: bool = False
    deep: bool = False
    longest_side: int | None = None
    exif_prefix: bytes = b""
    longest_part: int | None = None
    metadata: frozenset[str] = frozenset()


EVERYWHERE = frozenset({"exif", "xmp", "density"})
FORMATS = (
    # On photographs runs alone are three to five times as fast as all of deflate, and 4 % larger at most.
    Format("PNG", "image/png", (".png",), rb"\x89PNG\r\n\x1a\n", {"compress_level": 1, "compress_type": Z_RLE},
           alpha=True, deep=True, metadata=EVERYWHERE | {"iptc", "comments", "texts"}),
    Format("JPEG", "image/jpeg", (".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".jfi"), rb"\xff\xd8\xff",
           {"subsampling": 0}, lossy=True, longest_side=65_500, exif_prefix=EXIF_PREFIX, longest_part=65_533,
           metadata=EVERYWHERE | {"iptc", "comments"}),
    # exact: colour below alpha 0 stays
    Format("WEBP", "image/webp", (".webp",), rb"RIFF....WEBP", {"exact": True}, lossy=True, alpha=True,
           longest_side=16_383, metadata=EVERYWHERE),
    Format("BMP", "image/bmp", (".bmp", ".dib"), rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0"),
    Format("TIFF", "image/tiff", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]"),
)  # fmt: skip

HEAD = 16  # bytes that tell a format
NAMES = tuple(one.name for one in FORMATS)
BY_SUFFIX = {suffix: one for one in FORMATS for suffix in one.suffixes}
WRITTEN = tuple(one for one in FORMATS if one.options is not None)
PNG = FORMATS[0]


def format_of(data: bytes) -> Format | None:
    """Return the format of an image file by its first 16 bytes; None if it is none of FORMATS."""
    return next((one for one in FORMATS if re.match(one.begin, data[:HEAD], re.DOTALL)), None)


def check_sides(width: int, height: int, suffix: str) -> None:
    """Raise InvalidOption if a picture is too wide or too high for its format."""
    if max(height, width) > (longest := BY_SUFFIX[suffix].longest_side or height + width):
        raise InvalidOption(f"{width} x {height} pixels do not fit into {suffix}, at most {longest} a side: use .png")


def result_suffix(source: Format | None) -> str:
    """Return the suffix of a result in the format of its source; `.png` if that is not written."""
    return (source if source and source in WRITTEN else PNG).suffixes[0]
