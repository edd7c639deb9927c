"""Key frames: what changes goes through the networks, and what is warped is nearly what they would make of it."""

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Face
from bfr.runtime.faces.photo import AlignedFace
from bfr.runtime.restore.batch import Restored
from bfr.runtime.video.propagate import KeyFrames, Source, complete, count_warped, fresh
from bfr.runtime.video.track import Tracked

SIZE = 128


def crop(*, mouth: float = 0.0, shift: float = 0.0, seed: int = 0, light: int = 0) -> NDArray[np.uint8]:
    """A drawn face. mouth: how far it is open, pixels. shift: to the right, pixels. seed: of the noise."""
    image: NDArray[Any] = np.full((SIZE, SIZE, 3), (190, 150, 130), np.float32)
    for x in (48, 80):
        cv2.ellipse(image, (x, 60), (8, 5), 0, 0, 360, (40, 40, 60), cv2.FILLED)
    cv2.ellipse(image, (64, 94), (14, 2 + round(mouth)), 0, 0, 360, (60, 20, 20), cv2.FILLED)
    cv2.ellipse(image, (64, 70), (5, 10), 0, 0, 360, (160, 120, 100), cv2.FILLED)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 1.5))
    matrix = np.array([[1, 0, shift], [0, 1, 0]], np.float64)
    image = np.asarray(cv2.warpAffine(image, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE))
    image = image + np.random.default_rng(seed).normal(0, 2, image.shape) + light
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)


def network(pixels: NDArray[Any]) -> NDArray[Any]:
    """Stands for the networks: sharper, without noise, and another colour."""
    top = np.iinfo(pixels.dtype).max
    soft = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 1.0)
    sharp = soft + 0.6 * (soft - cv2.GaussianBlur(soft, (0, 0), 2.0)) + np.array([0.0, top / 32, 0.0])
    return np.asarray(np.clip(np.rint(sharp), 0, top), pixels.dtype)


class Film:
    """Frames of faces, each restored as a video's are."""

    def __init__(self, every: int) -> None:
        self.keys, self.networks = KeyFrames(every), 0

    def frame(self, *crops: NDArray[Any], tracks: tuple[int, ...] = (0,), scale: float = 1.0) -> list[Restored]:
        self.sources: list[Source] = self._sources(crops, tracks, scale)
        restored, numbers = fresh(self.sources)
        assert len(numbers) == len(restored)
        self.networks += len(restored)
        return complete(self.sources, [Restored(network(one), {"network": 1.0}, "fp32") for one in restored])

    def _sources(self, crops: Any, tracks: tuple[int, ...], scale: float) -> list[Source]:
        faces = [Face(np.zeros(4, np.float32), np.zeros((5, 2), np.float32), 1.0) for _ in crops]
        matrix = np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]])
        aligned = [AlignedFace(face, matrix, pixels) for face, pixels in zip(faces, crops, strict=True)]
        pairs = list(zip(tracks, faces, strict=True))
        return self.keys.sources(aligned, [Tracked(track, face) for track, face in reversed(pairs)])


def error(result: Restored, pixels: NDArray[Any]) -> float:
    """Levels by which a result differs from what the networks make of a crop, in the mean over the face."""
    assert result.pixels is not None
    assert result.pixels.dtype == pixels.dtype
    difference = np.abs(result.pixels.astype(float) - network(pixels))[30:110, 36:92].mean()
    return float(difference) * 255 / np.iinfo(pixels.dtype).max


def test_every_frame_goes_through_the_networks_unless_asked_otherwise() -> None:
    film = Film(1)
    for seed in range(4):
        (result,) = film.frame(pixels := crop(seed=seed))
        assert error(result, pixels) == 0
    assert film.networks == 4


@pytest.mark.parametrize("depth", [8, 16])
def test_a_face_that_moves_a_little_is_warped(depth: int) -> None:
    film = Film(4)
    for index in range(8):
        pixels: NDArray[Any] = crop(shift=0.7 * index, seed=index, light=index)
        pixels = pixels if depth == 8 else pixels.astype(np.uint16) * 257
        (result,) = film.frame(pixels)
        assert error(result, pixels) < 2.0
        assert count_warped(film.sources, [result]) == (index % 4 != 0)
        assert result.seconds == ({} if index % 4 else {"network": 1.0})  # the networks' time counts once
    assert film.networks == 2
    held = network(
        crop() if depth == 8 else crop().astype(np.uint16) * 257
    )  # without the flow and without what the crops differ by
    assert error(Restored(held, {}, "fp32"), pixels) > 4.0


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"crops": (crop(mouth=8, seed=1),)}, id="a mouth opens"),
        pytest.param({"crops": (255 - crop(),)}, id="another picture"),
        pytest.param({"tracks": (1,)}, id="a cut: another track"),
        pytest.param({"scale": 1.5}, id="a smaller face"),
        pytest.param({"scale": 0.5}, id="a larger face"),
    ],
)
def test_what_changes_the_face_makes_a_key_frame(changed: dict[str, Any]) -> None:
    film = Film(100)
    film.frame(crop())
    film.frame(crop(seed=1))
    assert film.networks == 1
    crops = changed.pop("crops", (crop(seed=1),))
    (result,) = film.frame(*crops, **changed)
    assert film.networks == 2
    assert error(result, crops[0]) == 0


def test_a_dark_face_has_key_frames_too() -> None:
    """The threshold is the face's own contrast."""
    film = Film(100)
    dark = [(0.15 * pixels).astype(np.uint8) for pixels in (crop(), crop(seed=1), crop(mouth=8))]
    for pixels in dark:
        film.frame(pixels)
    assert film.networks == 2


def test_people_have_key_frames_of_their_own() -> None:
    film = Film(3)
    film.frame(crop())
    film.frame(crop(shift=1), 255 - crop(), tracks=(0, 1))
    film.frame(crop(shift=2), 255 - crop(shift=1), tracks=(0, 1))
    assert [one.places is None for one in film.sources] == [False, False]
    first, second = film.frame(crop(shift=3), 255 - crop(shift=2), tracks=(0, 1))
    assert [one.places is None for one in film.sources] == [True, False]
    assert error(first, crop(shift=3)) == 0
    assert error(second, 255 - crop(shift=2)) < 2.0


def test_a_face_that_was_away_gets_a_key_frame() -> None:
    film = Film(100)
    film.frame(crop())
    film.frame(tracks=())
    film.frame(crop())
    assert film.networks == 2


def test_where_a_key_frame_failed_so_do_the_frames_made_of_it() -> None:
    film = Film(4)
    failed = Restored(None, {}, "fp32", "not finite")
    assert complete(film._sources((crop(),), (0,), 1.0), [failed]) == [failed]
    sources = film._sources((crop(seed=1),), (0,), 1.0)
    assert fresh(sources) == ([], [])
    assert complete(sources, []) == [failed]
    assert count_warped(sources, [failed]) == 0
