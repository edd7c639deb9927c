"""The chunks of a PNG: what decoders may see, and what is put beside the pixels."""

from struct import pack
from typing import Any
from zlib import compress, crc32, decompressobj, error

from PIL.PngImagePlugin import MAX_TEXT_CHUNK, MAX_TEXT_MEMORY

from bfr.runtime.text import listed

PIXELS_AT = 33  # bytes of the signature and IHDR; other chunks may follow
_DEPTH_AT = 24  # the bits of a sample; then the colour type, 0 for grey
XMP_KEY = "XML:com.adobe.xmp"
_SRGB_CODES = {(1, 13), (1, 1), (1, 6), (1, 14), (1, 15)}  # primaries and transfer of H.273, of sRGB and BT.709
_PACKED = (b"zTXt", b"iTXt", b"iCCP")  # chunks that may be packed


def bare_png(data: bytes) -> bytes:
    """Return a PNG with its pixels alone: OpenCV allocates the length that a chunk claims, and may apply other chunks.

    Raises ValueError if a chunk is longer than the file.
    """
    kept, start = [data[:8]], 8
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        name = data[start + 4 : start + 8]
        if end > len(data):
            raise ValueError(f"chunk {name!r} is longer than the file")
        if start == 8 or name in (b"IDAT", b"tRNS"):
            kept.append(data[start:end])
        if name == b"IEND":
            break
        start = end
    return b"".join(kept) + png_chunk(b"IEND", b"")


def without_large_texts(data: bytes, notes: list[str]) -> bytes:
    """Return a PNG without packed texts and profiles of more than MAX_TEXT_CHUNK bytes: Pillow would refuse all of it.

    Args:
        data: The file.
        notes: Gets a sentence of what is left out.
    """
    large, names, start, room = list[tuple[int, int]](), list[str](), 8, MAX_TEXT_MEMORY
    while start < len(data):
        begin, start = start, start + 12 + int.from_bytes(data[start : start + 4], "big")
        if (name := data[begin + 4 : begin + 8]) not in _PACKED:
            continue
        key, _, rest = data[begin + 8 : start - 4].partition(b"\0")
        if name == b"iTXt" and rest:  # whether it is packed, how, its language, its key in that language
            rest = b"\0" + rest[2:].split(b"\0", 2)[-1] if rest[0] else b""
        size = _unpacked_size(rest[1:], min(room, MAX_TEXT_CHUNK))
        room = max(0, room - (MAX_TEXT_CHUNK if size is None else size))
        if size is None:
            large.append((begin, start))
            names.append(repr(key.decode("latin-1")[:80]))
    if not large:
        return data
    notes.append(f"texts or profiles of more than {MAX_TEXT_CHUNK} bytes are left out: {listed(names, 3)}")
    ends, begins = [0, *(end for _, end in large)], [*(begin for begin, _ in large), len(data)]
    return b"".join(data[at:to] for at, to in zip(ends, begins, strict=True))


def _unpacked_size(packed: bytes, most: int) -> int | None:
    """Bytes of a packed text, 0 for a damaged one, which Pillow leaves out; None if it has more than `most`."""
    unpacking = decompressobj()
    try:
        size = len(unpacking.decompress(packed, most + 1))
    except error:
        return 0
    return size if size <= most else None


def settle_colours(info: dict[Any, Any], data: bytes, notes: list[str]) -> None:
    """Of Pillow's `info` of a PNG, drop what its cICP chunk replaces, and texts that Pillow takes for its own.

    A transparent grey of 2 or 4 bits becomes one of 8, as the samples do.
    """
    for name in ("transparency", "interlace"):
        if isinstance(info.get(name), str):
            del info[name]
    if isinstance(info.get("transparency"), int) and data[_DEPTH_AT : _DEPTH_AT + 2] in (b"\2\0", b"\4\0"):
        info["transparency"] *= 255 // ((1 << data[_DEPTH_AT]) - 1)
    before = data[: data.find(b"IDAT")]
    if (at := before.find(b"cICP")) < 0:
        return
    srgb = tuple(before[at + 4 : at + 6]) in _SRGB_CODES
    if srgb:
        info.pop("icc_profile", None)
    if "icc_profile" not in info:
        info.pop("gamma", None)
        info.pop("chromaticity", None)
        if not srgb:
            code = "/".join(map(str, before[at + 4 : at + 8]))
            notes.append(f"its colours (cICP {code}: HDR or a wide gamut) are not converted")


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG: length, name, body, checksum."""
    return pack(">I", len(body)) + name + body + pack(">I", crc32(name + body))


def profile_chunk(icc: bytes) -> bytes:
    """Return the chunk of an ICC profile."""
    return png_chunk(b"iCCP", b"ICC profile\0\0" + compress(icc))


def text_chunk(key: str, text: str, *, packed: bool = False) -> bytes:
    """Return a text under a key: Latin-1 where that holds it, else UTF-8; `packed` compresses Latin-1."""
    name = key.encode("latin-1")
    try:
        plain = text.encode("latin-1")
    except UnicodeEncodeError:
        return png_chunk(b"iTXt", name + b"\0\0\0\0\0" + text.encode("utf-8", "replace"))
    return png_chunk(b"zTXt", name + b"\0\0" + compress(plain)) if packed else png_chunk(b"tEXt", name + b"\0" + plain)


def xmp_chunk(xmp: bytes) -> bytes:
    """Return the chunk of an XMP packet."""
    return png_chunk(b"iTXt", XMP_KEY.encode() + b"\0\0\0\0\0" + xmp)


def raw_profile(kind: str, data: bytes) -> bytes:
    """Data that PNG has no chunk for, as ImageMagick writes them and ExifTool reads them: hexadecimal in a text."""
    digits = data.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return text_chunk(f"Raw profile type {kind}", f"\n{kind}\n{len(data):8}\n{lines}\n", packed=True)


def read_raw_profile(text: str) -> bytes:
    """Return the data of a text that `raw_profile` wrote. Raises ValueError if it is none."""
    fields = text.split(maxsplit=2)
    if len(fields) < 3 or not fields[1].isdecimal():
        raise ValueError("a raw profile begins with its name and its length")
    data = bytes.fromhex(fields[2])
    if len(data) != int(fields[1]):
        raise ValueError(f"a raw profile of {fields[1]} bytes has {len(data)}")
    return data
