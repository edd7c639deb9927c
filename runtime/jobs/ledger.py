"""The ledger of an output folder, `resume.jsonl`: which result was made of which source, with which settings.

`--resume` keeps only results that the ledger lists, never by name alone. A run appends a line as soon as a result is in
its place, so that a run that is killed leaves all that it finished, but for the result that was under way.

The first line of a run has its settings, the lines after it a digest of them and an entry. Of an output the last line
counts. A line that was cut off, and one of another version of bfr, is left out.
"""

import json
import threading
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from bfr.runtime.errors import WriteFailed
from bfr.runtime.files import write_bytes
from bfr.runtime.jobs.cards import PREVIEWS
from bfr.runtime.jobs.report import Entry, check_settings, entry_of

LEDGER = "resume.jsonl"


class Ledger:
    """The ledger of a run's output folder. `add` may be called from several threads."""

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        """Read what earlier runs left; nothing is written yet.

        Args:
            folder: The output folder.
            settings: All that a result of this run depends on.
            resume: Refuse settings that differ from those of the last run.

        Raises:
            InvalidOption: They differ.
        """
        self.path, self.settings = folder / LEDGER, json.loads(json.dumps(settings))
        self.digest = sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]
        self._lock = threading.Lock()
        last, self._lines = _read(self.path)
        if resume and last is not None:
            check_settings(last, self.settings, folder)

    def known(self, source: str, version: str | None, output: str, output_version: str | None) -> Entry | None:
        """What an earlier run entered of a result, where source, settings and result are still those that it had.

        Args:
            source: The item's key.
            version: The version of its file now.
            output: The name of its result.
            output_version: The version of the result's file now.
        """
        digest, entry = self._lines.get(output, ("", None))
        if entry is None or None in (version, output_version) or (digest, entry.source) != (self.digest, source):
            return None
        same = (entry.source_version, entry.output_version) == (version, output_version)
        return entry if same else None

    def begin(self, outputs: set[str]) -> None:
        """Begin a run: forget the results that it will make, and what other settings made. Raises WriteFailed."""
        self._lines = {
            name: (digest, entry)
            for name, (digest, entry) in self._lines.items()
            if name not in outputs and digest == self.digest
        }
        lines = [json.dumps({"settings": self.settings})]
        lines += [_line(digest, entry) for digest, entry in self._lines.values()]
        write_bytes(self.path, ("\n".join(lines) + "\n").encode())

    def add(self, entry: Entry) -> None:
        """Record a result that was written. Raises WriteFailed."""
        try:
            with self._lock, self.path.open("ab") as file:
                file.write((_line(self.digest, entry) + "\n").encode())
        except OSError as error:
            raise WriteFailed(
                f"cannot write {self.path} ({error.strerror}): free some space, or choose another folder"
            ) from error


def results_in(folder: Path) -> set[Path]:
    """Return the paths of earlier runs' results in their output folder, and of the pictures and folders beside them."""
    results = [folder / output for output in _read(folder / LEDGER)[1]]
    beside = [path.with_suffix(".compare.png") for path in results] + [Path(f"{path}.faces") for path in results]
    return {*results, *beside, folder / PREVIEWS}


def _line(digest: str, entry: Entry) -> str:
    return json.dumps({"run": digest, "entry": asdict(entry)})


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[str, tuple[str, Entry]]]:
    """The settings of the last run, and the last line of each output: digest of its settings, and entry."""
    settings, lines = None, {}
    try:
        found = path.read_bytes().splitlines()
    except OSError:
        return None, {}
    for one in found:
        try:
            line = json.loads(one)
            if "settings" in line:
                settings = line["settings"] if isinstance(line["settings"], dict) else None
            else:
                entry = entry_of(line["entry"])
                lines[str(entry.output)] = str(line["run"]), entry
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return settings, lines
