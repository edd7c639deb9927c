"""Markdown tables, and numbers in them."""

from collections.abc import Iterable, Sequence

from bfr.benchmarks.quality.metrics import Mean


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first column is text and whose others are numbers."""
    lines = (head, ["---", *["---:"] * (len(head) - 1)], *rows)
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def show(value: Mean, digits: int, *, sign: bool = False) -> str:
    """`12.34 ± 0.05`; the error is left out where there is none."""
    text = f"{value.mean:{'+' if sign else ''}.{digits}f}"
    return text if value.error is None else f"{text} ± {value.error:.{digits}f}"
