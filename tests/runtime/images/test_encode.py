"""RGB to a file: depth, alpha, grey, EXIF, what is left out, and what a full disk leaves."""

import io
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidImage, InvalidOption, WriteFailed
from bfr.runtime.images.decode import Image, decode_image, read_image
from bfr.runtime.images.encode import encode_image, encode_noted, write_image
from bfr.runtime.images.exif import clean_exif
from bfr.runtime.images.formats import BY_SUFFIX, result_suffix
from bfr.runtime.images.metadata import Metadata

RED = (255, 0, 0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("like", [None, Image(np.zeros((8, 8, 3), np.uint16), np.full((8, 8), 65_535, np.uint16))])
def test_red_stays_red(tmp_path: Path, suffix: str, dtype: type[np.uint8], like: Image | None) -> None:
    pixels = np.zeros((8, 8, 3), dtype)
    pixels[..., 0] = np.iinfo(dtype).max
    write_image(tmp_path / f"a{suffix}", pixels, like=like)
    seen = np.asarray(Pillow.open(tmp_path / f"a{suffix}").convert("RGB")).astype(int)  # another reader
    assert np.abs(seen - RED).max() <= 3
    back = read_image(tmp_path / f"a{suffix}")
    assert np.abs(back.pixels / np.iinfo(back.pixels.dtype).max - (1, 0, 0)).max() < 0.012


def test_depth_and_alpha_come_back_where_the_format_allows(files: Any) -> None:
    deep = Image(files.deep[..., :3], files.deep[..., 3])
    shallow = (files.deep[..., :3] >> 8).astype(np.uint8)
    back = decode_image(encode_image(shallow, ".png", like=deep))
    np.testing.assert_array_equal(back.pixels, shallow.astype(np.uint16) * 257)
    np.testing.assert_array_equal(back.alpha, files.deep[..., 3])

    webp = decode_image(encode_image(deep.pixels, ".webp", like=deep))
    assert webp.pixels.dtype == np.uint8
    np.testing.assert_array_equal(webp.alpha, np.rint(files.deep[..., 3] / 257))
    assert decode_image(encode_image(deep.pixels, ".jpg", like=deep)).alpha is None

    eight = Image(shallow, shallow[..., 0])
    back = decode_image(encode_image(files.deep[..., :3], ".png", like=eight))
    np.testing.assert_array_equal(back.pixels, np.rint(files.deep[..., :3] / 257))
    np.testing.assert_array_equal(back.alpha, eight.alpha)


def test_colour_below_invisible_alpha_survives_webp() -> None:
    like = Image(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8))
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[:, None, None], (32, 32, 3))
    back = decode_image(encode_image(ramp, ".webp", like=like))
    assert np.abs(back.pixels.astype(int) - ramp).max() <= 12


def test_alpha_is_resized_with_the_pixels() -> None:
    alpha = np.zeros((4, 6), np.uint8)
    alpha[:, 3:] = 255
    like = Image(np.zeros((4, 6, 3), np.uint8), alpha)
    back = decode_image(encode_image(np.zeros((8, 12, 3), np.uint8), ".png", like=like))
    assert back.alpha is not None
    assert back.alpha.shape == (8, 12)
    assert (back.alpha[:, :3] == 0).all()
    assert (back.alpha[:, 9:] == 255).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_is_stored_as_grey_until_it_has_colour(dtype: type[np.uint8]) -> None:
    grey = np.repeat(np.arange(12, dtype=dtype).reshape(3, 4, 1), 3, axis=2)
    like = Image(grey, grey=True)
    data = encode_image(grey, ".png", like=like)
    assert data[25] == 0  # IHDR's colour type: grey
    np.testing.assert_array_equal(decode_image(data).pixels, grey)
    coloured = grey.copy()
    coloured[0, 0, 0] += 1
    np.testing.assert_array_equal(decode_image(encode_image(coloured, ".png", like=like)).pixels, coloured)


def test_writing_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    pixels = np.zeros((1, 16_384, 3), np.uint8)
    for name, quality, text in (
        ("a.gif", 95, r"use one of \.png"),
        ("a", 95, "without suffix"),
        ("a.jpg", 0, "between 1 and 100"),
        ("a.webp", 95, "at most 16383"),
    ):
        with pytest.raises(InvalidOption, match=text):
            write_image(tmp_path / name, pixels, quality=quality)
    for wrong in (pixels / 255, pixels.astype(np.float32), pixels[..., 0], pixels[..., :2], pixels[:0], pixels > 0):
        with pytest.raises(InvalidImage, match="uint8 or uint16 are written"):
            write_image(tmp_path / "a.png", wrong)
    assert list(tmp_path.iterdir()) == []
    write_image(tmp_path / "a.png", pixels)
    write_image(str(tmp_path / "a.jpg"), pixels)
    assert read_image(str(tmp_path / "a.jpg")).pixels.shape == pixels.shape


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_disk_full_leaves_no_part_of_an_image(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteFailed, match="full"):
        write_image(tmp_path / f"a{suffix}", files.deep[..., :3])
    assert list(tmp_path.iterdir()) == []


def test_the_suffix_of_a_result() -> None:
    names = {"a.JPG": ".jpg", "a.jpeg": ".jpg", "a.png": ".png", "a.WebP": ".webp", "a.bmp": ".png", "a.tif": ".png"}
    found = {name: result_suffix(BY_SUFFIX.get(Path(name).suffix.lower())) for name in (*names, "a")}
    assert found == {**names, "a": ".png"}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(1, 1), (1, 99), (99, 1)])
@pytest.mark.parametrize("alpha", [False, True])
def test_lines_and_points(suffix: str, dtype: type[np.uint8], size: tuple[int, int], alpha: bool) -> None:
    pixels = np.full((*size, 3), 77 * (np.iinfo(dtype).max // 255), dtype)
    like = Image(pixels, pixels[..., 0] if alpha else None, grey=True)
    back = decode_image(encode_image(pixels, suffix, like=like))
    assert back.pixels.shape == pixels.shape
    on_white = 255 - (255 - 77) * 77 / 255
    expected = on_white if alpha and suffix == ".jpg" else 77
    assert np.abs(back.pixels / np.iinfo(back.pixels.dtype).max - expected / 255).max() < 0.01
    assert (back.alpha is not None) == (alpha and suffix != ".jpg")


THUMBNAIL = b"\xff\xd8 the picture as it was \xff\xd9"


@pytest.fixture
def camera() -> bytes:
    """EXIF of a telephone: 8 x 6, turned; the thumbnail, which Pillow writes not, in a second directory."""
    exif = Pillow.Exif()
    exif.update(
        {0x100: 8, 0x101: 6, 0x10F: "Maker", 0x112: 6, 0x11A: 300.0, 0x132: "2026:01:02 03:04:05", 0x13E: (0.3, 0.3)}
    )
    exif.update({0x8298: "J\xfcrgen".encode("latin-1"), 0x9C9B: "title".encode("utf-16-le")})
    camera = {0x829A: 0.01, 0x9003: "2026:01:02 03:04:05", 0x927C: b"maker's note" * 9, 0x9286: b"ASCII\0\0\0words"}
    exif._ifds[0x8769] = {**camera, 0xA001: 0xFFFF, 0xA002: 8, 0xA003: 6, 0xA005: {1: "R03"}, 0xA214: (1, 2)}
    exif._ifds[0x8825] = {1: "N", 2: (48.0, 8.0, 1.5)}
    block = bytearray(exif.tobytes().removeprefix(b"Exif\0\0"))
    end = 10 + 12 * int.from_bytes(block[8:10], "big")
    block[end : end + 4] = len(block).to_bytes(4, "big")
    second = struct.pack(">HHHIIHHII", 2, 0x201, 4, 1, len(block) + 30, 0x202, 4, 1, len(THUMBNAIL))
    return bytes(block) + second + bytes(4) + THUMBNAIL


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "PNG 16"])
def test_exif_outlives_a_restoration(files: Any, camera: bytes, source: str, suffix: str) -> None:
    if source == "PNG 16":
        data = files.png(files.deep, 6, files.chunk(b"eXIf", camera))
    else:
        data = files.saved(files.flat("RGB", RED, (8, 6)), source, exif=b"Exif\0\0" + camera)
    image = replace(decode_image(data), alpha=None)
    assert image.pixels.shape[:2] == ((7, 5) if "16" in source else (8, 6))  # turned
    written = encode_image(np.zeros((16, 12, 3), np.uint8), suffix, like=image)
    assert THUMBNAIL not in written
    assert b"maker's note" not in written
    exif = Pillow.open(io.BytesIO(written)).getexif()
    camera_at, position_at = exif[0x8769], exif[0x8825]
    words = {0x10F: "Maker", 0x132: "2026:01:02 03:04:05", 0x8298: "J\xfcrgen", 0x9C9B: "title".encode("utf-16-le")}
    numbers = {0x100: 12, 0x101: 16, 0x112: 1, 0x11A: 300.0, 0x8769: camera_at, 0x8825: position_at}
    assert dict(exif) == {**words, **numbers}
    words = {0x829A: 0.01, 0x9003: "2026:01:02 03:04:05", 0x9286: b"ASCII\0\0\0words"}
    assert exif.get_ifd(0x8769) == {**words, 0xA001: 1, 0xA002: 12, 0xA003: 16}
    assert exif.get_ifd(0x8825) == {1: "N", 2: (48.0, 8.0, 1.5)}
    assert Pillow.open(io.BytesIO(data)).getexif().get_ifd(-1)[0x202] == len(THUMBNAIL)  # which the source has
    assert exif.get_ifd(0x927C) == exif.get_ifd(-1) == {}  # the maker's note and the directory of the thumbnail
    assert decode_image(written).metadata.exif == clean_exif(image.metadata.exif, (12, 16))
    assert (decode_image(written).pixels == 0).all()  # and is not turned again


def test_exif_of_a_tiff_is_taken_without_its_strips(files: Any) -> None:
    tags = {0x10E: "about", 0x10F: "Maker", 0x112: 6, 0x132: "2026:01:02 03:04:05"}
    image = decode_image(files.saved(files.flat("RGB", RED, (8, 6)), "TIFF", tiffinfo=tags))
    exif = Pillow.open(io.BytesIO(encode_image(image.pixels, ".jpg", like=image))).getexif()
    assert dict(exif) == {**tags, 0x100: 6, 0x101: 8, 0x112: 1}
    assert decode_image(files.saved(files.flat("RGB", RED), "TIFF")).metadata.exif is None


def test_colour_space_of_pixels_left_in_their_profile(camera: bytes) -> None:
    like = Image(np.zeros((1, 1, 3), np.uint16), icc=b"any", metadata=Metadata(exif=camera))
    exif = Pillow.open(io.BytesIO(encode_image(like.pixels, ".png", like=like))).getexif()
    assert exif.get_ifd(0x8769)[0xA001] == 0xFFFF


@pytest.mark.parametrize("damage", ["cut", "count", "type", "long pointer", "no TIFF"])
def test_broken_exif_costs_no_image(files: Any, camera: bytes, damage: str) -> None:
    block = bytearray(camera)
    match damage:
        case "cut":
            block = block[:100]
        case "count":
            block[8:10] = b"\xff\xff"
        case "type":
            at = block.index(struct.pack(">HH", 0x10F, 2))
            block[at + 4 : at + 8] = b"\xff\xff\xff\xff"
        case "long pointer":
            at = block.index(struct.pack(">HHI", 0x8769, 4, 1))
            block[at + 4 : at + 12] = struct.pack(">II", 4, block.index(b"\xff\xd8"))
        case "no TIFF":
            block[:2] = b"??"
    image = decode_image(files.saved(files.flat("RGB", RED), "PNG", exif=bytes(block)))
    assert image.metadata.exif is None
    assert "its EXIF data are broken and left out" in image.notes[0]
    like = Image(image.pixels, metadata=Metadata(exif=bytes(block)))
    written, notes = encode_noted(image.pixels, ".png", like=like)
    assert decode_image(written).metadata.exif is None
    assert "EXIF data are broken and left out" in notes[0]


def test_exif_too_long_for_a_jpeg_is_left_out_and_said() -> None:
    exif = Pillow.Exif()
    pixels = np.zeros((8, 8, 3), np.uint8)
    exif[0x10E] = "x" * 65_499  # and 27 bytes around it
    fits = Image(pixels, metadata=Metadata(exif=exif.tobytes()))
    data, notes = encode_noted(pixels, ".jpg", like=fits)
    assert decode_image(data).metadata.exif is not None
    assert notes == ()
    exif[0x10E] = "x" * 65_500
    like = Image(pixels, metadata=Metadata(exif=exif.tobytes()))
    data, notes = encode_noted(pixels, ".jpg", like=like)
    assert decode_image(data).metadata.exif is None
    assert "do not fit into a JPEG" in notes[0]
    for suffix in (".png", ".webp"):
        assert len(decode_image(encode_image(pixels, suffix, like=like)).metadata.exif or b"") > 65_500
    exif[0x10E] = "x" * (1 << 20)
    with pytest.raises(ValueError, match="1048576"):
        clean_exif(exif.tobytes(), (1, 1))


def parts(data: bytes) -> set[bytes]:
    """The names of the chunks of a PNG or WebP, or the markers of a JPEG up to its scan."""
    found, at = set(), 2
    if data[:2] == b"\xff\xd8":
        while (marker := data[at : at + 2]) != b"\xff\xda":
            found.add(marker[1:])
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return found
    png = data[:4] == b"\x89PNG"
    at = 8 if png else 12
    while at < len(data):
        head = data[at : at + 8]
        name, length = (
            (head[4:], int.from_bytes(head[:4], "big")) if png else (head[:4], int.from_bytes(head[4:], "little"))
        )
        found.add(name)
        at += 8 + length + (4 if png else length % 2)
    return found


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_without_metadata_nothing_but_pixels_and_profile(
    files: Any, camera: bytes, suffix: str, dtype: type[np.uint8]
) -> None:
    pixels = np.zeros((8, 8, 3), dtype)
    icc = files.swapped_profile() if dtype == np.uint16 else None
    like = Image(pixels, pixels[..., 0], icc=icc, metadata=Metadata(exif=camera))
    bare, full = (parts(encode_image(pixels, suffix, like=like, metadata=metadata)) for metadata in (False, True))
    exif, profile, allowed = {
        ".png": (b"eXIf", b"iCCP", {b"IHDR", b"IDAT", b"IEND"}),
        ".webp": (b"EXIF", b"ICCP", {b"VP8X", b"VP8 ", b"VP8L", b"ALPH"}),
        ".jpg": (b"\xe1", b"\xe2", {b"\xe0", b"\xdb", b"\xc0", b"\xc4"}),  # JFIF, tables, frame
    }[suffix]
    assert bare - allowed == ({profile} if icc else set())
    assert full - bare == {exif}


def test_png_of_a_photograph_is_no_larger_for_being_quick(files: Any) -> None:
    ramp = np.linspace(0, 200, 700)[:, None] + np.linspace(0, 50, 512)
    noise = np.random.default_rng(0).normal(0, 2, (700, 512, 3))
    pixels = np.clip(ramp[..., None] + noise, 0, 255).astype(np.uint8)
    written = encode_image(pixels, ".png")
    np.testing.assert_array_equal(decode_image(written).pixels, pixels)
    assert len(written) < 1.05 * len(files.saved(Pillow.fromarray(pixels), "PNG"))
