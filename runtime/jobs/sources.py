"""Names: which images and videos a run reads from files, folders, globs and object stores, and where results go."""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.images.formats import BY_SUFFIX, result_suffix
from bfr.runtime.jobs.store import Store, identity_of, local_path, open_url
from bfr.runtime.video.formats import SUFFIXES as VIDEO_SUFFIXES
from bfr.runtime.video.formats import output_suffix

_log = logging.getLogger(__name__)
Found = tuple[Path | str, PurePath, int | None]
"""A file as it was named, its path below the input that named it, and its bytes, where the listing says so."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image or video of a run.

    Attributes:
        source: The file to read, a path or a URL.
        name: Where its result goes below the output folder, relative, `/` between its parts, without suffix. No two
            items of a run share one, on file systems that ignore case neither.
        bytes: Of its file, where the listing of an object store says so.
    """

    source: Path | str
    name: str
    bytes: int | None = None

    @property
    def key(self) -> str:
        """What reports call it: its path or URL."""
        return str(self.source)

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine's disks; None where it is another URL."""
        return local_path(self.source)

    @property
    def suffix(self) -> str:
        """The suffix of its file, in lower case."""
        return PurePosixPath(self.source).suffix.lower()

    @property
    def is_video(self) -> bool:
        """Whether its suffix is that of a video; the file is not looked at."""
        return self.suffix in VIDEO_SUFFIXES


def find_images(inputs: Sequence[Path | str], *, videos: bool = False, out: Path | str | None = None) -> list[Item]:
    """The images that `inputs` name: files, folders, globs, and as text also URLs of them.

    They come in the given order, those of a folder or glob in natural order (2 before 10). A file is taken whatever its
    suffix. A folder is searched recursively for the suffixes of images, with `videos` also for those of videos; hidden
    and `.part` files, and links that lead out of the folder, are passed over, and so is `out`, the output folder, below
    a folder that is searched: its pictures are results of an earlier run. A file named twice is read once.

    Names are paths relative to the folder, or to the part of a glob before its first `*`, `?` or `[`, without suffix.
    Where these collide, each of them gets its suffix (`a.jpg` and `a.png`: `a_jpg`, `a_png`), and where that collides
    still, a number (`a_2`). Names depend on the files alone, so that a resumed run finds its own results.

    Raises:
        InputNotFound: An input does not exist, or a glob matches nothing.
        MissingDependency, InvalidOption: A URL needs a package, or is of an unknown protocol.
    """
    suffixes = (*BY_SUFFIX, *VIDEO_SUFFIXES) if videos else tuple(BY_SUFFIX)
    found: dict[str, Found] = {}  # by absolute path or URL
    for name in inputs:
        path = local_path(name)
        for one in _remote(str(name), suffixes, out) if path is None else _local(path, suffixes, out):
            found.setdefault(str(one[0].absolute() if isinstance(one[0], Path) else one[0]), one)
    names = choose_names([below for _, below, _ in found.values()])
    return [Item(file, name, size) for (file, _, size), name in zip(found.values(), names, strict=True)]


def find_masks(items: Sequence[Item], masks: Path) -> dict[str, Path]:
    """The mask of each item, by its key: the one file, or the file in a folder that has the picture's name.

    Raises InputNotFound where there is none, or more than one.
    """
    if masks.is_file():
        return {item.key: masks for item in items}
    if not masks.is_dir():
        raise InputNotFound(f"{masks} does not exist: name a mask image, or a folder of masks, with --mask")
    chosen = {}
    for item in items:
        stem = PurePosixPath(item.name).stem
        found = sorted(path for path in masks.iterdir() if path.stem == stem and path.is_file())
        if len(found) != 1:
            problem = "no mask" if not found else f"{len(found)} masks"
            raise InputNotFound(f"{masks} has {problem} named {stem}: give each picture one of its name")
        chosen[item.key] = found[0]
    return chosen


def choose_outputs(items: Sequence[Item], store: Store, image_format: str) -> tuple[dict[str, str], dict[str, str]]:
    """Item's key -> its result, relative to the output folder, and key -> why it can have none.

    image_format: the suffix of images, or `same` for the source's own where it is written.
    Raises InvalidOption where a result would replace an input of the run, whatever the two are called.
    """
    taken = {identity_of(item.source) for item in items} - {None}
    outputs, refused = {}, {}
    for item in items:
        if item.is_video:
            suffix = output_suffix(item.suffix)
        else:
            suffix = result_suffix(BY_SUFFIX.get(item.suffix)) if image_format == "same" else image_format
        try:
            store.check(item.name, suffix)
        except InvalidOption as error:
            refused[item.key] = str(error)
            continue
        output = item.name + suffix
        if store.identity(output) in taken:
            raise InvalidOption(
                f"{output} in {store.url} is an input of this run and would be overwritten: "
                "choose another output folder"
            )
        outputs[item.key] = output
    return outputs, refused


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


def natural_key(found: Found) -> list[tuple[tuple[int, int, str], ...]]:
    """A sort key of a path below its folder: numbers by value, letters without case, then exactly."""
    parts = found[1].parts
    tokens = [[token for token in re.split(r"(\d+)", part) if token] for part in parts]
    return [
        *(tuple((0, int(t), "") if t.isdecimal() else (1, 0, t.casefold()) for t in part) for part in tokens),
        tuple((1, 0, part) for part in parts),
    ]


def _local(path: Path, suffixes: Sequence[str], out: Path | str | None) -> list[Found]:
    folder = None if out is None else local_path(out)
    if path.is_dir():
        return sorted(((file, file.relative_to(path), None) for file in _walk(path, suffixes, folder)), key=natural_key)
    if path.exists():
        return [(path, PurePath(path.name), None)]
    if not glob.has_magic(str(path)):
        raise InputNotFound(f"{path} does not exist: check the name of the image or folder")
    base = Path(*_fixed(path.parts))
    matches = [Path(match) for match in glob.iglob(str(path), recursive=True)]  # noqa: PTH207  (a last `**` is files)
    files = [
        (file, file.relative_to(base), None)
        for file in matches
        if file.is_file() and _wanted(file, suffixes)
        if folder is None or not file.absolute().is_relative_to(folder.absolute())
    ]
    if not files:
        raise InputNotFound(f"{path} matches no image: check the pattern")
    return sorted(files, key=natural_key)


def _walk(folder: Path, suffixes: Sequence[str], out: Path | None) -> Iterator[Path]:
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


def _remote(url: str, suffixes: Sequence[str], out: Path | str | None) -> list[Found]:
    system, path = open_url(url)
    path = path.rstrip("/")
    if glob.has_magic(path):
        base = PurePosixPath(*_fixed(PurePosixPath(path).parts))
        listed = system.glob(path, detail=True)
    elif system.isdir(path):
        base, listed = PurePosixPath(path), system.find(path, detail=True)
    elif system.exists(path):
        base, listed = PurePosixPath(path).parent, {path: system.info(path)}
    else:
        raise InputNotFound(f"{url} does not exist: check the address, and what the credentials may read")
    files: list[Found] = [
        (str(system.unstrip_protocol(name)), PurePosixPath(name).relative_to(base), info.get("size"))
        for name, info in listed.items()
        if info.get("type") == "file"
    ]
    if path not in listed:  # a file that is named is taken whatever its suffix
        files = [one for one in files if _wanted(one[1], suffixes)]
    results = None if out is None or local_path(out) else f"{str(out).rstrip('/')}/"
    files = [one for one in files if results is None or not str(one[0]).startswith(results)]
    if not files and glob.has_magic(path):
        raise InputNotFound(f"{url} matches no image: check the pattern")
    return sorted(files, key=natural_key)


def _fixed(parts: Sequence[str]) -> Sequence[str]:
    """The parts of a glob before the first that is a pattern."""
    return parts[: next((i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))]


def _wanted(path: PurePath, suffixes: Sequence[str]) -> bool:
    return path.suffix.lower() in suffixes and not any(part.startswith(".") for part in path.parts)
