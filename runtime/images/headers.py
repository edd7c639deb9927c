"""Limits on a file's claimed sizes and its number of parts, checked before a decoder opens it.

Decoders allocate what a header claims, and read some parts one by one in Python: many tiny ones would take hours.
"""

import re
from io import BytesIO
from pathlib import Path
from struct import calcsize, error, unpack_from
from typing import BinaryIO

from PIL import Image as Pillow
from PIL.JpegImagePlugin import MARKER
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.exif import LONGEST_EXIF, TYPE_BYTES
from bfr.runtime.images.formats import EXIF_PREFIX, format_of
from bfr.runtime.images.png import without_large_texts

MOST_SEGMENTS = 4096  # of a JPEG before its first scan, fill bytes included; each may have 64 KiB
MOST_TABLES = 1 << 20  # bytes of quantization and Huffman tables of a JPEG before its first scan
MOST_RESOURCES = 4096  # of Photoshop, in a JPEG
MOST_SCANS = 100  # of a JPEG: each passes over all pixels
MOST_CHUNKS = 100_000  # of a PNG
MOST_STRIPS = 65_536  # or tiles of a TIFF
MOST_TAGS = 65_535  # of a directory; a BigTIFF could claim more
MOST_DIRECTORIES = 100_000  # of a TIFF; the smallest has 6 bytes
MOST_RUNS = 1 << 22  # bytes, and pixels, of a BMP in run lengths: Pillow decodes one by one in Python
_SCAN = 0xDA
_TABLES = (0xC4, 0xDB)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BARE = {marker & 0xFF for marker, (_, _, handler) in MARKER.items() if handler is None}  # Pillow skips no body of them
_ALONE = (0x01, *range(0xD0, 0xDA))  # markers without a length
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in a scan: no stuffed byte, no restart, no fill byte
_SUBFILE, _WIDTH, _HEIGHT, _ORIENTATION = 254, 256, 257, 274
_OFFSETS = 273, 324  # of strips and tiles


def header_size(source: Path | bytes) -> tuple[int, int] | None:
    """(width, height) in pixels that the header of an image file claims, as stored; nothing is decoded.

    None for a file of no allowed format or that cannot be read, and for a header that is broken or claims no pixels.

    Pillow's classes open a file by its header alone. They are called without `Pillow.open`, which warns about sizes
    that the caller refuses anyway. It takes milliseconds of any file.
    """
    try:
        if isinstance(source, bytes):
            size = _size(BytesIO(source))
        elif source.is_file():  # a pipe would wait for ever
            with source.open("rb") as file:
                size = _size(file)
        else:
            return None
    except Exception:  # hostile bytes and names raise nearly anything; the decoder says what is wrong
        return None
    return size if size and min(size) > 0 else None


def check_size(size: tuple[int, int] | None, name: str, max_pixels: int) -> None:
    """Raise InvalidImage if a picture or frame of (width, height) has more pixels than are allowed."""
    if size and size[0] * size[1] > max_pixels:
        raise InvalidImage(
            f"{name} has {size[0]} x {size[1]} pixels, more than the limit of {max_pixels}: "
            f"make it smaller, or raise the limit if you trust it"
        )


def _size(file: BinaryIO) -> tuple[int, int] | None:
    head = file.read(32)
    found = format_of(head)
    if found is None:
        return None
    if found.name == "WEBP":  # Pillow would read all of it, and allocate what it claims
        return _webp_size(head)
    if found.name == "PNG":  # Pillow would read all chunks before the picture
        return unpack_from(">II", head, 16) if head[12:16] == b"IHDR" else None
    if found.name == "JPEG":  # Pillow would join all EXIF data, a segment at a time
        frames = [head for _, _, head in jpeg_segments(file)[0] if head[1] in _FRAMES]
        return unpack_from(">HH", frames[-1], 5)[::-1] if frames else None
    if found.name == "TIFF":
        return _tiff_size(read_tags(file))
    file.seek(0)
    if found.name not in Pillow.OPEN:
        Pillow.init()
    size: tuple[int, int] = Pillow.OPEN[found.name][0](file, "").size
    return size


def _webp_size(head: bytes) -> tuple[int, int] | None:
    if len(head) < 30:
        return None
    match head[12:16]:
        case b"VP8X":  # less one, 24 bits each
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":  # less one, 14 bits each
            (bits,) = unpack_from("<I", head, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":  # 14 bits each, above which is a scale
            width, height = unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def read_tags(file: BinaryIO) -> ImageFileDirectory_v2:
    """Read the first directory of a TIFF. Pillow's class of the whole file would list all strips. Raises ValueError."""
    file.seek(0)
    head = file.read(8)
    big = head[2] == ord("+")
    tags = ImageFileDirectory_v2(head + file.read(8) if big else head)
    file.seek(tags.next)
    if big and int.from_bytes(file.read(8), "little" if head[:1] == b"I" else "big") > MOST_TAGS:
        raise ValueError(f"its directory has more than {MOST_TAGS} tags")
    file.seek(tags.next)
    tags.load(file)
    return tags


def _tiff_size(tags: ImageFileDirectory_v2) -> tuple[int, int]:
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    return (height, width) if tags.get(_ORIENTATION) in range(5, 9) else (width, height)


def check_parts(data: bytes, notes: list[str]) -> tuple[bytes, int]:
    """Check the parts of a file that a decoder would read.

    Args:
        data: The file.
        notes: Gets a sentence about what is left out.

    Returns:
        The file, a JPEG without TIFF directories that are hostile, a PNG without texts that are too large; and the
        pages of a TIFF, 1 for others.

    Raises:
        ValueError: The file has too many parts, or is a TIFF whose directories are hostile.
    """
    if data.startswith(b"\x89PNG"):
        check_chunks(data)
        return without_large_texts(data, notes), 1
    if data[:2] in (b"II", b"MM"):
        return data, check_tags(data)
    if not data.startswith(b"\xff\xd8"):
        return data, 1
    segments, scan = jpeg_segments(BytesIO(data))
    check_scans(data, scan)
    if data.count(b"8BIM", 0, scan) > MOST_RESOURCES:
        raise ValueError(f"it has more than {MOST_RESOURCES} resources of Photoshop")
    blocks, exif, hostile = list[bytes](), list[bytes](), list[tuple[int, int]]()
    for begin, end, head in segments:
        if head[1] == 0xE1 and head[4:] == EXIF_PREFIX:
            exif.append(data[begin + 10 : end])
        elif head[1] == 0xE2 and head[4:8] == b"MPF\0":
            blocks.append(data[begin + 8 : end])
        else:
            continue
        hostile.append((begin, end))
    try:
        if sum(map(len, exif)) > LONGEST_EXIF:  # Pillow copies all of them for each that it adds
            raise ValueError(f"more than {LONGEST_EXIF} bytes")
        for block in (*blocks, b"".join(exif)):
            check_tags(block)
    except ValueError as problem:
        notes.append(f"its EXIF data are broken and left out: {problem}")
        ends = [0, *(end for _, end in hostile)]
        return b"".join(data[at:to] for at, to in zip(ends, [*(at for at, _ in hostile), None], strict=True)), 1
    return data, 1


def jpeg_segments(file: BinaryIO) -> tuple[list[tuple[int, int, bytes]], int]:
    """Walk the segments of a JPEG as Pillow does, which skips bytes between them, and some markers without their body.

    Return the begin, the end and the first 10 bytes of each segment before the first scan; and the begin of the scan,
    or the end of the segments. Raises ValueError for more than MOST_SEGMENTS segments, or MOST_TABLES bytes of tables.
    """
    found, at, tables = list[tuple[int, int, bytes]](), 2, 0
    for _ in range(MOST_SEGMENTS):
        file.seek(at)
        head = file.read(10)
        if len(head) < 4 or head[:2] == bytes((0xFF, _SCAN)):
            return found, at
        if head[0] != 0xFF or head[1] in (0x00, 0xFF):
            at += 1
        elif head[1] in _BARE:
            at += 2
        else:
            end = at + 2 + max(2, int.from_bytes(head[2:4], "big"))
            found.append((at, end, head))
            tables += end - at if head[1] in _TABLES else 0
            if tables > MOST_TABLES:
                raise ValueError(f"it has more than {MOST_TABLES} bytes of tables")
            at = end
    raise ValueError(f"more than {MOST_SEGMENTS} segments are before its picture")


def check_scans(data: bytes, at: int) -> None:
    """Raise ValueError if a JPEG has more than MOST_SCANS scans. at: where the first one begins."""
    scans = 0
    while (found := _MARKER.search(data, at)) and found[0][1] != 0xD9:
        scans += found[0][1] == _SCAN
        if scans > MOST_SCANS:
            raise ValueError(f"it has more than {MOST_SCANS} scans")
        at = found.end()
        at += 0 if found[0][1] in _ALONE else max(2, int.from_bytes(data[at : at + 2]))


def check_chunks(data: bytes) -> None:
    """Raise ValueError if a PNG has more than MOST_CHUNKS chunks."""
    at = 8
    for _ in range(MOST_CHUNKS):
        if at >= len(data):
            return
        at += 12 + int.from_bytes(data[at : at + 4])
    raise ValueError(f"it has more than {MOST_CHUNKS} chunks")


def check_tags(block: bytes) -> int:
    """Check the chain of directories of a TIFF file, or of EXIF data with or without EXIF_PREFIX; return its pages.

    Tags that name more bytes than there are overlap, and a decoder that copies each of them fills the memory: Pillow
    before 13 does. Directories that overlap would be read for hours, and so would more than MOST_STRIPS strips or
    tiles. Of all that it raises ValueError.

    The pages, 1 or more, are the directories less those of smaller copies of another page. A chain that leads back, or
    out of the file, ends there.
    """
    while block.startswith(EXIF_PREFIX):  # Pillow strips all of them
        block = block[len(EXIF_PREFIX) :]
    order = "<" if block[:2] == b"II" else ">"
    big = block[2:4] in (b"+\0", b"\0+")  # BigTIFF
    count_of, entry_of, offset_of, inside = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    size, total, entries, copies, seen = calcsize(f"{order}{entry_of}") + inside, 0, 0, 0, set[int]()
    try:
        (offset,) = unpack_from(f"{order}{offset_of}", block, 8 if big else 4)
        while offset and offset not in seen:
            (number,) = unpack_from(f"{order}{count_of}", block, offset)
            seen.add(offset)
            first = offset + calcsize(f"{order}{count_of}")
            entries += number
            if number > MOST_TAGS:
                raise ValueError(f"one of its directories has more than {MOST_TAGS} tags")
            if len(seen) > MOST_DIRECTORIES:
                raise ValueError(f"it has more than {MOST_DIRECTORIES} directories")
            if first + size * number <= len(block) < size * entries:
                raise ValueError(f"its directories have {entries} tags, more than its {len(block)} bytes can hold")
            for entry in range(first, first + size * number, size):
                tag, kind, count = unpack_from(f"{order}{entry_of}", block, entry)
                if tag in _OFFSETS and count > MOST_STRIPS:
                    raise ValueError(f"it has more than {MOST_STRIPS} strips or tiles")
                if tag == _SUBFILE and entry == first:
                    (flags,) = unpack_from(f"{order}{'H' if kind == 3 else 'I'}", block, entry + size - inside)
                    copies += flags & 1
                length = count * TYPE_BYTES.get(kind, 0)
                total += length if length > inside else 0
                if total > 2 * len(block):
                    raise ValueError(f"its tags name more than twice its {len(block)} bytes")
            (offset,) = unpack_from(f"{order}{offset_of}", block, first + size * number)
    except (error, OverflowError):
        pass  # cut off: nothing more is read by others either
    return max(1, len(seen) - copies)
