"""Limits for the parts of a file that a decoder reads one by one, in Python: tiny ones would take it hours."""

import re
from typing import BinaryIO

MOST_SEGMENTS = 4096  # of a JPEG before its first scan, fill bytes included; each may have 64 KiB
MOST_SCANS = 100  # of a JPEG: each passes over all pixels
MOST_CHUNKS = 100_000  # of a PNG
MOST_STRIPS = 65_536  # or tiles of a TIFF
MOST_TAGS = 65_535  # of a directory; a BigTIFF could claim more
_SCAN = 0xDA
_ALONE = (0x01, *range(0xD0, 0xDA))  # markers without a length
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in a scan: no stuffed byte, no restart, no fill byte


def first_scan(file: BinaryIO) -> int:
    """Where a JPEG's first scan begins, or its segments end. Raises ValueError past MOST_SEGMENTS."""
    at = 2
    for _ in range(MOST_SEGMENTS):
        file.seek(at)
        head = file.read(4)
        if len(head) < 4 or head[:2] == bytes((0xFF, _SCAN)):
            return at
        if head[0] != 0xFF or head[1] in (0x00, 0xFF):
            at += 1
        else:
            at += 2 if head[1] in _ALONE else 2 + max(2, int.from_bytes(head[2:]))
    raise ValueError(f"more than {MOST_SEGMENTS} segments are before its picture")


def check_scans(data: bytes, at: int) -> None:
    """Raise ValueError where a JPEG has more than MOST_SCANS scans. at: where the first one begins."""
    scans = 0
    while (found := _MARKER.search(data, at)) and found[0][1] != 0xD9:
        scans += found[0][1] == _SCAN
        if scans > MOST_SCANS:
            raise ValueError(f"it has more than {MOST_SCANS} scans")
        at = found.end()
        at += 0 if found[0][1] in _ALONE else max(2, int.from_bytes(data[at : at + 2]))


def check_chunks(data: bytes) -> None:
    """Raise ValueError where a PNG has more than MOST_CHUNKS chunks."""
    at = 8
    for _ in range(MOST_CHUNKS):
        if at >= len(data):
            return
        at += 12 + int.from_bytes(data[at : at + 4])
    raise ValueError(f"it has more than {MOST_CHUNKS} chunks")
