"""The HTML page of a run: before/after sliders, from disk, without a server, a network or a build step.

All that the page needs is in it, but for the previews beside it; its markup, style and script are `page.html`. Names
and errors come from other people's files: every text is escaped, every address percent-encoded, and a policy in the
page lets nothing run or load but its own.
"""

import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from bfr.runtime.files import write_bytes
from bfr.runtime.images.decode import Pixels
from bfr.runtime.images.encode import encode_image
from bfr.runtime.jobs.report import STATUSES, Status

PAGE = "report.html"
PREVIEWS = "report_files"
QUALITY = 85  # of the previews, WebP
_UNFIT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One input on the page.

    name: its relative name, unique in the run, without suffix. source: its path, as it was given.
    output: the result, relative to the output folder; before, after: its previews, likewise, of one shape; all with
    `/` between parts, not percent-encoded. faces: how many were restored. seconds: stage -> seconds; `network` is a
    part of the others. error: why it failed, or what of it did. size: (width, height) of the result, pixels.
    """

    name: str
    source: str
    status: Status
    output: str | None
    before: str | None
    after: str | None
    faces: int | None
    seconds: dict[str, float]
    error: str | None
    size: tuple[int, int] | None


def preview(pixels: Pixels, longest: int = 1024) -> bytes:
    """(H, W, 3) uint8 or uint16 RGB -> the bytes of a WebP of 8 bits, averaged over areas to `longest` pixels a side.

    Smaller images keep their size.
    """
    import cv2

    height, width = pixels.shape[:2]
    if max(height, width) > longest:
        scale = longest / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return encode_image(resized.astype(pixels.dtype, copy=False), ".webp", quality=QUALITY)
    return encode_image(pixels, ".webp", quality=QUALITY)


def preview_paths(name: str) -> tuple[str, str]:
    """Where the previews of an item, before and after, lie below the output folder: the same for the same name.

    `name` may hold any character and be of any length; the paths are short and safe on every file system, and differ
    for names that differ, in case or in Unicode normalisation too.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-")  # for people
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    stem = f"{PREVIEWS}/{slug}-{digest}" if slug else f"{PREVIEWS}/{digest}"
    return f"{stem}-before.webp", f"{stem}-after.webp"


def write_page(folder: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> Path:
    """Write `report.html` into the output folder, whole or not at all, and return its path. Raises WriteFailed.

    rows: in the order of the run; the previews that they name are written by the caller (`preview_paths`, `preview`).
    facts: of the run; system, preset, sampler, backend, precision, seed, bundle_hash, seconds and started are shown.
    """
    page = Path(__file__).with_name("page.html").read_text("utf-8")
    failed = [_failed(row) for row in rows if row.status == "failed"]
    content = Template(page).substitute(
        policy=_policy(page),
        title=_plural(len(rows), "file"),
        facts="\n".join(f"<li>{fact}</li>" for fact in _facts(facts)),
        counts="\n".join(_counts(rows)),
        choices="\n".join(_choices(rows)),
        unless_failed="" if failed else " hidden",
        failed="\n".join(failed),
        cards="\n".join(_card(row) for row in rows if row.status != "failed"),
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
    if isinstance(seconds := facts.get("seconds"), int | float):
        shown.append(_duration(seconds))
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


def _counts(rows: Sequence[Row]) -> list[str]:
    counts = [("files", len(rows)), *((status, sum(row.status == status for row in rows)) for status in STATUSES)]
    return [f"<div><dt>{label}</dt><dd>{count}</dd></div>" for label, count in counts if count or label == "files"]


def _choices(rows: Sequence[Row]) -> list[str]:
    present = {row.status for row in rows}
    choice = '<label class="choice"><input type="radio" name="show" value="{}"{}><span>{}</span></label>'
    offered = [choice.format(status, "", status.capitalize()) for status in STATUSES if status in present]
    return [choice.format("", " checked", "All"), *offered]


def _failed(row: Row) -> str:
    return (
        f'<tr {_data(row)}><th scope="row"><span class="name" dir="auto">{_text(row.name)}</span>'
        f'<small dir="auto">{_text(row.source)}</small></th><td class="error">{_text(row.error or "unknown")}</td></tr>'
    )


def _card(row: Row) -> str:
    name = _text(row.name) if row.output is None else f'<a href="{_url(row.output)}">{_text(row.name)}</a>'
    about = [
        {"no face": "no face found", "skipped": "done by an earlier run"}.get(row.status),
        f"{row.size[0]} × {row.size[1]}" if row.size else None,  # noqa: RUF001
        _plural(row.faces, "face") if row.faces else None,
    ]
    lines = [
        f'<article class="card" {_data(row)}>{_frame(row)}',
        f'<h3 class="name" dir="auto">{name}</h3>',
        f'<p class="about">{" · ".join(part for part in about if part)}</p>' if any(about) else "",
        f'<p class="error">{_text(row.error)}</p>' if row.error else "",
        _stages(row),
        "</article>",
    ]
    return "\n".join(line for line in lines if line)


def _data(row: Row) -> str:
    return f'data-status="{row.status}" data-seconds="{_total(row.seconds):.4f}"'


def _frame(row: Row) -> str:
    """The pictures of a card: two and a slider, one, or none."""
    size = f' width="{row.size[0]}" height="{row.size[1]}"' if row.size else ""
    name = _text(row.name)
    figures = [
        f'<figure class="{side}"><img src="{_url(path)}" alt="{name}, {side}"{size} loading="lazy">'
        f'<figcaption aria-hidden="true">{side.capitalize()}</figcaption></figure>'
        for side, path in (("before", row.before), ("after", row.after))
        if path is not None
    ]
    if len(figures) < 2:
        return f'<div class="frame">{figures[0]}</div>' if figures else ""
    label = f"{name}: divider between before and after, percent"
    slider = f'<input type="range" min="0" max="100" value="50" autocomplete="off" aria-label="{label}">'
    return f'<div class="frame pair">{"".join(figures)}{slider}</div>'


def _stages(row: Row) -> str:
    stages = sorted(row.seconds.items(), key=lambda stage: stage[0] == "network")
    if not stages:
        return ""
    names = {"network": "of these, in the networks"}
    lines = "".join(
        f'<tr><th scope="row">{_text(names.get(stage, stage))}</th><td>{_duration(seconds)}</td></tr>'
        for stage, seconds in stages
    )
    total = _duration(_total(row.seconds))
    return f"<details><summary>{total}</summary><table><tbody>{lines}</tbody></table></details>"


def _total(seconds: Mapping[str, float]) -> float:
    return sum(value for stage, value in seconds.items() if stage != "network")


def _duration(seconds: float) -> str:
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
    return quote(os.fsencode(path))
