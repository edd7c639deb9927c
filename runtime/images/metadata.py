"""The metadata of a file: EXIF, XMP, IPTC, comments, texts and density; read, and updated for a result.

Files are untrusted: a broken part is dropped, with a note, and affects no other part.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from struct import pack, unpack_from
from typing import Any

from PIL import Image as Pillow
from PIL.TiffImagePlugin import TiffImageFile

from bfr.runtime.images.exif import Density, clean_exif, exif_density
from bfr.runtime.images.png import XMP_KEY, read_raw_profile

LONGEST = 1 << 20  # bytes of XMP, of IPTC, of comments and of texts
_XMP_TAG, _IPTC_TAG = 700, 33723  # of TIFF
_IPTC, _RESOLUTION = 0x0404, 0x03ED  # of Photoshop's resources
_RAW = "Raw profile type "
# XMP that would lie about a result: previews, and what lies behind the picture in its file.
_UNTRUE = ((b"<xmp:Thumbnails", b"</xmp:Thumbnails>"), (b"<Container:Directory", b"</Container:Directory>"))
_UNTRUE_WORDS = re.compile(rb"\s(?:hdrgm|GCamera):[A-Za-z]{1,40}\s?=\s?(?:\"[^\"<>]{0,200}\"|'[^'<>]{0,200}')")
_UNTRUE_ELEMENTS = re.compile(rb"<((?:hdrgm|GCamera):[A-Za-z]{1,40})>[^<>]{0,200}</\1>")
_MOVING = re.compile(rb"(?:MotionPhoto|MicroVideo)(?:\s?=\s?[\"']|>)1")
_CREDENTIALS = re.compile(rb"jumb....jumdc2pa", re.DOTALL)  # boxes of JUMBF, in any format
_FILM = re.compile(rb"\0\0\0[\x08-\x40]ftyp[0-9A-Za-z ]{4}")  # an MP4 behind a JPEG: some phones name it in no XMP


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata of a file, made to hold for the upright image.

    Attributes:
        exif: A TIFF structure, without the prefix that JPEG puts before it.
        xmp: A packet of XML in UTF-8.
        iptc: IIM.
        comments: Comments of a JPEG, or under a PNG's key `Comment`.
        texts: A PNG's other texts, by key.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    comments: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    density: Density | None = None


def read_metadata(
    file: Pillow.Image, data: bytes, size: tuple[int, int], *, turned: bool, srgb: bool
) -> tuple[Metadata, list[str]]:
    """Read the metadata of a loaded file, and note what is broken or cannot be kept.

    Args:
        file: The open image.
        data: Its bytes.
        size: (width, height) of the upright image.
        turned: It was turned by a quarter, so that its two densities change places.
        srgb: Its pixels became sRGB; otherwise they stayed in a profile of their own.
    """
    notes: list[str] = []
    found = _found(file, data, notes)
    kept: dict[str, Any] = {}
    block, density = found.pop("exif"), found.pop("density")
    try:
        kept["exif"] = None if block is None else clean_exif(block, size, srgb=srgb)
        density = density or (exif_density(block) if block is not None else None)
    except ValueError as error:
        notes.append(f"its EXIF data are broken and left out: {error}")
    kept["density"] = density.turned if density and turned else density
    for name, part in found.items():
        if _length(part) > LONGEST:
            notes.append(f"its {name.upper() if name != 'comments' else name} of {_length(part)} bytes are left out")
        elif name == "xmp" and part:
            try:
                kept[name] = clean_xmp(part, size, srgb=srgb)
            except ValueError as error:
                notes.append(f"its XMP is left out: {error}")
        else:
            kept[name] = part
    return Metadata(**kept), notes


def clean_xmp(packet: bytes, size: tuple[int, int], *, srgb: bool = True) -> bytes:
    """Return an XMP packet that holds for a picture made from it: upright, of `size`, without previews and appendices.

    Values are replaced in the text, so that all else stays byte for byte and no XML is parsed. Raises ValueError for
    what is no XMP in UTF-8.
    """
    packet = packet.rstrip(b"\0")
    try:
        packet.decode()
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    if b"<rdf:RDF" not in packet or b"\0" in packet:
        raise ValueError("it is no XMP packet")
    for begin, end in _UNTRUE:
        packet = _without(packet, begin, end)
    packet = _UNTRUE_ELEMENTS.sub(b"", _UNTRUE_WORDS.sub(b"", packet))
    colour_space = 1 if srgb else 0xFFFF
    for names, value in (
        (rb"Orientation", 1),
        (rb"(?:ImageWidth|PixelXDimension)", size[0]),
        (rb"(?:ImageLength|PixelYDimension)", size[1]),
        (rb"ColorSpace", colour_space),
    ):
        packet = re.sub(
            rb"((?:tiff|exif):" + names + rb"(?:\s?=\s?[\"']|>)\s?)\d{1,10}(?=\s?[\"'<])", rb"\g<1>%d" % value, packet
        )
    return packet


def photoshop_block(iptc: bytes) -> bytes:
    """IPTC data as Photoshop's resource, which JPEG and PNG have them in."""
    return b"8BIM" + pack(">HxxI", _IPTC, len(iptc)) + iptc + bytes(len(iptc) % 2)


def _found(file: Pillow.Image, data: bytes, notes: list[str]) -> dict[str, Any]:
    """Return the raw metadata of the file, by the fields of Metadata."""
    found: dict[str, Any] = {"exif": None, "xmp": None, "iptc": None, "comments": (), "texts": {}, "density": None}
    if isinstance(block := file.info.get("exif"), bytes):  # or a text of that name in a PNG
        found["exif"] = block
    if isinstance(packet := file.info.get("xmp"), bytes):
        found["xmp"] = packet
    if isinstance(file, TiffImageFile):
        if data[2:4] in (b"+\0", b"\0+"):
            notes.append("its EXIF data are left out: it is a BigTIFF")
        else:
            found["exif"] = data
        for name, tag in (("xmp", _XMP_TAG), ("iptc", _IPTC_TAG)):
            found[name] = _tiff_bytes(file.tag_v2.get(tag))
        found["iptc"] = _iptc(found["iptc"], notes)
    elif file.format == "PNG":
        _read_png(file, found, notes)
    elif file.format in ("JPEG", "MPO"):
        _read_jpeg(file, found, notes)
    elif file.format == "BMP" and isinstance(dots := file.info.get("dpi"), tuple):
        found["density"] = Density.of(dots, 1)
    if (found["xmp"] and _MOVING.search(found["xmp"])) or (file.format in ("JPEG", "MPO") and _FILM.search(data)):
        notes.append("its moving part (motion photo) is left out")
    if _CREDENTIALS.search(data):
        notes.append("its content credentials (C2PA) are left out: they vouch for the file as it was")
    if found["xmp"] and b"hdrgm:Version" in found["xmp"]:
        notes.append("its gain map (HDR) is left out")
    return found


def _read_jpeg(file: Any, found: dict[str, Any], notes: list[str]) -> None:
    segments = getattr(file, "applist", [])
    found["comments"] = tuple(_text(body) for name, body in segments if name == "COM" and body)
    resources = file.info.get("photoshop")
    if isinstance(resources, dict):
        found["iptc"] = _iptc(resources.get(_IPTC), notes)
    if any(name == "APP1" and body.startswith(b"http://ns.adobe.com/xmp/extension/") for name, body in segments):
        notes.append("its XMP beyond 64 kB (extended XMP) is left out")
    density = file.info.get("jfif_density")
    if isinstance(density, tuple):
        found["density"] = Density.of(density, file.info.get("jfif_unit", 0))
    if found["density"] is None and isinstance(resources, dict) and isinstance(resources.get(_RESOLUTION), dict):
        dots = [resources[_RESOLUTION].get(name) for name in ("XResolution", "YResolution")]
        found["density"] = Density.of(dots, 1)


def _read_png(file: Any, found: dict[str, Any], notes: list[str]) -> None:
    texts = {key: text for key, text in file.text.items() if 0 < len(key) < 80}
    if len(texts) < len(file.text):
        notes.append("its texts of names that PNG does not allow are left out")
    texts.pop(XMP_KEY, None)
    for key in [key for key in texts if key.lower().startswith(_RAW.lower())]:
        kind, text = key[len(_RAW) :].lower(), texts.pop(key)
        name = {"exif": "exif", "app1": "exif", "xmp": "xmp", "iptc": "iptc", "8bim": "iptc"}.get(kind)
        try:
            body = read_raw_profile(text)
        except ValueError as error:
            notes.append(f"its {kind} data in a text are broken and left out: {error}")
            continue
        if name == "iptc":
            body = next((part for number, part in _resources(body) if number == _IPTC), body)
            found[name] = _iptc(body, notes)
        elif name and not found[name] and (kind != "app1" or body.startswith(b"Exif")):
            found[name] = body
    comments = [texts.pop(key) for key in list(texts) if key.lower() == "comment"]
    found |= {"texts": {key: str(text) for key, text in texts.items()}, "comments": tuple(map(str, comments))}
    if isinstance(dots := file.info.get("dpi"), tuple):  # as Pillow has it, of pixels a metre
        found["density"] = Density.of(dots, 1)
    elif isinstance(proportion := file.info.get("aspect"), tuple):
        found["density"] = Density.of(proportion, 0)


def _resources(block: bytes) -> Iterator[tuple[int, bytes]]:
    """The resources of a Photoshop block: number and bytes; nothing after what is broken."""
    at = 0
    while block[at : at + 4] == b"8BIM" and at + 12 <= len(block):
        (number,) = unpack_from(">H", block, at + 4)
        at += 6 + (block[at + 6] // 2 + 1) * 2  # a name with its length, padded
        if at + 4 > len(block):
            return
        (length,) = unpack_from(">I", block, at)
        yield number, block[at + 4 : at + 4 + length]
        at += 4 + length + length % 2


def _iptc(data: bytes | None, notes: list[str]) -> bytes | None:
    if not data:
        return None
    if not data.startswith(b"\x1c"):
        notes.append("its IPTC data are broken and left out")
        return None
    return data


def _tiff_bytes(value: Any) -> bytes | None:
    """The bytes of a tag, which some writers give as 32-bit words."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], bytes):
        return value[0]
    if isinstance(value, tuple) and all(isinstance(word, int) and 0 <= word < 1 << 32 for word in value):
        little = pack(f"<{len(value)}I", *value)
        return little if little[:1] == b"\x1c" else pack(f">{len(value)}I", *value)
    return value if isinstance(value, bytes) else None


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("latin-1")


def _length(part: Any) -> int:
    if isinstance(part, Mapping):
        return sum(len(key) + len(text) for key, text in part.items())
    if isinstance(part, tuple):
        return sum(map(len, part))
    return len(part or b"")


def _without(packet: bytes, begin: bytes, end: bytes) -> bytes:
    """Without what stands between two words, they included; from a begin that has no end nothing is taken."""
    kept, at = [], 0
    while (start := packet.find(begin, at)) >= 0 and (stop := packet.find(end, start)) >= 0:
        kept.append(packet[at:start])
        at = stop + len(end)
    return b"".join([*kept, packet[at:]])
