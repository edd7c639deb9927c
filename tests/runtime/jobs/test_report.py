"""`report.json`: what it holds, and what a resumed run takes from it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bfr.runtime.errors import InvalidOption, WriteFailed
from bfr.runtime.jobs.report import (
    REPORT,
    Entry,
    Report,
    describe_run,
    describe_settings,
    earlier_entries,
    write_report,
)

SETTINGS: dict[str, Any] = {"system": "mini", "seed": 1, "sampler": {"start": 4, "eta": 0.5}, "photo": {"upscale": 1}}
DONE = Entry("a.jpg", "restored", "a.jpg", width=3, height=2, faces=2, seconds={"read": 0.1}, precision="fp32")
FAILED = Entry("b.jpg", "failed", error="damaged")
FACTS = {"backend": "numpy", "seconds": 2.5}


def written(folder: Path, settings: dict[str, Any] | None = None) -> Path:
    write_report(Report((DONE, FAILED), settings or SETTINGS, FACTS), folder)
    return folder / REPORT


def test_it_holds_settings_facts_counts_and_entries(tmp_path: Path) -> None:
    content = json.loads(written(tmp_path / "new").read_text())
    assert content["settings"] == SETTINGS
    assert (content["backend"], content["seconds"]) == ("numpy", 2.5)
    assert content["counts"] == {"restored": 1, "no face": 0, "skipped": 0, "failed": 1}
    assert content["images"][0] == {
        "source": "a.jpg",
        "status": "restored",
        "output": "a.jpg",
        "width": 3,
        "height": 2,
        "faces": 2,
        "frames": None,
        "seconds": {"read": 0.1},
        "precision": "fp32",
        "error": None,
    }
    assert [image["status"] for image in content["images"]] == ["restored", "failed"]


def test_entries_come_back(tmp_path: Path) -> None:
    written(tmp_path)
    assert earlier_entries(tmp_path, SETTINGS) == {"a.jpg": DONE, "b.jpg": FAILED}


def test_settings_are_compared_as_json_has_them(tmp_path: Path) -> None:
    written(tmp_path, {**SETTINGS, "sizes": (1, 2)})
    assert earlier_entries(tmp_path, {**SETTINGS, "sizes": (1, 2)})


def test_other_settings_are_refused_with_each_difference(tmp_path: Path) -> None:
    written(tmp_path)
    now = {"system": "mini", "seed": 2, "sampler": {"start": 4, "eta": 0.0}, "photo": {"upscale": 2}, "crf": 9}
    with pytest.raises(InvalidOption) as caught:
        earlier_entries(tmp_path, now)
    lines = str(caught.value).splitlines()
    assert str(tmp_path) in lines[0]
    assert [line.strip() for line in lines[1:-1]] == [
        "crf: None then, 9 now",
        "photo.upscale: 1 then, 2 now",
        "sampler.eta: 0.5 then, 0.0 now",
        "seed: 1 then, 2 now",
    ]
    assert "another output folder" in lines[-1]


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"{}",
        b'{"settings": [], "images": []}',
        b'{"settings": null, "images": []}',
        b'{"settings": {"seed": 2}}',
        b'{"settings": {"seed": 2}, "images": 3}',
        b'{"settings": {"seed": 2}, "images": [{"source": "a"}]}',
        b'{"settings": {"seed": 2}, "images": [{"source": "a", "status": "restored", "pages": 3}]}',
        b'{"seed": 2, "images": [{"source": "a", "status": "restored", "output": "a.png"}]}',  # of version 0.1
    ],
)
def test_a_report_that_is_gone_or_not_readable_tells_nothing(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / REPORT).write_bytes(content)
    assert earlier_entries(tmp_path, SETTINGS) == {}


def test_settings_and_facts_are_of_the_restorer(small: Callable[..., Any]) -> None:
    restorer = small(3)
    settings = describe_settings(restorer, {"seed": 5})
    assert settings == {
        "system": "mini",
        "bundle_hash": restorer.bundle.hash,
        "precision": "fp32",
        "sampler": {
            "solver": "ddim",
            "spacing": "ddim100",
            "start": 2,
            "steps": None,
            "eta": 0.5,
            "matched": True,
            "adapt": None,
            "stages": {},
            "guidance": None,
        },
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
