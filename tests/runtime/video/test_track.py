"""Tracks: numbers, crossings, misses, cuts; and what the filter does to jitter and to movement."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Face
from bfr.runtime.video.track import HOLD, KNOWN, PATIENCE, OneEuro, Tracker, is_cut, thumbnail

Array = NDArray[Any]
EYES = 60.0  # pixels between the eyes of the faces here
POINTS = np.array([(-30, -20), (30, -20), (0, 10), (-22, 40), (22, 40)], np.float64)
FPS = 25


def face(x: float, y: float, *, score: float = 0.9, noise: Array | float = 0.0) -> Face:
    box = np.array([x - 60, y - 75, x + 60, y + 75], np.float32)
    return Face(box, (POINTS + np.array([x, y]) + noise).astype(np.float32), score)


def follow(tracker: Tracker, frames: list[list[Face]]) -> list[list[int]]:
    """The track numbers in each frame, in the order of the detections."""
    numbers = []
    for index, faces in enumerate(frames):
        tracked = tracker.update(faces, index / FPS)
        of_box = {one.face.box.tobytes(): one.track for one in tracked if not one.held}
        numbers.append([of_box[one.box.tobytes()] for one in faces])
    return numbers


def test_faces_keep_their_numbers_whatever_order_the_detector_gives() -> None:
    frames = [[face(200 + 8 * i, 200), face(600 - 8 * i, 220)] for i in range(20)]
    frames = [pair[::-1] if i % 3 == 1 else pair for i, pair in enumerate(frames)]
    numbers = follow(Tracker(), frames)
    assert [pair[::-1] if i % 3 == 1 else pair for i, pair in enumerate(numbers)] == [[0, 1]] * 20


def test_a_face_that_moves_by_most_of_its_size_is_followed_once_its_speed_is_known() -> None:
    # Steps grow from 20 to 110 pixels of a box 120 wide: against its last place the overlap falls to 0.04.
    x = np.cumsum(np.concatenate([[200], np.arange(20, 115, 15)]))
    assert follow(Tracker(), [[face(at, 200)] for at in x.tolist()]) == [[0]] * len(x)


@pytest.mark.parametrize("pause", [0.1, 2.0])
def test_frames_a_tick_apart_make_no_speed_of_a_detectors_error(pause: float) -> None:
    """As of a screen recording: bursts and pauses; a face that is lost would be held where it never was."""
    tracker, error = Tracker(), np.random.default_rng(0).normal(0, 3, 40)
    times = np.cumsum([0.001, 0.001, 0.001, pause] * 10)
    for x, seconds in zip((300 + error).tolist(), times.tolist(), strict=True):
        assert [one.track for one in tracker.update([face(x, 200)], seconds)] == [0]
    (held,) = tracker.update([], times[-1] + pause)
    assert abs(held.face.box[0] - 240) < 120 * max(1, pause)  # a face a second


def test_two_faces_that_cross_keep_their_numbers() -> None:
    # They pass one behind the other with 20 pixels between their middles in height; each is seen all the time.
    frames = [[face(200 + 20 * i, 200), face(600 - 20 * i, 220)] for i in range(21)]
    assert follow(Tracker(), frames) == [[0, 1]] * 21


def test_a_face_hidden_while_they_cross_comes_back_under_its_number() -> None:
    frames = []
    for i in range(21):
        seen = [face(200 + 20 * i, 200)]
        if abs(200 + 20 * i - (600 - 20 * i)) > 70:
            seen.append(face(600 - 20 * i, 220))
        frames.append(seen)
    numbers = follow(Tracker(), frames)
    assert min(len(seen) for seen in frames) == 1
    assert all(seen == [0, 1][: len(seen)] for seen in numbers)


def test_a_missed_face_is_held_where_it_should_be_and_only_for_a_while() -> None:
    tracker = Tracker()
    for i in range(10):
        tracker.update([face(200 + 10 * i, 200)], i / FPS)
    held = [tracker.update([], i / FPS) for i in range(10, 10 + HOLD + 2)]
    assert [len(faces) for faces in held] == [1] * HOLD + [0, 0]
    for i, (one,) in enumerate(held[:HOLD], 10):
        expected = face(200 + 10 * i, 200)
        assert one.held
        assert one.track == 0
        np.testing.assert_allclose(one.face.box, expected.box, atol=2)
        np.testing.assert_allclose(one.face.landmarks, expected.landmarks, atol=0.1 * EYES)
    (back,) = tracker.update([face(340, 200)], 14 / FPS)
    assert (back.track, back.held) == (0, False)


def test_a_false_alarm_is_not_held() -> None:
    tracker = Tracker()
    for i in range(KNOWN - 1):
        assert len(tracker.update([face(200, 200)], i / FPS)) == 1
    assert tracker.update([], KNOWN / FPS) == []


@pytest.mark.parametrize(("missed", "number"), [(PATIENCE, 0), (PATIENCE + 1, 1)])
def test_a_track_waits_for_patience_frames(missed: int, number: int) -> None:
    tracker = Tracker()
    for i in range(5):
        tracker.update([face(200, 200)], i / FPS)
    for i in range(missed):
        tracker.update([], (5 + i) / FPS)
    assert [one.track for one in tracker.update([face(200, 200)], (5 + missed) / FPS)] == [number]


def test_after_a_reset_numbers_go_on() -> None:
    tracker = Tracker()
    tracker.update([face(200, 200), face(500, 200)], 0)
    tracker.reset()
    assert tracker.update([], 1 / FPS) == []
    tracked = tracker.update([face(200, 200)], 2 / FPS)
    assert [one.track for one in tracked] == [2]
    np.testing.assert_array_equal(tracked[0].face.landmarks, face(200, 200).landmarks)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 900), st.integers(0, 500)), max_size=4, unique=True), min_size=2, max_size=12
    )
)
def test_numbers_are_never_shared_and_depend_on_the_detections_alone(frames: list[list[tuple[int, int]]]) -> None:
    def run(tracker: Tracker) -> list[list[tuple[int, bool]]]:
        found = [tracker.update([face(*at) for at in places]) for places in frames]
        return [[(one.track, one.held) for one in faces] for faces in found]

    first = run(Tracker())
    assert first == run(Tracker())
    highest = -1
    for places, faces in zip(frames, first, strict=True):
        numbers = [number for number, _ in faces]
        assert numbers == sorted(set(numbers))
        assert sum(not held for _, held in faces) == len(places)
        fresh = [number for number in numbers if number > highest]
        assert fresh == list(range(highest + 1, highest + 1 + len(fresh)))
        highest = max([highest, *numbers])


def test_times_that_are_missing_or_stand_still_count_as_a_frame_each() -> None:
    def run(times: list[float | None]) -> list[Array]:
        tracker = Tracker()
        return [tracker.update([face(200 + 10 * i, 200)], seconds)[0].face.landmarks for i, seconds in enumerate(times)]

    expected = run([i / FPS for i in range(6)])
    np.testing.assert_allclose(run([None] * 6), expected, atol=1e-3)
    np.testing.assert_allclose(run([0.0] * 6), expected, atol=1e-3)


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_jitter_at_rest_falls_to_a_third(fps: int) -> None:
    rng = np.random.default_rng(0)
    tracker = Tracker()
    noise = rng.normal(0, 1, (400, 5, 2))
    smoothed = [tracker.update([face(500, 300, noise=n)], i / fps)[0].face.landmarks for i, n in enumerate(noise)]
    left = np.array(smoothed[60:], np.float64) - face(500, 300).landmarks
    assert left.std() < noise[60:].std() / 3
    assert np.diff(left, axis=0).std() < np.diff(noise[60:], axis=0).std() / 6  # from frame to frame: what flickers


@pytest.mark.parametrize("speed", [0.5, 1, 3, 6])
def test_landmarks_trail_a_pan_by_less_than_a_tenth_of_the_eye_distance(speed: float) -> None:
    """speed: eye distances a second, reached within 0.2 s."""
    tracker = Tracker()
    x, lags = 300.0, []
    for i in range(3 * FPS):
        x += speed * EYES / FPS * min(max(i - FPS, 0) / (0.2 * FPS), 1)
        (one,) = tracker.update([face(x, 300)], i / FPS)
        lags.append(x - float(one.face.landmarks[:, 0].mean() - POINTS[:, 0].mean()))
    assert max(lags) < 0.1 * EYES
    assert lags[-1] < 0.053 * EYES


def test_the_filter_does_not_depend_on_the_size_of_the_face() -> None:
    rng = np.random.default_rng(1)
    path = POINTS + np.cumsum(rng.normal(0, 2, (50, 1, 2)), axis=0)
    small, large = OneEuro(path[0]), OneEuro(7 * path[0])
    for points in path[1:]:
        np.testing.assert_allclose(
            7 * small.update(points, 1 / FPS, EYES), large.update(7 * points, 1 / FPS, 7 * EYES), rtol=1e-9
        )


def test_a_face_that_was_out_of_sight_is_not_smoothed_into_its_past() -> None:
    tracker = Tracker()
    for i in range(5):
        tracker.update([face(200, 200)], i / FPS)
    for i in range(HOLD + 1):
        tracker.update([], (5 + i) / FPS)
    (one,) = tracker.update([face(230, 200)], (6 + HOLD) / FPS)
    assert one.track == 0
    np.testing.assert_array_equal(one.face.landmarks, face(230, 200).landmarks)


def test_detections_are_left_as_they_are() -> None:
    tracker = Tracker()
    faces = [face(200 + 9 * i, 200, score=0.5 + i / 100) for i in range(5)]
    kept = [one.landmarks.copy() for one in faces]
    for i, (one, landmarks) in enumerate(zip(faces, kept, strict=True)):
        (tracked,) = tracker.update([one], i / FPS)
        np.testing.assert_array_equal(one.landmarks, landmarks)
        np.testing.assert_array_equal(tracked.face.box, one.box)
        assert tracked.face.score == one.score
        assert tracked.face.landmarks.dtype == np.float32


def scene(seed: int, size: tuple[int, int] = (360, 640)) -> Array:
    """A picture of large random patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (9, 16, 3), np.uint8)
    return np.kron(patches, np.ones((size[0] // 9, size[1] // 16, 1), np.uint8))


def test_another_scene_is_a_cut() -> None:
    assert is_cut(thumbnail(scene(0)), thumbnail(scene(1)))
    assert is_cut(thumbnail(np.zeros((90, 160, 3), np.uint8)), thumbnail(scene(0)))
    assert is_cut(thumbnail(np.zeros((90, 160, 3), np.uint8)), thumbnail(np.full((90, 160, 3), 255, np.uint8)))


def test_movement_noise_flashes_and_fades_are_no_cuts() -> None:
    wide = scene(0, (360, 1280))
    assert not is_cut(thumbnail(wide[:, :640]), thumbnail(wide[:, 40:680]))
    picture = scene(2)
    noisy = np.clip(picture + np.random.default_rng(0).normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
    assert not is_cut(thumbnail(picture), thumbnail(noisy))
    assert not is_cut(thumbnail(picture), thumbnail((picture * 0.6).astype(np.uint8)))
    assert not is_cut(thumbnail(picture), thumbnail((picture * 0.5 + 127).astype(np.uint8)))
    dark = np.full((90, 160, 3), 31, np.uint8)  # the two lie in neighbouring bins of colour
    assert not is_cut(thumbnail(dark), thumbnail(dark + 2))
