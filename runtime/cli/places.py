"""Where a command writes: a folder, a file or standard output. `inputs.py` has what it reads."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bfr.runtime.bundle.manifest import MANIFEST
from bfr.runtime.cli.inputs import NAMED, STANDARD, input_paths
from bfr.runtime.errors import InvalidImage, InvalidOption, WriteFailed
from bfr.runtime.files import atomic_path, replaceable, scratch_folder
from bfr.runtime.images.decode import decode_image, read_file
from bfr.runtime.images.formats import BY_SUFFIX, NAMES, WRITTEN
from bfr.runtime.images.headers import header_size
from bfr.runtime.jobs.ledger import LEDGER
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.sources import Inputs, Item, check_found, check_free, choose_outputs, find_inputs
from bfr.runtime.jobs.store import Store, identity_of
from bfr.runtime.text import without_secrets
from bfr.runtime.video.formats import SUFFIXES as VIDEO_SUFFIXES
from bfr.runtime.video.formats import output_suffix

if TYPE_CHECKING:
    from bfr.runtime.jobs.report import Entry, Report

_SUFFIXES = tuple(one.suffixes[0] for one in WRITTEN)
# What `-o result.SUFFIX` means a file by, though it is not written; a folder of that name would be a surprise.
_UNWRITTEN = {
    ".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".ico", ".pdf", ".psd", ".svg",
    ".json", ".zip", ".txt", ".csv", ".html",
}  # fmt: skip


def check_new(folder: Path, *, replace: bool, mark: str = MANIFEST) -> None:
    """Raise InvalidOption if a new folder exists or cannot be made, before hours of work.

    With `replace` it may exist if it is empty, or has a file that the pattern `mark` finds.
    """
    if os.path.lexists(folder) and not (replace and replaceable(folder, mark)):
        if replace and folder.is_dir():
            raise InvalidOption(f"{folder} has no {mark}, so --replace does not delete it: choose another name with -o")
        raise InvalidOption(f"{folder} exists: choose another name with -o, delete it, or replace it with --replace")
    check_folder(folder.absolute().parent)


def check_folder(folder: Path, flag: str = "-o") -> None:
    """Raise InvalidOption if a folder cannot be written, or not be made, as far as that is seen without trying."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(one))
    if not there.is_dir():
        raise InvalidOption(f"{there} is no folder: name another one with {flag}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidOption(f"{there} cannot be written by this user: name another folder with {flag}")


@dataclass(frozen=True, slots=True)
class Places:
    """What a run reads, and where its results go.

    Attributes:
        found: The inputs.
        options: How the run writes. Its folder is a temporary one where the result goes to a file or standard output.
        target: That file, or `-`; None if results stay in the folder.
        source: What an input from standard input is called instead of its temporary file.
    """

    found: Inputs
    options: JobOptions
    target: Path | str | None = None
    source: str | None = None

    @property
    def out(self) -> Path | str:
        """Where results go, as messages have it."""
        return (
            self.options.out if self.target is None else "standard output" if self.target == STANDARD else self.target
        )

    def deliver(self, report: "Report") -> "Report":
        """Put the one result where it belongs. Raises WriteFailed."""
        report = replace(report, entries=tuple(map(self._named, report.entries)))
        if self.target is None or not report.entries or (output := report.entries[0].output) is None:
            return report
        made = self.options.out / output
        if isinstance(self.target, Path):
            with atomic_path(self.target) as temporary:
                shutil.copyfile(made, temporary)
        else:
            try:
                sys.stdout.buffer.write(made.read_bytes())
                sys.stdout.buffer.flush()
            except OSError as error:
                raise WriteFailed(
                    f"standard output cannot be written ({error.strerror}): name a file with -o"
                ) from error
        return replace(report, entries=(replace(report.entries[0], output=str(self.out)),))

    def _named(self, entry: "Entry") -> "Entry":
        """An outcome that names no temporary file."""
        source, error = self.source or entry.source, entry.error
        if error is not None:
            error = error.replace(entry.source, source).replace(str(self.options.out), str(self.out))
        return replace(entry, source=source, error=error)

    def written(self, report: "Report") -> list[str]:
        """The files that the run wrote, as a user finds them."""
        if self.target == STANDARD:
            return []
        outputs = [entry.output for entry in report.entries if entry.output and entry.status != "skipped"]
        return outputs if self.target is not None else [str(self.options.out / output) for output in outputs]


@contextmanager
def open_places(
    inputs: Sequence[str],
    options: JobOptions,
    *,
    overwrite: bool,
    videos: bool = False,
    folders: Sequence[str] = (),
) -> Iterator[Places]:
    """Find the inputs of a run, and check that its results can go where `options.out` says, before anything is opened.

    Args:
        inputs: Files, folders and globs, or `-` alone for an image on standard input.
        options: Its `out` is a folder; with one input also a file, by its suffix, or `-` for standard output.
        overwrite: Results may replace files, but never an input.
        videos: Videos are taken too.
        folders: Below the output folder, where several runs put their results; none for one run.

    Raises:
        InputNotFound: An input does not exist, or nothing was found.
        InvalidImage: Standard input holds no image.
        InvalidOption: The output does not suit the inputs, or is there already.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(options.out)):
        address = str(options.out).replace(":/", "://", 1)  # Path has left one out
        raise InvalidOption(f"{address} is an address: name a folder, or use `bfr batch`, which writes to them")
    with ExitStack() as stack:
        paths = stack.enter_context(input_paths(inputs, options.max_pixels))
        found = find_inputs(paths, videos=videos, out=options.out)
        _require(found, inputs, options.out, videos=videos)
        source = NAMED if STANDARD in inputs else None
        target = _target(found.items, inputs, options, from_input=source is not None)
        _check_alone(found.items, options.max_pixels, videos=videos)
        if folders and target is not None:
            raise InvalidOption("several presets make several results: name files as inputs, and a folder with -o")
        if target is None:
            for name in folders or ("",):
                outputs, _ = choose_outputs(found.items, store := Store(options.out / name), options.format)
                if not (overwrite or (options.resume and (options.out / name / LEDGER).exists())):
                    check_free(outputs.values(), store)
            stack.enter_context(_made(options.out))
            yield Places(found, options)
            return
        changes = _of_one_file(found.items[0], target, options, overwrite=overwrite)
        if isinstance(target, Path) and target.parent.is_dir():
            try:
                folder = stack.enter_context(scratch_folder(target))
            except OSError as error:
                where = f"{target.parent} cannot be written ({error.strerror})"
                raise InvalidOption(f"{where}: choose another folder") from error
        else:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="bfr-")))
        yield Places(found, options.model_copy(update={**changes, "out": folder}), target, source)


def _check_alone(items: Sequence[Item], max_pixels: int, *, videos: bool) -> None:
    """Raise InvalidImage if the only input is no image, before networks are opened; of several the others count."""
    if len(items) == 1 and not items[0].is_video and items[0].path is not None:
        width, height = header_size(items[0].path) or (0, 0)
        if 0 < width * height <= max_pixels:
            return
        data = read_file(items[0].path, max_pixels=max_pixels)
        if videos and data and items[0].content is None:
            raise InvalidImage(
                f"{items[0].path} is not an image of {', '.join(NAMES)}, nor a video of {', '.join(VIDEO_SUFFIXES)}: "
                "convert it to one of them (its bytes count, not its suffix)"
            )
        decode_image(data, name=str(items[0].path), max_pixels=max_pixels)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make the output folder, and remove it if nothing came into it. Raises InvalidOption if it cannot be."""
    there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        kind = "a file" if folder.exists() else "a link to nothing"
        raise InvalidOption(f"{folder} is {kind}: name a folder with -o, or a file by a suffix as .png") from None
    except OSError as error:
        raise InvalidOption(f"{folder} cannot be made ({error.strerror}): choose another folder with -o") from error
    try:
        yield
    finally:
        if not there:
            with suppress(OSError):
                folder.rmdir()


def _require(found: Inputs, named: Sequence[str], out: Path, *, videos: bool) -> None:
    """Raise InputNotFound if there is nothing to restore; the report lists skipped files even then."""
    from bfr.runtime.jobs.report import Report, describe_passed_over, write_report

    if not found.items and found.passed_over and str(out) != STANDARD:
        facts = {"seconds": 0.0, "passed_over": describe_passed_over(found.passed_over)}
        write_report(Report((), {}, facts), out)
    check_found(found, [without_secrets(name) for name in named], videos=videos)


def _target(items: Sequence[Item], named: Sequence[str], options: JobOptions, *, from_input: bool) -> Path | str | None:
    """The file or `-` that the one result goes to; None if results go into a folder."""
    out, suffix = options.out, options.out.suffix.lower()
    if str(out) == STANDARD:
        target: Path | str = STANDARD
    elif out.is_dir() or suffix not in {*BY_SUFFIX, *VIDEO_SUFFIXES, *_UNWRITTEN}:
        if not from_input:
            return None
        form = options.format if options.format != "same" else items[0].suffix
        return out / f"stdin{form if form in _SUFFIXES else _SUFFIXES[0]}"
    else:
        target = out
    if len(items) > 1:
        raise InvalidOption(
            f"{len(items)} inputs ({', '.join(named[:3])}{', ...' if len(named) > 3 else ''}) cannot go into one "
            f"{'output' if target == STANDARD else f'file {out}'}: name a folder with -o"
        )
    return target


def _of_one_file(item: Item, target: Path | str, options: JobOptions, *, overwrite: bool) -> dict[str, str]:
    """The changes of options for a result that goes to `target`. Raises InvalidOption if it cannot."""
    several = [f"--{name}" for name in ("compare", "crops", "html", "resume") if getattr(options, name)]
    if several:
        raise InvalidOption(f"{', '.join(several)} needs a folder, -o names one file: name a folder with -o")
    if not isinstance(target, Path):
        if item.is_video:
            raise InvalidOption("a video cannot be written to standard output: name a file or folder with -o")
        if sys.stdout is None:
            raise InvalidOption("standard output is closed: name a file with -o")
        if sys.stdout.isatty():
            raise InvalidOption("an image would be printed on the terminal: redirect it, or name a file with -o")
        return {}
    suffix = target.suffix.lower()
    if item.is_video:
        if suffix != (needed := output_suffix(item.suffix)):
            raise InvalidOption(
                f"{item.source} becomes a {needed} file, not {suffix}: name {target.with_suffix(needed)}"
            )
    elif suffix not in BY_SUFFIX or BY_SUFFIX[suffix] not in WRITTEN:
        raise InvalidOption(
            f"images are written as {', '.join(_SUFFIXES)}, not {suffix}: choose one of them for {target}"
        )
    elif options.format not in ("same", BY_SUFFIX[suffix].suffixes[0]):
        raise InvalidOption(
            f"{target} and --format {options.format[1:]} differ: leave out --format, or rename the file"
        )
    if identity_of(target) is not None:
        if identity_of(target) == identity_of(item.source):
            raise InvalidOption(f"{target} is the input and would be overwritten: choose another name")
        if not overwrite:
            raise InvalidOption(f"{target} exists: replace it with --overwrite, or choose another name with -o")
    return {} if item.is_video else {"format": BY_SUFFIX[suffix].suffixes[0]}
