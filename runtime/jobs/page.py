"""The HTML page of a run: before/after sliders, from disk, without a server, a network or a build step.

All that the page needs is in it, but for the previews beside it; its markup, style and script are `page.html` and
`slider.*`. Names and errors come from other people's files: every text is escaped, every address percent-encoded, and a
policy in the page lets nothing run or load but its own.
"""

import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from bfr.runtime.files import write_bytes
from bfr.runtime.jobs.cards import Card, joined_card
from bfr.runtime.jobs.report import STATUSES, Report, count_faces, plural, total_seconds

PAGE = "report.html"
_UNFIT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


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
        joined_card(folder, names[entry.source], {run: entries[entry.source] for run, entries in by_source.items()})
        for entry in first.entries
    ]
    seconds = sum(report.facts["seconds"] for report in reports.values())
    shared = {name: first.settings.get(name) for name in ("system", "precision", "seed", "bundle_hash")}
    return write_page(folder, cards, {**first.facts, **shared, "seconds": seconds})


def write_page(folder: Path, cards: Sequence[Card], facts: Mapping[str, Any]) -> Path:
    """Write `report.html` whole or not at all, and return its path.

    Args:
        folder: The output folder. It holds the previews that the cards name, see `write_previews`.
        cards: The cards, in the order of the run.
        facts: Facts about the run: system, preset, sampler, backend, precision, seed, bundle_hash, seconds and started.

    Raises:
        WriteFailed: The page cannot be written.
    """
    page = with_slider(Path(__file__).with_name("page.html").read_text("utf-8"))
    failed = [_failed(card) for card in cards if card.entry.status == "failed"]
    content = Template(page).substitute(
        # Not every browser takes the folder of a page on a disk for 'self'.
        policy=content_policy(page, "img-src 'self' file:"),
        title=plural(len(cards), "file"),
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


def with_slider(page: str) -> str:
    """A page with the style and the script of the divider between two pictures in their places."""
    for name in ("slider.css", "slider.js"):
        page = page.replace(f"/* {name} */", Path(__file__).with_name(name).read_text("utf-8").strip())
    return page


def content_policy(page: str, more: str) -> str:
    """The content security policy of a page: nothing but its one style and its one script, by their hashes.

    Args:
        page: HTML. Nothing in its style and script is substituted afterwards.
        more: The directives of what else it may load, separated by `; `.
    """
    hashes = {}
    for tag in ("style", "script"):
        body = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        hashes[tag] = f"'sha256-{b64encode(sha256(body.encode()).digest()).decode()}'"
    return (
        f"default-src 'none'; {more}; style-src {hashes['style']}; script-src {hashes['script']}; "
        "base-uri 'none'; form-action 'none'"
    )


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
    if "seconds" in facts:
        shown.append(duration(facts["seconds"]))
    if "started" in facts:
        moment = datetime.fromisoformat(facts["started"])
        shown.append(f'<time datetime="{moment.isoformat()}">{moment.strftime("%Y-%m-%d %H:%M %Z").strip()}</time>')
    return shown


def _plain(value: object) -> str | None:
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, str | int) else None


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
    name = _text(card.name) if entry.output is None else f'<a href="{_url(entry.output)}">{_text(card.name)}</a>'
    about = [
        {"no face": "no face found", "skipped": "done by an earlier run"}.get(entry.status),
        f"{entry.width} × {entry.height}" if entry.width else None,  # noqa: RUF001
        count_faces(entry.faces, entry.warped) if entry.faces else None,
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
    return f'data-status="{_text(card.entry.status)}" data-seconds="{total_seconds(card.entry.seconds):.4f}"'


def _frame(card: Card) -> str:
    """The pictures of a card: two and a slider, one, or none."""
    entry = card.entry
    size = f' width="{entry.width}" height="{entry.height}"' if entry.width else ""
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
            f'<figcaption><a href="{_url(output)}">{_text(run)}</a>, {duration(entry.seconds[run])}</figcaption>'
            "</figure>"
            for run, preview, output in card.results
        ]
        return f'<div class="frame row">{"".join(figures)}</div>'
    if len(figures) < 2:
        return f'<div class="frame">{figures[0]}</div>' if figures else ""
    label = f"{name}: divider between before and after, percent"
    slider = f'<input type="range" min="0" max="100" value="50" autocomplete="off" aria-label="{label}">'
    return f'<div class="frame pair">{"".join(figures)}{slider}</div>'


def _stages(card: Card) -> str:
    stages = sorted(card.entry.seconds.items(), key=lambda stage: stage[0] == "network")
    if not stages:
        return ""
    names = {"network": "of these, in the networks"}
    lines = "".join(
        f'<tr><th scope="row">{_text(names.get(stage, stage))}</th><td>{duration(seconds)}</td></tr>'
        for stage, seconds in stages
    )
    total = duration(total_seconds(card.entry.seconds))
    return f"<details><summary>{total}</summary><table><tbody>{lines}</tbody></table></details>"


def duration(seconds: float) -> str:
    """Seconds in words, as `2.10 s` or `3 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _text(text: str) -> str:
    """Escaped for content and for attributes in quotes; what HTML cannot hold becomes a replacement character."""
    return escape(_UNFIT.sub("\ufffd", text))


def _url(path: str) -> str:
    """A relative path as an address: of its bytes on disk, all percent-encoded but letters, digits, `/` and `-._~`."""
    address = quote(os.fsencode(path))
    return f".{address}" if address.startswith("/") else address  # else it could name another machine, `//host/`
