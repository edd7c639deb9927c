"""Markdown pages and tables, and numbers in them."""

from collections.abc import Iterable, Sequence

from bfr.benchmarks.quality.metrics import Mean


def page(*parts: str) -> str:
    """Return the text of a page, whose parts are separated by an empty line."""
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table whose first column is text and whose others are numbers.

    A cell of None is empty, and so are those that a row lacks at its end.
    """
    lines = (head, ["---", *["---:"] * (len(head) - 1)], *([*row, *[None] * (len(head) - len(row))] for row in rows))
    texts = (["" if cell is None else str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)


def show(value: Mean, digits: int, *, sign: bool = False) -> str:
    """`12.34 ± 0.05`; the error is left out if there is none."""
    text = f"{value.mean:{'+' if sign else ''}.{digits}f}"
    return text if value.error is None else f"{text} ± {value.error:.{digits}f}"
