"""Hold the restored crops of a track steady, frame by frame: where the face itself did not change, neither do they."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

KEPT = 0.6  # of the crop before, at most: beyond 0.75 a slow change of light would trail visibly
AREA = 1 / 20  # of the crop's side: changes are judged over squares of it, noise by single pixels
NOISE = (1.0, 6.0)  # levels of 255: what is below counts as noise in any case, what is above is motion
ALLOWED = 2.0  # times its noise a square may change before the new crop counts alone


@dataclass(slots=True, eq=False)
class _Past:
    frame: int
    seen: Float32
    shown: Float32


class Steady:
    """A recursive temporal filter of crops, which knows motion from noise by what went into the networks.

    Restoring answers noise that differs from frame to frame with detail that differs: the face boils. Crops of a track
    are aligned, so that what rests in the face rests in the crop. There the crop shown before is blended in; where the
    input changed by more than its noise (a mouth, a blink, a hand), the new crop stands alone.
    """

    def __init__(self) -> None:
        self._tracks: dict[int, _Past] = {}

    def apply(self, track: int, frame: int, seen: NDArray[Any], restored: NDArray[Any]) -> NDArray[Any]:
        """The crop to show.

        Args:
            track: Number of the track.
            frame: Number of the frame; after a gap, and at the track's begin, the crop stays as it is.
            seen: (S, S, 3) uint8 or uint16, what was restored.
            restored: (S, S, 3) of the same dtype.

        Returns:
            (S, S, 3) of the same dtype.
        """
        new, shown = seen.astype(np.float32), restored.astype(np.float32)
        past = self._tracks.get(track)
        self._tracks = {number: one for number, one in self._tracks.items() if one.frame >= frame - 1}
        if past is not None and past.frame == frame - 1 and past.shown.shape == shown.shape:
            kept = _kept(past.seen, new, np.iinfo(restored.dtype).max)[..., None]
            new += kept * (past.seen - new)
            shown += kept * (past.shown - shown)
        self._tracks[track] = _Past(frame, new, shown)
        return np.rint(shown).astype(restored.dtype)


def _kept(before: Float32, after: Float32, top: int) -> Float32:
    """(S, S): how much of the past is blended in, 0 to KEPT."""
    change = cv2.transform(cv2.absdiff(after, before), np.full((1, 3), 1 / 3))
    side = max(3, round(change.shape[0] * AREA))
    noise = float(np.clip(np.median(change[::4, ::4]), *(level * top / 255 for level in NOISE)))
    excess = cv2.blur(change, (side, side)) / noise
    return np.asarray(KEPT * np.clip(ALLOWED + 1 - excess, 0, 1), np.float32)
