"""The HTML page, read as a browser reads it: hostile names are text, addresses lead to files, the policy fits."""

import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from bfr.runtime.errors import WriteFailed
from bfr.runtime.jobs import pictures
from bfr.runtime.jobs.cards import Card, preview_paths
from bfr.runtime.jobs.page import PAGE, write_page
from bfr.runtime.jobs.pictures import write_previews
from bfr.runtime.jobs.report import Entry

VOID = {"br", "hr", "img", "input", "link", "meta"}
HOSTILE = [
    '"><script>alert(1)</script>',
    "a#b?c%20",
    'it\'s & "quoted" <b>bold</b>',
    "javascript:alert(1)",
    "Ünïcode 日本語/\u202egnp",
    "$policy ${title} {0}",
    "</style><style>*{display:none}",
    "line\nbreak\tand\x07bell",
    "group/" + "long " * 40,
]


class Page(HTMLParser):
    """Elements with their attributes and the text directly or deeper in them; fails where nesting is broken."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, {key: value or "" for key, value in attrs}, []))
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str], str]]:
        """Attributes and text of the elements of this tag that have these attributes (`class_` among them)."""
        pairs = {key.rstrip("_"): value for key, value in wanted.items()}
        return [
            (attrs, "".join(texts))
            for name, attrs, texts in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in pairs.items())
        ]

    def texts(self, tag: str, **wanted: str) -> list[str]:
        return [text for _, text in self.all(tag, **wanted)]


def row(name: str, status: Any = "restored", **changes: Any) -> Card:
    before, after = preview_paths(name)
    made = status != "failed"
    values: dict[str, Any] = {
        "source": f"/photos/{name}.jpg",
        "output": f"{name}.png" if made else None,
        "faces": 2 if made else None,
        "seconds": {"read": 0.25, "denoise": 1.5, "network": 1.4} if made else {},
        "error": None if made else f"{name} is damaged",
        "width": 640 if made else None,
        "height": 480 if made else None,
    }
    previews = (changes.pop("before", before), changes.pop("after", after)) if made else ()
    return Card(name, Entry(status=status, **{**values, **changes}), *previews)


def parsed(folder: Path, *rows: Card, **facts: Any) -> Page:
    return Page(write_page(folder, rows, facts))


def shown(text: str) -> str:
    return text.replace("\x07", "\ufffd")


@pytest.mark.parametrize("status", ["restored", "failed"])
def test_hostile_names_and_errors_are_text(tmp_path: Path, status: str) -> None:
    plain = parsed(tmp_path, row("plain", status, error="plain"))
    page = parsed(tmp_path, *(row(name, status, error=f"{name} failed") for name in HOSTILE), system=HOSTILE[0])
    tag = "h3" if status == "restored" else "span"
    assert page.texts(tag, class_="name") == [shown(name) for name in HOSTILE]
    assert [attrs["alt"] for attrs, _ in page.all("img")][::2] == [
        f"{shown(name)}, before" for name in HOSTILE if status == "restored"
    ]
    assert page.texts("p" if status == "restored" else "td", class_="error") == [f"{shown(n)} failed" for n in HOSTILE]
    assert HOSTILE[0] in page.texts("li")
    for dangerous in ("script", "style", "meta"):
        assert page.all(dangerous) == plain.all(dangerous)
    assert {tag for tag, _, _ in page.elements} == {tag for tag, _, _ in plain.elements} | {"li"}
    assert not [key for _, attrs, _ in page.elements for key in attrs if key.startswith("on") or key == "style"]


def test_addresses_lead_to_the_files(tmp_path: Path) -> None:
    names = [name for name in HOSTILE if "\n" not in name]
    for path in (path for name in names for path in (*preview_paths(name), f"{name}.png")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    page = parsed(tmp_path, *map(row, names))
    addresses = [attrs["src"] for attrs, _ in page.all("img")] + [attrs["href"] for attrs, _ in page.all("a")]
    assert len(addresses) == 3 * len(names)
    for address in addresses:
        parts = urlsplit(address)
        assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
        assert (tmp_path / unquote(parts.path)).is_file()
        assert re.fullmatch(r"[A-Za-z0-9/%._~-]+", address)


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    page = parsed(tmp_path, row("caf\udce9"))
    assert page.texts("h3") == ["caf\ufffd"]
    assert page.all("a")[0][0]["href"] == "caf%E9.png"


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    page = parsed(tmp_path, row("a"), row("b", "failed"))
    assert "//" not in re.sub(r"(^|\s)// ", " ", page.source)  # but for comments of the script
    assert not page.all("link")
    assert not [attrs for tag, attrs, _ in page.elements if tag == "script" and attrs]


def test_the_policy_allows_its_own_style_and_script_alone(tmp_path: Path) -> None:
    page = parsed(tmp_path, row("a"))
    ((policy, _),) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.split(" ", 1) for rule in policy["content"].split("; "))
    assert rules["default-src"] == "'none'"
    for tag in ("style", "script"):
        ((_, body),) = page.all(tag)
        assert rules[f"{tag}-src"] == f"'sha256-{b64encode(sha256(body.encode()).digest()).decode()}'"


def test_counts_and_filters(tmp_path: Path) -> None:
    statuses = ["restored", "failed", "restored", "no face", "skipped", "failed", "restored"]
    page = parsed(tmp_path, *(row(f"image {i}", status) for i, status in enumerate(statuses)))
    counted = dict(zip(page.texts("dt"), map(int, page.texts("dd")), strict=True))
    assert counted == {"files": 7, "restored": 3, "no face": 1, "skipped": 1, "failed": 2}
    assert [attrs["value"] for attrs, _ in page.all("input", name="show")] == [
        *("", "restored", "no face", "skipped", "failed")
    ]
    listed = [attrs["data-status"] for tag, attrs, _ in page.elements if "data-status" in attrs]
    assert listed == ["failed", "failed", "restored", "restored", "no face", "skipped", "restored"]
    assert page.texts("title") == ["Restoration report: 7 files"]


def test_a_run_without_failures_or_images(tmp_path: Path) -> None:
    ((section, _),) = parsed(tmp_path, row("a")).all("section")
    assert "hidden" in section
    ((section, _),) = parsed(tmp_path, row("a", "failed")).all("section")
    assert "hidden" not in section
    empty = parsed(tmp_path)
    assert list(zip(empty.texts("dt"), empty.texts("dd"), strict=True)) == [("files", "0")]


def test_a_card_shows_pictures_faces_and_seconds(tmp_path: Path) -> None:
    page = parsed(tmp_path, row("a", error="1 of 3 faces failed: NaN"))
    ((slider, _),) = page.all("input", type="range")
    assert slider["aria-label"].startswith("a: ")
    for side, (attrs, _) in zip(("before", "after"), page.all("img"), strict=True):
        assert attrs["alt"] == f"a, {side}"
        assert (attrs["width"], attrs["height"], attrs["loading"]) == ("640", "480", "lazy")
    assert page.texts("p", class_="about") == ["640 × 480 · 2 faces"]  # noqa: RUF001
    assert page.texts("p", class_="error") == ["1 of 3 faces failed: NaN"]
    assert page.texts("summary") == ["1.75 s"]  # the networks' part is in denoise
    (about,) = parsed(tmp_path, row("a", warped=1)).texts("p", class_="about")
    assert about.endswith(" · 2 faces (1 warped from key frames)")
    assert list(zip(page.texts("th", scope="row"), page.texts("td"), strict=True)) == [
        ("read", "0.25 s"),
        ("denoise", "1.50 s"),
        ("of these, in the networks", "1.40 s"),
    ]


def test_what_was_reduced_is_on_the_card(tmp_path: Path) -> None:
    notes = ("the first of its 2 pages is used", HOSTILE[0])
    write_page(tmp_path, [Card("a", Entry("a.tif", "restored", "a.png", notes=notes))], {})
    texts = [text for _, text in Page(tmp_path / PAGE).all("p", class_="about")]
    assert texts == list(notes)


@pytest.mark.parametrize(("before", "after", "pictures"), [(None, None, 0), ("b.webp", None, 1), (None, "a.webp", 1)])
def test_without_both_previews_there_is_no_slider(
    tmp_path: Path, before: str | None, after: str | None, pictures: int
) -> None:
    bare = row("a", "no face", output=None, before=before, after=after, faces=0, seconds={}, width=None)
    page = parsed(tmp_path, bare)
    assert len(page.all("img")) == pictures
    assert not page.all("input", type="range")
    assert not page.all("a")
    assert page.texts("p", class_="about") == ["no face found"]


def test_known_facts_are_shown_and_others_are_not(tmp_path: Path) -> None:
    sampler = {"solver": "ddim", "spacing": "ddim250", "start": 100, "eta": 0.5, "matched": False}
    networks = {"system": "difface", "sampler": sampler, "backend": "cuda", "precision": "fp16", "seed": 0}
    run = {"bundle_hash": "0123456789abcdef", "seconds": 3725.0, "started": "2025-05-04T12:30:11+00:00"}
    page = parsed(tmp_path, **networks, **run, versions={"python": "3"}, detector="unknown")
    assert [text.strip() for text in page.texts("li")] == [
        *("difface", "ddim", "spacing ddim250", "start 100", "eta 0.5", "cuda", "fp16", "seed 0"),
        *("bundle 0123456789ab", "1 h 2 min", "2025-05-04 12:30 UTC"),
    ]


@pytest.mark.parametrize("odd", [None, [], {"a": [1]}, {"solver": {}}])
def test_facts_of_any_type(tmp_path: Path, odd: object) -> None:
    keys = ("system", "preset", "sampler", "backend", "precision", "seed", "bundle_hash")
    assert not parsed(tmp_path, **dict.fromkeys(keys, odd)).all("li")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.004, "0.00 s"), (9.996, "10.0 s"), (59.96, "1 min 0 s"), (3599.7, "1 h 0 min")]
)
def test_a_duration_is_rounded_in_the_unit_that_is_shown(tmp_path: Path, seconds: float, text: str) -> None:
    assert parsed(tmp_path, row("a", seconds={"read": seconds})).texts("summary") == [text]


def test_the_page_replaces_an_older_one(tmp_path: Path) -> None:
    parsed(tmp_path, row("old"))
    assert write_page(tmp_path, [row("new")], {}) == tmp_path / PAGE
    assert [path.name for path in tmp_path.iterdir()] == [PAGE]
    assert "old" not in Page(tmp_path / PAGE).texts("h3")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteFailed, match="cannot write"):
        write_page(tmp_path / "file", [], {})


@settings(max_examples=50)
@given(st.text(st.characters()))
def test_preview_paths_are_safe(name: str) -> None:
    before, after = preview_paths(name)
    assert (before, after) == preview_paths(name)
    for path, end in ((before, "before"), (after, "after")):
        parts = PurePosixPath(path).parts
        assert parts[0] == "report_files"
        assert len(parts) == 2
        assert re.fullmatch(rf"([a-z0-9][a-z0-9-]{{0,39}}-)?[0-9a-f]{{16}}-{end}\.webp", parts[1])


def test_preview_paths_differ() -> None:
    names = ["a", "A", "a ", "a-", "a/b", "a-b", "", "é", "e\u0301", "x" * 300, "x" * 301, "con", "../a"]
    assert len({path for name in names for path in preview_paths(name)}) == 2 * len(names)


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((300, 200), 1024, (300, 200)),
        ((300, 200), 150, (150, 100)),
        ((200, 301), 150, (100, 150)),
        ((2000, 1), 100, (100, 1)),
    ],
)
def test_previews_are_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], longest: int, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(pictures, "LONGEST", longest)
    write_previews(tmp_path, "a", np.zeros((7, 9, 3), np.uint8), np.zeros((size[1], size[0], 3), np.uint8))
    for path in preview_paths("a"):
        with Pillow.open(tmp_path / path) as image:
            assert (image.format, image.size) == ("WEBP", expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_preview_averages_areas_in_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr(pictures, "LONGEST", 32)
    red = np.zeros((64, 64, 3), dtype)
    red[::2, :, 0] = np.iinfo(dtype).max  # every other row: red that is half as bright
    write_previews(tmp_path, "a", red, red)
    for path in preview_paths("a"):
        with Pillow.open(tmp_path / path) as image:
            assert np.abs(np.asarray(image.convert("RGB"), np.int32) - (128, 0, 0)).max() <= 4


@pytest.mark.parametrize("status", ['restored"><script>alert(1)</script>', "x' y=\"1"])
def test_a_status_of_a_server_is_text(tmp_path: Path, status: str) -> None:
    page = Page(write_page(tmp_path, [row("a", status)], {}))
    assert page.all("article")[0][0]["data-status"] == status
    assert len(page.all("script")) == 1


@pytest.mark.parametrize(
    "output", ["//example.org/a.png", "/etc/passwd", "javascript:alert(1)", "https://example.org/"]
)
def test_a_result_is_a_file_beside_the_page(tmp_path: Path, output: str) -> None:
    page = Page(write_page(tmp_path, [row("a", output=output)], {}))
    (address,) = [attrs["href"] for attrs, _ in page.all("a")]
    found = urlsplit(address)
    assert (found.scheme, found.netloc) == ("", "")
    assert not found.path.startswith("/")
