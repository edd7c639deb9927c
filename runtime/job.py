"""A run over files: read, restore, write, report. One bad file never ends it."""

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
from numpy.typing import NDArray

from bfr.runtime.encode import write_image
from bfr.runtime.errors import BfrError, InvalidOption, WriteFailed
from bfr.runtime.files import clean_leftovers, write_bytes
from bfr.runtime.folder import Item, output_path
from bfr.runtime.image import Image, read_image
from bfr.runtime.loop import OnStep
from bfr.runtime.restorer import DEFAULT_SEED, Restored, Restorer

REPORT = "report.json"
FORMATS = (".png", ".jpg", ".webp")
GAP = 8  # pixels between the two halves of a comparison

Progress = Callable[[float, str], None]
"""Called with how many images are done, fractions for one under way, and the name of the last one begun."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """out: the output folder. suffix: the output's format, one of FORMATS. quality: of JPEG and WebP, 1 to 100.

    compare: write a before/after picture beside each result. resume: skip images whose result is there.
    """

    out: Path
    seed: int = DEFAULT_SEED
    suffix: str = ".png"
    quality: int = 95
    compare: bool = False
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one image; `seconds` by stage, reading and writing included."""

    source: str
    status: Literal["restored", "skipped", "failed"]
    output: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    precision: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All entries in the order of the run, and what they were made with."""

    entries: tuple[Entry, ...]
    facts: dict[str, Any]

    def count(self, status: str) -> int:
        """How many images have this status."""
        return sum(entry.status == status for entry in self.entries)


def run_job(
    restorer: Restorer, items: Sequence[Item], options: JobOptions, *, progress: Progress = lambda _done, _name: None
) -> Report:
    """Restore `items` (aligned faces) into the output folder and write `report.json` there.

    A file that cannot be read or restored is a failed entry. Raises InvalidOption before any work for options out of
    range or a result that would replace its source, and WriteFailed where the output folder cannot be written: what
    was finished until then stays, and `resume` goes on from there.
    """
    begin = time.perf_counter()
    targets = {item.source: _target(item, items, options) for item in items}
    entries: dict[Path, Entry] = {}
    todo = []
    for item in items:
        if options.resume and targets[item.source].is_file():
            output = _below(targets[item.source], options)
            entries[item.source] = Entry(str(item.source), "skipped", output)
        else:
            todo.append(item)
    if options.out.is_dir():
        clean_leftovers(options.out)
    facts = describe_run(restorer, options)
    try:
        for batch in _read_batches(todo, restorer.batch, entries):
            on_step = _step_progress(progress, len(entries), len(batch) / len(restorer.table), batch[0][0].name)
            results = restorer.run([image.pixels for _, image, _ in batch], seed=options.seed, on_step=on_step)
            for (item, image, seconds), result in zip(batch, results, strict=True):
                entries[item.source] = _finish(item, image, seconds, result, targets[item.source], options)
                progress(len(entries), item.name)
    finally:
        ordered = tuple(entries[item.source] for item in items if item.source in entries)
        facts["seconds"] = round(time.perf_counter() - begin, 3)
        report = Report(ordered, facts)
        write_report(report, options.out)
    return report


def _step_progress(progress: Progress, finished: int, share: float, name: str) -> OnStep:
    """Progress inside a batch, a step of which is worth `share` images."""
    return lambda done, _state: progress(finished + share * done, name)


def describe_run(restorer: Restorer, options: JobOptions) -> dict[str, Any]:
    """What a result depends on, for the report."""
    return {
        "system": restorer.bundle.manifest.system,
        "bundle_hash": restorer.bundle.hash,
        "backend": restorer.device.name,
        "precision": restorer.precision,
        "sampler": restorer.sampler.model_dump(),
        "seed": options.seed,
        "batch": restorer.batch,
        "versions": {
            "bfr-runtime": version("bfr-runtime"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            **restorer.device.versions,
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` into the output folder."""
    counts = {status: report.count(status) for status in ("restored", "skipped", "failed")}
    content = {**report.facts, "counts": counts, "images": [asdict(entry) for entry in report.entries]}
    write_bytes(folder / REPORT, json.dumps(content, indent=1).encode() + b"\n")


def _target(item: Item, items: Sequence[Item], options: JobOptions) -> Path:
    if options.suffix not in FORMATS:
        raise InvalidOption(f"format {options.suffix!r} is not offered: choose one of {', '.join(FORMATS)}")
    if not 1 <= options.quality <= 100:
        raise InvalidOption(f"quality {options.quality} is out of range: choose between 1 and 100")
    target = output_path(options.out, item.name, options.suffix)
    if target.exists() and any(target.samefile(other.source) for other in items):
        raise InvalidOption(f"{target} is an input of this run and would be overwritten: choose another output folder")
    return target


def _read_batches(
    items: Sequence[Item], size: int, entries: dict[Path, Entry]
) -> Iterator[list[tuple[Item, Image, float]]]:
    """Batches of images that could be read, with the seconds that took; the others become failed entries."""
    batch = []
    for item in items:
        begin = time.perf_counter()
        try:
            image = read_image(item.source)
        except BfrError as error:
            entries[item.source] = Entry(str(item.source), "failed", error=str(error))
            continue
        batch.append((item, image, time.perf_counter() - begin))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _finish(
    item: Item, image: Image, read_seconds: float, result: Restored, target: Path, options: JobOptions
) -> Entry:
    if result.pixels is None:
        return Entry(str(item.source), "failed", seconds=result.seconds, error=result.error)
    begin = time.perf_counter()
    try:
        write_image(target, result.pixels, like=image, quality=options.quality)
        if options.compare:
            path = target.with_name(f"{target.stem}.compare.png")
            write_image(path, side_by_side(image.pixels, result.pixels))
    except WriteFailed:
        raise
    except BfrError as error:
        return Entry(str(item.source), "failed", seconds=result.seconds, error=str(error))
    seconds = {"read": read_seconds, **result.seconds, "write": time.perf_counter() - begin}
    rounded = {stage: round(value, 4) for stage, value in seconds.items()}
    return Entry(str(item.source), "restored", _below(target, options), rounded, result.precision)


def side_by_side(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    """Two (H, W, 3) images of one size and dtype -> (H, 2W + GAP, 3), a white gap between them."""
    white = np.iinfo(before.dtype).max
    gap = np.full((before.shape[0], GAP, 3), white, before.dtype)
    return np.concatenate([before, gap, after], axis=1)


def _below(target: Path, options: JobOptions) -> str:
    return target.relative_to(options.out).as_posix()
