"""Frames into a video, with PyAV alone."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import count
from typing import Any

import numpy as np


def encode(
    output: Any, stream: Any, frames: Iterable[Any], times: Iterable[int] | None = None, clock: Fraction | None = None
) -> None:
    """All RGB frames of a stream of an open file. times: in ticks of `clock`, or of the stream."""
    import av

    for pixels, time in zip(frames, times or count(), strict=False):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
        frame.pts = time
        if clock:
            frame.time_base = clock
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))
