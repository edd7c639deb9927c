"""Names: which images and videos a run reads from files and folders, and under which names it writes."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.images.formats import BY_SUFFIX
from bfr.runtime.video.formats import SUFFIXES as VIDEO_SUFFIXES

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One image or video of a run.

    source: the file to read. name: where its result goes below the output folder, relative, `/` between its parts,
    without suffix; no two items of a run share one, on file systems that ignore case neither.
    """

    source: Path
    name: str


def find_images(inputs: Sequence[Path], *, videos: bool = False, out: Path | None = None) -> list[Item]:
    """The images that `inputs`, files and folders, name: in the given order, a folder's in natural order (2 before 10).

    A file is taken whatever its suffix. A folder is searched recursively for PNG, JPEG, WebP, BMP and TIFF suffixes,
    with `videos` also for those of `bfr.runtime.video.formats`; hidden and `.part` files, and links that lead out of
    the folder, are passed over, and so is `out`, the output folder, below a folder that is searched: its pictures are
    results of an earlier run. A file named twice is read once.
    Names are paths relative to the folder, without suffix. Where these collide, each of them gets its suffix (`a.jpg`
    and `a.png`: `a_jpg`, `a_png`), and where that collides still, a number (`a_2`). Names depend on the files alone, so
    that a resumed run finds its own results. Raises InputNotFound.
    """
    suffixes = (*BY_SUFFIX, *VIDEO_SUFFIXES) if videos else tuple(BY_SUFFIX)
    found: dict[Path, tuple[Path, Path]] = {}  # absolute path -> the file as named, its path below the input
    for path in inputs:
        for file, below in list_files(path, suffixes, out):
            found.setdefault(file.absolute(), (file, below))
    names = choose_names([below for _, below in found.values()])
    return [Item(file, name) for (file, _), name in zip(found.values(), names, strict=True)]


def list_files(path: Path, suffixes: tuple[str, ...], out: Path | None) -> list[tuple[Path, Path]]:
    """A file, or those of a folder by the rules of `find_images`, each with its path below it. Raises InputNotFound."""
    if path.is_dir():
        files = [(file, file.relative_to(path)) for file in _walk(path, suffixes, out)]
        return sorted(files, key=lambda file: natural_key(file[1]))
    if path.exists():
        return [(path, Path(path.name))]
    raise InputNotFound(f"{path} does not exist: check the name of the image or folder")


def output_path(folder: Path, name: str, suffix: str) -> Path:
    """`folder/name + suffix`, for a relative name with `/` between its parts; the folder need not exist yet.

    Raises InvalidOption for a name that would leave the folder: absolute, `..`, a drive, a backslash, NUL or another
    control character, or a folder below it that is a link to elsewhere.
    """
    check_name(folder, name, suffix)
    path = folder / (name + suffix)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise InvalidOption(f"{path} lies outside the output folder {folder}, through a link: remove the link")
    return path


def check_name(folder: object, name: str, suffix: str) -> None:
    """Raise InvalidOption for a name that would leave its folder by its text alone; see `output_path`."""
    if (
        any(part in ("", ".", "..") for part in name.split("/"))
        or re.search(r"[\x00-\x1f\\]", name + suffix)
        or "/" in suffix
        or re.match(r"[A-Za-z]:", name)
    ):
        raise InvalidOption(f"the name {name + suffix!r} could leave the output folder {folder}: rename the image")


def choose_targets(
    items: Sequence[Item], folder: Path, suffix: Callable[[Item], str]
) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Source -> its result's path below `folder`, and source -> why it can have none: its name would lead out of it.

    Raises InvalidOption where a result would replace an input of the run, whatever the two are called.
    """
    sources = {identity(item.source) for item in items} - {None}
    targets, refused = {}, {}
    for item in items:
        try:
            target = output_path(folder, item.name, suffix(item))
        except InvalidOption as error:
            refused[item.source] = str(error)
            continue
        if identity(target) in sources:
            raise InvalidOption(
                f"{target} is an input of this run and would be overwritten: choose another output folder"
            )
        targets[item.source] = target
    return targets, refused


def identity(path: Path) -> tuple[int, int] | None:
    """Of a file, through links; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def natural_key(below: PurePath) -> list[tuple[tuple[int, int, str], ...]]:
    """A sort key of a path below its folder: numbers by value, letters without case, then exactly."""
    parts = below.parts
    return [
        *(tuple((0, int(t), "") if t.isdecimal() else (1, 0, t.casefold()) for t in _tokens(part)) for part in parts),
        tuple((1, 0, part) for part in parts),
    ]


def _tokens(text: str) -> list[str]:
    return [token for token in re.split(r"(\d+)", text) if token]


def _walk(folder: Path, suffixes: tuple[str, ...], out: Path | None) -> Iterator[Path]:
    root, results = folder.resolve(), out.resolve() if out else None
    for parent, folders, files in os.walk(folder, onerror=_report):
        # Linked folders are listed here but never entered.
        folders[:] = [name for name in folders if not name.startswith(".") and Path(parent, name).resolve() != results]
        for name in files:
            file = Path(parent, name)
            if name.startswith(".") or file.suffix.lower() not in suffixes:
                continue
            if not file.is_symlink() or (file.is_file() and file.resolve().is_relative_to(root)):
                yield file


def _report(error: OSError) -> None:
    _log.warning("%s is passed over: %s", error.filename, error.strerror)


def choose_names(paths: Sequence[PurePath]) -> list[str]:
    """The names of results by the rules of `find_images`. paths: of the sources, below their inputs."""
    plain = [path.with_suffix("").as_posix() for path in paths]
    long = [f"{name}_{path.suffix[1:]}" if path.suffix else name for name, path in zip(plain, paths, strict=True)]
    shared = Counter(name.casefold() for name in plain)
    # A name that nothing shares comes first to its own: `a_jpg.png` beside `a.jpg` and `a.png` stays `a_jpg`.
    taken = {name for name, count in shared.items() if count == 1}
    names = []
    for short, full in zip(plain, long, strict=True):
        if shared[short.casefold()] == 1:
            names.append(short)
            continue
        name, number = full, 2
        while name.casefold() in taken:
            name, number = f"{full}_{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names
