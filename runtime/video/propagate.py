"""Key frames of a face: the networks restore some of its frames, and the frames between get their detail, warped.

Aligned crops of a face differ by little but eyes and mouth from frame to frame. Dense optical flow (Kroeger et al.,
"Fast Optical Flow using Dense Inverse Search", ECCV 2016) leads from a frame's crop back to that of its key frame. If
the warped key crop differs too much from the crop, the frame becomes a key frame itself. Only detail is warped: what is
coarser, light and colours among it, is the frame's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import scale_of
from bfr.runtime.faces.mask import FACE
from bfr.runtime.faces.photo import AlignedFace
from bfr.runtime.restore.batch import Restored
from bfr.runtime.video.track import Tracked

MISMATCH = 1.0  # standard deviations of a face's luma by which the warped key crop may be off, in any PLACE
PLACE, SMOOTH = 1 / 64, 1.5 / 256  # of the crop's side: the line between two lips; a blur, against noise
COARSE = 1 / 256  # of the crop's side: of what is coarser, a frame keeps its own; finer detail is that of the key frame
SCALES = 0.8, 1.25  # by which a face may be larger than in its key frame: its crop is as sharp as that

Float32 = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class _Key:
    """The last frame of a face that went through the networks.

    Attributes:
        age: Frames since then.
        result: What they made of it; set before the frames between are completed.
        detail: What the result has beyond the coarse crop: (S, S) float32 of R, G and B.
    """

    face: AlignedFace
    age: int = 0
    result: Restored | None = None
    detail: Sequence[NDArray[Any]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What a frame's face is made from.

    Attributes:
        track: Number of its track.
        key: Its key frame.
        places: (2, S, S) float32: x and y of each pixel in the key crop. None where this is the key frame.
    """

    face: AlignedFace
    track: int
    key: _Key
    places: Float32 | None = None


class KeyFrames:
    """Decides which faces of successive frames go through the networks. It looks back only, at the previous frames."""

    def __init__(self, every: int) -> None:
        """every: see `VideoOptions.key_frames`."""
        self._every = every
        self._keys: dict[int, _Key] = {}  # of the faces of the last frame, by track
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def sources(self, faces: Sequence[AlignedFace], tracked: Sequence[Tracked]) -> list[Source]:
        """What the faces of the next frame are made from. One that was not in the last frame gets a key frame.

        Args:
            faces: The faces.
            tracked: The same and their tracks, in any order; there may be more.
        """
        tracks = {id(one.face): one.track for one in tracked}
        found = [self._source(face, tracks[id(face.face)]) for face in faces]
        self._keys = {source.track: source.key for source in found}
        return found

    def _source(self, face: AlignedFace, track: int) -> Source:
        key, new = self._keys.get(track), Source(face, track, _Key(face))
        if key is None or key.age + 1 >= self._every:
            return new
        low, high = SCALES
        if not low < scale_of(key.face.matrix) / scale_of(face.matrix) < high:
            return new
        before, after = _luma(key.face.crop), _luma(face.crop)
        size = after.shape[0]
        flow = self._flow.calc(after, before, np.zeros((size, size, 2), np.float32))
        places = np.stack(cv2.split(flow)) + np.indices((size, size), np.float32)[::-1]
        if _mismatch(_warped(before.astype(np.float32), places), after) > MISMATCH:
            return new
        key.age += 1
        return Source(face, track, key, places)


def fresh(sources: Sequence[Source]) -> tuple[list[NDArray[Any]], list[int]]:
    """The crops of a frame that go through the networks, and their tracks."""
    keys = [source for source in sources if source.places is None]
    return [source.face.crop for source in keys], [source.track for source in keys]


def complete(sources: Sequence[Source], results: Sequence[Restored]) -> list[Restored]:
    """The results of a frame's faces, in their order. A face whose key frame failed, fails too.

    Args:
        sources: From `KeyFrames.sources`; those of the frames before have been completed.
        results: The networks' of the crops that `fresh` returns.
    """
    following = iter(results)
    for source in sources:
        if source.places is None:
            source.key.result = next(following)
    return [_result(source) for source in sources]


def count_warped(sources: Sequence[Source], results: Sequence[Restored]) -> int:
    """How many faces of a frame were warped from a key frame."""
    pairs = zip(sources, results, strict=True)
    return sum(one.places is not None and result.pixels is not None for one, result in pairs)


def _result(source: Source) -> Restored:
    key, places = source.key, source.places
    assert key.result is not None  # noqa: S101  (frames are completed in their order)
    if places is None or key.result.pixels is None:
        return key.result
    if key.detail is None:
        key.detail = cv2.split(cv2.subtract(key.result.pixels, _coarse(key.face.crop), dtype=cv2.CV_32F))
    crop = source.face.crop
    detail = cv2.merge([_warped(plane, places) for plane in key.detail])  # a float plane at a time is the fastest
    pixels = cv2.add(_coarse(crop), detail, dtype=cv2.CV_8U if crop.dtype == np.uint8 else cv2.CV_16U)
    return Restored(np.asarray(pixels, crop.dtype), {}, key.result.precision)


def _coarse(crop: NDArray[Any]) -> Float32:
    return np.asarray(cv2.GaussianBlur(crop.astype(np.float32), (0, 0), COARSE * crop.shape[0]), np.float32)


def _mismatch(warped: NDArray[Any], crop: NDArray[np.uint8]) -> float:
    """How far the luma of two crops differs where it differs most inside the face, in its standard deviations."""
    size = crop.shape[0]
    inside = _face(size)
    one, other = (cv2.GaussianBlur(x.astype(np.float32), (0, 0), SMOOTH * size) for x in (warped, crop))
    off = cv2.blur(cv2.absdiff(one, other), (max(1, round(PLACE * size)),) * 2)
    return float(off[inside].max() / max(float(crop[inside].std()), 1.0))


@lru_cache(maxsize=4)
def _face(size: int) -> NDArray[np.bool]:
    """(size, size): the oval of the face in a crop."""
    mask = np.zeros((size, size), np.uint8)
    centre, radii, _ = FACE
    middle, axes = ((round(x * size), round(y * size)) for x, y in (centre, radii))
    cv2.ellipse(mask, middle, axes, 0, 0, 360, 1, cv2.FILLED)
    return mask.astype(bool)


def _luma(crop: NDArray[Any]) -> NDArray[np.uint8]:
    """(S, S, 3) uint8 or uint16 RGB -> (S, S) uint8."""
    eight = crop if crop.dtype == np.uint8 else (crop >> 8).astype(np.uint8)
    return np.asarray(cv2.cvtColor(eight, cv2.COLOR_RGB2GRAY), np.uint8)


def _warped(pixels: NDArray[Any], places: Float32) -> NDArray[Any]:
    return np.asarray(cv2.remap(pixels, places[0], places[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))
