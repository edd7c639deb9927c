"""The server under mixed load and faults, for a minute, and what is made of what was seen."""

import json
from pathlib import Path

import pytest

from bfr.benchmarks.end_to_end import faults


def test_an_answer_that_was_not_expected_is_a_fault() -> None:
    seen = faults.Seen()
    for status in (200, 503, 500, "ReadError"):
        seen.note("portrait", status, 200)
    assert seen.unexpected == ["portrait: 500", "portrait: ReadError"]
    assert seen.answers["portrait", "503"] == 1


@pytest.mark.server
@pytest.mark.slow
def test_workers_that_are_killed_again_and_again_cost_no_answer(tmp_path: Path) -> None:
    """P37 under load: every answer is the right one, or a 503 whose request may be sent again."""
    faults.main(["--minutes", "1", "--kill", "12", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "faults.json").read_text())
    assert found["kills"] >= 2
    assert found["answers"]["portrait 200"] > 0
    assert [one for one in found["faults"] if "memory" not in one] == []  # a minute is too short for that
