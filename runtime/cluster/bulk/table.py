"""The table of a bulk run: a row for each input, collected during the run and written at its end.

During the run, rows are written beside the results in parts, `rows-N.jsonl`, which works in an object store too; a run
that is killed leaves them to the one that resumes it. At the end they become `results.csv`: it opens in every tool,
spreadsheets included, a row is read by a person, and a million rows are some 200 MB.
"""

import csv
import io
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from bfr.runtime.jobs.report import Entry, entry_of, total_seconds
from bfr.runtime.jobs.store import Store
from bfr.runtime.text import csv_cell, from_csv_cell

BATCH, RESULTS, FAILURES, PARTS = "batch.json", "results.csv", "failures.csv", "rows-"
_PART = re.compile(rf"{PARTS}\d+\.jsonl")
COLUMNS = (
    "source", "status", "output", "width", "height", "faces", "seconds", "precision", "backend", "node", "error",
    "notes", "source_version", "output_version",
)  # fmt: skip
_BETWEEN = "; "  # notes of a row
EVERY = 5.0  # seconds between two parts


@dataclass(frozen=True, slots=True)
class NodeEntry(Entry):
    """The outcome of one input, with its node and backend. `seconds` has one stage, `all`."""

    backend: str | None = None
    node: str | None = None

    @classmethod
    def of(cls, entry: Entry, *, backend: str, node: str) -> "NodeEntry":
        """Make the row of an input that a node handled."""
        seconds = {"all": round(total_seconds(entry.seconds), 4)} if entry.seconds else {}
        return cls(**{**asdict(entry), "seconds": seconds}, backend=backend, node=node)


def node_entry_of(values: dict[str, Any]) -> NodeEntry:
    """An entry of a node as JSON has it. Raises KeyError, TypeError and ValueError for what is none."""
    more = {name: values[name] for name in ("backend", "node")}
    entry = entry_of({name: value for name, value in values.items() if name not in more})
    return NodeEntry(**{**asdict(entry), "notes": entry.notes}, **more)


class EntryLog:
    """Rows as they come, put beside the results every few seconds."""

    def __init__(self, store: Store, parts: Sequence[str] = ()) -> None:
        """Write nothing yet.

        Args:
            store: The output folder.
            parts: Names of those that are there already, oldest first.
        """
        self.store, self.parts = store, list(parts)
        self._waiting: list[NodeEntry] = []
        self._last = time.monotonic()

    def add(self, rows: Sequence[NodeEntry]) -> None:
        """Keep rows. Raises WriteFailed."""
        self._waiting += rows
        if time.monotonic() - self._last >= EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting. Raises WriteFailed."""
        self._last = time.monotonic()
        if self._waiting:
            lines = "".join(json.dumps(asdict(row)) + "\n" for row in self._waiting)
            part = f"{PARTS}{_number(self.parts[-1]) + 1 if self.parts else 0:06d}.jsonl"
            self.store.write(part, lines.encode())
            self.parts.append(part)
            self._waiting = []

    def remove(self) -> None:
        """Remove all parts: the table has their rows."""
        for part in self.parts:
            self.store.remove(part)
        self.parts = []


def read_entries(store: Store, names: Iterable[str]) -> dict[str, NodeEntry]:
    """Read the rows that earlier runs left. Rows that are cut off, or of another version, are left out.

    Args:
        store: The output folder.
        names: The files that are in it.

    Returns:
        Source -> its latest row.
    """
    rows: dict[str, NodeEntry] = {}
    logged = (_logged(line) for part in parts_of(names) for line in (store.read(part) or b"").splitlines())
    for row in chain(_table(store.read(RESULTS) or b""), logged):
        if row is not None:
            rows[row.source] = row
    return rows


def parts_of(names: Iterable[str]) -> list[str]:
    """The parts of a row log among the files of a folder, oldest first."""
    return sorted((name for name in names if _PART.fullmatch(name)), key=_number)


def write_table(store: Store, rows: Sequence[NodeEntry]) -> None:
    """Write `results.csv`, and `failures.csv` where anything failed. Raises WriteFailed."""
    table = [{**asdict(row), "seconds": row.seconds.get("all"), "notes": _BETWEEN.join(row.notes)} for row in rows]
    store.write(RESULTS, _csv(COLUMNS, table))
    if failed := [row for row in table if row["error"]]:
        store.write(FAILURES, _csv(("source", "status", "error"), failed))
    else:
        store.remove(FAILURES)


def _number(part: str) -> int:
    return int(part.removeprefix(PARTS).removesuffix(".jsonl"))


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    # Lines end in CRLF: before Python 3.13 only what is in the line's end is quoted, and names may hold both.
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")  # names that are no text


def _table(data: bytes) -> Iterator[NodeEntry | None]:
    try:
        yield from map(_row, csv.DictReader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")))
    except csv.Error:  # what comes after is no table
        return


def _row(values: Mapping[str | None, Any]) -> NodeEntry | None:
    """A row of the table; None for what is none, and for one with more or fewer cells."""
    if None in values or None in values.values():
        return None
    try:
        given: dict[str, Any] = {name: from_csv_cell(values[name]) or None for name in COLUMNS}
        for name in ("width", "height", "faces"):
            given[name] = int(given[name]) if given[name] else None
        given["seconds"] = {"all": float(given["seconds"])} if given["seconds"] else {}
        given["notes"] = tuple(filter(None, (given["notes"] or "").split(_BETWEEN)))
        return node_entry_of(given)
    except (KeyError, TypeError, ValueError):
        return None


def _logged(line: bytes) -> NodeEntry | None:
    try:
        return node_entry_of(json.loads(line))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
