"""Find the faces of every frame: detect them in some frames, and track them between by optical flow.

Where the flow from one look does not lead to what the next look sees (a face comes, goes, turns away, is covered), a
frame between them is looked at, and so on: in the end every frame that is in doubt has had a look of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Face, compose, inverse, scale_of, transform
from bfr.runtime.video.track import is_cut, thumbnail

RGB8 = NDArray[np.uint8]
T = TypeVar("T")

EVERY = 16  # frames from one look to the next, in a scene; fewer where they are large
BUDGET = 30_000_000  # pixels of the frames in between, which wait in memory
LOOK = 0.5  # seconds from one look to the next at a stream that is restored as it comes
AGREE = 0.3  # eye distances between where the flow leads and what is seen; looks alone differ by up to 0.1
# The flow is measured where the eyes are UNIT pixels apart, in a window of WINDOW eye distances around the face.
UNIT, WINDOW = 28.0, 4.0
POINTS, LEAST = 30, 10  # followed in a face, and of them needed
THERE_AND_BACK = 0.7  # pixels by which a point may miss itself
_LEVELS, _PATCH = 2, (13, 13)  # of the pyramid, and the pixels around a point that are compared


@dataclass(frozen=True, slots=True, eq=False)
class Followed(Generic[T]):
    """A frame and its faces.

    Attributes:
        cut: Another scene begins with it.
    """

    frame: T
    faces: list[Face]
    cut: bool


def follow(frames: Iterable[T], view: Callable[[T], RGB8], find: Callable[[RGB8], list[Face]]) -> Iterator[Followed[T]]:
    """The faces of all frames.

    Args:
        frames: Frames in display order.
        view: (H, W, 3) uint8 RGB of a frame, called once for each.
        find: Finds the faces of such an image.
    """
    waiting: list[tuple[T, RGB8]] = []  # the frame of the last look, which is given out already, and those after it
    faces: list[Face] = []  # of the last look
    previous: RGB8 | None = None
    for frame in frames:
        pixels = view(frame)
        small = thumbnail(pixels)
        cut, previous = previous is not None and is_cut(previous, small), small
        if cut or not waiting:
            yield from _filled(waiting, faces, find)
            faces, waiting = find(pixels), [(frame, pixels)]
            yield Followed(frame, faces, cut)
            continue
        waiting.append((frame, pixels))
        if len(waiting) > min(EVERY, max(1, BUDGET // (pixels.shape[0] * pixels.shape[1]))):
            for one in _filled(waiting, faces, find):
                faces = one.faces
                yield one
            waiting = waiting[-1:]
    yield from _filled(waiting, faces, find)


class Follower:
    """The faces of a stream's frames as they come: looked for every LOOK seconds, and followed between.

    It looks at once where a face is lost or another scene begins; a new face is seen at the next look.
    """

    def __init__(self, find: Callable[[RGB8], list[Face]]) -> None:
        """find: finds the faces of a frame."""
        self._find = find
        self._last: tuple[RGB8, RGB8] | None = None  # the last frame and its thumbnail
        self._faces: list[Face] = []
        self._looked = 0.0

    def follow(self, pixels: RGB8, seconds: float) -> Followed[RGB8]:
        """The faces of the next frame, (H, W, 3) uint8 RGB, which came at `seconds`."""
        last, self._last = self._last, (pixels, thumbnail(pixels))
        cut = last is not None and is_cut(last[1], self._last[1])
        flowed: list[Face | None] = [None]
        if last is not None and not cut and last[0].shape == pixels.shape and seconds - self._looked < LOOK:
            flowed = [moved(last[0], pixels, face) for face in self._faces]
        found = [face for face in flowed if face is not None]
        if len(found) < len(flowed):
            self._looked, found = seconds, self._find(pixels)
        self._faces = found
        return Followed(pixels, found, cut)


def _filled(
    waiting: list[tuple[T, RGB8]], faces: list[Face], find: Callable[[RGB8], list[Face]]
) -> Iterator[Followed[T]]:
    """The frames after the first, whose faces are known."""
    if len(waiting) < 2:
        return
    views, end = [pixels for _, pixels in waiting], len(waiting) - 1
    known = {0: faces, end: find(views[end])}
    _fill(views, known, 0, end, find)
    for index, (frame, _) in enumerate(waiting[1:], 1):
        yield Followed(frame, known[index], cut=False)


def _fill(
    views: list[RGB8], known: dict[int, list[Face]], begin: int, end: int, find: Callable[[RGB8], list[Face]]
) -> None:
    """Add the faces of all frames between two to `known`."""
    if end - begin < 2:
        return
    paths = _paths(views[begin : end + 1], known[begin], known[end])
    if paths is not None:
        known |= {index: [path[index - begin] for path in paths] for index in range(begin + 1, end)}
        return
    middle = (begin + end) // 2
    known[middle] = find(views[middle])
    _fill(views, known, begin, middle, find)
    _fill(views, known, middle, end, find)


def _paths(views: list[RGB8], first: list[Face], last: list[Face]) -> list[list[Face]] | None:
    """Each face through all frames, from its look in the first to that in the last; None if they do not agree."""
    left = list(last)
    paths = []
    for face in first:
        path = [face]
        for before, after in pairwise(views):
            if (at := moved(before, after, path[-1])) is None:
                return None
            path.append(at)
        seen = min(left, key=lambda other: _apart(other, path[-1]), default=None)
        if seen is None or _apart(seen, path[-1]) > AGREE * seen.eye_distance:
            return None
        left.remove(seen)
        paths.append([_drawn(at, path[-1], seen, k / (len(path) - 1)) for k, at in enumerate(path)])
    return None if left else paths


def _apart(one: Face, other: Face) -> float:
    return float(np.hypot(*(one.landmarks - other.landmarks).T).mean())


def _drawn(face: Face, flowed: Face, seen: Face, share: float) -> Face:
    """A face, moved by a share of what the flow is off in the end."""
    return Face(
        face.box + np.float32(share) * (seen.box - flowed.box),
        face.landmarks + np.float32(share) * (seen.landmarks - flowed.landmarks),
        face.score + share * (seen.score - face.score),
    )


def moved(before: RGB8, after: RGB8, face: Face) -> Face | None:
    """Where a face is in the next frame, by pyramidal Lucas-Kanade flow of its corners; None if that is not sure.

    The face moves as a whole, by a similarity transform: so the landmarks do not wander off with a blink.
    """
    eyes = face.eye_distance
    middle = face.landmarks.mean(axis=0)
    height, width = before.shape[:2]
    left, top = np.maximum(np.floor(middle - WINDOW / 2 * eyes), 0).astype(int)
    right, bottom = np.minimum(np.ceil(middle + WINDOW / 2 * eyes), (width, height)).astype(int)
    if eyes < 1 or right - left < 8 or bottom - top < 8:
        return None
    size = (max(8, round((right - left) * UNIT / eyes)), max(8, round((bottom - top) * UNIT / eyes)))
    one, other = (_green(pixels[top:bottom, left:right], size) for pixels in (before, after))
    scale = np.array(size) / (right - left, bottom - top)
    mask = np.zeros_like(one)
    low, high = ((edge - (left, top)) * scale for edge in _inner(face))
    cv2.rectangle(mask, low.astype(int).tolist(), high.astype(int).tolist(), 255, cv2.FILLED)
    points = np.asarray(cv2.goodFeaturesToTrack(one, POINTS, 0.01, 4, mask=mask))
    if points.size < 2 * LEAST:  # None becomes an array of one
        return None
    there, found = _flow(one, other, points)
    back, found_back = _flow(other, one, there)
    missed = np.hypot(*(back - points)[:, 0].T)
    good = found & found_back & (missed < THERE_AND_BACK)
    if good.sum() < max(LEAST, len(points) // 2):
        return None
    matrix, agreeing = cv2.estimateAffinePartial2D(points[good], there[good], method=cv2.LMEDS)
    if matrix is None or agreeing.sum() < max(LEAST, len(points) // 2):
        return None
    to_window = np.hstack([np.diag(scale), ((0.5 - np.array([left, top])) * scale - 0.5)[:, None]])
    whole = compose(inverse(to_window), compose(np.asarray(matrix, np.float64), to_window))
    if not 0.8 < scale_of(whole) < 1.25:
        return None
    # A box has no direction: its middle moves, and its size changes, but it stays upright.
    middle, half = face.box.reshape(2, 2).mean(axis=0), (face.box[2:] - face.box[:2]) / 2 * scale_of(whole)
    (middle,) = transform(whole, middle[None])
    box = np.concatenate([middle - half, middle + half])
    return Face(box.astype(np.float32), transform(whole, face.landmarks).astype(np.float32), face.score)


def _inner(face: Face) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two corners of what is face for sure: the landmarks and half an eye distance around."""
    margin = 0.5 * face.eye_distance
    return face.landmarks.min(axis=0) - margin, face.landmarks.max(axis=0) + margin


def _flow(one: RGB8, other: RGB8, points: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool]]:
    """Where (N, 1, 2) points of one grey image lie in the other, and which of them were found."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 10, 0.03)
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        one, other, points, np.empty_like(points), winSize=_PATCH, maxLevel=_LEVELS, criteria=criteria
    )
    return np.asarray(there), np.asarray(found)[:, 0].astype(bool)


def _green(part: RGB8, size: tuple[int, int]) -> RGB8:
    """The channel that is nearest to luma, at another size."""
    step = max(1, part.shape[1] // (2 * size[0]))  # an average over all pixels of a large face takes ten times as long
    green = np.ascontiguousarray(part[::step, ::step, 1])
    method = cv2.INTER_AREA if size[0] < green.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(green, size, interpolation=method), np.uint8)
