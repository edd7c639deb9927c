"""EXIF without a decoder: the tags that outlive a restoration, and the density of an image in them.

All of it reads hostile bytes: nothing allocates more than what it returns and a few kilobytes.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from fractions import Fraction
from struct import error, pack, unpack_from
from typing import Any

from bfr.runtime.images.formats import EXIF_PREFIX

Tags = dict[int, tuple[int, int, bytes]]  # number: type, count, values in the block's byte order

LONGEST_EXIF = 1 << 20  # bytes of tags; overlapping ones would grow without bound
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112
_X_DENSITY, _Y_DENSITY, _DENSITY_UNIT = 0x011A, 0x011B, 0x0128
_EXIF, _GPS = 0x8769, 0x8825
_COLOUR_SPACE, _EXIF_WIDTH, _EXIF_HEIGHT = 0xA001, 0xA002, 0xA003

# Description, maker, model, resolution and its unit, software, date, artist, computer, rating, copyright, Windows' own.
_IMAGE_TAGS = {0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298}
_IMAGE_TAGS |= {_WIDTH, _HEIGHT, _ORIENTATION, _EXIF, _GPS, *range(0x9C9B, 0x9CA0)}
# MakerNote (its offsets break), the interoperability pointer, and two places in the source's pixels.
_CAMERA_TAGS = set(range(0x829A, 0xA500)) - {0x927C, 0xA005, 0x9214, 0xA214}
_GPS_TAGS = range(0x20)
_SAYS_NOTHING = {_WIDTH, _HEIGHT, _ORIENTATION}


@dataclass(frozen=True, slots=True)
class Density:
    """Pixels a unit of length, across and down.

    Attributes:
        unit: JFIF's, 1 inch, 2 centimetre, 0 for a proportion alone.
    """

    x: float
    y: float
    unit: int

    @classmethod
    def of(cls, dots: Sequence[Any], unit: int) -> "Density | None":
        """Return None for values without a meaning: not two numbers, out of range, or a proportion of 1."""
        if len(dots) != 2 or not all(isinstance(value, int | float) and 0 < value <= 1e6 for value in dots):
            return None
        return (
            cls(float(dots[0]), float(dots[1]), unit) if unit in (1, 2) or (unit == 0 and dots[0] != dots[1]) else None
        )

    @property
    def turned(self) -> "Density":
        """Return the density of the image turned by a quarter."""
        return Density(self.y, self.x, self.unit)


def clean_exif(
    block: bytes | None, size: tuple[int, int], *, srgb: bool = True, density: Density | None = None
) -> bytes | None:
    """Return the EXIF tags that hold for a picture made from the block's; None if none does.

    Description, camera, exposure, dates, position, author and resolution are kept byte for byte. Widths and heights
    become `size`, the orientation upright, the colour space sRGB or uncalibrated. Where the orientation turned the
    picture by a quarter, the two resolutions change places. The thumbnail (it shows the source), the maker's note and
    everything else that depends on the source's bytes or pixels are left out.

    Args:
        block: The TIFF structure of an EXIF block or a TIFF file, with or without EXIF_PREFIX.
        size: Width and height of the picture, in pixels.
        srgb: The picture is in sRGB.
        density: Entered where the block has none.

    Returns:
        The TIFF structure without EXIF_PREFIX, in the block's byte order.

    Raises:
        ValueError: The block is broken.
    """
    order, image, camera, position = ("<", {}, {}, {}) if block is None else _read_block(block)
    if _quarter_turned(order, image) and {_X_DENSITY, _Y_DENSITY} <= image.keys():
        image[_X_DENSITY], image[_Y_DENSITY] = image[_Y_DENSITY], image[_X_DENSITY]
    if density is not None and _X_DENSITY not in image:
        image |= _density_tags(order, density)
    if not (image.keys() - _SAYS_NOTHING or camera or position):
        return None
    for tags, tag, kind, value in (
        (image, _WIDTH, _LONG, size[0]),
        (image, _HEIGHT, _LONG, size[1]),
        (image, _ORIENTATION, _SHORT, 1),
        (camera, _EXIF_WIDTH, _LONG, size[0]),
        (camera, _EXIF_HEIGHT, _LONG, size[1]),
        (camera, _COLOUR_SPACE, _SHORT, 1 if srgb else 0xFFFF),
    ):
        if tag in tags:
            tags[tag] = kind, 1, pack(order + ("H" if kind == _SHORT else "I"), value)
    return _block(order, image, {_EXIF: camera, _GPS: position})


def exif_density(block: bytes) -> Density | None:
    """Return the resolution that an EXIF block or a TIFF file names. Raises ValueError if the block is broken."""
    order, image, _, _ = _read_block(block)
    found = []
    for tag in (_X_DENSITY, _Y_DENSITY):
        kind, count, data = image.get(tag, (0, 0, b""))
        if kind != _RATIONAL or count < 1:
            return None
        above, below = unpack_from(f"{order}II", data)
        found.append(above / below if below else 0.0)
    unit = 2
    if _DENSITY_UNIT in image and len(image[_DENSITY_UNIT][2]) >= 2:
        (unit,) = unpack_from(f"{order}H", image[_DENSITY_UNIT][2])
    return Density.of(found, unit - 1)


def _density_tags(order: str, density: Density) -> Tags:
    def rational(value: float) -> tuple[int, int, bytes]:
        ratio = Fraction(value).limit_denominator(1000)
        return _RATIONAL, 1, pack(f"{order}II", ratio.numerator or 1, ratio.denominator)

    unit = _SHORT, 1, pack(f"{order}H", density.unit + 1)
    return {_X_DENSITY: rational(density.x), _Y_DENSITY: rational(density.y), _DENSITY_UNIT: unit}


def _quarter_turned(order: str, image: Tags) -> bool:
    data = image.get(_ORIENTATION, (0, 0, b""))[2]
    return len(data) >= 2 and 5 <= unpack_from(f"{order}H", data)[0] <= 8


def _read_block(block: bytes) -> tuple[str, Tags, Tags, Tags]:
    """The byte order, and the wanted tags of the image, the camera and the position."""
    while block.startswith(EXIF_PREFIX):
        block = block[len(EXIF_PREFIX) :]
    if (order := _ORDERS.get(block[:4])) is None:
        raise ValueError("they do not begin as a TIFF")
    try:
        image = _read_directory(block, order, block[4:8], _IMAGE_TAGS)
        camera = _read_directory(block, order, image.pop(_EXIF)[2], _CAMERA_TAGS) if _EXIF in image else {}
        position = _read_directory(block, order, image.pop(_GPS)[2], _GPS_TAGS) if _GPS in image else {}
    except error as problem:
        raise ValueError(f"a directory is cut off: {problem}") from problem
    return order, image, camera, position


def _read_directory(block: bytes, order: str, at: bytes, wanted: Container[int]) -> Tags:
    """The wanted tags of the directory at an offset, the first of each; those of an unknown type are left out."""
    tags: Tags = {}
    total = 0
    offset = int.from_bytes(at[:4], "little" if order == "<" else "big")  # more would not fit into a C integer
    (number,) = unpack_from(f"{order}H", block, offset)
    for entry in range(offset + 2, offset + 2 + 12 * number, 12):
        tag, kind, count = unpack_from(f"{order}HHI", block, entry)
        if tag not in wanted or tag in tags or kind not in TYPE_BYTES:
            continue
        total += (length := count * TYPE_BYTES[kind])
        if total > LONGEST_EXIF:
            raise ValueError(f"more than {LONGEST_EXIF} bytes")
        start = entry + 8 if length <= 4 else unpack_from(f"{order}I", block, entry + 8)[0]
        if start + length > len(block):
            raise ValueError(f"tag {tag:#06x} lies outside them")
        tags[tag] = kind, count, block[start : start + length]
    return tags


def _block(order: str, image: Tags, parts: dict[int, Tags]) -> bytes:
    """The TIFF structure of the first directory and those that it points to."""
    image = image | {tag: (_LONG, 1, bytes(4)) for tag, tags in parts.items() if tags}
    at = 8 + len(_directory(order, image, 8))
    directories = bytearray()
    for tag, tags in parts.items():
        if tags:
            image[tag] = _LONG, 1, pack(f"{order}I", at + len(directories))
            directories += _directory(order, tags, at + len(directories))
    magic = next(start for start, its_order in _ORDERS.items() if its_order == order)
    return magic + pack(f"{order}I", 8) + _directory(order, image, 8) + bytes(directories)


def _directory(order: str, tags: Tags, at: int) -> bytes:
    """A directory that will lie at offset `at`: entries, no next directory, then the values longer than 4 bytes."""
    values_at = at + 2 + 12 * len(tags) + 4
    entries = bytearray(pack(f"{order}H", len(tags)))
    values = bytearray()
    for tag, (kind, count, data) in sorted(tags.items()):
        entries += pack(f"{order}HHI", tag, kind, count)
        if len(data) <= 4:
            entries += data.ljust(4, b"\0")
        else:
            entries += pack(f"{order}I", values_at + len(values))
            values += data + b"\0" * (len(data) % 2)  # values begin at even offsets
    return bytes(entries + bytes(4) + values)
