"""Contact sheets: faces side by side in one PNG, each drawn pixel by pixel, since this is what is to be judged."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

DPI = 100
LEAST_TILE = 192  # pixels; smaller pictures are repeated pixel by pixel up to it
GAP, CAPTION, MARGIN, LINE = 8, 24, 36, 19  # pixels
INK, FAINT = "#1b1f24", "#626a73"


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture, (S, S, 3) uint8 RGB, and the line under it."""

    pixels: NDArray[np.uint8]
    caption: str = ""


def contact_sheet(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Tile]]], *, title: str, notes: Sequence[str] = ()
) -> bytes:
    """PNG bytes of a labelled grid.

    Args:
        columns: The headings.
        rows: The name of each and its tiles, one for each column, all of one size.
        title: The line above.
        notes: Lines under the title, wrapped to the sheet's width.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = rows[0][1][0].pixels.shape[0]
    zoom = max(1, -(-LEAST_TILE // size))
    tile = size * zoom
    width = MARGIN + len(columns) * (tile + GAP) + GAP
    lines = [line for note in notes for line in textwrap.wrap(note, width // 6 - 6)]
    top = 44 + LINE * len(lines) + 30
    height = top + len(rows) * (tile + CAPTION) + GAP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **{"color": INK, "fontsize": 9.5, "va": "center", **style})

    write(MARGIN, 24, title, fontsize=13, fontweight="bold")
    for i, line in enumerate(lines):
        write(MARGIN, 50 + LINE * i, line, fontsize=8.5, color=FAINT)
    for i, heading in enumerate(columns):
        write(MARGIN + i * (tile + GAP) + tile / 2, top - 14, heading, fontsize=11, ha="center", fontweight="bold")
    for j, (name, tiles) in enumerate(rows):
        y = top + j * (tile + CAPTION)
        write(MARGIN / 2, y + tile / 2, name, rotation=90, ha="center", color=FAINT)
        for i, cell in enumerate(tiles):
            x = MARGIN + i * (tile + GAP)
            pixels = cell.pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
            figure.figimage(pixels, x, height - y - tile, origin="upper")  # its offsets count from below
            write(x + tile / 2, y + tile + CAPTION / 2 - 1, cell.caption, ha="center", fontsize=9)
    stream = BytesIO()
    canvas.print_png(stream, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return stream.getvalue()
