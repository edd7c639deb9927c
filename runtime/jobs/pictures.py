"""Pictures that show a result beside its source: comparisons, and the previews of the HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.files import write_bytes
from bfr.runtime.jobs.page import Row, preview, preview_paths
from bfr.runtime.jobs.report import Report

GAP = 8  # pixels between the two halves of a comparison
LONGEST = 1024  # pixels of a preview


def comparison_paths(targets: Mapping[Path, Path]) -> dict[Path, Path]:
    """Source -> where its comparison goes, `a.compare.png` beside `a.jpg`; it replaces no result and no other one."""
    taken = set(targets.values())
    paths = {}
    for source, target in targets.items():
        path = target.with_name(f"{target.stem}.compare.png")
        while path in taken:
            path = path.with_name(f"{path.stem}.compare.png")
        taken.add(path)
        paths[source] = path
    return paths


def side_by_side(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    """Two (H, W, 3) images of one dtype -> (H, 2W + GAP, 3) with a white gap; the first is resized to the second."""
    height, width = after.shape[:2]
    if before.shape != after.shape:
        before = cv2.resize(before, (width, height), interpolation=cv2.INTER_CUBIC)
    gap = np.full((height, GAP, 3), np.iinfo(after.dtype).max, after.dtype)
    return np.concatenate([before, gap, after], axis=1)


def write_previews(folder: Path, name: str, before: NDArray[Any], after: NDArray[Any]) -> None:
    """Write the two previews of an item below an output folder, both of one size. Raises WriteFailed."""
    height, width = after.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    for path, pixels in zip(preview_paths(name), (before, after), strict=True):
        if pixels.shape[1::-1] != size:
            method = cv2.INTER_AREA if pixels.shape[1] > size[0] else cv2.INTER_CUBIC
            pixels = cv2.resize(pixels, size, interpolation=method)  # noqa: PLW2901
        write_bytes(folder / path, preview(pixels, LONGEST))


def page_rows(folder: Path, names: Sequence[str], report: Report) -> list[Row]:
    """The rows of the page, `names` being those of the report's entries; previews of earlier runs are shown again."""
    rows = []
    for name, entry in zip(names, report.entries, strict=True):
        before, after = preview_paths(name)
        shown = entry.output is not None and (folder / before).is_file() and (folder / after).is_file()
        rows.append(
            Row(
                name=name,
                source=entry.source,
                status=entry.status,
                output=entry.output,
                before=before if shown else None,
                after=after if shown else None,
                faces=entry.faces,
                seconds=entry.seconds,
                error=entry.error,
                size=(entry.width, entry.height) if entry.width and entry.height else None,
            )
        )
    return rows
