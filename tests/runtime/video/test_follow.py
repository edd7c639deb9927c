"""Faces between two looks: where they are, when they come and go, and how often a frame is looked at."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Face, template
from bfr.runtime.video import follow as module
from bfr.runtime.video.follow import EVERY, Followed, follow, moved

Array = NDArray[Any]
SIDE = 120  # pixels of a face
EYES = float(np.hypot(*(template(SIDE)[1] - template(SIDE)[0])))
HEIGHT, WIDTH = 270, 480
Places = Callable[[int], list[tuple[float, float]]]
"""Index of a frame -> left and top of its faces."""


def texture(seed: int, shape: tuple[int, int] = (SIDE, SIDE)) -> Array:
    """Spots of some 8 pixels, as a face has them; of another seed, another face."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (shape[0] // 8, shape[1] // 8, 3)).astype(np.float32)
    return np.clip(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 255)


def drawn(places: list[tuple[float, float]], *, flat: bool = False, scene: int = 0) -> Array:
    """A frame: textured faces at places between pixels, before a soft wall."""
    frame = texture(1000 + scene, (HEIGHT, WIDTH)) / 8 + 60 * (1 + scene)
    for number, (left, top) in enumerate(places):
        face = np.full((SIDE, SIDE, 3), 90 + 50 * number, np.float32) if flat else texture(number)
        shift = np.array([[1.0, 0, left], [0, 1.0, top]])
        cv2.warpAffine(face, shift, (WIDTH, HEIGHT), dst=frame, borderMode=cv2.BORDER_TRANSPARENT)
    return np.rint(np.clip(frame, 0, 255)).astype(np.uint8)


def face(left: float, top: float, noise: Array | float = 0.0) -> Face:
    box = np.array([left, top, left + SIDE, top + SIDE], np.float32)
    return Face(box, (template(SIDE) + np.array([left, top]) + noise).astype(np.float32), 0.9)


class Looks:
    """Finds what was drawn, counts its looks, and knows the frames by their pixels' identity."""

    def __init__(self, count: int, places: Places, *, flat: bool = False, noise: float = 0.0, cut: int = 10**9) -> None:
        self.places, self.noise = places, np.random.default_rng(0).normal(0, noise, (count, 5, 2))
        self.views = [drawn(places(i), flat=flat, scene=int(i >= cut)) for i in range(count)]
        self.looked: list[int] = []
        self.viewed: list[int] = []

    def view(self, index: int) -> Array:
        self.viewed.append(index)
        return self.views[index]

    def find(self, pixels: Array) -> list[Face]:
        (index,) = (i for i, known in enumerate(self.views) if known is pixels)
        self.looked.append(index)
        return [face(*place, self.noise[index]) for place in self.places(index)]

    def run(self) -> list[Followed[int]]:
        found = list(follow(range(len(self.views)), self.view, self.find))
        assert [one.frame for one in found] == self.viewed == list(range(len(self.views)))
        assert len(self.looked) == len(set(self.looked))
        return found

    def worst(self, found: list[Followed[int]]) -> float:
        """Of all faces the largest distance of a landmark, in eye distances; the number of faces must be right."""
        worst = 0.0
        for one in found:
            places = self.places(one.frame)
            assert len(one.faces) == len(places), one.frame
            for place in places:
                off = [np.abs(other.landmarks - face(*place).landmarks).max() for other in one.faces]
                worst = max(worst, float(min(off)) / EYES)
        return worst


def wandering(index: int) -> tuple[float, float]:
    return 150 + 90 * np.sin(index / 9), 70 + 40 * np.sin(index / 6)  # at most 10 pixels a frame, a third of the eyes


def test_a_face_is_looked_for_in_every_sixteenth_frame_and_followed_between() -> None:
    looks = Looks(40, lambda i: [wandering(i)])
    found = looks.run()
    assert looks.looked == [0, 16, 32, 39]
    assert looks.worst(found) < 0.03
    assert not any(one.cut for one in found)
    for one in found:
        (followed,) = one.faces
        assert np.abs(followed.box - face(*wandering(one.frame)).box).max() < 2
        assert followed.score == pytest.approx(0.9)
        assert followed.box.dtype == followed.landmarks.dtype == np.float32


def test_what_looks_are_off_becomes_a_drift_and_no_tremor() -> None:
    looks = Looks(60, lambda i: [wandering(i)], noise=0.05 * EYES)
    off = [one.faces[0].landmarks - face(*wandering(one.frame)).landmarks for one in looks.run()]
    steps = np.abs(np.diff(np.array(off), axis=0)).mean()
    assert steps < np.abs(np.diff(looks.noise, axis=0)).mean() / 6


@pytest.mark.parametrize("event", [1, 5, 11, 12, 13, 20, 35])
def test_one_that_comes_or_goes_is_there_in_exactly_its_frames(event: int) -> None:
    for late in (True, False):
        looks = Looks(36, lambda i: [wandering(i), (330.0, 100.0)][: 1 + ((i >= event) == late)])  # noqa: B023
        assert looks.worst(looks.run()) < 0.03
        assert len(looks.looked) <= 5 + 4  # 4 to halve 12 frames until two are neighbours


def test_two_that_are_followed_keep_apart() -> None:
    looks = Looks(30, lambda i: [(20.0 + 3 * i, 60.0 + i), (340.0 - 3 * i, 140.0 - i)])
    found = looks.run()
    assert looks.worst(found) < 0.05 or len(looks.looked) > 4  # they cover each other on the way


def test_without_texture_every_frame_is_looked_at() -> None:
    looks = Looks(20, lambda i: [(100.0 + 3 * i, 80.0)], flat=True)
    assert looks.worst(looks.run()) == 0
    assert sorted(looks.looked) == list(range(20))


def test_a_frame_without_faces_costs_a_sixteenth_of_a_look() -> None:
    looks = Looks(49, lambda _: [])
    assert all(one.faces == [] for one in looks.run())
    assert looks.looked == [0, 16, 32, 48]


@pytest.mark.parametrize("cut", [1, 7, 12, 13, 29])
def test_nothing_is_followed_across_a_cut(cut: int) -> None:
    looks = Looks(30, lambda i: [wandering(i)] if i < cut else [(300.0, 100.0)], cut=cut)
    found = looks.run()
    assert [one.frame for one in found if one.cut] == [cut]
    assert looks.worst(found) < 0.03
    assert {cut - 1, cut} <= set(looks.looked)


@pytest.mark.parametrize("count", [0, 1, 2, EVERY, EVERY + 1, EVERY + 2])
def test_short_videos(count: int) -> None:
    looks = Looks(count, lambda i: [wandering(i)])
    assert looks.worst(looks.run()) < 0.03


def test_large_frames_are_looked_at_more_often_so_that_fewer_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", 4 * HEIGHT * WIDTH)
    looks = Looks(13, lambda i: [wandering(i)])
    assert looks.worst(looks.run()) < 0.03
    assert looks.looked == [0, 4, 8, 12]


class TestMoved:
    @pytest.mark.parametrize("degrees", [-6, 0, 6])
    @pytest.mark.parametrize("scale", [0.95, 1.0, 1.05])
    def test_turned_and_scaled(self, degrees: float, scale: float) -> None:
        before = drawn([(170, 70)])
        matrix = np.asarray(cv2.getRotationMatrix2D((230, 130), degrees, scale)) + np.array([[0, 0, 5], [0, 0, -3]])
        after = np.asarray(cv2.warpAffine(before, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT))
        at = moved(before, after, face(170, 70))
        assert at is not None
        expected = face(170, 70).landmarks @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(at.landmarks - expected).max() < 0.02 * EYES
        assert (at.box[2] - at.box[0]) == pytest.approx(SIDE * scale, rel=0.02)

    def test_another_picture_is_not_it(self) -> None:
        assert moved(drawn([(170, 70)]), texture(77, (HEIGHT, WIDTH)).astype(np.uint8), face(170, 70)) is None

    @pytest.mark.parametrize("landmarks", [np.zeros((5, 2)), np.full((5, 2), 9e5), template(SIDE) - 900])
    def test_no_face_and_no_crash(self, landmarks: Array) -> None:
        frame = drawn([(170, 70)])
        assert moved(frame, frame, Face(np.zeros(4, np.float32), landmarks.astype(np.float32), 0.9)) is None


def as_they_come(looks: Looks) -> list[Followed[Any]]:
    follower = module.Follower(looks.find)
    return [follower.follow(pixels, index / 25) for index, pixels in enumerate(looks.views)]


def test_of_a_stream_a_frame_in_half_a_second_is_looked_at() -> None:
    looks = Looks(40, lambda i: [wandering(i)])
    found = as_they_come(looks)
    assert looks.looked == [0, 13, 26, 39]
    for index, one in enumerate(found):
        (followed,) = one.faces
        assert np.abs(followed.landmarks - face(*wandering(index)).landmarks).max() < 0.1 * EYES


def test_in_a_stream_a_new_face_is_seen_at_the_next_look_and_a_lost_one_at_once() -> None:
    looks = Looks(30, lambda i: [wandering(i), (400.0, 180.0)][: 1 + (5 <= i < 20)])
    counts = [len(one.faces) for one in as_they_come(looks)]
    assert counts == [1] * 13 + [2] * 7 + [1] * 10
    assert 20 in looks.looked


def test_a_stream_that_shows_another_scene_or_size_is_looked_at() -> None:
    looks = Looks(12, lambda i: [wandering(i)], cut=6)
    found = as_they_come(looks)
    assert looks.looked == [0, 6]
    assert [one.cut for one in found] == [i == 6 for i in range(12)]
    looks.views[3:] = [np.ascontiguousarray(view[:-20]) for view in looks.views[3:]]
    looks.looked.clear()
    as_they_come(looks)
    assert looks.looked == [0, 3, 6]
