"""Any file to RGB and back: the table of formats, colour order, depth, alpha, orientation, limits, damage."""

import io
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms

from bfr.runtime.encode import encode_image, write_image
from bfr.runtime.errors import BfrError, InputNotFound, InvalidImage, InvalidOption, WriteFailed
from bfr.runtime.image import Image, decode_image, read_image, resize

Array = NDArray[Any]
ORIENTATION = 0x0112
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
# Rows and columns of different length, four corners of different colour: no orientation looks like another.
CORNERS = np.array([[RED, GREEN, GREEN], [BLUE, BLUE, (255, 255, 255)]], np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65_536, (5, 7, 4), np.uint16)


def png(samples: Array, colour_type: int, *chunks: bytes, size: tuple[int, int] | None = None) -> bytes:
    """A PNG written by hand. samples: (H, W) or (H, W, C), uint8 or uint16; size: the (width, height) it claims."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), samples.itemsize * 8, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(f">u{samples.itemsize}").tobytes() for row in samples)
    body = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def saved(image: Pillow.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    data = Pillow.Exif()
    data[ORIENTATION] = orientation
    return data.tobytes()


def flat(mode: str, colour: Any, size: tuple[int, int] = (16, 16)) -> Pillow.Image:
    return Pillow.new(mode, size, colour)


def palette(transparent: bool) -> bytes:
    image = Pillow.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, *RED])
    return saved(image, "PNG", **({"transparency": bytes([255, 40])} if transparent else {}))


def tiff_16(samples: Array, *extra: tuple[int, int], photometric: int = 2) -> bytes:
    """A TIFF written by hand, deflated. samples: (H, W, C) uint16; extra: further tags and their values."""
    height, width, channels = samples.shape
    tags = {256: [width], 257: [height], 258: [16] * channels, 259: [8], 262: [photometric], 277: [channels]}
    tags |= {tag: [value] for tag, value in extra}
    planes = np.moveaxis(samples, 2, 0) if tags.get(284) == [2] else [samples]
    strips = [zlib.compress(plane.astype("<u2").tobytes()) for plane in planes]
    tags |= {273: [0] * len(strips), 278: [height], 279: [len(strip) for strip in strips]}
    lists_at = 8 + 2 + 12 * len(tags) + 4
    strips_at = lists_at + 4 * sum(len(values) for values in tags.values() if len(values) > 1)
    tags[273] = [strips_at + len(b"".join(strips[:i])) for i in range(len(strips))]
    entries = lists = b""
    for tag, values in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            data, lists = struct.pack("<I", lists_at + len(lists)), lists + data
        entries += struct.pack("<HHI", tag, 4, len(values)) + data
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + lists + b"".join(strips)


TABLE: dict[str, tuple[bytes, tuple[int, int, int], int | None, bool]] = {
    # name: file, colour of every pixel, alpha of every pixel, grey
    "png rgb": (saved(flat("RGB", RED), "PNG"), RED, None, False),
    "png rgba": (saved(flat("RGBA", (*RED, 40)), "PNG"), RED, 40, False),
    "png rgba, invisible": (saved(flat("RGBA", (*RED, 0)), "PNG"), RED, 0, False),
    "png grey": (saved(flat("L", 77), "PNG"), (77, 77, 77), None, True),
    "png grey, alpha": (saved(flat("LA", (77, 40)), "PNG"), (77, 77, 77), 40, True),
    "png 1 bit": (saved(flat("1", 1), "PNG"), (255, 255, 255), None, True),
    "png palette": (palette(transparent=False), RED, None, False),
    "png palette, transparent": (palette(transparent=True), RED, 40, False),
    "png transparent colour": (saved(flat("RGB", RED), "PNG", transparency=RED), RED, 0, False),
    "jpeg rgb": (saved(flat("RGB", (254, 0, 0)), "JPEG", quality=100), (254, 0, 0), None, False),
    "jpeg grey": (saved(flat("L", 77), "JPEG", quality=100), (77, 77, 77), None, True),
    "jpeg cmyk": (saved(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), RED, None, False),
    "webp lossless": (saved(flat("RGB", RED), "WEBP", lossless=True), RED, None, False),
    "webp alpha": (saved(flat("RGBA", (*RED, 40)), "WEBP", lossless=True), RED, 40, False),
    "bmp rgb": (saved(flat("RGB", RED), "BMP"), RED, None, False),
    "bmp grey": (saved(flat("L", 77), "BMP"), (77, 77, 77), None, True),
    "tiff rgb": (saved(flat("RGB", RED), "TIFF"), RED, None, False),
    "tiff rgba": (saved(flat("RGBA", (*RED, 40)), "TIFF"), RED, 40, False),
    "tiff cmyk": (saved(flat("CMYK", (0, 255, 255, 0)), "TIFF"), RED, None, False),
    "tiff 1 bit": (saved(flat("1", 1), "TIFF", compression="group4"), (255, 255, 255), None, True),
    "png 1x1": (saved(flat("RGB", RED, (1, 1)), "PNG"), RED, None, False),
    "png 1xN": (saved(flat("RGB", RED, (1, 99)), "PNG"), RED, None, False),
    "jpeg Nx1": (saved(flat("L", 77, (99, 1)), "JPEG", quality=100), (77, 77, 77), None, True),
    **{
        f"{name}, animated: first frame": (
            saved(flat("RGB", RED), name, save_all=True, append_images=[flat("RGB", BLUE)], **options),
            RED,
            None,
            False,
        )
        for name, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}))
    },
}


@pytest.mark.parametrize("name", TABLE)
def test_table_of_formats(tmp_path: Path, name: str) -> None:
    data, colour, alpha, grey = TABLE[name]
    (tmp_path / "a.any").write_bytes(data)
    image = read_image(tmp_path / "a.any")
    width, height = Pillow.open(io.BytesIO(data)).size
    assert (image.pixels.shape, image.pixels.dtype) == ((height, width, 3), np.uint8)
    tolerance = 3 if name.startswith("jpeg") else 0
    assert np.abs(image.pixels.astype(int) - colour).max() <= tolerance
    assert image.grey is grey
    if alpha is None:
        assert image.alpha is None
    else:
        assert image.alpha is not None
        assert image.alpha.shape == (height, width)
        assert (image.alpha == alpha).all()


DEEP_TABLE: dict[str, tuple[bytes, Array, Array | None, bool]] = {
    "png rgb": (png(DEEP[..., :3], 2), DEEP[..., :3], None, False),
    "png rgba": (png(DEEP, 6), DEEP[..., :3], DEEP[..., 3], False),
    "png grey": (png(DEEP[..., 0], 0), DEEP[..., [0, 0, 0]], None, True),
    "png grey, alpha": (png(DEEP[..., :2], 4), DEEP[..., [0, 0, 0]], DEEP[..., 1], True),
    "tiff rgb": (tiff_16(DEEP[..., :3]), DEEP[..., :3], None, False),
    "tiff rgba": (tiff_16(DEEP, (338, 2)), DEEP[..., :3], DEEP[..., 3], False),
    "tiff grey": (tiff_16(DEEP[..., :1], photometric=1), DEEP[..., [0, 0, 0]], None, True),
    "tiff grey, white is 0": (tiff_16(65_535 - DEEP[..., :1], photometric=0), DEEP[..., [0, 0, 0]], None, True),
}


@pytest.mark.parametrize("name", DEEP_TABLE)
def test_16_bits_are_read_and_written_exactly(tmp_path: Path, name: str) -> None:
    data, pixels, alpha, grey = DEEP_TABLE[name]
    image = decode_image(data)
    write_image(tmp_path / "b.png", image.pixels, like=image)
    for one in (image, read_image(tmp_path / "b.png")):
        assert one.pixels.dtype == np.uint16
        np.testing.assert_array_equal(one.pixels, pixels)
        assert (one.alpha is None) == (alpha is None)
        if alpha is not None:
            np.testing.assert_array_equal(one.alpha, alpha)
    assert image.grey is grey


def test_16_bit_transparent_grey() -> None:
    grey = np.array([[0, 300, 65_535]], np.uint16)
    image = decode_image(png(grey, 0, chunk(b"tRNS", struct.pack(">H", 300))))
    np.testing.assert_array_equal(image.alpha, np.array([[65_535, 0, 65_535]], np.uint16))


def test_16_bit_tiff_premultiplied_by_alpha() -> None:
    alpha = np.maximum(DEEP[..., 3:], 20_000)
    stored = np.rint(DEEP[..., :3] * (alpha / 65_535)).astype(np.uint16)
    image = decode_image(tiff_16(np.dstack([stored, alpha]), (338, 1)))
    assert np.abs(image.pixels.astype(int) - DEEP[..., :3]).max() <= 2
    np.testing.assert_array_equal(image.alpha, alpha[..., 0])


@pytest.mark.parametrize("extra", [[], [(338, 2)], [(338, 1)]])
def test_16_bit_tiff_in_planes_is_refused(extra: list[tuple[int, int]]) -> None:
    """OpenCV mixes its planes up without a word, and where alpha is multiplied in, Pillow's 8 bits do not show it."""
    with pytest.raises(InvalidImage, match="rare kind: save it as PNG"):
        decode_image(tiff_16(DEEP[..., : 3 + len(extra)], (284, 2), *extra))


def test_two_decoders_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: DEEP[::-1])
    with pytest.raises(InvalidImage, match="two decoders read differently"):
        decode_image(png(DEEP, 6))


# The EXIF standard's words, "row 0 is the visual ..., column 0 is the visual ...", as positions of stored[row, column].
STANDARD = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def upright(stored: Array, orientation: int) -> Array:
    rows, columns = STANDARD[orientation]
    height, width = stored.shape[:2]
    turned = rows in ("left", "right")
    result = np.empty((width, height, *stored.shape[2:]) if turned else stored.shape, stored.dtype)
    for r in range(height):
        for c in range(width):
            row = height - 1 - r if rows in ("bottom", "right") else r
            column = width - 1 - c if columns in ("bottom", "right") else c
            result[(column, row) if turned else (row, column)] = stored[r, c]
    return result


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "PNG 16", "JPEG", "WEBP", "TIFF", "TIFF 16"])
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    corners = np.kron(CORNERS, np.ones((16, 16, 1), np.uint8))
    picture = Pillow.fromarray(corners)
    if kind == "PNG 16":
        stored = DEEP
        data = png(stored, 6, chunk(b"eXIf", exif(orientation).removeprefix(b"Exif\0\0")))
    elif kind == "TIFF 16":
        stored = DEEP[..., :3]
        data = tiff_16(stored, (ORIENTATION, orientation))
    else:
        stored = corners
        options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
        tag = {"tiffinfo": {ORIENTATION: orientation}} if kind == "TIFF" else {"exif": exif(orientation)}
        data = saved(picture, kind, **options, **tag)
    image = decode_image(data)
    expected = upright(stored, orientation)
    assert image.pixels.shape == (*expected.shape[:2], 3)
    assert np.abs(image.pixels.astype(int) - expected[..., :3]).max() <= (4 if kind == "JPEG" else 0)
    if stored.shape[2] == 4:
        np.testing.assert_array_equal(image.alpha, expected[..., 3])
    # Written out, nothing says that it still has to be turned.
    written = Pillow.open(io.BytesIO(encode_image(image.pixels, ".jpg", like=image)))
    assert written.size == (expected.shape[1], expected.shape[0])
    assert ORIENTATION not in written.getexif()


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


def test_depth_and_alpha_come_back_where_the_format_allows() -> None:
    deep = Image(DEEP[..., :3], DEEP[..., 3])
    shallow = (DEEP[..., :3] >> 8).astype(np.uint8)
    back = decode_image(encode_image(shallow, ".png", like=deep))
    np.testing.assert_array_equal(back.pixels, shallow.astype(np.uint16) * 257)
    np.testing.assert_array_equal(back.alpha, DEEP[..., 3])

    webp = decode_image(encode_image(deep.pixels, ".webp", like=deep))
    assert webp.pixels.dtype == np.uint8
    np.testing.assert_array_equal(webp.alpha, np.rint(DEEP[..., 3] / 257))
    assert decode_image(encode_image(deep.pixels, ".jpg", like=deep)).alpha is None

    eight = Image(shallow, shallow[..., 0])
    back = decode_image(encode_image(DEEP[..., :3], ".png", like=eight))
    np.testing.assert_array_equal(back.pixels, np.rint(DEEP[..., :3] / 257))
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


def swapped_profile() -> bytes:
    """The sRGB profile with its red and green primaries exchanged: its (255, 0, 0) is green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")


def other_profile() -> bytes:
    """The same under another name: a profile that calls itself sRGB is believed."""
    return swapped_profile().replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def test_profile_is_converted_to_srgb() -> None:
    profile = other_profile()
    for mode, colour in (("RGB", RED), ("RGBA", (*RED, 40))):
        image = decode_image(saved(flat(mode, colour), "PNG", icc_profile=profile))
        assert np.abs(image.pixels.astype(int) - GREEN).max() <= 2
        assert image.icc is None
    assert image.alpha is not None
    assert (image.alpha == 40).all()


def test_grey_with_a_profile_stays_grey() -> None:
    ramp = Pillow.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    profile = bytearray(other_profile())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red + 4 : red + 12] = profile[green + 4 : green + 12]  # two equal primaries tint what is neutral
    image = decode_image(saved(ramp, "PNG", icc_profile=bytes(profile)))
    assert image.grey
    assert (image.pixels == image.pixels[..., :1]).all()
    tinted = decode_image(saved(ramp.convert("RGB"), "PNG", icc_profile=bytes(profile)))
    assert not (tinted.pixels == tinted.pixels[..., :1]).all()


def test_srgb_profile_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = (DEEP[..., :3] >> 8).astype(np.uint8)
    image = decode_image(saved(Pillow.fromarray(pixels), "PNG", icc_profile=srgb))
    np.testing.assert_array_equal(image.pixels, pixels)


@pytest.mark.parametrize("profile", [b"nonsense", swapped_profile()[:200]])
def test_broken_profile_is_taken_as_srgb_and_said(profile: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        image = decode_image(saved(flat("RGB", RED), "PNG", icc_profile=profile), name="x.png")
    assert (image.pixels == RED).all()
    assert "x.png: its colour profile is broken" in caplog.text


def test_16_bit_colour_keeps_its_profile() -> None:
    profile = swapped_profile()
    iccp = chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))
    image = decode_image(png(DEEP[..., :3], 2, iccp))
    np.testing.assert_array_equal(image.pixels, DEEP[..., :3])
    assert image.icc == profile
    for suffix in (".png", ".jpg", ".webp"):
        written = encode_image(image.pixels, suffix, like=image)
        assert Pillow.open(io.BytesIO(written)).info["icc_profile"] == profile
    assert decode_image(encode_image(image.pixels, ".png", like=image)).icc == profile


def test_pixel_limit_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        pytest.fail("the image was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    monkeypatch.setattr(cv2, "imdecode", fail)
    for size in ((100_000, 100_000), (8_001, 8_000), (64_000_001, 1)):
        with pytest.raises(InvalidImage, match=r"big\.png .*pixels"):
            decode_image(png(DEEP[..., :3], 2, size=size), name="big.png")
    with pytest.raises(InvalidImage, match="6 x 5 pixels, more than the limit of 29"):
        decode_image(png(DEEP[:, :6, :3], 2), max_pixels=29)
    monkeypatch.undo()
    assert decode_image(png(DEEP[:, :6, :3], 2), max_pixels=30).pixels.shape == (5, 6, 3)


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(InvalidImage, match="bytes, more than"):
        read_image(tmp_path / "a.png")


def test_chunk_that_claims_gigabytes_never_reaches_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV 4.11 and later allocate what a chunk's length says: 4 GiB and 10 s for a file of 300 bytes."""

    def fail(*_: object) -> None:
        pytest.fail("the chunk was handed to OpenCV")

    data = png(DEEP, 6)
    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(InvalidImage, match="longer than the file"):
        decode_image(data[:33] + b"\xff\0\0\0" + data[37:])


def test_opencv_sees_nothing_but_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its version makes of orientation, gamma or animation: it is not told."""
    seen: list[bytes] = []
    imdecode = cv2.imdecode

    def spy(data: Array, flags: int) -> Array:
        seen.append(data.tobytes())
        return imdecode(data, flags)

    monkeypatch.setattr(cv2, "imdecode", spy)
    decode_image(png(DEEP, 6, chunk(b"gAMA", bytes(4)), chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0"))))
    assert seen == [png(DEEP, 6)]


def test_what_is_no_image_is_refused_with_its_path(tmp_path: Path) -> None:
    whole = saved(Pillow.fromarray((DEEP[..., :3] >> 8).astype(np.uint8)), "PNG")
    cases = {
        "empty.png": (b"", "is empty"),
        "text.png": (b"not an image\n" * 50, "is not an image of PNG, JPEG"),
        "gif.png": (saved(flat("P", 1), "GIF"), "is not an image of PNG, JPEG"),
        "half.png": (whole[: len(whole) // 2], "damaged or truncated"),
        "half.jpg": (saved(flat("RGB", RED, (200, 200)), "JPEG")[:-300], "damaged or truncated"),
        "half16.png": (png(DEEP[..., :3], 2)[:120], "damaged or truncated"),
        "float.tif": (saved(flat("F", 0.5), "TIFF"), "32-bit samples: save it with 8 or 16"),
    }
    for name, (data, text) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidImage, match=text) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InvalidImage, match=r"folder\.png is not a file but a folder"):
        read_image(tmp_path / "folder.png")
    with pytest.raises(InputNotFound, match=r"missing\.png does not exist"):
        read_image(tmp_path / "missing.png")


VALID = [data for data, *_ in (*TABLE.values(), *DEEP_TABLE.values())] + [
    saved(flat("RGB", RED), "JPEG", exif=exif(6), icc_profile=swapped_profile())
]


@settings(max_examples=100, deadline=None, database=None)
@given(st.sampled_from(VALID), st.data())
def test_damaged_bytes_give_an_image_or_our_error(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 4))):
        damaged[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    if draw.draw(st.booleans()):
        damaged = damaged[: draw.draw(st.integers(0, len(data)))]
    try:
        image = decode_image(bytes(damaged), max_pixels=1_000_000)
    except BfrError:
        return
    assert image.pixels.ndim == 3
    assert image.pixels.dtype in (np.uint8, np.uint16)


def test_writing_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    pixels = np.zeros((1, 16_384, 3), np.uint8)
    for name, quality, text in (
        ("a.gif", 95, r"use \.png"),
        ("a", 95, "without suffix"),
        ("a.jpg", 0, "between 1 and 100"),
        ("a.webp", 95, "at most 16383"),
    ):
        with pytest.raises(InvalidOption, match=text):
            write_image(tmp_path / name, pixels, quality=quality)
    assert list(tmp_path.iterdir()) == []
    write_image(tmp_path / "a.png", pixels)
    write_image(tmp_path / "a.jpg", pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_disk_full_leaves_no_part_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteFailed, match="disk is full"):
        write_image(tmp_path / f"a{suffix}", DEEP[..., :3])
    assert list(tmp_path.iterdir()) == []


def test_resize_is_antialiased_and_not_clipped() -> None:
    stripes = np.zeros((64, 64, 3), np.float32)
    stripes[:, ::2] = (1.0, 0.5, 0.25)
    small = resize(stripes, (16, 8))
    assert (small.shape, small.dtype) == ((8, 16, 3), np.float32)
    inner = small[:, 2:-2]
    assert np.abs(inner - np.array([0.5, 0.25, 0.125])).max() < 0.01  # without antialiasing: 0 or 1

    edge = np.zeros((4, 8, 3), np.float32)
    edge[:, 4:] = 1.0
    large = resize(edge, (32, 16))
    assert large.min() < -0.01
    assert large.max() > 1.01
    np.testing.assert_array_equal(resize(edge, (8, 4)), edge)
