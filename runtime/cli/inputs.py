"""What a command reads: files, folders and globs, or an image on standard input."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

from bfr.runtime.errors import InputNotFound, InvalidImage, InvalidOption
from bfr.runtime.files import write_bytes
from bfr.runtime.images.decode import byte_limit
from bfr.runtime.images.formats import NAMES, format_of
from bfr.runtime.jobs.store import local_path

STANDARD = "-"  # input or output
NAMED = "standard input"  # as messages and reports have it


@contextmanager
def input_paths(inputs: Sequence[str], max_pixels: int) -> Iterator[list[Path]]:
    """The paths of files, folders and globs; for STANDARD, which must be alone, a temporary file with the image.

    Raises:
        InputNotFound: An input does not exist, or is an address.
        InvalidImage: Standard input holds no image, or more bytes than `max_pixels` can have.
        InvalidOption: STANDARD is one of several inputs, or a terminal.
    """
    if STANDARD not in inputs:
        yield [_path_of(name, inputs) for name in inputs]
        return
    if list(inputs) != [STANDARD]:
        raise InvalidOption(f"{STANDARD} is one image on standard input: leave out the other inputs")
    with TemporaryDirectory(prefix="bfr-") as folder:
        yield [_read_standard_input(Path(folder), max_pixels)]


def _path_of(name: str, inputs: Sequence[str]) -> Path:
    """The path that an input is. Raises InputNotFound for an address, and for a file that is not there."""
    if re.match(r"(https?|ftps?):", name, re.IGNORECASE):
        raise InputNotFound(f"{name} is an address: download it first, and name the file")
    if (path := local_path(name)) is None:
        raise InputNotFound(f"{name} is an address: `bfr batch` reads object stores; otherwise download it first")
    if not os.path.exists(path) and not re.search(r"[*?\[]", name):  # noqa: PTH110  (a name may be too long)
        raise InputNotFound(f"{name} does not exist: {_instead_of(path, inputs)}")
    return path


def _instead_of(path: Path, inputs: Sequence[str]) -> str:
    """What may be meant by an input that is not there."""
    if os.path.islink(path):  # noqa: PTH114
        return f"it is a link to {os.readlink(path)}, which is not there"  # noqa: PTH115
    option, assigned, value = str(path).partition("=")
    if assigned and option.isidentifier():
        return f"options are written as --preset fast, inputs without a name, as `bfr restore {value}`"
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    if near := get_close_matches(path.name, [one.name for one in beside], 1, 0.75):
        return f"did you mean {path.with_name(near[0])}?"
    if len(inputs) > 1 and str(path) == inputs[-1]:
        return f"check its name, or write -o {path} if it is the output"
    return "check the name of the image or folder"


def _read_standard_input(folder: Path, max_pixels: int) -> Path:
    """Write the image on standard input into `folder`. Raises InvalidImage if there is none."""
    if sys.stdin is None or sys.stdin.isatty():  # None: it is closed
        raise InvalidOption(f"{STANDARD} reads an image from standard input: pipe one in, as `bfr restore - < old.jpg`")
    limit = byte_limit(max_pixels)
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise InvalidImage(f"{NAMED} holds more than {limit:,} bytes: make the image smaller, or raise --max-pixels")
    form = format_of(data)
    if form is None:
        what = "is empty" if not data else f"holds no image of {', '.join(NAMES)}"
        raise InvalidImage(f"{NAMED} {what}: pipe in the bytes of an image file")
    path = folder / f"stdin{form.suffixes[0]}"
    write_bytes(path, data)
    return path
