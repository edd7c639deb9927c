"""The tables of `pasting`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bfr.benchmarks.quality.pasting_cells import OTHERS
from bfr.benchmarks.tables import table

REGIONS = ("face", "outline", "outside")


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
        "faces. `px` is the side of the face's square in the degraded photograph, `x2` that it is enlarged. The "
        "outline is that of face and hair in the truth, with a sixty-fourth of the square on either side. Outside is "
        "what lies well beyond the square. All ways are compared in the same places.",
        *([f"{figures['attribution']}."] if figures["attribution"] else []),
        "",
        "## Against the better of difference and crop",
        "",
        *_summary(figures["perfect"]),
        "",
        "This runtime changes what is neither face nor hair by "
        f"{max(cell['scores']['pasted']['change'][0] for cell in figures['perfect']):.2f} levels in the mean at most, "
        f"the square crop by {max(cell['scores']['crop']['change'][0] for cell in figures['perfect']):.2f}.",
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
    ways_shown = ("published", "crop", "pasted", "truth")
    for cell in cells:
        ways = [f"{cell['scores'][way]['change'][0]:.2f}" for way in ways_shown]
        rows.append([f"{cell['degradation']}, {cell['side']} px", *ways])
    lead = "Mean absolute change of what is neither face nor hair, levels; the truth is what would have to be changed:"
    return [lead, "", *table(["change", "published", "crop", "this runtime", "truth"], rows), ""]


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
    for region in REGIONS[:2]:
        rows = []
        for cell in cells:
            ways = [cell["scores"][way].get(region) for way in (*OTHERS, "pasted")]
            name = f"{cell['degradation']}, {cell['side']} px, x{cell['upscale']}"
            rows.append([name, *(f"{one[0]:.2f} / {one[1]:.3f}" if one else "" for one in ways)])
        lines += [f"{region.capitalize()}:", "", *table([region, *OTHERS, "this runtime"], rows), ""]
    return lines
