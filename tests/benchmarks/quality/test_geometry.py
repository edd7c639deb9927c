"""Landmarks and proportions before and after, with a detector of five coloured dots."""

import math

import cv2
import numpy as np
import pytest

from bfr.benchmarks.quality import geometry as g
from bfr.runtime.faces.geometry import Face, template

COLOURS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255))
HUES = (0, 30, 60, 120, 150)  # in OpenCV's half degrees


class Dots:
    """Finds the five dots of `drawn`; `misses` of its looks find nothing."""

    name = "dots"

    def __init__(self, misses: int = 0) -> None:
        self.misses = misses

    def detect(self, pixels: np.ndarray) -> list[Face]:
        self.misses -= 1
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(float)
        weights = [np.where(np.abs((hsv[..., 0] - h + 90) % 180 - 90) < 14, hsv[..., 2], 0) for h in HUES]
        weights = [np.where((weight > 60) & (hsv[..., 1] > 100), weight, 0) for weight in weights]
        if self.misses >= 0 or min(weight.sum() for weight in weights) == 0:
            return []
        y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
        points = np.array([((x * w).sum() / w.sum(), (y * w).sum() / w.sum()) for w in weights], np.float32)
        return [Face(np.array([0, 0, 1, 1], np.float32), points, 0.9)]

    def refine(self, pixels: np.ndarray, face: Face) -> Face:
        return face


def drawn(points: np.ndarray) -> np.ndarray:
    picture = np.zeros((256, 256, 3), np.uint8)
    for point, colour in zip(points, COLOURS, strict=True):
        cv2.circle(picture, tuple(np.rint(point * 16).astype(int).tolist()), 11 * 16, colour, -1, cv2.LINE_AA, 4)
    return picture


POINTS = template(256)


def test_proportions_by_hand() -> None:
    points = np.array([(10, 10), (50, 10), (30, 26), (15, 50), (45, 50)], float)
    found = g.proportions(points)
    assert found == pytest.approx({"eyes": 40 / 40, "mouth": 30 / 40, "nose": 16 / 40})
    turn = 1.7 * np.array([(math.cos(0.4), -math.sin(0.4)), (math.sin(0.4), math.cos(0.4))])
    assert g.proportions(points @ turn.T + (5, -3)) == pytest.approx(found)


def test_changes_by_hand() -> None:
    own = np.array([(10, 10), (50, 10), (30, 26), (15, 50), (45, 50)], float)
    assert g.compare(own, own) == {"landmarks": 0.0, "eyes": 0.0, "mouth": 0.0, "nose": 0.0}
    moved = own + np.array([3, 4])
    assert g.compare(moved, own) == pytest.approx({"landmarks": 5 / 40, "eyes": 0, "mouth": 0, "nose": 0})
    wider = own.copy()
    wider[:2] += [(-4, 0), (4, 0)]  # the eyes, a fifth farther apart
    changed = g.compare(wider, own)
    assert changed["eyes"] == pytest.approx(20)
    assert changed["mouth"] == pytest.approx(100 * (1 / 1.2 - 1))
    assert changed["nose"] == pytest.approx(0)
    assert changed["landmarks"] == pytest.approx((4 + 4) / 5 / 40)


def test_landmarks_are_found_in_the_pictures_own_pixels() -> None:
    found = g.find_landmarks(Dots(), drawn(POINTS))
    assert found is not None
    assert np.abs(found - POINTS).max() < 0.3


@pytest.mark.parametrize(("misses", "found"), [(7, True), (8, False)])
def test_a_face_counts_that_most_looks_find(misses: int, found: bool) -> None:
    assert len(g.SIDES) == 15
    assert (g.find_landmarks(Dots(misses), drawn(POINTS)) is not None) == found


def test_who_was_changed_stands_above_the_floor() -> None:
    other = POINTS.copy()
    other[2] += (0, 12)  # a longer nose
    stages = {"input": np.zeros((256, 256, 3), np.uint8), "estimate": drawn(POINTS), "result": drawn(other)}
    record = g.examine(Dots(), "face", stages, drawn(POINTS))
    assert record is not None
    assert list(record) == ["input", "estimate", "result", g.MOVED, g.SPOILT]
    assert record["input"] is None
    estimate, result, moved, spoilt = (record[name] or {} for name in ("estimate", "result", g.MOVED, g.SPOILT))
    assert estimate["landmarks"] == 0.0
    eyes = np.hypot(*(POINTS[1] - POINTS[0]))
    assert result["landmarks"] == pytest.approx(12 / 5 / eyes, rel=0.1)
    assert result["nose"] == pytest.approx(
        100 * (g.proportions(other)["nose"] / g.proportions(POINTS)["nose"] - 1), 0.1
    )
    for floor in (moved, spoilt):
        assert floor["landmarks"] < result["landmarks"] / 4
        assert abs(floor["nose"]) < result["nose"] / 4
    lines = g.geometry_table([record, None]).splitlines()
    assert "| input | 0 of 2 |  |" in lines[2]
    assert "| result | 1 of 2 |" in lines[4]


def test_a_truth_without_a_face_has_no_geometry() -> None:
    assert g.examine(Dots(), "face", {"result": drawn(POINTS)}, np.zeros((256, 256, 3), np.uint8)) is None
    assert "no face" in g.geometry_table([None])
