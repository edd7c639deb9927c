"""Images of every kind that can be read, written by hand or by Pillow."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from called import Called
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms

from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer

Array = NDArray[Any]
ORIENTATION = 0x0112
PNG = b"\x89PNG\r\n\x1a\n"
RED, BLUE = (255, 0, 0), (0, 0, 255)
DEEP = np.random.default_rng(1).integers(0, 65_536, (5, 7, 4), np.uint16)


def png(samples: Array, colour_type: int, *chunks: bytes, size: tuple[int, int] | None = None) -> bytes:
    """A PNG written by hand. samples: (H, W) or (H, W, C), uint8 or uint16; size: the (width, height) it claims."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), samples.itemsize * 8, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(f">u{samples.itemsize}").tobytes() for row in samples)
    body = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return PNG + b"".join(body)


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


def tiff_16(samples: Array, *extra: tuple[int, int | list[int]], photometric: int = 2) -> bytes:
    """A TIFF written by hand, deflated. samples: (H, W, C) uint16; extra: further tags and their values."""
    height, width, channels = samples.shape
    tags = {256: [width], 257: [height], 258: [16] * channels, 259: [8], 262: [photometric], 277: [channels]}
    tags |= {tag: value if isinstance(value, list) else [value] for tag, value in extra}
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


def swapped_profile() -> bytes:
    """The sRGB profile with its red and green primaries exchanged: its (255, 0, 0) is green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")


def unmarked_cmyk() -> bytes:
    """A JPEG of CMYK without Adobe's marker. Pillow takes it as inverted all the same."""
    data = saved(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=100)
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 16 :]


def png_2_bits(*chunks: bytes) -> bytes:
    """4x4 pixels of grey level 1 of 3."""
    header, rows = struct.pack(">IIBBBBB", 4, 4, 2, 0, 0, 0, 0), b"\0\x55" * 4
    return b"".join([PNG, chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


TABLE: dict[str, tuple[bytes, tuple[int, int, int], int | None, bool]] = {
    # name: file, colour of every pixel, alpha of every pixel, grey
    "png rgb": (saved(flat("RGB", RED), "PNG"), RED, None, False),
    "png rgba": (saved(flat("RGBA", (*RED, 40)), "PNG"), RED, 40, False),
    "png rgba, invisible": (saved(flat("RGBA", (*RED, 0)), "PNG"), RED, 0, False),
    "png grey": (saved(flat("L", 77), "PNG"), (77, 77, 77), None, True),
    "png grey, alpha": (saved(flat("LA", (77, 40)), "PNG"), (77, 77, 77), 40, True),
    "png 1 bit": (saved(flat("1", 1), "PNG"), (255, 255, 255), None, True),
    "png 2 bits, grey": (png_2_bits(), (85, 85, 85), None, True),
    "png 2 bits, transparent grey": (png_2_bits(chunk(b"tRNS", b"\0\1")), (85, 85, 85), 0, True),
    "png palette": (palette(transparent=False), RED, None, False),
    "png palette, transparent": (palette(transparent=True), RED, 40, False),
    "png transparent colour": (saved(flat("RGB", RED), "PNG", transparency=RED), RED, 0, False),
    "jpeg rgb": (saved(flat("RGB", (254, 0, 0)), "JPEG", quality=100), (254, 0, 0), None, False),
    "jpeg grey": (saved(flat("L", 77), "JPEG", quality=100), (77, 77, 77), None, True),
    "jpeg progressive": (saved(flat("RGB", (254, 0, 0)), "JPEG", progressive=True), (254, 0, 0), None, False),
    "jpeg cmyk": (saved(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), RED, None, False),
    "jpeg cmyk, unmarked": (unmarked_cmyk(), RED, None, False),
    "webp lossless": (saved(flat("RGB", RED), "WEBP", lossless=True), RED, None, False),
    "webp": (saved(flat("RGB", (254, 0, 0)), "WEBP", quality=100), (254, 0, 0), None, False),
    "webp alpha": (saved(flat("RGBA", (*RED, 40)), "WEBP", lossless=True), RED, 40, False),
    "bmp rgb": (saved(flat("RGB", RED), "BMP"), RED, None, False),
    "bmp 1 bit": (saved(flat("1", 1), "BMP"), (255, 255, 255), None, True),
    "bmp palette": (saved(flat("RGB", RED).quantize(), "BMP"), RED, None, False),
    "bmp grey": (saved(flat("L", 77), "BMP"), (77, 77, 77), None, True),
    "tiff rgb": (saved(flat("RGB", RED), "TIFF"), RED, None, False),
    "tiff rgba": (saved(flat("RGBA", (*RED, 40)), "TIFF"), RED, 40, False),
    "tiff cmyk": (saved(flat("CMYK", (0, 255, 255, 0)), "TIFF"), RED, None, False),
    "tiff grey, alpha": (saved(flat("LA", (77, 40)), "TIFF"), (77, 77, 77), 40, True),
    "tiff palette": (saved(flat("RGB", RED).quantize(), "TIFF"), RED, None, False),
    "tiff lab": (saved(flat("LAB", (128, 128, 128)), "TIFF"), (119, 119, 119), None, False),
    "tiff in pages of jpeg": (saved(flat("RGB", (254, 0, 0)), "TIFF", compression="jpeg"), (254, 0, 0), None, False),
    "tiff 1 bit": (saved(flat("1", 1), "TIFF", compression="group4"), (255, 255, 255), None, True),
    "png 1x1": (saved(flat("RGB", RED, (1, 1)), "PNG"), RED, None, False),
    "png 1xN": (saved(flat("RGB", RED, (1, 99)), "PNG"), RED, None, False),
    "webp 1xN": (saved(flat("RGB", RED, (1, 99)), "WEBP", lossless=True), RED, None, False),
    "tiff 1x1": (saved(flat("RGB", RED, (1, 1)), "TIFF"), RED, None, False),
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

DEEP_TABLE: dict[str, tuple[bytes, Array, Array | None, bool]] = {
    "png rgb": (png(DEEP[..., :3], 2), DEEP[..., :3], None, False),
    "png rgba": (png(DEEP, 6), DEEP[..., :3], DEEP[..., 3], False),
    "png grey": (png(DEEP[..., 0], 0), DEEP[..., [0, 0, 0]], None, True),
    "png grey, alpha": (png(DEEP[..., :2], 4), DEEP[..., [0, 0, 0]], DEEP[..., 1], True),
    "tiff rgb": (tiff_16(DEEP[..., :3]), DEEP[..., :3], None, False),
    "tiff rgba": (tiff_16(DEEP, (338, 2)), DEEP[..., :3], DEEP[..., 3], False),
    "tiff grey": (tiff_16(DEEP[..., :1], photometric=1), DEEP[..., [0, 0, 0]], None, True),
    "tiff grey, alpha": (tiff_16(DEEP[..., :2], (338, 2), photometric=1), DEEP[..., [0, 0, 0]], DEEP[..., 1], True),
    "tiff rgb, planes": (tiff_16(DEEP[..., :3], (284, 2)), DEEP[..., :3], None, False),
    "tiff rgba, planes": (tiff_16(DEEP, (284, 2), (338, 2)), DEEP[..., :3], DEEP[..., 3], False),
    "tiff grey, alpha, planes": (
        tiff_16(DEEP[..., :2], (284, 2), (338, 2), photometric=1),
        DEEP[..., [0, 0, 0]],
        DEEP[..., 1],
        True,
    ),
    "tiff rgb, no colour, alpha": (
        tiff_16(DEEP[..., [0, 1, 2, 0, 3]], (338, [0, 2])),
        DEEP[..., :3],
        DEEP[..., 3],
        False,
    ),
    "tiff grey, white is 0": (tiff_16(65_535 - DEEP[..., :1], photometric=0), DEEP[..., [0, 0, 0]], None, True),
}


class Files:
    """What the tests of images share."""

    deep = DEEP
    valid = [data for data, *_ in (*TABLE.values(), *DEEP_TABLE.values())]  # noqa: RUF012
    png = staticmethod(png)
    chunk = staticmethod(chunk)
    saved = staticmethod(saved)
    exif = staticmethod(exif)
    flat = staticmethod(flat)
    palette = staticmethod(palette)
    tiff_16 = staticmethod(tiff_16)
    swapped_profile = staticmethod(swapped_profile)


@pytest.fixture(scope="session")
def files() -> Any:
    """Makers of image files, and a list of valid ones."""
    return Files


@pytest.fixture(params=TABLE)
def row(request: pytest.FixtureRequest) -> Any:
    """Name, file, colour of every pixel, alpha of every pixel, grey."""
    return request.param, *TABLE[request.param]


@pytest.fixture(params=DEEP_TABLE)
def deep_row(request: pytest.FixtureRequest) -> Any:
    """File, pixels, alpha, grey, all of 16 bits."""
    return DEEP_TABLE[request.param]


@pytest.fixture
def photo(small: Callable[..., Any], fakes: Any) -> Callable[..., PhotoRestorer]:
    """A maker of PhotoRestorers without a backend, whose faces are coloured squares."""

    def make(batch: int = 1, background: Any = None, **options: Any) -> PhotoRestorer:
        return PhotoRestorer(small(batch), PhotoOptions(**options), detector=fakes.Squares(), background=background)

    return make


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    return Called(monkeypatch, capsys)
