"""What a run did: one entry for each input, and `report.json`."""

import json
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import PIL

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import write_bytes
from bfr.runtime.restore.inputs import image_key
from bfr.runtime.restore.pipeline import FaceRestorer
from bfr.runtime.text import printable, without_secrets
from bfr.runtime.video.formats import SUFFIXES as VIDEO_SUFFIXES

REPORT = "report.json"
Status = Literal["restored", "already sharp", "no face", "skipped", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class Entry:
    """The outcome of one input.

    Attributes:
        output: Relative to the output folder.
        width: Width of the result, pixels.
        height: Height of the result, pixels.
        faces: How many were restored (of a video, in all its frames).
        warped: How many of these were warped from a key frame, without the networks.
        sharp: How many were left because they are sharp already.
        frames: Frames of a video.
        seconds: By stage, reading and writing included; what runs beside the networks counts as much as what they wait
            for.
        error: Why it failed, or what of it did.
        notes: What of the source was left out, reduced or taken otherwise than it says.
        source_version: Version of the source when it was read, see `version_of`.
        output_version: Version of the result, see `version_of`.
    """

    source: str
    status: Status
    output: str | None = None
    width: int | None = None
    height: int | None = None
    faces: int | None = None
    warped: int | None = None
    sharp: int | None = None
    frames: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    precision: str | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    source_version: str | None = None
    output_version: str | None = None


def entry_of(values: dict[str, Any]) -> Entry:
    """An entry as JSON has it. Raises KeyError, TypeError and ValueError for what is none."""
    entry = Entry(**{**values, "notes": tuple(map(str, values["notes"]))})
    texts = (entry.output, entry.source_version, entry.output_version, entry.error)
    numbers = (entry.width, entry.height, entry.faces, entry.warped, entry.sharp, entry.frames)
    if not (
        isinstance(entry.source, str)
        and entry.status in STATUSES
        and all(text is None or isinstance(text, str) for text in texts)
        and all(n is None or (type(n) is int and n >= 0) for n in numbers)
        and isinstance(entry.seconds, dict)
        and all(isinstance(name, str) and type(n) in (int, float) and 0 <= n < inf for name, n in entry.seconds.items())
    ):
        raise ValueError("it is no entry of a report")
    if entry.output is not None and (PurePosixPath(entry.output).is_absolute() or ".." in entry.output.split("/")):
        raise ValueError("a result is outside the output folder")
    return entry


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
        "bfr": version("bfr-runtime"),
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
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def summary(report: Report, out: object, *, done: str = "restored") -> str:
    """The one line that a command ends with.

    Args:
        report: The run's report.
        out: The output folder.
        done: The word for `restored`.
    """
    films = sum(
        entry.frames is not None or PurePosixPath(entry.output or entry.source).suffix.lower() in VIDEO_SUFFIXES
        for entry in report.entries
    )
    totals = {"image": len(report.entries) - films, "video": films}
    inputs = " and ".join(plural(count, noun) for noun, count in totals.items() if count) or "0 images"
    photographs = "photo" in report.settings
    counts = {done if status == "restored" else status: report.count(status) for status in STATUSES}
    parts = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    faces = sum(entry.faces or 0 for entry in report.entries)
    left = sum(entry.sharp or 0 for entry in report.entries)
    warped = sum(entry.warped or 0 for entry in report.entries)
    faces_too = f", {count_faces(faces, warped)}" if photographs else ""
    sharp_too = f"; {plural(left, 'face')} left as sharp already (--restore-sharp restores them too)" if left else ""
    noted = sum(bool(entry.notes) for entry in report.entries)
    noted_too = f"; {noted} with warnings" if noted else ""
    passed = Counter(PurePosixPath(one["source"]).suffix.lower() or "no suffix" for one in passed_over(report))
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed.most_common())
    passed_too = f"; {plural(passed.total(), 'file')} passed over ({kinds})" if passed else ""
    seconds = f"{report.facts['seconds']:.1f} s"
    return f"{inputs}: {parts}{faces_too}, in {seconds}{sharp_too}{noted_too}{passed_too}; see {out}"


def passed_over(report: Report) -> list[dict[str, str]]:
    """The files of folders that were not read: source and reason of each."""
    found: list[dict[str, str]] = report.facts.get("passed_over", [])
    return found


def describe_passed_over(files: Mapping[str, str]) -> list[dict[str, str]]:
    """The same, as reports have it.

    Args:
        files: Source -> reason.
    """
    return [{"source": without_secrets(source), "reason": reason} for source, reason in files.items()]


def plural(count: int, noun: str) -> str:
    """A number with its noun, as `2 faces`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def count_faces(count: int, warped: int | None) -> str:
    """The faces of an entry or a run, as `40 faces (35 warped from key frames)`."""
    return plural(count, "face") + f" ({warped} warped from key frames)" * bool(warped)


def content_of(report: Report) -> dict[str, Any]:
    """What `report.json` holds."""
    counts = {status: report.count(status) for status in STATUSES}
    entries = [asdict(entry) for entry in report.entries]
    return {"settings": report.settings, **report.facts, "counts": counts, "images": entries}


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` into the output folder."""
    write_bytes(folder / REPORT, json.dumps(content_of(report), indent=1).encode() + b"\n")


def total_seconds(seconds: Mapping[str, float]) -> float:
    """Seconds of all stages; `network` is a part of the others."""
    return sum(value for stage, value in seconds.items() if stage != "network")


def describe_entry(entry: Entry, *, done: str = "restored") -> str:
    """Describe the outcome of one input in a line. done: the word for `restored`."""
    facts = [done if entry.status == "restored" else entry.status]
    facts += [count_faces(entry.faces, entry.warped)] if entry.faces else []
    facts += [f"{entry.width}x{entry.height}"] if entry.width else []
    facts += [f"{total_seconds(entry.seconds):.2f} s"] if entry.seconds else []
    return f"{printable(entry.source, lines=False)}: {', '.join(facts)}" + f" -> {entry.output}" * bool(entry.output)


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
