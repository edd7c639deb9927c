"""Recall and landmark error of the face detector: `python -m bfr.benchmarks.end_to_end.detection FACES --out DIR`.

FACES holds folders of pictures of one person each: `photos`, and any others. From `photos` groups are composed
(`bfr.benchmarks.end_to_end.group`), whose landmarks are known by construction. There is no annotation by hand: the
truth of a single picture is the median of nine looks of YuNet at sizes that it likes, so that YuNet's own errors in
common do not show; the groups show what size, rotation and neighbours do.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.benchmarks.end_to_end.group import Portrait, compose_group, measure_portrait
from bfr.benchmarks.publish import Command, Findings
from bfr.benchmarks.tables import page, table
from bfr.runtime.errors import InputNotFound
from bfr.runtime.faces.geometry import Face
from bfr.runtime.faces.yunet import YuNet
from bfr.runtime.images.decode import read_image
from bfr.runtime.jobs.sources import find_images

SIZES = (2, 5, 10, 20, 30)
WIDTH, HEIGHT = 4000, 3000
QUANTILES = {  # figure -> what is measured, share, column
    "error_p50": ("errors", 0.5, "error"),
    "refined_p50": ("refined", 0.5, "second pass"),
    "refined_p90": ("refined", 0.9, "second pass, p90"),
    "seconds_p50": ("seconds", 0.5, "s"),
}
NEAR = 0.6  # eye distances: a detection whose landmarks' middle is nearer than this found the face


def _apart(face: Face, truth: NDArray[np.float64]) -> float:
    return float(np.hypot(*(face.landmarks.mean(0) - truth.mean(0))))


def _error(face: Face, truth: NDArray[np.float64]) -> float:
    return float(np.hypot(*(face.landmarks - truth).T).mean())


def read_portraits(folder: Path) -> tuple[list[Portrait], int]:
    """The pictures of a folder that one person was found in, and how many there are in all."""
    detector = YuNet()
    portraits = [measure_portrait(read_image(Path(item.source)).pixels, detector) for item in find_images([folder])]
    return [portrait for portrait in portraits if portrait is not None], len(portraits)


def measure(args: argparse.Namespace) -> Findings:
    """Measure the detector on every folder, and on composed groups."""
    sets: dict[str, Any] = {}
    portraits: list[Portrait] = []
    for sub in sorted(path for path in args.faces.iterdir() if path.is_dir() and path.name != "train"):
        known, total = read_portraits(sub)
        sets[sub.name] = _figures((one.pixels, [one.landmarks]) for one in known)
        sets[sub.name]["without_truth"] = total - len(known)
        if sub.name == "photos":
            portraits = known
    if not portraits:
        raise InputNotFound(f"{args.faces} has no folder `photos` with portraits: groups are composed from them")
    rng = np.random.default_rng(args.seed)
    for size in SIZES:
        composed = (compose_group(portraits, size, width=WIDTH, height=HEIGHT, rng=rng) for _ in range(args.groups))
        sets[f"groups of {size}"] = _figures((one.pixels, one.landmarks) for one in composed)
    return {"sets": sets}, as_markdown(sets)


def _figures(pictures: Iterable[tuple[NDArray[np.uint8], Sequence[NDArray[np.float64]]]]) -> dict[str, Any]:
    """What the detector did on a set of pictures, each with the landmarks (5, 2) of its faces.

    Errors are of each face found, means over its landmarks, in eye distances.
    """
    detector = YuNet()
    looks, faces, false = 0, 0, 0
    measured: dict[str, list[float]] = {"errors": [], "refined": [], "seconds": []}
    for pixels, truths in pictures:
        begin = time.perf_counter()
        left = detector.detect(pixels)
        measured["seconds"].append(time.perf_counter() - begin)
        for truth in truths:
            eyes = float(np.hypot(*(truth[1] - truth[0])))
            face = min(left, key=lambda face: _apart(face, truth), default=None)
            if face is not None and _apart(face, truth) < NEAR * eyes:
                left.remove(face)
                measured["errors"].append(_error(face, truth) / eyes)
                measured["refined"].append(_error(detector.refine(pixels, face), truth) / eyes)
        looks, faces, false = looks + 1, faces + len(truths), false + len(left)
    found = len(measured["errors"])
    quantiles = {
        name: round(float(np.quantile(measured[which], share)), 4) if measured[which] else None
        for name, (which, share, _) in QUANTILES.items()
    }
    recall = round(found / max(1, faces), 4)
    return {"pictures": looks, "faces": faces, "found": found, "recall": recall, "false": false, **quantiles}


def as_markdown(sets: dict[str, Any]) -> str:
    """Render the tables as Markdown."""
    rows = []
    for name, found in sets.items():
        cells = [name, found["faces"], f"{found['recall']:.1%}", found["false"]]
        rows.append([*cells, *(found[quantile] for quantile in QUANTILES)])
    return page(
        "# Face detector",
        "Recall, and the landmarks' mean error in eye distances, as the median over the detected faces. `second pass` "
        "is the error after a second detection on the upright face, which restoring does too. Single pictures: the "
        "truth is the median of nine detections by YuNet, so YuNet's error there is only its scatter; pictures without "
        f"a detection are dropped. Groups: {WIDTH} x {HEIGHT}, people scaled by 0.1 to 1 and turned by up to 30 "
        "degrees; their landmarks are known from the portraits. `false` counts detections that are no face.",
        table(["pictures", "faces", "recall", "false", *(column for _, _, column in QUANTILES.values())], rows),
    )


main = Command("bfr.benchmarks.end_to_end.detection", __doc__, measure)
main.add_argument("faces", type=Path, help="folder of folders of pictures, one of them `photos`")
main.number("--groups", 6, "composed photographs of each size (%(default)s)")
main.number("--seed", 0)

if __name__ == "__main__":
    sys.exit(main())
