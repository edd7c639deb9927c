"""Which detections are one face."""

from typing import Any

import numpy as np
import pytest
from face_geometry import face
from hypothesis import given, settings
from hypothesis import strategies as st

from bfr.runtime.faces.geometry import Face
from bfr.runtime.faces.suppression import INSIDE, OVERLAP, overlaps, without_repeats


def overlap(a: Face, b: Face) -> float:
    return float(overlaps(a.box[None], b.box[None])[0][0, 0])


def inside(a: Face, b: Face) -> float:
    return float(overlaps(a.box[None], b.box[None])[1][0, 0])


def test_overlaps_are_those_of_areas() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 9], [2, 2, 4, 7]], np.float32)
    union, smaller = overlaps(boxes[:1], boxes)
    np.testing.assert_allclose(union, [[1, 50 / 150, 0, 0, 0.1]])
    np.testing.assert_allclose(smaller, [[1, 0.5, 0, 0, 1]])


class TestRepeats:
    @pytest.mark.parametrize(
        ("other", "expected"),
        [
            ((0, 0, 100, 100), 1.0),
            ((50, 0, 150, 100), 1 / 3),
            ((0, 0, 50, 50), 0.25),
            ((50, 50, 150, 150), 1 / 7),
            ((100, 0, 200, 100), 0.0),
            ((300, 300, 400, 400), 0.0),
            ((-500, -500, -400, -400), 0.0),
            ((10, 10, 10, 10), 0.0),
        ],
    )
    def test_intersection_over_union(self, other: tuple[float, ...], expected: float) -> None:
        one = face((0, 0, 100, 100))
        assert overlap(one, face(other)) == pytest.approx(expected, abs=1e-6)
        assert overlap(face(other), one) == pytest.approx(expected, abs=1e-6)

    def test_nothing_on_nothing(self) -> None:
        assert overlap(face((5, 5, 5, 5)), face((5, 5, 5, 5))) == 0

    def test_the_better_detection_of_a_face_is_kept(self) -> None:
        worse, better = face((0, 0, 100, 100), score=0.6), face((5, 5, 105, 105), score=0.8)
        other = face((300, 0, 400, 100), score=0.7)
        assert without_repeats([worse, other, better]) == [better, other]

    def test_the_limit_is_two_fifths(self) -> None:
        one = face((0, 0, 100, 100), eyes=20)
        nearer, farther = face((42, 0, 142, 100), score=0.8, eyes=20), face((44, 0, 144, 100), score=0.8, eyes=20)
        assert without_repeats([one, nearer]) == [one]  # 0.408
        assert without_repeats([one, farther]) == [one, farther]  # 0.389

    def test_the_same_eyes_are_the_same_face_whatever_the_boxes(self) -> None:
        whole, part = face((0, 0, 200, 200)), face((160, 0, 260, 100), score=0.5)
        part.landmarks[:] = whole.landmarks + 3
        assert overlap(whole, part) < 0.1
        assert without_repeats([part, whole]) == [whole]
        part.landmarks[:] = whole.landmarks + np.array([0.6 * whole.eye_distance, 0])
        assert without_repeats([part, whole]) == [whole, part]

    @pytest.mark.parametrize(("share", "count"), [(0.55, 2), (0.65, 1), (1.0, 1)])
    def test_what_lies_in_a_larger_face_is_a_part_of_it(self, share: float, count: int) -> None:
        whole = face((0, 0, 200, 200), eyes=40)
        part = face((200 - 60 * share, 100, 260 - 60 * share, 160), score=0.7, eyes=10)
        assert inside(whole, part) == pytest.approx(share, abs=1e-6)
        assert overlap(whole, part) < 0.1
        assert len(without_repeats([part, whole])) == count

    def test_at_most_so_many_the_best(self) -> None:
        faces = [face((100 * k, 0, 100 * k + 50, 50), score=k / 10) for k in range(9)]
        assert without_repeats(faces, most=2) == [faces[8], faces[7]]

    def test_none(self) -> None:
        assert without_repeats([]) == []

    @given(st.lists(st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(5, 40)] * 2, st.floats(0, 1)), max_size=8))
    @settings(max_examples=60, deadline=None, database=None)
    def test_what_is_kept_are_different_faces_and_each_dropped_one_has_a_better(self, boxes: Any) -> None:
        faces = [face((x, y, x + w, y + h), score=score) for x, y, w, h, score in boxes]
        kept = without_repeats(faces)
        assert [one.score for one in kept] == sorted((one.score for one in kept), reverse=True)
        for i, one in enumerate(kept):
            assert all(overlap(one, other) < OVERLAP and inside(one, other) < INSIDE for other in kept[:i])
        assert {id(one) for one in without_repeats(kept)} == {id(one) for one in kept}
        assert not faces or max(faces, key=lambda one: one.score).score == kept[0].score
