"""Any file to RGB: the table of formats, colour order, depth, alpha, orientation, profiles, damage."""

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
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms

from bfr.runtime.errors import InputNotFound, InvalidImage
from bfr.runtime.images.decode import decode_image, read_image
from bfr.runtime.images.encode import encode_image, write_image
from bfr.runtime.images.headers import header_size

Array = NDArray[Any]
ORIENTATION = 0x0112
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
CORNERS = np.array([[RED, GREEN, GREEN], [BLUE, BLUE, (255, 255, 255)]], np.uint8)


def test_each_format_is_read_as_the_table_says(tmp_path: Path, row: Any) -> None:
    name, data, colour, alpha, grey = row
    (tmp_path / "a.any").write_bytes(data)
    image = read_image(tmp_path / "a.any")
    width, height = Pillow.open(io.BytesIO(data)).size
    assert (image.pixels.shape, image.pixels.dtype) == ((height, width, 3), np.uint8)
    tolerance = 3 if any(lossy in name for lossy in ("jpeg", "lab", "webp")) else 0
    assert np.abs(image.pixels.astype(int) - colour).max() <= tolerance
    assert image.grey is grey
    assert header_size(tmp_path / "a.any") == (width, height)
    assert (image.alpha is None) == (alpha is None)
    if image.alpha is not None:
        assert image.alpha.shape == (height, width)
        assert (image.alpha == alpha).all()


def test_16_bits_are_read_and_written_exactly(tmp_path: Path, deep_row: Any) -> None:
    data, pixels, alpha, grey = deep_row
    image = decode_image(data)
    write_image(tmp_path / "b.png", image.pixels, like=image)
    for one in (image, read_image(tmp_path / "b.png")):
        assert one.pixels.dtype == np.uint16
        np.testing.assert_array_equal(one.pixels, pixels)
        assert (one.alpha is None) == (alpha is None)
        if alpha is not None:
            np.testing.assert_array_equal(one.alpha, alpha)
    assert image.grey is grey


def test_16_bit_transparent_grey(files: Any) -> None:
    grey = np.array([[0, 300, 65_535]], np.uint16)
    image = decode_image(files.png(grey, 0, files.chunk(b"tRNS", struct.pack(">H", 300))))
    np.testing.assert_array_equal(image.alpha, np.array([[65_535, 0, 65_535]], np.uint16))


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_empty_alpha_of_a_bmp_hides_nothing(alpha: int) -> None:
    head = struct.pack("<IiiHHIIiiII", 124, 2, 2, 1, 32, 3, 16, 0, 0, 0, 0)
    masks = struct.pack("<4I4s", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs")
    data = b"BM" + struct.pack("<IHHI", 154, 0, 0, 138) + (head + masks).ljust(124, b"\0")
    image = decode_image(data + bytes([30, 20, 10, 0] * 3 + [30, 20, 10, alpha]))
    assert (image.pixels == (10, 20, 30)).all()
    assert (image.alpha is None) == (not alpha)
    assert image.notes == ((), ("its alpha is 0 everywhere and is left out",))[not alpha]


def test_opencv_prints_nothing_of_private_tags(files: Any, capfd: pytest.CaptureFixture[str]) -> None:
    decode_image(files.tiff_16(files.deep[..., :3], (65_000, 5)))
    assert capfd.readouterr().err == ""


def test_16_bit_tiff_premultiplied_by_alpha(files: Any) -> None:
    alpha = np.maximum(files.deep[..., 3:], 20_000)
    stored = np.rint(files.deep[..., :3] * (alpha / 65_535)).astype(np.uint16)
    image = decode_image(files.tiff_16(np.dstack([stored, alpha]), (338, 1)))
    assert np.abs(image.pixels.astype(int) - files.deep[..., :3]).max() <= 2
    np.testing.assert_array_equal(image.alpha, alpha[..., 0])


def test_two_decoders_must_agree(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: files.deep[::-1])
    with pytest.raises(InvalidImage, match="two"):
        decode_image(files.png(files.deep, 6))


# The EXIF standard's words, "row 0 is the visual ..., column 0 is the visual ...", as positions of stored[row, column].


STANDARD = {1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left")}
STANDARD |= {5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom")}


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
def test_orientation_is_applied_once(files: Any, kind: str, orientation: int) -> None:
    corners = np.kron(CORNERS, np.ones((16, 16, 1), np.uint8))
    picture = Pillow.fromarray(corners)
    if kind == "PNG 16":
        stored = files.deep
        data = files.png(stored, 6, files.chunk(b"eXIf", files.exif(orientation).removeprefix(b"Exif\0\0")))
    elif kind == "TIFF 16":
        stored = files.deep[..., :3]
        data = files.tiff_16(stored, (ORIENTATION, orientation))
    else:
        stored = corners
        options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
        tag = {"tiffinfo": {ORIENTATION: orientation}} if kind == "TIFF" else {"exif": files.exif(orientation)}
        data = files.saved(picture, kind, **options, **tag)
    image = decode_image(data)
    expected = upright(stored, orientation)
    assert image.pixels.shape == (*expected.shape[:2], 3)
    assert np.abs(image.pixels.astype(int) - expected[..., :3]).max() <= (4 if kind == "JPEG" else 0)
    if stored.shape[2] == 4:
        np.testing.assert_array_equal(image.alpha, expected[..., 3])
    # Written out, nothing says that it still has to be turned.
    written = Pillow.open(io.BytesIO(encode_image(image.pixels, ".jpg", like=image)))
    assert written.size == (expected.shape[1], expected.shape[0])
    assert written.getexif().get(ORIENTATION, 1) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1)])
def test_orientation_of_a_line(files: Any, size: tuple[int, int], orientation: int) -> None:
    stored = files.deep.reshape(-1)[: 4 * size[0] * size[1]].reshape(size[1], size[0], 4)
    eight = (stored >> 8).astype(np.uint8)
    tag = files.exif(orientation)
    for samples, data in (
        (eight, files.saved(Pillow.fromarray(eight), "PNG", exif=tag)),
        (stored, files.png(stored, 6, files.chunk(b"eXIf", tag[6:]))),
    ):
        image = decode_image(data)
        expected = upright(samples, orientation)
        np.testing.assert_array_equal(np.dstack([image.pixels, image.alpha]), expected)


def test_header_size_of_what_is_no_image_is_none(tmp_path: Path, files: Any) -> None:
    (tmp_path / "folder.png").mkdir()
    names = ["folder.png", "none", "a\0", "long" * 100]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        names.append("pipe.png")
    assert [name for name in names if header_size(tmp_path / name) is not None] == []
    gif, empty = files.saved(files.flat("P", 1), "GIF"), files.png(files.deep, 6, size=(0, 9))
    for data in (b"", b"text", gif, empty, b"\xff\xd8" * 99_999, b"II*\0\xff\xff\xff\xff"):
        assert header_size(data) is None
    for data in files.valid:
        size = decode_image(data).pixels.shape[1::-1]
        assert header_size(data) == size
        for end in range(0, 60, 3):
            assert header_size(data[:end]) in (None, size)


def test_profile_is_converted_to_srgb(files: Any) -> None:
    profile = files.swapped_profile()
    for mode, colour in (("RGB", RED), ("RGBA", (*RED, 40))):
        image = decode_image(files.saved(files.flat(mode, colour), "PNG", icc_profile=profile))
        assert np.abs(image.pixels.astype(int) - GREEN).max() <= 2
        assert image.icc is None
    assert image.alpha is not None
    assert (image.alpha == 40).all()


def test_grey_with_a_profile_stays_grey(files: Any) -> None:
    ramp = Pillow.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    profile = bytearray(files.swapped_profile())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red + 4 : red + 12] = profile[green + 4 : green + 12]  # two equal primaries tint what is neutral
    image = decode_image(files.saved(ramp, "PNG", icc_profile=bytes(profile)))
    assert image.grey
    assert (image.pixels == image.pixels[..., :1]).all()
    tinted = decode_image(files.saved(ramp.convert("RGB"), "PNG", icc_profile=bytes(profile)))
    assert not (tinted.pixels == tinted.pixels[..., :1]).all()


def test_grey_with_alpha_has_a_profile_of_grey(files: Any) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = srgb.replace(b"RGB ", b"GRAY", 1).replace(b"rTRC", b"kTRC")
    image = decode_image(files.saved(files.flat("LA", (77, 40)), "PNG", icc_profile=profile))
    assert (image.grey, image.notes) == (True, ())
    assert (image.pixels == 77).all()


def test_srgb_profile_changes_nothing(files: Any) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = (files.deep[..., :3] >> 8).astype(np.uint8)
    image = decode_image(files.saved(Pillow.fromarray(pixels), "PNG", icc_profile=srgb))
    np.testing.assert_array_equal(image.pixels, pixels)


@pytest.mark.parametrize("whole", [False, True])
def test_a_broken_profile_is_taken_as_srgb_noted_and_logged(
    files: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: bool
) -> None:
    profile = b"nonsense" if whole else files.swapped_profile()[:200]
    (tmp_path / "x.png").write_bytes(files.saved(files.flat("RGB", RED), "PNG", icc_profile=profile))
    with caplog.at_level(logging.WARNING):
        image = read_image(tmp_path / "x.png")
    assert (image.pixels == RED).all()
    assert "its colour profile is broken" in image.notes[0]
    assert f"x.png: {image.notes[0]}" in caplog.text


def test_16_bit_colour_keeps_its_profile(files: Any) -> None:
    profile = files.swapped_profile()
    iccp = files.chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))
    image = decode_image(files.png(files.deep[..., :3], 2, iccp))
    np.testing.assert_array_equal(image.pixels, files.deep[..., :3])
    assert image.icc == profile
    for suffix in (".png", ".jpg", ".webp"):
        written = encode_image(image.pixels, suffix, like=image)
        assert Pillow.open(io.BytesIO(written)).info["icc_profile"] == profile
    assert decode_image(encode_image(image.pixels, ".png", like=image)).icc == profile


def test_opencv_sees_nothing_but_pixels(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its version makes of orientation, gamma or animation: it is not told."""
    seen: list[bytes] = []
    imdecode = cv2.imdecode

    def spy(data: Array, flags: int) -> Array:
        seen.append(data.tobytes())
        return imdecode(data, flags)

    monkeypatch.setattr(cv2, "imdecode", spy)
    exif = files.chunk(b"eXIf", files.exif(6).removeprefix(b"Exif\0\0"))
    decode_image(files.png(files.deep, 6, files.chunk(b"gAMA", bytes(4)), exif))
    assert seen == [files.png(files.deep, 6)]


def test_what_is_no_image_is_refused_with_its_path(files: Any, tmp_path: Path) -> None:
    whole = files.saved(Pillow.fromarray((files.deep[..., :3] >> 8).astype(np.uint8)), "PNG")
    cases = {
        "empty.png": (b"", "is empty"),
        "text.png": (b"not an image\n" * 50, "is not an image of PNG, JPEG"),
        "gif.png": (files.saved(files.flat("P", 1), "GIF"), "is not an image of PNG, JPEG"),
        "photo.orf": (b"IIRO\x08" + bytes(50), "is not an image of PNG, JPEG"),
        "half.png": (whole[: len(whole) // 2], "damaged or truncated"),
        "half.jpg": (files.saved(files.flat("RGB", RED, (200, 200)), "JPEG")[:-300], "damaged or truncated"),
        "half16.png": (files.png(files.deep[..., :3], 2)[:120], "damaged or truncated"),
        "float.tif": (files.saved(files.flat("F", 0.5), "TIFF"), "32-bit samples: save it with 8 or 16"),
    }
    for name, (data, text) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidImage, match=text) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InvalidImage, match=r"folder\.png"):
        read_image(tmp_path / "folder.png")
    with pytest.raises(InvalidImage, match="cannot be read"):
        read_image(tmp_path / ("long" * 100))
    with pytest.raises(InputNotFound, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")
