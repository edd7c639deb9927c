"""Whole photographs: degraded, restored, pasted: `python -m bfr.benchmarks.quality.pasting FOLDER --out DIR`.

FOLDER holds sharp photographs of people, or aligned faces. The largest face of each is shrunk to several sizes,
degraded and pasted back restored, by this runtime and by three other ways of pasting. The restorer is perfect, the
truth's own crop, so that pasting alone is measured; `--network N` adds N photographs that the default system restores.
PSNR and HaarPSI against the truth are given inside the face, along the outline of face and hair, and outside of the
crop's square, where nothing may change: in the same places for all ways. HaarPSI's windows see the truth beyond a
region, so that each region is judged for itself.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.benchmarks.publish import Command, Findings, say
from bfr.benchmarks.quality.metrics import UInt8, haar_map, psnr
from bfr.benchmarks.quality.options import numbers
from bfr.benchmarks.quality.pasting_cells import (
    DEGRADATIONS,
    Cell,
    Portrait,
    make_cell,
    paste_others,
    paste_own,
    read_portraits,
)
from bfr.benchmarks.quality.pasting_report import REGIONS, as_markdown
from bfr.models.systems.mini.degrade import Degradation
from bfr.runtime.errors import RestorationFailed
from bfr.runtime.faces.condition import COARSE, measure_condition
from bfr.runtime.faces.geometry import compose, crop_face, resizing, transform
from bfr.runtime.faces.mask import EDGE, FACE, head_mask
from bfr.runtime.faces.options import UPSCALES
from bfr.runtime.restore.restorer import Restorer

SIDES = (64, 128, 256, 512, 1000)  # of the face's square in the degraded photograph, pixels
NETWORK_SIDES = (512,)
OUTSIDE = 1.1  # sides of the square beyond which no interpolation of it reaches
BESIDE = 2  # of 128 cells a side: how far from the outline of face and hair its surroundings reach, both ways
WINDOW = 32  # pixels around a region that HaarPSI's windows see
EQUAL_DB = 10 * math.log10(255**2 / 1e-4)  # the PSNR that equal regions count as
LEAST = 64  # pixels of a region that is measured
Scores = dict[str, dict[str, list[float]]]
"""way -> region -> PSNR in dB and HaarPSI. Under `change`, the mean absolute change of what is neither face nor hair,
in levels; that of the way `truth` is how far the photograph is from it there."""


def score(cell: Cell, results: dict[str, UInt8], size: int) -> Scores:
    """PSNR and HaarPSI of each way in each region, and how much it changes what is not the head."""
    regions, around = _regions(cell, size)
    before = cell.enlarged()
    scores = Scores(truth={"change": [_change(cell.truth, before, around)]})
    for name, pixels in results.items():
        scores[name] = {"change": [_change(pixels, before, around)]}
        for region, where in regions.items():
            if where.sum() >= LEAST:
                scores[name][region] = _compare(pixels, cell.truth, where)
    return scores


def _regions(cell: Cell, size: int) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.bool_]]:
    """(H, W) each: REGIONS, and what is neither face nor hair."""
    height, width = cell.truth.shape[:2]
    y, x = np.mgrid[:height, :width]
    place = (np.stack([x, y], axis=-1) @ cell.to_crop[:, :2].T + cell.to_crop[:, 2] + 0.5) / size
    (middle, radii, _), off = FACE, np.abs(place - 0.5).max(axis=-1)
    clean = cell.clean(size)
    mask, head = head_mask(clean, clean, transform(cell.matrix, cell.landmarks))
    window = np.ones((2 * BESIDE + 1,) * 2, np.uint8)
    edge = (cv2.dilate(head, window) > 0.5) & (cv2.erode(head, window) < 0.5)
    inside = np.zeros_like(edge)
    inside[2 * EDGE : -2 * EDGE, 2 * EDGE : -2 * EDGE] = True  # all ways end at the square's edge
    to_head, flags = compose(resizing((size, size), head.shape[::-1]), cell.to_crop), cv2.WARP_INVERSE_MAP
    outline, around = (
        cv2.warpAffine(one, to_head, (width, height), flags=cv2.INTER_LINEAR | flags)
        for one in ((edge & inside).astype(np.float32), mask)
    )
    face = (((place - middle) / radii) ** 2).sum(axis=-1) < 1
    return dict(zip(REGIONS, (face, outline > 0.5, off > OUTSIDE / 2), strict=True)), around < 0.5


def _change(pixels: UInt8, before: UInt8, where: NDArray[np.bool_]) -> float:
    return float(np.abs(pixels[where].astype(int) - before[where]).mean())


def _compare(image: UInt8, truth: UInt8, where: NDArray[np.bool_]) -> list[float]:
    """PSNR in dB and HaarPSI of a region, whose windows see the truth beyond it."""
    rows, columns = (np.flatnonzero(where.any(axis=axis)) for axis in (1, 0))
    part = tuple(slice(max(used[0] - WINDOW, 0) // 2 * 2, used[-1] + 1 + WINDOW) for used in (rows, columns))
    image, truth, where = image[part], truth[part], where[part]
    alike = haar_map(np.where(where[..., None], image, truth), truth)
    return [min(psnr(image[where], truth[where]), EQUAL_DB), alike.mean(where)]


def measure_cells(
    portraits: Sequence[Portrait],
    sides: Sequence[int],
    size: int,
    restore: Callable[[Cell, UInt8], UInt8],
    upscales: Sequence[int] = UPSCALES,
) -> Iterator[dict[str, Any]]:
    """Mean scores of each degradation, side and enlargement."""
    for upscale in upscales:
        for side in sides:
            for name, degradation in DEGRADATIONS.items():
                found = []
                for portrait in portraits:
                    cell = make_cell(portrait, side, upscale, degradation, size)
                    if cell is not None:
                        crop = np.asarray(crop_face(cell.photograph, cell.matrix, size), np.uint8)
                        restored = restore(cell, crop)
                        results = {**paste_others(cell, crop, restored), **paste_own(cell, crop, restored)}
                        found.append(score(cell, results, size))
                if found:
                    facts = {"degradation": name, "side": side, "upscale": upscale, "faces": len(found)}
                    yield {**facts, "scores": _means(found)}
            say(f"enlarged {upscale} times, squares of {side} pixels: done")


def _means(found: Sequence[Scores]) -> Scores:
    """Of the regions that were measured in all faces."""
    means = Scores()
    for way in found[0]:
        of = [one[way] for one in found]
        regions = [region for region in ("change", *REGIONS) if all(region in one for one in of)]
        means[way] = {region: np.mean([one[region] for one in of], axis=0).tolist() for region in regions}
    return means


def count_sharp(portraits: Sequence[Portrait], sides: Sequence[int], size: int) -> list[dict[str, Any]]:
    """How many faces are left as sharp already: as they are, and degraded."""
    rows = []
    for name, degradation in (("as it is", Degradation()), *DEGRADATIONS.items()):
        counts = {}
        for side in sides:
            cells = [make_cell(portrait, side, 1, degradation, size) for portrait in portraits]
            conditions = [
                measure_condition(crop_face(cell.photograph, cell.matrix, size), cell.matrix, cell.photograph)
                for cell in cells
                if cell is not None
            ]
            counts[str(side)] = [sum(condition.sharp for condition in conditions), len(conditions)]
        rows.append({"degradation": name, "sharp": counts})
    return rows


def benchmark(args: argparse.Namespace) -> Findings:
    """Run what the command line asks for. Raises InputNotFound without a face, InvalidOption for `--sides`."""
    sides = numbers("--sides", args.sides, int)
    portraits = read_portraits(args.folder, args.limit, args.size)
    cells = list(measure_cells(portraits, sides, args.size, lambda cell, _: cell.clean(args.size)))
    everyone = read_portraits(args.folder, args.everyone, args.size)
    figures: dict[str, Any] = {
        "size": args.size,
        "attribution": args.attribution,
        "perfect": cells,
        "network": None,
        "sharp": count_sharp(everyone, [side for side in sides if side * COARSE >= args.size], args.size),
    }
    if args.network:
        with Restorer.open() as restorer:

            def restore(_: Cell, crop: UInt8) -> UInt8:
                (result,) = restorer.run([crop])
                if result.pixels is None:
                    raise RestorationFailed(result.error or "unknown")
                return np.asarray(result.pixels, np.uint8)

            shown = [side for side in NETWORK_SIDES if side in sides] or sides
            system, own = restorer.bundle.manifest.system, restorer.size
            chosen = read_portraits(args.folder, args.network, own)
            cells = list(measure_cells(chosen, shown, own, restore, (1,)))
            figures["network"] = {"system": system, "size": own, "cells": cells}
    return figures, as_markdown(figures)


main = Command("bfr.benchmarks.quality.pasting", __doc__, benchmark)
main.add_argument("folder", type=Path, metavar="FOLDER", help="sharp photographs, or aligned faces")
main.number("--limit", 4, "the first so many photographs with a face (%(default)s)")
main.add_argument("--sides", default=",".join(map(str, SIDES)), help="of the face's square, pixels (%(default)s)")
main.number("--size", 256, "of the perfect restorer's crops (%(default)s)")
main.number("--network", 0, "so many photographs restored by the default system too (%(default)s)")
main.number("--everyone", 40, "so many photographs in which sharp faces are counted (%(default)s)")
main.add_argument("--attribution", metavar="TEXT", help="a line for the report, as licences ask")

if __name__ == "__main__":
    sys.exit(main())
