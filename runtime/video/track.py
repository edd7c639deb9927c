"""Track faces through the frames of a video: identities, and landmarks that neither jitter nor lag.

Boxes are matched by their overlap with where each face should be by now, at constant velocity, or with where it was.
Landmarks go through the One Euro filter (Casiez, Roussel, Vogel, CHI 2012). Smoothed landmarks move the crop that is
restored, never the pixels that it is pasted onto: a trembling crop makes a restored face flicker, one that trails a
little is not seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Face
from bfr.runtime.faces.suppression import overlaps

Float64 = NDArray[np.float64]
PERIOD = 1 / 25  # seconds between frames that do not tell their time
SHORTEST = 0.01  # seconds between two frames, at least: in less, a detector's error would pass for speed
OVERLAP = 0.3  # the least (intersection over union) with which a face continues a track
PATIENCE = 10  # frames for which a track without a face is kept
HOLD = 2  # frames for which a face that the detector missed is put out where it should be
KNOWN = 3  # detections after which a face is held: a false alarm rarely lives as long
# The filter. Speeds are in eye distances a second, so that a face near and far is filtered alike.
REST_CUTOFF = 0.3  # Hz, of a face at rest
SPEED_GAIN = 3.0  # Hz by speed: a steady pan trails by less than 1 / (2 pi SPEED_GAIN) = 0.053 eye distances
SPEED_CUTOFF = 1.5  # Hz, of the speed itself
_VELOCITY_SHARE = 0.5  # of the newest observation in a box's velocity
# The cut. 99 in 100 pairs of portraits differ by more than 0.14 in colour; a pan or zoom by 8 % of the width gives 0.09
# at most. In structure, 95 in 100 pairs differ by more than 0.12, and a flash by less.
_COLOURS_DIFFER = 0.12
_STRUCTURES_DIFFER = 0.12
_UNIFORM = 4.0  # levels of standard deviation, below which a thumbnail has no structure
_BRIGHTNESS = 40.0  # levels


@dataclass(frozen=True, slots=True, eq=False)
class Tracked:
    """A face and the number of its track.

    Attributes:
        held: It was missed, box and landmarks are extrapolated.
    """

    track: int
    face: Face
    held: bool = False


class OneEuro:
    """A One Euro filter of (N, 2) points with one cutoff for all of them, by their common speed."""

    def __init__(self, points: Float64) -> None:
        self.points, self.speed = points, np.zeros_like(points)
        self._raw = points

    def update(self, points: Float64, seconds: float, unit: float) -> Float64:
        """Return the smoothed points.

        Args:
            points: (N, 2), pixels.
            seconds: Since the last ones.
            unit: The length by which speed is measured, pixels.
        """
        share = _share(SPEED_CUTOFF, seconds)
        self.speed = self.speed + share * ((points - self._raw) / (seconds * unit) - self.speed)
        self._raw = points
        # Over all points: five of them tell movement from noise better than one.
        speed = math.sqrt(float((self.speed**2).sum(axis=1).mean()))
        share = _share(REST_CUTOFF + SPEED_GAIN * speed, seconds)
        self.points = self.points + share * (points - self.points)
        return self.points


@dataclass(slots=True, eq=False)
class _Track:
    number: int
    face: Face
    filter: OneEuro
    box: Float64
    velocity: Float64 = field(default_factory=lambda: np.zeros(2))  # (2,) pixels a second, of the box's middle
    age: float = 0.0  # seconds since the last detection
    missed: int = 0
    seen: int = 1

    def predicted(self) -> Float64:
        return self.box + np.tile(self.velocity * self.age, 2)


class Tracker:
    """Gives detected faces the numbers of their tracks, frame by frame.

    Numbers count from 0 by first appearance, depend on the detections alone, and are never given twice. A track that
    the detector misses is put out as it should be by now for HOLD frames, so that the face does not flash, and waits
    PATIENCE frames for its face to come back; then it ends.
    """

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._count = 0
        self._seconds: float | None = None

    def reset(self) -> None:
        """End all tracks, as at a cut. Their numbers are not given again."""
        self._tracks = []

    def update(self, faces: Sequence[Face], seconds: float | None = None) -> list[Tracked]:
        """The tracked faces of the next frame, by number: `faces` with smoothed landmarks, and those held.

        Args:
            faces: That were detected.
            seconds: When the frame is shown; None, or a time that does not rise, counts as PERIOD after the last one.
        """
        step = PERIOD
        if seconds is not None:
            if self._seconds is not None and seconds > self._seconds:
                step = max(seconds - self._seconds, SHORTEST)
            self._seconds = seconds
        for track in self._tracks:
            track.age += step
        matched = self._match(faces)
        tracked = []
        for index, face in enumerate(faces):
            tracked.append(_continue(matched[index], face) if index in matched else self._begin(face))
        found = {one.track for one in tracked}
        for track in self._tracks:
            if track.number not in found:
                track.missed += 1
                if track.missed <= HOLD and track.seen >= KNOWN:
                    tracked.append(_held(track))
        self._tracks = [track for track in self._tracks if track.missed <= PATIENCE]
        return sorted(tracked, key=lambda one: one.track)

    def _begin(self, face: Face) -> Tracked:
        landmarks = face.landmarks.astype(np.float64)
        self._tracks.append(_Track(self._count, face, OneEuro(landmarks), face.box.astype(np.float64)))
        self._count += 1
        return Tracked(self._count - 1, face)

    def _match(self, faces: Sequence[Face]) -> dict[int, _Track]:
        """Which track each detection continues, the largest overlaps first; among equals the older track."""
        if not faces or not self._tracks:
            return {}
        boxes = np.stack([face.box for face in faces])
        places = [track.predicted() for track in self._tracks], [track.box for track in self._tracks]
        # Where it should be, or where it was: after a pause nothing of its speed may be left.
        shared = np.maximum(*(overlaps(np.stack(where), boxes)[0] for where in places))
        matched: dict[int, _Track] = {}
        taken: set[int] = set()
        for flat in np.argsort(-shared, axis=None, kind="stable").tolist():
            row, column = divmod(flat, len(faces))
            if shared[row, column] < OVERLAP:
                break
            if row not in taken and column not in matched:
                taken.add(row)
                matched[column] = self._tracks[row]
        return matched


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 -> (72, 128, 3) uint8, for `is_cut`."""
    # Of large frames every so many pixels will do: an average over all of them takes ten times as long.
    height, width = pixels.shape[:2]
    some = cv2.resize(pixels, (min(width, 384), min(height, 216)), interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.resize(some, (128, 72), interpolation=cv2.INTER_AREA), np.uint8)


def is_cut(previous: NDArray[np.uint8], current: NDArray[np.uint8]) -> bool:
    """Whether two successive thumbnails show different scenes: neither their colours nor their structure agree.

    A pan and a zoom keep the colours, a flash and a fade the structure. From one portrait to another, all photographs
    that were tried count as cuts, and 91 in 100 of aligned faces, which lie in the same place. A false cut costs
    little: faces get new numbers, and smoothing starts again.
    """
    if np.minimum(_histogram(previous), _histogram(current)).sum() > 1 - _COLOURS_DIFFER:
        return False
    a, b = _structure(previous), _structure(current)
    spread = float(a.std()), float(b.std())
    if max(spread) < _UNIFORM:  # black, white: all their colours may lie in one bin or the next
        return bool(abs(float(previous.mean()) - float(current.mean())) > _BRIGHTNESS)
    return min(spread) < _UNIFORM or float((a * b).mean()) < (1 - _STRUCTURES_DIFFER) * spread[0] * spread[1]


def _continue(track: _Track, face: Face) -> Tracked:
    box, landmarks = face.box.astype(np.float64), face.landmarks.astype(np.float64)
    moved = ((box - track.box)[:2] + (box - track.box)[2:]) / (2 * track.age)
    # The first observation is all that is known.
    share = 1.0 if track.seen == 1 else _VELOCITY_SHARE
    track.velocity = track.velocity + share * (moved - track.velocity)
    if track.missed > HOLD:
        track.filter = OneEuro(landmarks)  # it was out of sight for too long to be smoothed into
    else:
        unit = max(float(np.hypot(*(landmarks[1] - landmarks[0]))), 1.0)
        landmarks = track.filter.update(landmarks, track.age, unit)
    track.box, track.age, track.missed, track.seen = box, 0.0, 0, track.seen + 1
    track.face = replace(face, landmarks=landmarks.astype(np.float32))
    return Tracked(track.number, track.face)


def _held(track: _Track) -> Tracked:
    shift = track.velocity * track.age
    face = replace(
        track.face,
        box=track.predicted().astype(np.float32),
        landmarks=(track.filter.points + shift).astype(np.float32),
    )
    return Tracked(track.number, face, held=True)


def _share(cutoff: float, seconds: float) -> float:
    """The weight of the newest value in an exponential average with a cutoff in Hz (equation 3 and 5 of the paper)."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * seconds))


def _histogram(small: NDArray[np.uint8]) -> Float64:
    """The share of each of 8 x 8 x 8 colours."""
    counts = cv2.calcHist([small], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3)
    return np.asarray(counts / counts.sum(), np.float64)


def _structure(small: NDArray[np.uint8]) -> Float64:
    """(18, 32) brightness around its mean."""
    coarse = cv2.resize(small.astype(np.float32), (32, 18), interpolation=cv2.INTER_AREA).mean(axis=2)
    return np.asarray(coarse - coarse.mean(), np.float64)
