"""What a folder, a glob or an object store holds for a run: which of its files are read, and why not the others."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath, PurePosixPath

from bfr.runtime.errors import InputNotFound
from bfr.runtime.images.formats import BY_SUFFIX, NAMES, format_of
from bfr.runtime.jobs.ledger import results_in
from bfr.runtime.jobs.store import local_path, open_url, reached, remote_version
from bfr.runtime.video.formats import HEAD, suffix_of
from bfr.runtime.video.formats import SUFFIXES as VIDEO_SUFFIXES

# Where names are surer than first bytes: raw files begin as TIFF does, songs as films do.
_BY_NAME = {
    ".part": "a download that is not finished",
    **dict.fromkeys(
        (".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".nef", ".nrw", ".pef",
         ".rwl", ".sr2", ".srf", ".srw"),
        "a camera's raw file: develop it, and save it as TIFF or JPEG",
    ),
    **dict.fromkeys((".aac", ".m4a", ".m4b", ".mka", ".oga", ".weba", ".wma"), "sound alone"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """A file as it was named, its path below the input that named it, and the other fields of Item."""

    file: Path | str
    below: PurePath
    bytes: int | None = None
    content: str | None = None
    listed: str | None = None


class Search:
    """A search for inputs."""

    def __init__(self, videos: bool, out: Path | str | None, passed: dict[str, str]) -> None:
        """Make the search.

        Args:
            videos: Find videos too.
            out: The output folder, which is not searched.
            passed: Gets the files that are not taken, and why.
        """
        self.suffixes = (*BY_SUFFIX, *VIDEO_SUFFIXES) if videos else tuple(BY_SUFFIX)
        self.out, self.passed = out, passed
        self.results: set[Path] = set()  # of earlier runs, among the files that are searched
        self.unread = f"not an image of {', '.join(NAMES)}{' or a video' if videos else ''}: convert it"

    def local(self, path: Path) -> list[Found]:
        """The files that a path on a disk names."""
        try:
            is_folder, exists = path.is_dir(), path.exists()
        except (OSError, ValueError) as error:  # a name of 300 characters, or with a NUL
            raise InputNotFound(f"{str(path)!r} cannot be looked for: {error}") from error
        if exists and not is_folder:
            return [Found(path, PurePath(path.name), content=content_suffix(path))]
        if not (exists or glob.has_magic(str(path))):
            raise InputNotFound(f"{path} does not exist: check the name of the image or folder")
        folder = None if self.out is None else local_path(self.out)
        base = path if is_folder else Path(*_fixed(path.parts))
        within = folder is not None and _real(base).is_relative_to(_real(folder))
        self.results = results_in(_real(folder)) if folder is not None and within else set()
        if is_folder:
            return _sorted(one for file in self._walk(path, folder) if (one := self._take(file, path)))
        inside = None if folder is None or within else folder.absolute()
        files = [
            file
            for file in self._globbed(path.parts)
            if _is_file(file) and not any(part.startswith(".") for part in file.relative_to(base).parts)
            if inside is None or not file.absolute().is_relative_to(inside)
        ]
        found = [one for file in files if (one := self._take(file, base))]
        if not files:
            raise InputNotFound(f"{path} matches no image: check the pattern")
        return _sorted(found)

    def remote(self, url: str) -> list[Found]:
        """The objects that a URL names."""
        system, path = open_url(url)
        path = path.rstrip("/")
        with reached(f"list {url}", InputNotFound):
            if glob.has_magic(path):
                base = PurePosixPath(*_fixed(PurePosixPath(path).parts))
                listed = system.glob(path, detail=True)
            elif system.isdir(path):
                base, listed = PurePosixPath(path), system.find(path, detail=True)
            elif system.exists(path):
                base, listed = PurePosixPath(path).parent, {path: system.info(path)}
            else:
                raise InputNotFound(f"{url} does not exist: check the address, and what the credentials may read")
        results = None if self.out is None or local_path(self.out) else f"{str(self.out).rstrip('/')}/"
        found, matched = [], False
        for name, info in listed.items():
            file, below = str(system.unstrip_protocol(name)), PurePosixPath(name).relative_to(base)
            if info.get("type") != "file" or (results is not None and file.startswith(results)):
                continue
            # A file that is named is accepted whatever it is.
            if path not in listed and any(part.startswith(".") for part in below.parts):
                continue
            matched = True
            if path in listed or below.suffix.lower() in self.suffixes:
                found.append(Found(file, below, info.get("size"), listed=remote_version(info)))
            else:
                self.passed[file] = self.unread
        if not matched and glob.has_magic(path):
            raise InputNotFound(f"{url} matches no image: check the pattern")
        return _sorted(found)

    def _walk(self, folder: Path, out: Path | None) -> Iterator[Path]:
        """The files below a folder that are not hidden and no links out of it."""
        root, results = _real(folder), _real(out) if out else None
        for parent, folders, files in os.walk(folder, onerror=self._unlisted):
            self._leave_out(parent, folders)
            folders[:] = [name for name in folders if results is None or _real(Path(parent, name)) != results]
            for name in files:
                file = Path(parent, name)
                if name.startswith("."):
                    continue
                if _is_link(file) and not (_is_file(file) and _real(file).is_relative_to(root)):
                    self.passed[str(file)] = "a link out of the folder, or to nothing: name the file itself"
                else:
                    yield file

    def _globbed(self, parts: Sequence[str]) -> Iterator[Path]:
        """What a pattern matches. `**` enters no link to a folder: one that leads back would be entered for ever."""
        if "**" not in parts:
            yield from map(Path, glob.iglob(str(Path(*parts))))  # noqa: PTH207  (it leaves hidden names out)
            return
        at = parts.index("**")
        for root in glob.iglob(os.path.join(Path(*parts[:at]), "")):  # noqa: PTH118, PTH207  (folders alone)
            for folder, folders, files in os.walk(root, onerror=self._unlisted):
                self._leave_out(folder, folders)
                found = [Path(folder, name) for name in files]
                yield from (file for file in found if _matches(file.relative_to(root).parts, parts[at:]))

    def _leave_out(self, parent: str, folders: list[str]) -> None:
        """Take hidden folders out of a walk's list, and enter the links, which a walk never follows."""
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if _is_link(Path(parent, name)):
                self.passed[str(Path(parent, name))] = "a link to a folder: name the folder itself"

    def _take(self, file: Path, base: Path) -> Found | None:
        """A file of a folder or glob where it is to be read; else why not is entered."""
        content, suffix = content_suffix(file), file.suffix.lower()
        if self.results and not self.results.isdisjoint((real := _real(file), real.parent)):
            self.passed[str(file)] = "a result of an earlier run into this folder: name the file itself"
        elif suffix in _BY_NAME:
            self.passed[str(file)] = _BY_NAME[suffix]
        elif (content or suffix) in self.suffixes:
            return Found(file, file.relative_to(base), content=content)
        elif (content or suffix) in VIDEO_SUFFIXES:
            self.passed[str(file)] = "a video, which is not taken here"
        else:
            self.passed[str(file)] = self.unread
        return None

    def _unlisted(self, error: OSError) -> None:
        self.passed[str(error.filename)] = f"a folder that cannot be listed: {error.strerror}"


def natural_key(below: PurePath) -> list[tuple[tuple[int, int, str], ...]]:
    """A sort key of a path below its folder: numbers by value, letters without case, then exactly."""
    tokens = [[token for token in re.split(r"(\d+)", part) if token] for part in below.parts]
    return [
        *(tuple((0, int(t), "") if t.isdecimal() else (1, 0, t.casefold()) for t in part) for part in tokens),
        tuple((1, 0, part) for part in below.parts),
    ]


def content_suffix(path: Path) -> str | None:
    """The suffix that a file should have by its first bytes; None if they are those of no image and no video."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            return None
        with path.open("rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError):
        return None
    found = format_of(head)
    return found.suffixes[0] if found else suffix_of(head)


def _is_link(path: Path) -> bool:
    return os.path.islink(path)  # noqa: PTH114  (False for a path that is too long, where Path raises)


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  (the same, and for a target in a folder that is closed to us)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # for a name that is too long and a link to itself too, where Path raises


def _sorted(found: Iterable[Found]) -> list[Found]:
    return sorted(found, key=lambda one: natural_key(one.below))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or pattern[0] != "**":
        same = bool(parts and pattern) and fnmatch(parts[0], pattern[0])
        return _matches(parts[1:], pattern[1:]) if same else not (parts or pattern)
    return len(pattern) == 1 or any(_matches(parts[begin:], pattern[1:]) for begin in range(len(parts) + 1))


def _fixed(parts: Sequence[str]) -> Sequence[str]:
    """The parts of a glob before the first that is a pattern."""
    return parts[: next((i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))]
