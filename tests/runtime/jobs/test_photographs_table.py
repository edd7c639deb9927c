"""The tables of docs/files.md: a file of each kind, and what becomes of it."""

import re
import struct
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.decode import MAX_PIXELS, decode_image
from bfr.runtime.images.encode import encode_noted
from bfr.runtime.images.formats import BY_SUFFIX
from bfr.runtime.images.metadata import Metadata
from bfr.runtime.jobs.sources import choose_outputs, find_inputs
from bfr.runtime.jobs.store import Store

DOCUMENT = (Path(__file__).parents[3] / "docs/files.md").read_text("utf-8")
IN_FOLDER = {  # of rows about what lies in a folder: the file's name
    "HEIC, AVIF, GIF, JPEG XL, raw or text, in a folder": "a.heic",
    "download that is not finished (.part), in a folder": "a.png.part",
    "a camera's raw file (.dng, .nef, .cr2 and others), in a folder": "a.nef",
    "link out of the folder": "a.png",
}
INTO = {"alpha into a JPEG": (".jpg",), "16 bits into a JPEG or WebP": (".jpg", ".webp")}


def table(name: str) -> list[list[str]]:
    """The cells of the rows between two marks."""
    text = DOCUMENT.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]
    rows = [re.split(r" *\| *", line.strip())[1:-1] for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


KINDS = {row[0]: row for row in table("kinds")}


def makers(files: Any) -> dict[str, Callable[[], list[bytes]]]:
    """Files of each kind; of each row, all must fare as it says."""
    red, saved, flat = (200, 30, 30), files.saved, files.flat

    def xmp(words: bytes) -> bytes:
        packet = b"http://ns.adobe.com/xap/1.0/\0<rdf:RDF><rdf:Description " + words + b"/></rdf:RDF>"
        return segment(0xE1, packet)

    def segment(marker: int, body: bytes) -> bytes:
        data: bytes = saved(flat("RGB", red), "JPEG")
        return data[:20] + struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body + data[20:]

    def several(kind: str, **options: Any) -> bytes:
        data: bytes = saved(flat("RGB", red), kind, save_all=True, append_images=[flat("RGB", (9, 9, 9))], **options)
        return data

    deep = files.deep
    other = [b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", saved(flat("P", 1), "GIF"), b"\xff\x0a", b"words"]
    return {
        "JPEG": lambda: [saved(flat("RGB", red), "JPEG"), saved(flat("RGB", red), "JPEG", progressive=True)],
        "JPEG, grey": lambda: [saved(flat("L", 77), "JPEG")],
        "JPEG, CMYK": lambda: [saved(flat("CMYK", (0, 255, 255, 0)), "JPEG")],
        "JPEG called .jfif, .jpe, .jif, .png or nothing": lambda: [saved(flat("RGB", red), "JPEG")],
        "JPEG with a second picture (MPO)": lambda: [several("MPO")],
        "JPEG, motion photo": lambda: [
            xmp(b'GCamera:MotionPhoto="1"'),
            xmp(b'GCamera:MicroVideo="1"'),
            saved(flat("RGB", red), "JPEG") + b"\0\0\0\x18ftypmp42" + bytes(12),
        ],
        "JPEG with a gain map (Ultra HDR)": lambda: [xmp(b'hdrgm:Version="1.0"')],
        "PNG, 8 bits, 1 bit or a palette": lambda: [
            saved(flat("RGB", red), "PNG"),
            saved(flat("1", 1), "PNG"),
            files.palette(transparent=False),
        ],
        "PNG, 16 bits": lambda: [files.png(deep[..., :3], 2), files.png(deep[..., 0], 0)],
        "PNG with alpha": lambda: [
            saved(flat("RGBA", (*red, 40)), "PNG"),
            saved(flat("LA", (77, 40)), "PNG"),
            files.palette(transparent=True),
        ],
        "PNG of another gamma (gAMA, cHRM)": lambda: [
            files.png(deep[..., :3], 2, files.chunk(b"gAMA", struct.pack(">I", 100_000)))
        ],
        "PNG of HDR or a wide gamut (cICP)": lambda: [
            files.png(deep[..., :3], 2, files.chunk(b"cICP", b"\x09\x10\0\1"))
        ],
        "PNG, animated": lambda: [several("PNG")],
        "WebP": lambda: [saved(flat("RGB", red), "WEBP"), saved(flat("RGB", red), "WEBP", lossless=True)],
        "WebP with alpha": lambda: [saved(flat("RGBA", (*red, 40)), "WEBP")],
        "WebP, animated": lambda: [several("WEBP", lossless=True)],
        "BMP": lambda: [saved(flat("RGB", red), "BMP"), saved(flat("1", 1), "BMP")],
        "TIFF": lambda: [saved(flat(mode, 9), "TIFF") for mode in ("RGB", "L", "1")],
        "TIFF, 9 to 16 bits of grey": lambda: [files.tiff_16(deep[..., :1], photometric=1)],
        "TIFF, CIELAB": lambda: [saved(flat("LAB", (128, 160, 100)), "TIFF", icc_profile=files.swapped_profile())],
        "TIFF with channels that are no colours": lambda: [files.tiff_16(deep, (338, 0))],
        "TIFF in planes, or 16 bits of grey with alpha": lambda: [
            files.tiff_16(deep[..., :3], (284, 2)),
            files.tiff_16(deep[..., :2], (338, 2), photometric=1),
        ],
        "TIFF, CMYK with alpha": lambda: [files.tiff_16(deep[..., [0, 1, 2, 3, 0]], (338, 2), photometric=5)],
        "TIFF of several pages": lambda: [several("TIFF")],
        "any of them with an ICC profile": lambda: [
            saved(flat("RGB", red), "PNG", icc_profile=files.swapped_profile()),
            saved(flat("RGB", red), "TIFF", icc_profile=files.swapped_profile()),
        ],
        "any of them with content credentials": lambda: [
            files.png(deep[..., :3], 2, files.chunk(b"caBX", b"\0\0\0\x20jumb\0\0\0\x18jumdc2pa"))
        ],
        "any of them with a broken profile": lambda: [saved(flat("RGB", red), "PNG", icc_profile=b"words")],
        "any of them with an EXIF orientation": lambda: [saved(flat("RGB", red), "JPEG", exif=files.exif(6))],
        "any of them with broken EXIF": lambda: [saved(flat("RGB", red), "PNG", exif=b"Exif\0\0MM\0*words")],
        "alpha into a JPEG": lambda: [saved(flat("RGBA", (*red, 40)), "PNG"), files.png(deep, 6)],
        "16 bits into a JPEG or WebP": lambda: [files.png(deep[..., :3], 2)],
        "TIFF of 32 bits or floating point": lambda: [saved(flat(mode, 1), "TIFF") for mode in ("F", "I")],
        "TIFF of signed numbers": lambda: [saved(flat(mode, 9), "TIFF", tiffinfo={339: 2}) for mode in ("L", "I;16")],
        "TIFF that begins with a preview, as raw files do": lambda: [
            saved(flat("RGB", red), "TIFF", tiffinfo={254: 1}),
            saved(flat("RGB", red), "TIFF", tiffinfo={50706: b"\1\4\0\0"}),
        ],
        "BMP in run lengths (RLE) of more than 4,194,304 pixels or bytes": lambda: [
            b"BM" + struct.pack("<IHHIIiiHHI", 0, 0, 0, 1078, 40, 2100, 2100, 1, 8, 1) + bytes(20 + 1024)
        ],
        "cut off or damaged": lambda: [
            saved(flat("RGB", red, (99, 99)), kind)[:-90] for kind in ("PNG", "JPEG", "BMP")
        ],
        "empty": lambda: [b""],
        "more than 64 megapixels (`--max-pixels`)": lambda: [files.png(deep, 6, size=(8_001, 8_000))],
        "HEIC, AVIF, GIF, JPEG XL, raw or text, named": lambda: other,
        "HEIC, AVIF, GIF, JPEG XL, raw or text, in a folder": lambda: other,
        "download that is not finished (.part), in a folder": lambda: [saved(flat("RGB", red), "PNG")],
        "a camera's raw file (.dng, .nef, .cr2 and others), in a folder": lambda: [saved(flat("RGB", red), "TIFF")],
        "link out of the folder": lambda: [saved(flat("RGB", red), "PNG")],
    }


def test_every_row_has_its_files(files: Any) -> None:
    assert KINDS.keys() == makers(files).keys()
    assert MAX_PIXELS == 64_000_000
    assert "JPEG called .jfif, .jpe, .jif" in DOCUMENT
    assert {".jfif", ".jpe", ".jif"} <= BY_SUFFIX.keys()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in IN_FOLDER])
def test_a_file_of_each_kind(files: Any, tmp_path: Path, kind: str) -> None:
    _, _, written, said = KINDS[kind]
    for data in makers(files)[kind]():
        if not written:
            with pytest.raises(InvalidImage, match=re.escape(said.strip("`"))):
                decode_image(data)
            continue
        image = decode_image(data)
        names = ["a.jfif", "a.jpe", "a.jif", "a.png", "a"] if " called " in kind else ["a"]
        for name in names:
            (tmp_path / name).write_bytes(data)
            found = find_inputs([tmp_path / name])
            ((_, output),) = choose_outputs(found.items, Store(tmp_path / "out"), "same")[0].items()
            suffixes = INTO.get(kind, (Path(output).suffix,))
            assert written in suffixes
        for suffix in suffixes:
            _, lost = encode_noted(image.pixels, suffix, like=image)
            notes = [*image.notes, *lost]
            wanted = said.strip("`").replace("JPEG", BY_SUFFIX[suffix].name) if kind in INTO else said.strip("`")
            assert any(wanted in note for note in notes) if said else notes == []


@pytest.mark.parametrize("kind", IN_FOLDER)
def test_a_file_of_each_kind_in_a_folder(files: Any, tmp_path: Path, kind: str) -> None:
    said = KINDS[kind][3].strip("`")
    for data in makers(files)[kind]():
        (tmp_path / "in").mkdir(exist_ok=True)
        path = tmp_path / "in" / IN_FOLDER[kind]
        if "link" in kind:
            (tmp_path / "elsewhere.png").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere.png")
        else:
            path.write_bytes(data)
        found = find_inputs([tmp_path / "in"])
        assert found.items == []
        assert said in found.passed_over[str(path)]


def test_what_a_format_holds() -> None:
    """A yes is a field of the format's row, and a no is none."""
    rows = {re.match(r"\w+", row[0])[0]: row[1:] for row in table("metadata")}  # type: ignore[index]
    assert rows.keys() == {field.name for field in fields(Metadata)}
    for i, suffix in enumerate((".png", ".jpg", ".webp")):
        holds = {name for name, cells in rows.items() if not cells[i].startswith("no")}
        assert holds == BY_SUFFIX[suffix].metadata
    assert [bool(BY_SUFFIX[suffix].longest_part) for suffix in (".png", ".jpg", ".webp")] == [False, True, False]


def test_what_the_second_column_says(files: Any) -> None:
    """Grey stays grey, alpha and depth come back, the orientation is applied, colours are sRGB's."""
    kinds = makers(files)
    assert decode_image(kinds["JPEG, grey"]()[0]).grey
    for data in kinds["PNG, 16 bits"]():
        assert decode_image(data).pixels.dtype == np.uint16
    for data in kinds["PNG with alpha"]():
        assert decode_image(data).alpha is not None
    turned = decode_image(files.saved(Pillow.new("RGB", (8, 4)), "JPEG", exif=files.exif(6)))
    assert turned.pixels.shape[:2] == (8, 4)
    (other, _) = kinds["any of them with an ICC profile"]()
    assert decode_image(other).pixels[0, 0].argmax() == 1  # the profile's red is green
