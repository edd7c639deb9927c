"""What restores the frames of these tests, and a sink that keeps them."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.live.sinks import Sink


class Kept(Sink):
    """A sink that keeps frames; `most` of them, then it is closed as a window would be."""

    def __init__(self, most: int = 0, *, watched: bool = False) -> None:
        self.most, self.watched = most, watched
        self.frames: list[NDArray[np.uint8]] = []
        self.times: list[float] = []
        self.ended = False

    @property
    def closed(self) -> bool:  # type: ignore[override]
        return bool(self.most) and len(self.frames) >= self.most

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        self.frames.append(pixels)
        self.times.append(seconds)

    def close(self) -> None:
        self.ended = True


@pytest.fixture
def kept() -> type[Kept]:
    return Kept


@pytest.fixture
def photo(small: Callable[..., Any], fakes: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PhotoRestorer]:
    def make(*, slow: float = 0.0, find: float = 0.0, **options: Any) -> PhotoRestorer:
        """slow: seconds that a call of the networks takes more. find: that finding faces does."""
        made = PhotoRestorer(small(8), PhotoOptions(**options), detector=fakes.Squares())
        run, detect = made.restorer.run, made.detector.detect

        def slowly(*args: Any, **named: Any) -> Any:
            time.sleep(slow)
            return run(*args, **named)

        def slowly_found(pixels: Any) -> Any:
            time.sleep(find)
            return detect(pixels)

        monkeypatch.setattr(made.restorer, "run", slowly)
        monkeypatch.setattr(made.detector, "detect", slowly_found)
        return made

    return make
