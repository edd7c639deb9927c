"""Hold the restored crops of a track steady, frame by frame: where the face itself did not change, neither do they."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Matrix, compose, inverse

Float32 = NDArray[np.float32]

KEPT = 0.6  # of the crop before, at most: beyond 0.75 a slow change of light would trail visibly
AREA = 1 / 20  # of the crop's side: changes are judged over squares of it, noise by single pixels
STILL = 0.05  # pixels by which a crop may be off: each move makes it a little softer
NOISE = (1.0, 6.0)  # levels of 255: what is below counts as noise in any case, what is above is motion
ALLOWED = 2.0  # times its noise a square may change before the new crop counts alone


@dataclass(slots=True, eq=False)
class _Past:
    frame: int
    matrix: Matrix
    landmarks: NDArray[Any]
    seen: Float32
    shown: Float32

    def moved(self, matrix: Matrix, landmarks: NDArray[Any]) -> tuple[Float32, Float32] | None:
        """What was seen and shown, moved as the face has moved since; None where that is not known."""
        step, _ = cv2.estimateAffinePartial2D(self.landmarks, landmarks, method=cv2.LMEDS)
        if step is None or not np.isfinite(step).all():
            return None
        move = compose(matrix, compose(np.asarray(step, np.float64), inverse(self.matrix)))
        size = self.seen.shape[0]
        corners = np.array([(0, 0, 1), (size, 0, 1), (0, size, 1)])
        if np.abs(corners @ move.T - corners[:, :2]).max() < STILL:
            return self.seen, self.shown
        seen, shown = (
            cv2.warpAffine(one, move, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            for one in (self.seen, self.shown)
        )
        return np.asarray(seen, np.float32), np.asarray(shown, np.float32)


class Steady:
    """A recursive temporal filter of crops, which knows motion from noise by what went into the networks.

    Restoring answers noise that differs from frame to frame with detail that differs: the face boils. The crop shown
    before is moved as the face has moved and blended in; where the input changed by more than its noise all the same (a
    mouth, a blink, a hand), the new crop stands alone.
    """

    def __init__(self) -> None:
        self._tracks: dict[int, _Past] = {}

    def apply(
        self,
        track: int,
        frame: int,
        seen: NDArray[Any],
        restored: NDArray[Any],
        *,
        matrix: Matrix,
        landmarks: NDArray[Any],
    ) -> NDArray[Any]:
        """The crop to show.

        Args:
            track: Number of the track.
            frame: Number of the frame; after a gap, and at the track's begin, the crop stays as it is.
            seen: (S, S, 3) uint8 or uint16, what was restored.
            restored: (S, S, 3) of the same dtype.
            matrix: (2, 3), from the frame to the crop.
            landmarks: (5, 2), as they were found in the frame: smoothed ones trail.

        Returns:
            (S, S, 3) of the same dtype.
        """
        new, shown = seen.astype(np.float32), restored.astype(np.float32)
        past = self._tracks.get(track)
        self._tracks = {number: one for number, one in self._tracks.items() if one.frame >= frame - 1}
        before = past.moved(matrix, landmarks) if past is not None and past.frame == frame - 1 else None
        if before is not None:
            kept = _kept(before[0], new, np.iinfo(restored.dtype).max)[..., None]
            new += kept * (before[0] - new)
            shown += kept * (before[1] - shown)
        self._tracks[track] = _Past(frame, matrix, landmarks.astype(np.float64), new, shown)
        return np.clip(np.rint(shown), 0, np.iinfo(restored.dtype).max).astype(restored.dtype)


def _kept(before: Float32, after: Float32, top: int) -> Float32:
    """(S, S): how much of the past is blended in, 0 to KEPT."""
    change = cv2.transform(cv2.absdiff(after, before), np.full((1, 3), 1 / 3))
    side = max(3, round(change.shape[0] * AREA))
    noise = float(np.clip(np.median(change[::4, ::4]), *(level * top / 255 for level in NOISE)))
    excess = cv2.blur(change, (side, side)) / noise
    return np.asarray(KEPT * np.clip(ALLOWED + 1 - excess, 0, 1), np.float32)
