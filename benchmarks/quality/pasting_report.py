"""The tables of `pasting`."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bfr.benchmarks.quality.pasting_cells import OTHERS
from bfr.benchmarks.tables import page, table

REGIONS = ("face", "outline", "outside")


def margins(cells: Sequence[dict[str, Any]], region: str, measure: int) -> list[float]:
    """For each cell, the gain of this runtime over the better of difference and crop."""
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
    most = {way: max(cell["scores"][way]["change"][0] for cell in figures["perfect"]) for way in ("pasted", "crop")}
    sides = list(figures["sharp"][0]["sharp"])
    sharp = [[row["degradation"], *("{} of {}".format(*row["sharp"][s]) for s in sides)] for row in figures["sharp"]]
    lead = (
        f"A perfect restorer with crops of {size} pixels. PSNR in dB / HaarPSI against the truth, means over the "
        "faces. `px` is the side of the face's square in the degraded photograph; `x2` means that the photograph is "
        "enlarged. The outline is that of face and hair in the truth, with a sixty-fourth of the square on either "
        "side. Outside is well beyond the square. All ways are compared over the same pixels."
    )
    return page(
        "# Pasting into whole photographs",
        lead + (f"\n{figures['attribution']}." if figures["attribution"] else ""),
        "## Against the better of difference and crop",
        _summary(figures["perfect"]),
        f"The largest mean change of pixels that are neither face nor hair is {most['pasted']:.2f} levels with this "
        f"runtime, and {most['crop']:.2f} with the square crop.",
        "## Every cell",
        *_tables(figures["perfect"]),
        *(
            [f"## Restored by {network['system']}", *_tables(network["cells"]), *_changes(network["cells"])]
            if network
            else []
        ),
        "## Faces that are left as sharp already",
        table(["photographs", *(f"{side} px" for side in sides)], sharp),
    )


def _changes(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The change of pixels that are neither face nor hair, in the surroundings."""
    yield "Mean absolute change of pixels that are neither face nor hair, in levels; the truth is the change needed:"
    shown = {"published": "published", "crop": "crop", "pasted": "this runtime", "truth": "truth"}
    rows = [
        [f"{cell['degradation']}, {cell['side']} px", *(f"{cell['scores'][way]['change'][0]:.2f}" for way in shown)]
        for cell in cells
    ]
    yield table(["change", *shown.values()], rows)


def _summary(cells: Sequence[dict[str, Any]]) -> str:
    rows = []
    for region in REGIONS:
        for measure, unit in enumerate(("dB", "HaarPSI")):
            found = margins(cells, region, measure)
            least = min(found)
            worse = sum(one < -(0.05, 0.0005)[measure] for one in found)
            rows.append([f"{region}, {unit}", f"{np.mean(found):+.3f}", f"{least:+.3f}", f"{worse} of {len(found)}"])
    return table(["more than the better of the two", "mean", "least", "cells that are worse"], rows)


def _tables(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    for region in REGIONS[:2]:
        rows = []
        for cell in cells:
            ways = [cell["scores"][way].get(region) for way in (*OTHERS, "pasted")]
            name = f"{cell['degradation']}, {cell['side']} px, x{cell['upscale']}"
            rows.append([name, *(one and f"{one[0]:.2f} / {one[1]:.3f}" for one in ways)])
        yield f"{region.capitalize()}:"
        yield table([region, *OTHERS, "this runtime"], rows)
