"""Identity by geometry: landmarks and proportions of a face before and after restoring, and the detector's own scatter.

A restorer must not make someone else. Five landmarks do not tell people apart, but a restoration that moves them, or
changes how far apart the eyes are for the length of the face, changes the person. A detector measures them, with errors
of its own: each table also shows how far it moves the landmarks of the same face, shifted or slightly spoilt. A smaller
difference says nothing about the restorer.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.benchmarks.quality.faces import degrade
from bfr.benchmarks.quality.metrics import Mean, UInt8
from bfr.benchmarks.tables import show, table
from bfr.models.systems.mini.degrade import Degradation
from bfr.runtime.faces.detect import Detector
from bfr.runtime.faces.geometry import resizing, transform

Landmarks = NDArray[np.float64]
"""(5, 2) x, y: left eye, right eye, nose, left and right corner of the mouth, in pixels."""
Shape = Mapping[str, float]
"""`landmarks` (mean distance in eye distances) and the change in percent of each of PROPORTIONS."""
Record = Mapping[str, Shape | None]
"""One face: what was compared -> its Shape against the face's own, None if no face was found."""

SIDES = np.linspace(54, 74, 15).round().astype(int)  # pixels: one look each; YuNet doubles such small pictures
SHIFT = (3, 2)  # pixels right and down
SLIGHT = Degradation(blur=(0.6, 0.6), noise=2.0, jpeg=90)
MOVED, SPOILT = "itself, moved", "itself, slightly spoilt"
PROPORTIONS = ("eyes", "mouth", "nose")


def find_landmarks(detector: Detector, image: UInt8) -> Landmarks | None:
    """The landmarks of the largest face of an (H, W, 3) uint8 RGB picture, an aligned face; None if it is seldom found.

    One look scatters by some hundredths of the eye distance with the picture's place on the network's grid, and
    follows fine detail, which restoring changes; the median of small pictures at several sizes and places does so less.
    """
    height, width = image.shape[:2]
    found = []
    for i, side in enumerate(SIDES.tolist()):
        size = (side, max(1, round(side * height / width)))
        left, top = (5 * i) % 16, (7 * i) % 16
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        faces = detector.detect(np.asarray(cv2.copyMakeBorder(small, top, 0, left, 0, cv2.BORDER_CONSTANT), np.uint8))
        if faces:
            points = max(faces, key=lambda face: face.area).landmarks - np.array([left, top])
            found.append(transform(resizing(size, (width, height)), points))
    return np.median(found, axis=0) if 2 * len(found) > len(SIDES) else None


def proportions(points: Landmarks) -> dict[str, float]:
    """By the names of PROPORTIONS, whatever the face's size, place and turn."""
    eyes, mouth = points[1] - points[0], points[4] - points[3]
    middle = points[:2].mean(0)
    down = points[3:].mean(0) - middle
    length = float(np.hypot(*down))
    apart = float(np.hypot(*eyes))
    nose = float((points[2] - middle) @ down) / length**2
    return {"eyes": apart / length, "mouth": float(np.hypot(*mouth)) / apart, "nose": nose}


def compare(found: Landmarks, own: Landmarks) -> dict[str, float]:
    """The Shape of landmarks against the face's own."""
    distance = float(np.hypot(*(found - own).T).mean()) / float(np.hypot(*(own[1] - own[0])))
    before, after = proportions(own), proportions(found)
    return {"landmarks": distance, **{name: 100.0 * (after[name] / before[name] - 1.0) for name in PROPORTIONS}}


def examine(detector: Detector, name: str, stages: Mapping[str, UInt8], truth: UInt8) -> Record | None:
    """Compare a face's pictures with its truth, and the truth with itself; None if no face is found in the truth."""
    own = find_landmarks(detector, truth)
    if own is None:
        return None
    look = partial(find_landmarks, detector)
    moved = look(_moved(truth))
    points = {stage: look(image) for stage, image in stages.items()}
    points |= {MOVED: None if moved is None else moved - SHIFT, SPOILT: look(degrade(name, truth, SLIGHT, 0).degraded)}
    return {what: None if found is None else compare(found, own) for what, found in points.items()}


def geometry_table(records: Sequence[Record | None]) -> str:
    """Markdown of one face or more: how many were found, landmarks' mean and largest error, changed proportions."""
    known = [record for record in records if record is not None]
    if not known:
        return "Geometry: the detector found no face to compare with."
    rows = []
    for what in known[0]:
        shapes = [shape for record in known if (shape := record[what]) is not None]
        cells = [what, f"{len(shapes)} of {len(records)}"]
        if shapes:
            errors = [shape["landmarks"] for shape in shapes]
            cells += [show(Mean.of(errors), 4), f"{max(errors):.4f}"]
            cells += [show(Mean.of([abs(shape[name]) for shape in shapes]), 2) for name in PROPORTIONS]
        rows.append(cells)
    return table(["geometry", "found", "landmarks", "largest", *(f"{name}, %" for name in PROPORTIONS)], rows)


def describe_geometry(detector: str) -> str:
    """What the table's figures are, and its floor."""
    return (
        f"Landmarks are the medians of {len(SIDES)} detections by {detector}, at sides of {SIDES[0]} to {SIDES[-1]} "
        "px. The error is the mean distance to the truth's landmarks, in eye distances. Proportions are the eye "
        "distance over the distance of eyes and mouth, the mouth width over the eye distance, and the position of the "
        "nose between eyes and mouth; the table has the means of their absolute changes. The floor is the truth "
        f"against `itself`, moved by {SHIFT[0]} and {SHIFT[1]} px or slightly spoilt (blur {SLIGHT.blur[0]:g} px, "
        f"noise {SLIGHT.noise:g} of 255, JPEG {SLIGHT.jpeg}): values up to the floor are the detector's scatter."
    )


def _moved(image: UInt8) -> UInt8:
    height, width = image.shape[:2]
    right, below = SHIFT
    bordered = cv2.copyMakeBorder(image, below, 0, right, 0, cv2.BORDER_REFLECT_101)
    return np.asarray(bordered[:height, :width], np.uint8)
