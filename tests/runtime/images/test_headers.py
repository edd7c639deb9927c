"""Files of very many tiny parts: each is refused after the count, where a decoder would take minutes or gigabytes."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidImage
from bfr.runtime.images import headers
from bfr.runtime.images.decode import decode_image
from bfr.runtime.images.headers import (
    MOST_CHUNKS,
    MOST_DIRECTORIES,
    MOST_RESOURCES,
    MOST_RUNS,
    MOST_SCANS,
    MOST_SEGMENTS,
    MOST_STRIPS,
    MOST_TABLES,
    MOST_TAGS,
    header_size,
)


def saved(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Pillow.effect_noise((64, 48), 60).convert("RGB").save(stream, kind, **options)
    return stream.getvalue()


def jpeg_with(part: bytes) -> bytes:
    data = saved("JPEG")
    return data[:2] + part + data[2:]


def with_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times."""
    data = saved("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * number + data[-2:]


def with_chunks(number: int, name: bytes = b"prVt") -> bytes:
    data = saved("PNG")
    chunk = struct.pack(">I", 0) + name + struct.pack(">I", zlib.crc32(name))
    return data[:33] + chunk * number + data[33:]


def tiff(strips: int) -> bytes:
    """One column, a strip a row."""
    start = 8 + 2 + 12 * 9 + 4
    tags = [(256, 1), (257, strips), (258, 8), (259, 1), (262, 1), (273, start), (277, 1), (278, 1), (279, start)]
    body = b"".join(struct.pack("<HHII", tag, 4, strips if tag in (273, 279) else 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4) + struct.pack("<I", 50) * strips


def big_tiff(tags: int) -> bytes:
    found = b"".join(struct.pack("<HHQQ", 256 + (k > 0), 4, 1, 5) for k in range(2))
    found += struct.pack("<HHQQ", 60000, 3, 1, 0) * (tags - 2)
    return b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, tags) + found + bytes(8)


def empty_directories(number: int) -> bytes:
    following = range(14, 14 + 6 * number, 6)
    return b"II*\0" + struct.pack("<I", 8) + b"".join(struct.pack("<HI", 0, at) for at in following)


def run_lengths(side: int, row: bytes, compression: int = 1, rows: int | None = None) -> bytes:
    """A BMP of 8 (compression 1) or 4 bits (2), (side, side), whose rows are such codes."""
    bits, body = 8 // compression, row * (side if rows is None else rows)
    palette = b"".join(bytes((i, 255 - i, 0, 0)) for i in range(1 << bits))
    head = struct.pack("<IiiHHI", 40, side, side, 1, bits, compression) + bytes(20)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + len(palette)) + head + palette + body


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: jpeg_with(b"\xff\xfe\0\2" * (MOST_SEGMENTS + 1)), "segments"),
        (lambda: jpeg_with(b"\xff\xe2\0\x10ICC_PROFILE\0\1\1" * (MOST_SEGMENTS + 1)), "segments"),
        (lambda: jpeg_with(b"\xff" * (MOST_SEGMENTS + 1)), "segments"),
        (lambda: jpeg_with((b"\xff\xdb\xff\xff" + bytes(65_533)) * (1 + MOST_TABLES // 65_537)), "tables"),
        (lambda: jpeg_with(b"\xff\xed\xc1\0" + b"8BIM\4\4\0\0\0\0\0\0" * (MOST_RESOURCES + 1)), "resources"),
        (lambda: with_scans(MOST_SCANS + 1), "scans"),
        (lambda: with_chunks(MOST_CHUNKS), "chunks"),
        (lambda: with_chunks(MOST_CHUNKS, b"IDAT"), "chunks"),
        (lambda: tiff(MOST_STRIPS + 1), "strips"),
        (lambda: big_tiff(MOST_TAGS + 1), "tags"),
        (lambda: empty_directories(MOST_DIRECTORIES + 1), "directories"),
    ],
)
def test_too_many_parts_are_counted_and_no_decoder_sees_them(
    make: Callable[[], bytes], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make()
    monkeypatch.setattr(Pillow, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(InvalidImage, match=word):
        decode_image(data)


def test_as_many_as_are_allowed_are_read() -> None:
    for data in (
        jpeg_with(b"\xff\xfe\0\2" * (MOST_SEGMENTS // 2)),
        jpeg_with(b"\xff" * 100),
        with_scans(MOST_SCANS // 2),
        with_chunks(1000),
    ):
        assert header_size(data) == (64, 48)
        assert decode_image(data).pixels.shape == (48, 64, 3)
    assert decode_image(tiff(500)).pixels.shape == (500, 1, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: run_lengths(2100, b"\1\7\0\0"),  # Pillow fills each row up to its end, a pixel at a time
        lambda: run_lengths(2100, b"\xff\x17" * 9 + b"\0\0", 2),
        lambda: run_lengths(8, b"\1\7", rows=MOST_RUNS // 2),  # runs past the row: they bring the decoder no further
        lambda: run_lengths(8, b"\0\2\0\0", rows=MOST_RUNS // 4),
    ],
)
def test_a_large_bmp_in_run_lengths_is_refused_before_it_is_decoded(
    make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make()
    monkeypatch.setattr("PIL.BmpImagePlugin.BmpRleDecoder.decode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InvalidImage, match=r"x\.bmp is a compressed BMP of more than 4194304 .*save it as PNG"):
        decode_image(data, name="x.bmp")


@pytest.mark.parametrize("compression", [1, 2])
def test_a_small_bmp_in_run_lengths_is_read(compression: int) -> None:
    pixels = decode_image(run_lengths(30, b"\x1e\x33\0\0", compression)).pixels
    value = 0x33 if compression == 1 else 3
    assert (pixels == (0, 255 - value, value)).all()
    assert pixels.shape == (30, 30, 3)


def test_a_header_is_read_without_the_parts_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a request's image is looked at on the event loop."""
    reads: list[int | None] = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append(size)
            return super().read(size)

    monkeypatch.setattr(headers, "BytesIO", Counted)
    for data, size in (
        (with_chunks(MOST_CHUNKS), (64, 48)),
        (tiff(4 * MOST_STRIPS), (1, 4 * MOST_STRIPS)),
        (jpeg_with(b"\xff" * 100_000), None),
        (big_tiff(MOST_TAGS + 1), None),
    ):
        reads.clear()
        assert header_size(data) == size
        assert len(reads) < MOST_SEGMENTS + 100
