"""How many pages a TIFF holds; one alone is restored."""

from struct import error, unpack_from

MOST = 100_000  # pages that are counted: a file of more is hostile
_REDUCED = 254, 1  # NewSubfileType: a smaller copy of another page


def tiff_pages(data: bytes) -> int:
    """Count the chain of directories, of which nothing is read but what says how it goes on; no smaller copies.

    Pillow reads each directory whole, which takes hours where hostile ones overlap. A chain that leads back, or out of
    the file, ends there.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    head, number, entry = (8, "Q", 20) if big else (4, "H", 12)
    offset = "Q" if big else "I"
    pages, seen = 0, set[int]()
    try:
        (at,) = unpack_from(order + offset, data, head)
        while at and at not in seen and len(seen) < MOST:
            seen.add(at)
            (count,) = unpack_from(order + number, data, at)
            begin = at + (8 if big else 2)
            tag, kind, _ = unpack_from(f"{order}HH{offset}", data, begin)
            (value,) = unpack_from(order + ("H" if kind == 3 else "I"), data, begin + (12 if big else 8))
            pages += (tag, value & 1) != _REDUCED
            (at,) = unpack_from(order + offset, data, begin + count * entry)
    except (error, OverflowError):  # the end of the file
        pass
    return max(1, pages)
