"""Whole photographs: degraded, restored, pasted: `python -m bfr.benchmarks.quality.pasting FOLDER --out DIR`.

FOLDER holds sharp photographs of people, or aligned faces. The largest face of each is shrunk to several sizes,
degraded and pasted back restored, by this runtime and by three other ways of pasting. The restorer is perfect, the
truth's own crop, so that pasting alone is measured; `--network N` adds N photographs that the default system restores.
PSNR and HaarPSI against the truth are given inside the face, along the rim of each way's own mask, and outside of the
crop's square, where nothing may change.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.benchmarks.publish import Command, Findings, say
from bfr.benchmarks.quality.metrics import HaarMap, UInt8, haar_map
from bfr.benchmarks.quality.options import numbers
from bfr.benchmarks.tables import table
from bfr.models.systems.mini.degrade import Degradation
from bfr.runtime.errors import InputNotFound, RestorationFailed
from bfr.runtime.faces.background import Lanczos
from bfr.runtime.faces.condition import COARSE, measure_condition
from bfr.runtime.faces.detect import open_detector
from bfr.runtime.faces.geometry import (
    Matrix,
    alignment,
    compose,
    crop_face,
    inverse,
    resizing,
    scale_of,
    transform,
    warp,
)
from bfr.runtime.faces.mask import FACE, head_mask
from bfr.runtime.faces.options import UPSCALES, Detail
from bfr.runtime.faces.paste import Patch, make_patch, paste_faces
from bfr.runtime.images.decode import read_image
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.restore.restorer import Restorer

SIDES = (64, 128, 256, 512, 1000)  # of the face's square in the degraded photograph, pixels
NETWORK_SIDES = (512,)
AROUND = 1.3  # the part of the photograph that is looked at, in sides of the square
DEGRADATIONS = {  # what one restores a face for; blur in percent of the square's side
    "noise 8": Degradation(noise=8),
    "noise 20": Degradation(noise=20),
    "blur 2 %": Degradation(blur=(2.0, 2.0)),
    "blur 4 %": Degradation(blur=(4.0, 4.0)),
    "JPEG 50": Degradation(jpeg=50),
    "JPEG 20": Degradation(jpeg=20),
}
DETAILS: tuple[Detail, ...] = ("auto", "photo", "crop")
OWN = ("pasted", "detail photo", "detail crop")
OTHERS = ("published", "difference", "crop")
REGIONS = ("face", "rim", "outside")
OUTSIDE = 1.1  # sides of the square from which on HaarPSI's windows do not reach into it
LEAST = 64  # pixels of a region that is measured
Float32 = NDArray[np.float32]
Scores = dict[str, dict[str, list[float]]]
"""way -> region -> PSNR in dB and HaarPSI; along the rim, what they exceed those of the degraded photograph by. Under
`change`, the mean absolute change of what is neither face nor hair, in levels."""


@dataclass(frozen=True, slots=True, eq=False)
class Portrait:
    """A photograph, (H, W, 3) uint8 RGB, the landmarks of its largest face, and its square's side, pixels."""

    name: str
    pixels: UInt8
    landmarks: NDArray[Any]
    side: float


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A face to paste: the truth, the photograph, `upscale` times smaller, both aligned by `matrix` of the latter."""

    truth: UInt8
    photograph: UInt8
    matrix: Matrix
    landmarks: NDArray[Any]
    upscale: int


def read_portraits(folder: Path, limit: int, size: int) -> list[Portrait]:
    """The first photographs of a folder in which YuNet finds a face. Raises InputNotFound where there is none."""
    detector, found = open_detector("yunet"), list[Portrait]()
    for item in find_images([folder]):
        pixels = np.asarray(read_image(Path(item.source)).pixels, np.uint8)
        faces = sorted(detector.detect(pixels), key=lambda face: face.area)
        if faces and (matrix := alignment(faces[-1].landmarks, size)) is not None:
            side = size / math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
            found.append(Portrait(item.name, pixels, faces[-1].landmarks, side))
        if len(found) == limit:
            break
    if not found:
        raise InputNotFound(f"{folder} has no photograph in which YuNet finds a face")
    return found


def make_cell(portrait: Portrait, side: int, upscale: int, degradation: Degradation, size: int) -> Cell | None:
    """The photograph around the face, at the size at which the face's square has `side` pixels.

    None where it would be enlarged, or where the landmarks fit no face.
    """
    scale = side / portrait.side
    if scale * upscale > 1.02:
        return None
    pixels, landmarks = _surroundings(portrait)
    height, width = pixels.shape[:2]
    small = (round(width * scale), round(height * scale))
    large = (small[0] * upscale, small[1] * upscale)
    truth = np.asarray(cv2.resize(pixels, large, interpolation=cv2.INTER_AREA), np.uint8)
    photograph = np.asarray(cv2.resize(truth, small, interpolation=cv2.INTER_AREA), np.uint8) if upscale > 1 else truth
    landmarks = transform(resizing((width, height), small), landmarks)
    matrix = alignment(landmarks, size)
    if matrix is None:
        return None
    if sigma := degradation.blur[0] * side / 100:  # Degradation's kernel is too small for large faces
        photograph = np.asarray(cv2.GaussianBlur(photograph, (0, 0), sigma), np.uint8)
    degraded = replace(degradation, blur=(0.0, 0.0)).apply(photograph, np.random.default_rng(side))
    return Cell(truth, degraded, matrix, landmarks, upscale)


def _surroundings(portrait: Portrait) -> tuple[UInt8, NDArray[Any]]:
    """The part of the photograph within AROUND squares of the face, and the landmarks in it."""
    middle, reach = portrait.landmarks.mean(axis=0), portrait.side * AROUND / 2
    height, width = portrait.pixels.shape[:2]
    left, top = np.maximum(np.floor(middle - reach), 0).astype(int)
    right, bottom = np.minimum(np.ceil(middle + reach), (width, height)).astype(int)
    return portrait.pixels[top:bottom, left:right], portrait.landmarks - (left, top)


def paste_own(cell: Cell, crop: UInt8, restored: UInt8) -> dict[str, tuple[UInt8, Float32]]:
    """By this runtime, with each choice of `detail`: the result, and its mask, (H, W) from 0 to 1."""
    patch = make_patch(crop, restored, cell.matrix, landmarks=cell.landmarks)
    enlarged = Lanczos().enlarge(cell.photograph, cell.upscale)
    results = {}
    white = Patch(np.full_like(restored, 1, np.float32) * 65535, patch.mask, patch.matrix, patch.size)
    mask = np.zeros(enlarged.shape, np.uint16)
    paste_faces(mask, [white], upscale=cell.upscale, detail="crop")
    for name, detail in zip(OWN, DETAILS, strict=True):
        if name != "pasted" and scale_of(cell.matrix) >= 1:  # nothing to choose
            continue
        results[name] = enlarged.copy()
        paste_faces(results[name], [patch], upscale=cell.upscale, detail=detail)
    return {name: (pixels, (mask[..., 0] / 65535).astype(np.float32)) for name, pixels in results.items()}


def paste_others(cell: Cell, crop: UInt8, restored: UInt8) -> dict[str, tuple[UInt8, Float32]]:
    """By three other ways, as `paste_own`.

    published: as facexlib does: the restored crop, bilinear, under a square that is eroded by a tenth of its side and
    blurred by as much. crop: the same, antialiased, under a mask that falls from a tenth of the side on. difference:
    what restoring changed, added under that mask.
    """
    enlarged = Lanczos().enlarge(cell.photograph, cell.upscale)
    height, width = enlarged.shape[:2]
    size = crop.shape[0]
    back = inverse(compose(cell.matrix, resizing((width, height), cell.photograph.shape[1::-1])))
    square = cv2.warpAffine(np.ones((size, size), np.float32), back, (width, height))
    reach = max(int(square.sum() ** 0.5) // 20, 1)
    eroded = cv2.erode(square, np.ones((2 * reach,) * 2, np.uint8), borderValue=0)
    published = cv2.GaussianBlur(eroded, (2 * reach + 1,) * 2, 0)[..., None]
    bilinear = cv2.warpAffine(restored, back, (width, height), borderMode=cv2.BORDER_REPLICATE)
    edge = size // 20
    profile = np.zeros((1, size), np.float32)
    profile[:, edge : size - edge] = 1
    soft = cv2.GaussianBlur(profile, (2 * edge + 1, 1), 0, borderType=cv2.BORDER_CONSTANT)
    former = cv2.warpAffine(soft.T @ soft, back, (width, height))[..., None]
    face = warp(restored.astype(np.float32), back, (width, height), cv2.BORDER_REPLICATE)
    change = warp(restored.astype(np.float32) - crop, back, (width, height), cv2.BORDER_REPLICATE)
    results = {
        "published": (enlarged + published * (bilinear.astype(np.float32) - enlarged), published),
        "difference": (enlarged + former * change, former),
        "crop": (enlarged + former * (face - enlarged), former),
    }
    return {
        name: (np.clip(np.rint(pixels), 0, 255).astype(np.uint8), np.asarray(mask[..., 0], np.float32))
        for name, (pixels, mask) in results.items()
    }


def score(cell: Cell, results: dict[str, tuple[UInt8, Float32]], size: int) -> Scores:
    """PSNR and HaarPSI of each way in each region, and how much it changes what is not the head."""
    height, width = cell.truth.shape[:2]
    to_crop = compose(cell.matrix, resizing((width, height), cell.photograph.shape[1::-1]))
    y, x = np.mgrid[:height, :width]
    place = (np.stack([x, y], axis=-1) @ to_crop[:, :2].T + to_crop[:, 2] + 0.5) / size
    (middle, radii, _), off = FACE, np.abs(place - 0.5).max(axis=-1)
    face = (((place - middle) / radii) ** 2).sum(axis=-1) < 1
    clean = np.asarray(crop_face(cell.truth, to_crop, size), np.uint8)
    head = head_mask(clean, clean, transform(cell.matrix, cell.landmarks))[0]
    to_head = compose(resizing((size, size), head.shape[::-1]), to_crop)
    around = cv2.warpAffine(head, to_head, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP) < 0.5
    before = Lanczos().enlarge(cell.photograph, cell.upscale)
    unpasted, scores = haar_map(before, cell.truth), Scores()
    for name, (pixels, mask) in results.items():
        regions = {"face": face, "rim": (mask > 0.02) & (mask < 0.98), "outside": off > OUTSIDE / 2}
        pasted = haar_map(pixels, cell.truth)
        scores[name] = {"change": [float(np.abs(pixels[around].astype(int) - before[around]).mean())]}
        for region in REGIONS:
            where = regions[region]
            if where.sum() >= LEAST:
                scores[name][region] = _compare(pixels, cell.truth, pasted, where)
                if region == "rim":
                    without = _compare(before, cell.truth, unpasted, where)
                    scores[name][region] = [a - b for a, b in zip(scores[name][region], without, strict=True)]
    return scores


def _compare(image: UInt8, truth: UInt8, alike: HaarMap, where: NDArray[np.bool_]) -> list[float]:
    """PSNR in dB and HaarPSI of a region."""
    error = float(np.mean((image[where].astype(np.float64) - truth[where]) ** 2))
    return [10 * math.log10(255**2 / max(error, 1e-4)), alike.mean(where)]


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
                        crop = crop_face(cell.photograph, cell.matrix, size)
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


def perfect(size: int) -> Callable[[Cell, UInt8], UInt8]:
    """A restorer that gives the truth's own crop."""

    def restore(cell: Cell, _: UInt8) -> UInt8:
        height, width = cell.truth.shape[:2]
        to_crop = compose(cell.matrix, resizing((width, height), cell.photograph.shape[1::-1]))
        return np.asarray(crop_face(cell.truth, to_crop, size), np.uint8)

    return restore


def benchmark(args: argparse.Namespace) -> Findings:
    """Measure. Raises InputNotFound and InvalidOption."""
    sides = numbers("--sides", args.sides, int)
    portraits = read_portraits(args.folder, args.limit, args.size)
    cells = list(measure_cells(portraits, sides, args.size, perfect(args.size)))
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


def margins(cells: Sequence[dict[str, Any]], region: str, measure: int) -> list[float]:
    """Of each cell: how much better than the better of difference and crop this runtime pastes."""
    found = []
    for cell in cells:
        scores = cell["scores"]
        if region in scores["pasted"]:
            better = max(scores[way][region][measure] for way in ("difference", "crop") if region in scores[way])
            found.append(scores["pasted"][region][measure] - better)
    return found


def as_markdown(figures: dict[str, Any]) -> str:
    """Render the tables."""
    size, network = figures["size"], figures["network"]
    lines = [
        "# Pasting into whole photographs",
        "",
        f"A perfect restorer with crops of {size} pixels. PSNR in dB / HaarPSI against the truth, means over the "
        "faces. `px` is the side of the face's square in the degraded photograph, `x2` that it is enlarged. The rim is "
        "where a way's own mask is between 2 and 98 %; as each has its own, the gain over the degraded photograph in "
        "the same place is shown. Outside is what lies well beyond the square.",
        *([f"{figures['attribution']}."] if figures["attribution"] else []),
        "",
        "## Against the better of difference and crop",
        "",
        *_summary(figures["perfect"]),
        "",
        "## Every cell",
        "",
        *_tables(figures["perfect"]),
    ]
    if network:
        lines += [f"## Restored by {network['system']}", "", *_tables(network["cells"]), *_changes(network["cells"])]
    sides = list(figures["sharp"][0]["sharp"])
    rows = [
        [row["degradation"], *("{} of {}".format(*row["sharp"][side]) for side in sides)] for row in figures["sharp"]
    ]
    lines += ["## Faces that are left as sharp already", "", *table(["photographs", *(f"{s} px" for s in sides)], rows)]
    return "\n".join(lines) + "\n"


def _changes(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Of what is neither face nor hair, in the surroundings that are looked at."""
    rows = []
    for cell in cells:
        ways = [f"{cell['scores'][way]['change'][0]:.2f}" for way in (*OTHERS, "pasted")]
        rows.append([f"{cell['degradation']}, {cell['side']} px", *ways])
    lead = "Mean absolute change of what is neither face nor hair, levels:"
    return [lead, "", *table(["change", *OTHERS, "this runtime"], rows), ""]


def _summary(cells: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for region in REGIONS:
        for measure, unit in enumerate(("dB", "HaarPSI")):
            found = margins(cells, region, measure)
            least = min(found)
            worse = sum(one < -(0.05, 0.0005)[measure] for one in found)
            rows.append([f"{region}, {unit}", f"{np.mean(found):+.3f}", f"{least:+.3f}", f"{worse} of {len(found)}"])
    return table(["more than the better of the two", "mean", "least", "cells that are worse"], rows)


def _tables(cells: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for region, sign in zip(REGIONS[:2], ("", "+"), strict=True):
        rows = []
        for cell in cells:
            ways = [cell["scores"][way].get(region) for way in (*OTHERS, "pasted")]
            name = f"{cell['degradation']}, {cell['side']} px, x{cell['upscale']}"
            rows.append([name, *(f"{one[0]:{sign}.2f} / {one[1]:{sign}.3f}" if one else "" for one in ways)])
        lines += [f"{region.capitalize()}:", "", *table([region, *OTHERS, "this runtime"], rows), ""]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    command = Command("bfr.benchmarks.quality.pasting", __doc__)
    command.add_argument("folder", type=Path, metavar="FOLDER", help="sharp photographs, or aligned faces")
    command.number("--limit", 4, "the first so many photographs with a face (%(default)s)")
    command.add_argument(
        "--sides", default=",".join(map(str, SIDES)), help="of the face's square, pixels (%(default)s)"
    )
    command.number("--size", 256, "of the perfect restorer's crops (%(default)s)")
    command.number("--network", 0, "so many photographs restored by the default system too (%(default)s)")
    command.number("--everyone", 40, "so many photographs in which sharp faces are counted (%(default)s)")
    command.add_argument("--attribution", metavar="TEXT", help="a line for the report, as licences ask")
    return command.run(arguments, benchmark)


if __name__ == "__main__":
    sys.exit(main())
