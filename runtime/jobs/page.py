"""The HTML page of a run: before/after sliders, from disk, without a server, a network or a build step.

All that the page needs is in it, but for the previews beside it; its markup, style and script are `page.html` and
`slider.*`. Names and errors come from other people's files: every text is escaped, every address percent-encoded, and a
policy in the page lets nothing run or load but its own.
"""

import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template
from typing import Any, TypeGuard
from urllib.parse import quote

from bfr.runtime.files import write_bytes
from bfr.runtime.jobs.report import STATUSES, Entry, Report

PAGE = "report.html"
PREVIEWS = "report_files"
_UNFIT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Card:
    """One input on the page.

    Attributes:
        name: Its relative name, unique in the run, without suffix.
        entry: What became of it.
        before, after: Its previews, relative to the output folder, of one shape.
        results: Of several runs, in the place of `after`: what each is called, its preview, and its result.

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


def cards_of(folder: Path, names: Sequence[str], report: Report) -> list[Card]:
    """The cards of a run, `names` being those of the report's entries; previews of earlier runs are shown again."""
    cards = []
    for name, entry in zip(names, report.entries, strict=True):
        before, after = preview_paths(name)
        shown = entry.output is not None and (folder / before).is_file() and (folder / after).is_file()
        cards.append(Card(name, entry, before, after) if shown else Card(name, entry))
    return cards


def write_comparison(folder: Path, names: Mapping[str, str], reports: Mapping[str, Report]) -> Path:
    """Write `report.html` of several runs over the same inputs, with their results side by side. Raises WriteFailed.

    Args:
        folder: Holds the output folder of each run, by its name.
        names: Source of an input -> its name in the runs.
        reports: Name of a run -> its report; `html` was among its options.

    Returns:
        The path of the page.
    """
    first = next(iter(reports.values()))
    by_source = {run: {entry.source: entry for entry in report.entries} for run, report in reports.items()}
    cards = [
        _joined(folder, names[entry.source], {run: entries[entry.source] for run, entries in by_source.items()})
        for entry in first.entries
    ]
    seconds = sum(report.facts["seconds"] for report in reports.values())
    shared = {name: first.settings.get(name) for name in ("system", "precision", "seed", "bundle_hash")}
    return write_page(folder, cards, {**first.facts, **shared, "seconds": seconds})


def _joined(folder: Path, name: str, entries: Mapping[str, Entry]) -> Card:
    """The card of one input of several runs; its seconds are those of each run."""
    before, after = preview_paths(name)
    shown = {
        run: entry.output
        for run, entry in entries.items()
        if entry.output is not None and (folder / run / before).is_file() and (folder / run / after).is_file()
    }
    done = [entry for entry in entries.values() if entry.status != "failed"]
    errors = [f"{run}: {entry.error}" for run, entry in entries.items() if entry.error]
    notes = tuple(dict.fromkeys(note for entry in entries.values() for note in entry.notes))
    joined = replace(
        (done or list(entries.values()))[0],
        output=None,
        seconds={run: _total(entry.seconds) for run, entry in entries.items()},
        error="; ".join(errors) or None,
        notes=notes,
    )
    results = tuple((run, f"{run}/{after}", f"{run}/{output}") for run, output in shown.items())
    return Card(name, joined, f"{next(iter(shown))}/{before}" if shown else None, results=results)


def write_page(folder: Path, cards: Sequence[Card], facts: Mapping[str, Any]) -> Path:
    """Write `report.html` into the output folder, whole or not at all, and return its path. Raises WriteFailed.

    cards: in the order of the run; the previews that they name are there already (`write_previews`).
    facts: of the run; system, preset, sampler, backend, precision, seed, bundle_hash, seconds and started are shown.
    """
    page = with_slider(Path(__file__).with_name("page.html").read_text("utf-8"))
    failed = [_failed(card) for card in cards if card.entry.status == "failed"]
    content = Template(page).substitute(
        policy=_policy(page),
        title=_plural(len(cards), "file"),
        facts="\n".join(f"<li>{fact}</li>" for fact in _facts(facts)),
        counts="\n".join(_counts(cards)),
        choices="\n".join(_choices(cards)),
        unless_failed="" if failed else " hidden",
        failed="\n".join(failed),
        cards="\n".join(_card(card) for card in cards if card.entry.status != "failed"),
        wide=" wide" if any(card.results for card in cards) else "",
    )
    write_bytes(folder / PAGE, content.encode())
    return folder / PAGE


def _policy(page: str) -> str:
    """What the page may load and run: its previews, and its own style and script, by their hashes."""
    style, script = (source_expression(page, tag) for tag in ("style", "script"))
    # Of a page opened from disk not every browser takes its own folder for 'self'.
    return (
        f"default-src 'none'; img-src 'self' file:; style-src {style}; script-src {script}; "
        "base-uri 'none'; form-action 'none'"
    )


def with_slider(page: str) -> str:
    """A page with the style and the script of the divider between two pictures in their places."""
    for name in ("slider.css", "slider.js"):
        page = page.replace(f"/* {name} */", Path(__file__).with_name(name).read_text("utf-8").strip())
    return page


def source_expression(page: str, tag: str) -> str:
    """The source expression of a policy that allows the one element of this name; nothing in it is substituted."""
    body = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{b64encode(sha256(body.encode()).digest()).decode()}'"


def _facts(facts: Mapping[str, Any]) -> list[str]:
    """The known facts as HTML, in the order of reading; what is missing or of another type is left out."""
    sampler = facts.get("sampler")
    steps = sampler if isinstance(sampler, Mapping) else {}
    found = [
        (facts.get("system"), "{}"),
        (facts.get("preset"), "preset {}"),
        (sampler, "sampler {}"),
        (steps.get("solver"), "{}"),
        (steps.get("spacing"), "spacing {}"),
        (steps.get("start"), "start {}"),
        (steps.get("steps"), "{} steps"),
        (steps.get("eta"), "eta {}"),
        *((facts.get(key), "{}") for key in ("backend", "precision")),
        (facts.get("seed"), "seed {}"),
        (facts.get("bundle_hash"), "bundle {:.12}"),
    ]
    shown = [_text(form.format(plain)) for value, form in found if (plain := _plain(value))]
    if _finite(seconds := facts.get("seconds")):
        shown.append(duration(seconds))
    if started := _plain(facts.get("started")):
        shown.append(_when(started))
    return shown


def _plain(value: object) -> str | None:
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, str | int) else None


def _when(started: str) -> str:
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return _text(started)
    return f'<time datetime="{moment.isoformat()}">{moment.strftime("%Y-%m-%d %H:%M %Z").strip()}</time>'


def _counts(cards: Sequence[Card]) -> list[str]:
    counts = [
        ("files", len(cards)),
        *((status, sum(card.entry.status == status for card in cards)) for status in STATUSES),
    ]
    return [f"<div><dt>{label}</dt><dd>{count}</dd></div>" for label, count in counts if count or label == "files"]


def _choices(cards: Sequence[Card]) -> list[str]:
    present = {card.entry.status for card in cards}
    choice = '<label class="choice"><input type="radio" name="show" value="{}"{}><span>{}</span></label>'
    offered = [choice.format(status, "", status.capitalize()) for status in STATUSES if status in present]
    return [choice.format("", " checked", "All"), *offered]


def _failed(card: Card) -> str:
    return (
        f'<tr {_data(card)}><th scope="row"><span class="name" dir="auto">{_text(card.name)}</span>'
        f'<small dir="auto">{_text(card.entry.source)}</small></th>'
        f'<td class="error">{_text(card.entry.error or "unknown")}</td></tr>'
    )


def _card(card: Card) -> str:
    entry = card.entry
    width, height, faces = map(_whole, (entry.width, entry.height, entry.faces))
    name = _text(card.name) if entry.output is None else f'<a href="{_url(entry.output)}">{_text(card.name)}</a>'
    about = [
        {"no face": "no face found", "skipped": "done by an earlier run"}.get(entry.status),
        f"{width} × {height}" if width and height else None,  # noqa: RUF001
        _plural(faces, "face") if faces else None,
    ]
    lines = [
        f'<article class="card" {_data(card)}>{_frame(card)}',
        f'<h3 class="name" dir="auto">{name}</h3>',
        f'<p class="about">{" · ".join(part for part in about if part)}</p>' if any(about) else "",
        f'<p class="error">{_text(entry.error)}</p>' if entry.error else "",
        *(f'<p class="about">{_text(note)}</p>' for note in entry.notes),
        _stages(card),
        "</article>",
    ]
    return "\n".join(line for line in lines if line)


def _data(card: Card) -> str:
    return f'data-status="{_text(card.entry.status)}" data-seconds="{_total(card.entry.seconds):.4f}"'


def _frame(card: Card) -> str:
    """The pictures of a card: two and a slider, one, or none."""
    entry = card.entry
    width, height = _whole(entry.width), _whole(entry.height)
    size = f' width="{width}" height="{height}"' if width and height else ""
    name = _text(card.name)
    figures = [
        f'<figure class="{side}"><img src="{_url(path)}" alt="{name}, {side}"{size} loading="lazy">'
        f'<figcaption aria-hidden="true">{side.capitalize()}</figcaption></figure>'
        for side, path in (("before", card.before), ("after", card.after))
        if path is not None
    ]
    if card.results:
        figures += [
            f'<figure><img src="{_url(preview)}" alt="{name}, {_text(run)}"{size} loading="lazy">'
            f'<figcaption><a href="{_url(output)}">{_text(run)}</a>{_took(entry, run)}</figcaption></figure>'
            for run, preview, output in card.results
        ]
        return f'<div class="frame row">{"".join(figures)}</div>'
    if len(figures) < 2:
        return f'<div class="frame">{figures[0]}</div>' if figures else ""
    label = f"{name}: divider between before and after, percent"
    slider = f'<input type="range" min="0" max="100" value="50" autocomplete="off" aria-label="{label}">'
    return f'<div class="frame pair">{"".join(figures)}{slider}</div>'


def _took(entry: Entry, run: str) -> str:
    return f", {duration(seconds)}" if _finite(seconds := entry.seconds.get(run)) else ""


def _stages(card: Card) -> str:
    stages = sorted(card.entry.seconds.items(), key=lambda stage: stage[0] == "network")
    if not stages:
        return ""
    names = {"network": "of these, in the networks"}
    lines = "".join(
        f'<tr><th scope="row">{_text(names.get(stage, stage))}</th><td>{duration(seconds)}</td></tr>'
        for stage, seconds in stages
        if _finite(seconds)
    )
    total = duration(_total(card.entry.seconds))
    return f"<details><summary>{total}</summary><table><tbody>{lines}</tbody></table></details>"


def _total(seconds: Mapping[str, float]) -> float:
    return sum(value for stage, value in seconds.items() if stage != "network" and _finite(value))


def _whole(value: object) -> int | None:
    """A number of pixels or faces; None for anything else, which a server or an old report may have sent."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 <= value < 1 << 63


def duration(seconds: float) -> str:
    """Seconds in words, as `2.10 s` or `3 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _text(text: str) -> str:
    """Escaped for content and for attributes in quotes; what HTML cannot hold becomes a replacement character."""
    return escape(_UNFIT.sub("\ufffd", text))


def _url(path: str) -> str:
    """A relative path as an address: of its bytes on disk, all percent-encoded but letters, digits, `/` and `-._~`."""
    address = quote(os.fsencode(path))
    return f".{address}" if address.startswith("/") else address  # else it could name another machine, `//host/`
