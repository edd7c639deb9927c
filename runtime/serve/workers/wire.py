"""Messages between the processes of a server, over a pair of connected sockets.

A message is the length of a JSON object (4 bytes, little-endian), the object, and the bytes of the arrays that it
describes. Nothing in it is executed when it is read, and nothing of it is ever on a disk.
"""

import asyncio
import ctypes
import json
import signal
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve.logs import log_as_json

Arrays = Sequence[NDArray[Any]]
Message = tuple[dict[str, Any], list[NDArray[Any]]]
BUFFER = 8 << 20  # bytes of an asyncio stream before its sender is slowed down
_PR_SET_PDEATHSIG = 1  # of Linux' prctl.h
_LENGTH = struct.Struct("<I")


def pack(content: dict[str, Any], arrays: Arrays = ()) -> list[bytes | memoryview]:
    """Lay a message out in pieces, which are sent one after the other.

    Args:
        content: What JSON holds.
        arrays: Any shapes and dtypes. The pieces are views of those that are contiguous.
    """
    solid = [np.ascontiguousarray(one) for one in arrays]
    text = json.dumps({**content, "arrays": [[one.dtype.str, one.shape] for one in solid]}).encode()
    return [_LENGTH.pack(len(text)), text, *(one.data.cast("B") for one in solid if one.size)]


async def read(stream: asyncio.StreamReader) -> Message:
    """Wait for the next message; its arrays are read-only. Raises EOFError if the other side has ended."""
    (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
    content = json.loads(await stream.readexactly(length))
    arrays = []
    for kind, shape in content.pop("arrays"):
        empty = np.empty(shape, kind)
        arrays.append(np.frombuffer(await stream.readexactly(empty.nbytes), kind).reshape(shape))
    return content, arrays


def line_to_server() -> "Line":
    """The connection of a server's process to the server, which alone ends it; it logs as the server does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server ends it by closing the line
    with suppress(OSError, AttributeError):  # and by its own end, even of a process that hangs
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log_as_json()
    return Line(socket.socket(fileno=int(sys.argv[1])))


class Line:
    """The blocking side of a connection. Threads may share it for sending."""

    def __init__(self, line: socket.socket) -> None:
        line.setblocking(True)
        self._socket, self._reader, self._lock = line, line.makefile("rb"), threading.Lock()

    def send(self, content: dict[str, Any], arrays: Arrays = ()) -> None:
        """Send a message. Raises OSError if the other side has ended."""
        with self._lock:
            for piece in pack(content, arrays):
                self._socket.sendall(piece)

    def receive(self) -> Message:
        """Wait for the next message. Raises EOFError if the other side has ended."""
        (length,) = _LENGTH.unpack(self._exactly(bytearray(_LENGTH.size)))
        content = json.loads(bytes(self._exactly(bytearray(length))))
        arrays = [np.empty(shape, kind) for kind, shape in content.pop("arrays")]
        for one in arrays:
            self._exactly(one.data.cast("B") if one.size else bytearray())
        return content, arrays

    def _exactly(self, target: bytearray | memoryview) -> bytearray | memoryview:
        if self._reader.readinto(target) < len(target):
            raise EOFError
        return target


def pack_results(results: Sequence[Restored]) -> tuple[list[dict[str, Any]], list[NDArray[Any]]]:
    """Results as JSON, and the (S, S, 3) pixels of those that have some."""
    described = [
        {"seconds": one.seconds, "precision": one.precision, "error": one.error, "pixels": one.pixels is not None}
        for one in results
    ]
    return described, [one.pixels for one in results if one.pixels is not None]


def unpack_results(described: Sequence[dict[str, Any]], arrays: Arrays) -> list[Restored]:
    """Undo `pack_results`."""
    pixels = iter(arrays)
    return [
        Restored(next(pixels) if one["pixels"] else None, one["seconds"], one["precision"], one["error"])
        for one in described
    ]
