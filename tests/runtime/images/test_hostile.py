"""Hostile files: what claims to be huge is refused unseen. Damaged ones are the business of `tests/fuzz`."""

import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from interpreter import python

from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.decode import decode_image, read_image
from bfr.runtime.images.headers import header_size
from bfr.runtime.images.png import raw_profile


def test_the_pixel_limit_is_that_of_the_header(files: Any) -> None:
    """Here is no data for such sizes; `test_bombs_cost_no_memory` shows that none is allocated."""
    for width, height in ((100_000, 100_000), (8_001, 8_000), (64_000_001, 1)):
        with pytest.raises(InvalidImage, match=rf"big\.png.* {width} x {height}"):
            decode_image(files.png(files.deep[..., :3], 2, size=(width, height)), name="big.png")
    with pytest.raises(InvalidImage, match=r"6 x 5.* 29"):
        decode_image(files.png(files.deep[:, :6, :3], 2), max_pixels=29)
    assert decode_image(files.png(files.deep[:, :6, :3], 2), max_pixels=30).pixels.shape == (5, 6, 3)


def test_huge_file_is_not_read(tmp_path: Path, files: Any) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(files.png(files.deep, 6))
    with path.open("rb+") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(InvalidImage, match="bytes"):
        read_image(path)
    assert header_size(path) == (7, 5)


def test_a_png_with_two_headers_is_refused(files: Any) -> None:
    """Pillow believes the last, OpenCV the first, and would allocate for it."""
    whole = files.png(files.deep, 6)
    first = files.png(files.deep, 6, size=(900, 900))[8:33]
    with pytest.raises(InvalidImage, match="two"):
        decode_image(whole[:8] + first + whole[8:])
    huge = files.png(files.deep, 6, size=(9_000, 9_000))
    with pytest.raises(InvalidImage, match="9000 x 9000"):
        decode_image(whole[:33] + huge[8:])


@pytest.mark.parametrize("key", [b"exif", b"icc_profile", b"transparency", b"interlace"])
def test_text_under_a_name_that_pillow_uses(files: Any, key: bytes) -> None:
    text = files.chunk(b"iTXt", key + b"\0\0\0\0\0" + b"words")
    for samples, colour_type in ((files.deep[..., 0], 0), (files.deep, 6), (files.deep[..., :3].astype(np.uint8), 2)):
        image = decode_image(files.png(samples, colour_type, text))
        np.testing.assert_array_equal(image.pixels[..., 0], samples.reshape(5, 7, -1)[..., 0])
        assert (image.metadata.exif, image.icc) == (None, None)
        assert (image.alpha is None) == (colour_type < 4)


def test_lack_of_memory_is_not_called_damage(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(InvalidImage, match=r"x\.png"):
        decode_image(files.png(files.deep, 6), name="x.png")


# Reads every file of a folder, each with 256 MiB of address space above what the first, a valid one, left in use.
LIMITED = """
import resource, sys, warnings
from pathlib import Path
from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.decode import read_image
from bfr.runtime.images.headers import header_size
from bfr.runtime.images.png import raw_profile
warnings.simplefilter("ignore")
first, *rest = sorted(Path(sys.argv[1]).iterdir())
read_image(first)
import PIL.ImageCms
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), -1))
for path in rest:
    header_size(path)
    try:
        read_image(path, max_pixels=1_000_000)
        print(path.name, "was read")
    except InvalidImage as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited as Linux does it")
def test_bombs_cost_no_memory(tmp_path: Path, files: Any) -> None:
    body, whole = zlib.compress(bytes(1_000)), files.png(files.deep, 6)

    def tiff(width: int, height: int, *tags: tuple[int, int, int, int]) -> bytes:
        """RGB of 8 bits, deflated, whose only strip or tile is `body`; tags: number, type, count, value."""
        entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 2)]
        entries += [(277, 3, 1, 3), *(tags or [(273, 4, 1, 2_000), (278, 4, 1, height), (279, 4, 1, len(body))])]
        directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
        head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory
        return head.ljust(2_000, b"\0") + body

    def webp(side: int) -> bytes:
        data = bytearray(
            files.saved(files.flat("RGBA", (1, 2, 3, 4)), "WEBP", save_all=True, append_images=[files.flat("RGBA", 0)])
        )
        data[24:30] = 2 * (side - 1).to_bytes(3, "little")
        return bytes(data)

    # 20,000 tags of 100,000 bytes, all at one place: 2 GB if each is kept.
    tags = b"".join(struct.pack("<HHII", 2_000 + i, 7, 100_000, 240_014) for i in range(20_000))
    overlap = b"II*\0" + struct.pack("<IH", 8, 20_000) + tags + bytes(100_004)
    jpeg = files.saved(files.flat("RGB", (1, 2, 3)), "JPEG")
    segments = [b"Exif\0\0" + overlap[at : at + 65_000] for at in range(0, len(overlap), 65_000)]
    long_exif = b"".join(b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment for segment in segments)

    def png(size: tuple[int, int], colour_type: int = 6) -> bytes:
        return files.png(files.deep[..., :4], colour_type, size=size)

    cases = {
        "png": (png((60_000, 60_000)), " pixels"),
        "png, within": (png((1_000, 1_000)), "damaged"),
        # OpenCV 4.11 and later would allocate what the chunk's length says.
        "png, long chunk": (whole[:33] + b"\xff\0\0\0" + whole[37:], "longer than the file"),
        "webp": (webp(16_383), " pixels"),
        "webp, within": (webp(900), "was read"),
        "tiff": (tiff(60_000, 60_000), " pixels"),
        "tiff, within": (tiff(1_000, 1_000), "damaged"),
        "tiff, huge tile": (
            tiff(16, 16, (322, 4, 1, 20_000), (323, 4, 1, 20_000), (324, 4, 1, 2_000), (325, 4, 1, len(body))),
            "20000 x 20000",
        ),
        "tiff, huge strip": (tiff(16, 16, (273, 4, 1, 2_000), (278, 4, 1, 1 << 31), (279, 4, 1, 9)), "damaged"),
        "tiff, overlapping tags": (overlap, "damaged|not an image"),
        "jpeg": (jpeg.replace(b"\x08\0\x10\0\x10", b"\x08\xff\xff\xff\xff"), " pixels"),
        "jpeg, overlapping tags": (jpeg[:2] + long_exif + jpeg[20:], "was read"),
        "png, overlapping tags": (files.png(files.deep, 6, files.chunk(b"eXIf", overlap)), "was read"),
        "bmp": (b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 60_000, -60_000, 1, 24) + bytes(24), " pixels"),
    }
    (tmp_path / " first").write_bytes(files.png(files.deep, 6))
    for name, (data, _) in cases.items():
        (tmp_path / name).write_bytes(data)
    run = python(LIMITED, tmp_path)
    for line, (name, (_, text)) in zip(run.stdout.splitlines(), sorted(cases.items()), strict=True):
        assert name in line
        assert "Memory" not in line, line
        assert any(part in line for part in text.split("|")), line


@pytest.mark.parametrize("kind", ["PNG", "PNG text", "WEBP", "JPEG"])
def test_pillow_reads_no_exif_whose_tags_overlap(files: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Pillow before 13 copies what each tag names."""
    tags = b"".join(struct.pack("<HHII", 2_000 + i, 7, 100, 1_300) for i in range(100))
    overlap = b"II*\0" + struct.pack("<IH", 8, 100) + tags + bytes(200)
    if kind == "PNG text":
        data = files.png(files.deep, 6, raw_profile("exif", b"Exif\0\0" + overlap))
    else:
        prefix = b"Exif\0\0" * (3 if kind == "JPEG" else 1)
        data = files.saved(files.flat("RGB", (1, 2, 3)), kind, exif=prefix + overlap)
    read: list[Any] = []
    monkeypatch.setattr(PIL.Image.Image, "getexif", lambda self: read.append(self.info.get("exif")) or {})
    assert decode_image(data).pixels.any()
    assert not any(read)
