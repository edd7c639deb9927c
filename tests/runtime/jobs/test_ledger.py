"""`resume.jsonl`: what a resumed run may take over, and what it may not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bfr.runtime.errors import InvalidOption, WriteFailed
from bfr.runtime.jobs.ledger import LEDGER, Ledger
from bfr.runtime.jobs.report import Entry

SETTINGS: dict[str, Any] = {"system": "mini", "seed": 1, "sampler": {"start": 4, "eta": 0.5}, "photo": {"upscale": 1}}
A = Entry("a.jpg", "restored", "a.png", seconds={"read": 0.1}, source_version="1-1", output_version="2-2")
B = replace(A, source="b.jpg", output="b.png", error="1 of 2 faces failed", notes=("its alpha",))


def entered(folder: Path, *entries: Entry, settings: dict[str, Any] | None = None) -> Path:
    """What a run leaves that made these results."""
    folder.mkdir(exist_ok=True)
    ledger = Ledger(folder, settings or SETTINGS, resume=False)
    ledger.begin({str(entry.output) for entry in entries})
    for entry in entries:
        ledger.add(entry)
    return folder / LEDGER


def known(folder: Path, entry: Entry = A, settings: dict[str, Any] | None = None, **changes: Any) -> Entry | None:
    ledger = Ledger(folder, settings or SETTINGS, resume=True)
    source, result = (entry.source, entry.source_version), (entry.output, entry.output_version)
    now = dict(zip(("source", "version", "output", "output_version"), (*source, *result), strict=True))
    return ledger.known(**{**now, **changes})


@pytest.mark.parametrize("runs", [[(A, B)], [(A,), (B,)]])
def test_what_is_as_it_was_is_known(tmp_path: Path, runs: list[tuple[Entry, ...]]) -> None:
    """Of one run, and of an earlier one with the same settings."""
    for entries in runs:
        entered(tmp_path, *entries)
    assert (known(tmp_path, A), known(tmp_path, B)) == (A, B)


@pytest.mark.parametrize(
    "changes",
    [
        *({"version": "1-9"}, {"version": None}, {"output_version": "2-9"}, {"output_version": None}),
        *({"source": "c.jpg"}, {"output": "c.png"}),
    ],
)
def test_what_changed_is_not(tmp_path: Path, changes: dict[str, Any]) -> None:
    entered(tmp_path, A)
    assert known(tmp_path, **changes) is None


def test_other_settings_are_refused_with_each_difference(tmp_path: Path) -> None:
    entered(tmp_path, A)
    now = {"system": "mini", "seed": 2, "sampler": {"start": 4, "eta": 0.0}, "photo": {"upscale": 2}, "crf": 9}
    with pytest.raises(InvalidOption) as caught:
        Ledger(tmp_path, now, resume=True)
    lines = str(caught.value).splitlines()
    assert str(tmp_path) in lines[0]
    assert [line.strip() for line in lines[1:-1]] == [
        "crf: None then, 9 now",
        "photo.upscale: 1 then, 2 now",
        "sampler.eta: 0.5 then, 0.0 now",
        "seed: 1 then, 2 now",
    ]
    assert "another output folder" in lines[-1]


def test_settings_are_compared_as_json_has_them(tmp_path: Path) -> None:
    entered(tmp_path, A, settings={**SETTINGS, "sizes": (1, 2)})
    assert known(tmp_path, settings={"sizes": (1, 2), **SETTINGS}) == A


def test_a_run_of_other_settings_makes_all_that_lies_there_unknown(tmp_path: Path) -> None:
    """{a, b} with one seed, {a} with another: b is not that other one's."""
    entered(tmp_path, A, B)
    other = {**SETTINGS, "seed": 2}
    entered(tmp_path, A, settings=other)
    assert known(tmp_path, A, other) == A
    assert known(tmp_path, B, other) is None


def test_a_run_forgets_what_it_makes_anew(tmp_path: Path) -> None:
    """Should it be killed, what lies there would pass for its results."""
    entered(tmp_path, A, B)
    Ledger(tmp_path, SETTINGS, resume=False).begin({"a.png"})
    assert known(tmp_path, A) is None
    assert known(tmp_path, B) == B


def test_two_runs_at_once_do_not_take_each_others_results(tmp_path: Path) -> None:
    one, two = (Ledger(tmp_path, {**SETTINGS, "seed": seed}, resume=False) for seed in (1, 2))
    one.begin({"a.png"})
    two.begin({"b.png"})
    one.add(A)
    two.add(B)
    assert known(tmp_path, A, {**SETTINGS, "seed": 2}) is None
    assert known(tmp_path, B, {**SETTINGS, "seed": 2}) == B


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b"{}", b"[" * 100_000),
        *(b'{"settings": []}', b'{"settings": null}', b'{"settings": 3}'),
        b'{"run": "x", "entry": {"source": "a"}}',
        b'{"run": "x", "entry": 3}',
    ],
)
def test_a_ledger_that_is_gone_or_not_readable_tells_nothing(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / LEDGER).write_bytes(content)
    assert known(tmp_path, settings={}) is None


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path: Path) -> None:
    path = entered(tmp_path, A, B)
    path.write_bytes(path.read_bytes()[:-20])
    assert known(tmp_path, A) == A
    assert known(tmp_path, B) is None
    entered(tmp_path, B)
    assert known(tmp_path, B) == B


def test_names_that_are_no_text(tmp_path: Path) -> None:
    odd = replace(A, source="\udcff\n.jpg", output="\udcff\n.png")
    path = entered(tmp_path, odd)
    assert known(tmp_path, odd) == odd
    assert len(path.read_bytes().splitlines()) == 2
    json.loads(path.read_bytes().splitlines()[1])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, SETTINGS, resume=False)
    (tmp_path / LEDGER).mkdir()
    with pytest.raises(WriteFailed, match="folder"):
        ledger.begin(set())
    with pytest.raises(WriteFailed, match=r"resume\.jsonl"):
        ledger.add(A)
