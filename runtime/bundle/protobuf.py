"""A reader of protobuf's wire format, as much of it as the checks of ONNX files need."""

from collections.abc import Iterator


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value (an integer or bytes) of each field. Raises IndexError, OverflowError if damaged."""
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise IndexError
        if place + length > end:
            raise IndexError
        if kind == 2:
            yield key >> 3, data[place : place + length]
        else:
            yield key >> 3, 0  # a number of fixed width
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise OverflowError


def packed(data: memoryview) -> Iterator[int]:
    """Yield the integers of a packed field."""
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def signed(value: int) -> int:
    """Return an integer of 64 bits in two's complement with its sign."""
    return value - (1 << 64) if value >> 63 else value
