"""Reads an engine's mapped file into the library, in pieces if the library can read a stream."""

import mmap
from collections.abc import Callable
from typing import Any

PIECE = 16 << 20  # bytes of one read at most
STREAMS_FROM = (10, 9)  # earlier versions request nearly the whole engine at once and accept no less


def engine_source(trt: Any, data: mmap.mmap | bytes) -> Any:
    """Return the source from which `deserialize_cuda_engine` reads an engine, already checked, without a copy.

    A stream returns at most PIECE bytes per read, and releases the pages before them. TensorRT before STREAMS_FROM gets
    the map itself, whose pages the system can evict: its IStreamReader would request a copy of the whole engine
    (NVIDIA/TensorRT, issue 4327).
    """
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if not hasattr(trt, "IStreamReaderV2") or (trt.__name__ == "tensorrt" and version < STREAMS_FROM):
        return data
    view = memoryview(data)
    starts: dict[Any, Callable[[int], int]] = {
        trt.SeekPosition.SET: lambda _: 0,
        trt.SeekPosition.CUR: lambda at: at,
        trt.SeekPosition.END: lambda _: len(view),
    }

    class Stream(trt.IStreamReaderV2):  # type: ignore[misc]  # a class of the bindings
        def __init__(self) -> None:
            trt.IStreamReaderV2.__init__(self)  # the bindings crash if it is not called by name
            self.at = 0

        def read(self, size: int, _stream: int) -> memoryview:
            if isinstance(data, mmap.mmap) and hasattr(data, "madvise"):  # not on Windows
                data.madvise(mmap.MADV_DONTNEED, 0, self.at // mmap.PAGESIZE * mmap.PAGESIZE)
            piece = view[self.at : self.at + min(size, PIECE)]
            self.at += len(piece)
            return piece

        def seek(self, offset: int, where: Any) -> bool:
            target = starts[where](self.at) + offset
            if not 0 <= target <= len(view):
                return False
            self.at = target
            return True

    return Stream()
