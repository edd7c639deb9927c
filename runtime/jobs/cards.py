"""What the page of a run shows: a card for each input, made of the reports and of the previews on the disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from bfr.runtime.jobs.report import Entry, Report, total_seconds

PREVIEWS = "report_files"


@dataclass(frozen=True, slots=True)
class Card:
    """One input on the page.

    Attributes:
        name: Its relative name, unique in the run, without suffix.
        entry: Its outcome.
        before: Preview of the source, relative to the output folder.
        after: Preview of the result, of the same shape.
        results: For several runs, instead of `after`: each run's name, preview and result.

    Paths have `/` between parts, not percent-encoded.
    """

    name: str
    entry: Entry
    before: str | None = None
    after: str | None = None
    results: tuple[tuple[str, str, str], ...] = ()


def preview_paths(name: str) -> tuple[str, str]:
    """Where the previews of an item, before and after, lie below the output folder: the same for the same name.

    `name` may hold any character and be of any length; the paths are short and safe on every file system, and differ
    for names that differ, in case or in Unicode normalisation too.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-")  # for people
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    stem = f"{PREVIEWS}/{slug}-{digest}" if slug else f"{PREVIEWS}/{digest}"
    return f"{stem}-before.webp", f"{stem}-after.webp"


def cards_of(folder: Path, names: Mapping[str, str], report: Report) -> list[Card]:
    """The cards of a run; previews of earlier runs are shown again.

    Args:
        folder: The output folder.
        names: Source of an input -> its name in the run.
        report: The outcomes of the inputs.
    """
    cards = []
    for entry in report.entries:
        name = names[entry.source]
        cards.append(Card(name, entry, *(preview_paths(name) if _has_previews(folder, name, entry) else ())))
    return cards


def _has_previews(folder: Path, name: str, entry: Entry) -> bool:
    return entry.output is not None and all((folder / path).is_file() for path in preview_paths(name))


def joined_card(folder: Path, name: str, entries: Mapping[str, Entry]) -> Card:
    """Make the card of one input of several runs; its seconds are those of each run.

    Args:
        folder: Holds the output folder of each run, by its name.
        name: The input's name in all runs.
        entries: Name of a run -> the outcome of the input.
    """
    before, after = preview_paths(name)
    shown = {run: entry.output for run, entry in entries.items() if _has_previews(folder / run, name, entry)}
    done = [entry for entry in entries.values() if entry.status != "failed"]
    errors = [f"{run}: {entry.error}" for run, entry in entries.items() if entry.error]
    notes = tuple(dict.fromkeys(note for entry in entries.values() for note in entry.notes))
    joined = replace(
        (done or list(entries.values()))[0],
        output=None,
        seconds={run: total_seconds(entry.seconds) for run, entry in entries.items()},
        error="; ".join(errors) or None,
        notes=notes,
    )
    results = tuple((run, f"{run}/{after}", f"{run}/{output}") for run, output in shown.items())
    return Card(name, joined, f"{next(iter(shown))}/{before}" if shown else None, results=results)
