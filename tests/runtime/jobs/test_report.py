"""`report.json`: what it holds, and the line that a run ends with."""

import dataclasses
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bfr.runtime.errors import WriteFailed
from bfr.runtime.jobs.report import (
    REPORT,
    Entry,
    Report,
    describe_entry,
    describe_run,
    describe_settings,
    entry_of,
    summary,
    write_report,
)

SETTINGS: dict[str, Any] = {"system": "mini", "seed": 1, "sampler": {"start": 4, "eta": 0.5}, "photo": {"upscale": 1}}
MADE: dict[str, Any] = {"width": 3, "height": 2, "faces": 2, "precision": "fp32", "seconds": {"read": 0.1}}
VERSIONS = {"source_version": "10-20", "output_version": "30-40"}
NOTE = "the first of its 2 pages is used"
DONE = Entry("a.jpg", "restored", "a.jpg", **MADE, **VERSIONS, notes=(NOTE,))
FAILED = Entry("b.jpg", "failed", error="damaged")
FACTS = {"backend": "numpy", "seconds": 2.5}


def written(folder: Path, settings: dict[str, Any] | None = None) -> Path:
    write_report(Report((DONE, FAILED), settings or SETTINGS, FACTS), folder)
    return folder / REPORT


def test_it_holds_settings_facts_counts_and_entries(tmp_path: Path) -> None:
    content = json.loads(written(tmp_path / "new").read_text())
    assert content["settings"] == SETTINGS
    assert (content["backend"], content["seconds"]) == ("numpy", 2.5)
    assert {name: count for name, count in content["counts"].items() if count} == {"restored": 1, "failed": 1}
    done = {"source": "a.jpg", "status": "restored", "output": "a.jpg", **MADE, **VERSIONS, "notes": [NOTE]}
    assert {name: value for name, value in content["images"][0].items() if value is not None} == done
    assert [image["status"] for image in content["images"]] == ["restored", "failed"]


def test_entries_are_read_as_they_were_written(tmp_path: Path) -> None:
    content = json.loads(written(tmp_path).read_text())
    assert [entry_of(image) for image in content["images"]] == [DONE, FAILED]


@pytest.mark.parametrize(
    "change",
    [
        *({"status": "sold"}, {"source": 3}, {"width": True}, {"height": 1.5}, {"notes": None}, {"pages": 3}),
        *({"output": ["a.png"]}, {"output": "//example.org/a.png"}, {"output": "../a.png"}),
        *({"seconds": value} for value in (None, {"read": "long"}, {"read": float("nan")}, {"read": -1})),
        *({"faces": "two"}, {"faces": '<meta http-equiv="refresh">'}, {"faces": -1}, {"warped": -1}),
    ],
)
def test_an_entry_with_a_wrong_field_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (good, _) = json.loads(written(tmp_path).read_text())["images"]
    with pytest.raises((KeyError, TypeError, ValueError)):
        entry_of({**good, **change})


def test_the_line_at_the_end_counts_warnings_and_what_was_passed_over() -> None:
    passed = [{"source": f"in/{name}", "reason": "not an image"} for name in ("a.HEIC", "b.heic", "notes")]
    report = Report((DONE, FAILED), SETTINGS, {"seconds": 2.5, "passed_over": passed})
    assert summary(report, "out") == (
        "2 images: 1 restored, 1 failed, 2 faces, in 2.5 s; 1 with warnings; "
        "3 files passed over (2 .heic, 1 no suffix); see out"
    )
    assert summary(Report((FAILED,), {}, {"seconds": 2.5}), "out") == "1 image: 1 failed, in 2.5 s; see out"
    few = dataclasses.replace(DONE, source="in/b.mp4", frames=9, faces=9, warped=7)
    warped = "11 faces (7 warped from key frames)"
    assert f" restored, {warped}, in" in summary(Report((DONE, few), SETTINGS, {"seconds": 2.5}), "out")
    assert "9 faces (7 warped from key frames), 3x2" in describe_entry(few)
    film, broken = dataclasses.replace(DONE, source="in/a.mp4", frames=9), dataclasses.replace(FAILED, source="b.MKV")
    words = summary(Report((DONE, film, broken), SETTINGS, {"seconds": 2.5}), "out")
    assert words.startswith("1 image and 2 videos: 2 restored, 1 failed, ")
    picture = dataclasses.replace(DONE, source="picture.mp4")
    assert summary(Report((picture,), SETTINGS, {"seconds": 2.5}), "out").startswith("1 image: 1 restored, ")
    assert summary(Report((film,), SETTINGS, {"seconds": 2.5}), "out").startswith("1 video: 1 restored, ")


def test_settings_and_facts_are_of_the_restorer(small: Callable[..., Any]) -> None:
    restorer = small(3)
    settings = describe_settings(restorer, {"seed": 5})
    assert settings == {
        "bfr": version("bfr-runtime"),
        "system": "mini",
        "bundle_hash": restorer.bundle.hash,
        "precision": "fp32",
        "sampler": restorer.sampler.model_dump(),
        "seed": 5,
    }
    facts = describe_run(restorer)
    assert (facts["backend"], facts["batch"]) == ("numpy", 3)
    assert facts["versions"]["numpy"] == np.__version__
    json.dumps([settings, facts])


def test_a_full_disk_leaves_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(tmp_path).read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteFailed, match="full"):
        write_report(Report((), {}, {}), tmp_path)
    assert (tmp_path / REPORT).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [REPORT]
