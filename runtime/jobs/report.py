"""What a run did: one entry for each input, `report.json`, and what a resumed run may take over."""

import json
import platform
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import PIL

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import write_bytes
from bfr.runtime.restore.batch import image_key
from bfr.runtime.restore.pipeline import FaceRestorer

REPORT = "report.json"
Status = Literal["restored", "no face", "skipped", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one input.

    output: relative to the output folder. width, height: of the result, pixels. faces: how many were restored (of a
    video, in all its frames). frames: of a video. seconds: by stage, reading and writing included; what runs beside the
    networks counts as much as what they wait for. error: why it failed, or what of it did.
    """

    source: str
    status: Status
    output: str | None = None
    width: int | None = None
    height: int | None = None
    faces: int | None = None
    frames: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    precision: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All entries in the order of the run, what they were made with, and how long the run took."""

    entries: tuple[Entry, ...]
    settings: dict[str, Any]
    facts: dict[str, Any]

    def count(self, status: Status) -> int:
        """How many inputs have this status."""
        return sum(entry.status == status for entry in self.entries)


def rounded(entry: Entry) -> Entry:
    """The same with its seconds as reports have them."""
    return replace(entry, seconds={stage: round(seconds, 4) for stage, seconds in entry.seconds.items()})


def describe_settings(restorer: FaceRestorer, options: dict[str, Any]) -> dict[str, Any]:
    """All that a result depends on: a run with other settings gives other pictures."""
    return {
        **describe_system(restorer.bundle, restorer.precision, restorer.sampler),
        **{name: image_key(np.ascontiguousarray(picture)) for name, picture in restorer.fixed.items()},
        **options,
    }


def describe_system(bundle: Bundle, precision: str, sampler: Preset) -> dict[str, Any]:
    """What a result depends on beside the options: the networks, and how they are called."""
    return {
        "system": bundle.manifest.system,
        "bundle_hash": bundle.hash,
        "precision": precision,
        "sampler": sampler.model_dump(),
    }


def describe_run(restorer: FaceRestorer) -> dict[str, Any]:
    """Where and with what the results are made."""
    return {
        "backend": restorer.device.name,
        "batch": restorer.batch,
        "versions": {**describe_versions(), **restorer.device.versions},
        "started": describe_now(),
    }


def describe_versions() -> dict[str, str]:
    """Of what results depend on whatever runs the networks."""
    return {
        "bfr-runtime": version("bfr-runtime"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def describe_now() -> str:
    """The time, as reports have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def summary(report: Report, out: object) -> str:
    """The one line that a command ends with. out: the output folder."""
    total, photographs = len(report.entries), "photo" in report.settings
    parts = ", ".join(f"{count} {status}" for status in STATUSES if (count := report.count(status)))
    faces = sum(entry.faces or 0 for entry in report.entries)
    faces_too = f", {faces} face{'s' * (faces != 1)}" if photographs else ""
    return f"{total} image{'s' * (total != 1)}: {parts}{faces_too}, in {report.facts['seconds']:.1f} s; see {out}"


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` into the output folder."""
    counts = {status: report.count(status) for status in STATUSES}
    content = {
        "settings": report.settings,
        **report.facts,
        "counts": counts,
        "images": [asdict(entry) for entry in report.entries],
    }
    write_bytes(folder / REPORT, json.dumps(content, indent=1).encode() + b"\n")


def earlier_entries(folder: Path, settings: dict[str, Any]) -> dict[str, Entry]:
    """The entries of an earlier run into this folder, by source.

    Raises InvalidOption where that run had other settings: its results would pass for those of this one.
    """
    try:
        content = json.loads((folder / REPORT).read_bytes())
        found = content["settings"]
        _flat(found)
        entries = {image["source"]: Entry(**image) for image in content["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # none there, or of another version: results are taken by their names alone
    check_settings(found, settings, folder)
    return entries


def check_settings(earlier: dict[str, Any], settings: dict[str, Any], folder: object) -> None:
    """Raise InvalidOption with what differs between the settings of an earlier run into `folder` and these.

    TypeError where the earlier ones are no dict.
    """
    found, now = _flat(earlier), _flat(json.loads(json.dumps(settings)))
    different = [
        f"{key}: {found.get(key)} then, {now.get(key)} now"
        for key in sorted({*found, *now})
        if found.get(key) != now.get(key)
    ]
    if different:
        raise InvalidOption(
            f"{folder} holds results of other settings, which --resume would mix with these:\n  "
            + "\n  ".join(different)
            + "\nuse the same settings, or another output folder"
        )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings inside settings by dotted names. Raises TypeError for what is no dict."""
    if not isinstance(settings, dict):
        raise TypeError(f"settings are {type(settings).__name__}")
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
