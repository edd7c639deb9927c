"""Names: which images and videos a run reads from files, folders, globs and object stores, and where results go."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.files import shortened
from bfr.runtime.images.formats import BY_SUFFIX, NAMES, format_of, result_suffix
from bfr.runtime.jobs.store import Store, identity_of, local_path, open_url, remote_version, version_of
from bfr.runtime.text import without_secrets
from bfr.runtime.video.formats import HEAD, output_suffix, suffix_of
from bfr.runtime.video.formats import SUFFIXES as VIDEO_SUFFIXES

# What names tell better than first bytes: raw files begin as TIFF does, songs as films do.
_BY_NAME = {
    ".part": "a download that is not finished",
    **dict.fromkeys(
        (".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".nef", ".nrw", ".pef",
         ".rwl", ".sr2", ".srf", ".srw"),
        "a camera's raw file: develop it, and save it as TIFF or JPEG",
    ),
    **dict.fromkeys((".aac", ".m4a", ".m4b", ".mka", ".oga", ".weba", ".wma"), "sound alone"),
}  # fmt: skip
_SHOWN = 10  # files of a message that were passed over


@dataclass(frozen=True, slots=True)
class Item:
    """One image or video of a run.

    Attributes:
        source: The file to read, a path or a URL.
        name: Where its result goes below the output folder, relative, `/` between its parts, without suffix. No two
            items of a run share one, on file systems that ignore case neither.
        bytes: Of its file, where the listing of an object store says so.
        content: The suffix that its first bytes call for, where the listing has looked at them.
        listed: Its version, where the listing of an object store says so.
    """

    source: Path | str
    name: str
    bytes: int | None = None
    content: str | None = None
    listed: str | None = None

    @property
    def key(self) -> str:
        """What reports call it: its path or URL, without passwords and signatures."""
        return without_secrets(self.source) if isinstance(self.source, str) else str(self.source)

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine's disks; None where it is another URL."""
        return local_path(self.source)

    @property
    def suffix(self) -> str:
        """The suffix of its content; where that is not known or a video too, of its name, in lower case."""
        named = PurePosixPath(self.source).suffix.lower()
        if self.content is None or (named in VIDEO_SUFFIXES and self.content in VIDEO_SUFFIXES):
            return named
        return self.content

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its content where that is known."""
        return self.suffix in VIDEO_SUFFIXES

    @property
    def version(self) -> str | None:
        """What changes when its file does, see `version_of`; None where there is no such file."""
        return self.listed if self.path is None else version_of(self.path)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was found. passed_over: files of folders that are not read -> why."""

    items: list[Item]
    passed_over: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Found:
    """A file as it was named, its path below the input that named it, and the other fields of Item."""

    file: Path | str
    below: PurePath
    bytes: int | None = None
    content: str | None = None
    listed: str | None = None


def find_images(inputs: Sequence[Path | str], *, videos: bool = False, out: Path | str | None = None) -> list[Item]:
    """As `find_inputs`, the items alone."""
    return find_inputs(inputs, videos=videos, out=out).items


def find_inputs(inputs: Sequence[Path | str], *, videos: bool = False, out: Path | str | None = None) -> Inputs:
    """The images that `inputs` name: files, folders, globs, and as text also URLs of them.

    They come in the given order, those of a folder or glob in natural order (2 before 10). A file that is named is
    taken whatever it is. A folder is searched recursively for images, with `videos` also for videos: files that begin
    as one, and files that are named as one. In an object store names alone decide. Hidden files are not looked at, and
    neither is `out`, the output folder, below a folder that is searched: its pictures are results of an earlier run.
    All other files are named in `passed_over`, links that lead out of the folder too. A file named twice is read once.

    Names are paths relative to the folder, or to the part of a glob before its first `*`, `?` or `[`, without suffix.
    Where these collide, each of them gets its suffix (`a.jpg` and `a.png`: `a_jpg`, `a_png`), and where that collides
    still, a number (`a_2`). Names depend on the files alone, so that a resumed run finds its own results.

    Raises:
        InputNotFound: An input does not exist, or a glob matches nothing.
        MissingDependency, InvalidOption: A URL needs a package, or is of an unknown protocol.
    """
    found: dict[str, _Found] = {}  # by absolute path or URL
    passed: dict[str, str] = {}
    search = _Search(videos, out, passed)
    for name in inputs:
        path = local_path(name)
        for one in search.remote(str(name)) if path is None else search.local(path):
            found.setdefault(str(one.file.absolute() if isinstance(one.file, Path) else one.file), one)
    names = choose_names([one.below for one in found.values()])
    items = [
        Item(one.file, name, one.bytes, one.content, one.listed)
        for one, name in zip(found.values(), names, strict=True)
    ]
    return Inputs(items, dict(sorted(passed.items(), key=lambda one: natural_key(PurePath(one[0])))))


def check_found(inputs: Inputs, named: Sequence[object], *, videos: bool = False) -> None:
    """Raise InputNotFound where nothing was found to restore, with what was looked for and what was passed over."""
    if inputs.items:
        return
    passed = list(inputs.passed_over.items())
    shown = "".join(f"\n  {source}: {reason}" for source, reason in passed[:_SHOWN])
    more = f"\n  and {len(passed) - _SHOWN} more" if len(passed) > _SHOWN else ""
    what = f"{', '.join(NAMES)}{' and videos' if videos else ''} are looked for"
    raise InputNotFound(
        f"no image was found in {', '.join(map(str, named))}: {what}"
        + (f", {len(passed)} file{'s were' if len(passed) > 1 else ' was'} passed over:{shown}{more}" if passed else "")
    )


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

    image_format: the suffix of images, or `same` for the source's own where it is written. A name that the suffix would
    make too long for a file system is shortened.
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
        folder, slash, last = item.name.rpartition("/")
        output = f"{folder}{slash}{shortened(last, suffix=suffix)}"
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


def natural_key(below: PurePath) -> list[tuple[tuple[int, int, str], ...]]:
    """A sort key of a path below its folder: numbers by value, letters without case, then exactly."""
    tokens = [[token for token in re.split(r"(\d+)", part) if token] for part in below.parts]
    return [
        *(tuple((0, int(t), "") if t.isdecimal() else (1, 0, t.casefold()) for t in part) for part in tokens),
        tuple((1, 0, part) for part in below.parts),
    ]


class _Search:
    """A search for inputs. passed: gets the files that are not taken, and why."""

    def __init__(self, videos: bool, out: Path | str | None, passed: dict[str, str]) -> None:
        self.suffixes = (*BY_SUFFIX, *VIDEO_SUFFIXES) if videos else tuple(BY_SUFFIX)
        self.out, self.passed = out, passed
        self.unread = f"not an image of {', '.join(NAMES)}{' or a video' if videos else ''}: convert it"

    def local(self, path: Path) -> list[_Found]:
        folder = None if self.out is None else local_path(self.out)
        try:
            is_folder, exists = path.is_dir(), path.exists()
        except (OSError, ValueError) as error:  # a name of 300 characters, or with a NUL
            raise InputNotFound(f"{str(path)!r} cannot be looked for: {error}") from error
        if is_folder:
            return _sorted(one for file in self._walk(path, folder) if (one := self._take(file, path)))
        if exists:
            return [_Found(path, PurePath(path.name), content=content_suffix(path))]
        if not glob.has_magic(str(path)):
            raise InputNotFound(f"{path} does not exist: check the name of the image or folder")
        base = Path(*_fixed(path.parts))
        matches = [Path(match) for match in glob.iglob(str(path), recursive=True)]  # noqa: PTH207  (a last `**` is files)
        files = [
            file
            for file in matches
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(base).parts)
            if folder is None or not file.absolute().is_relative_to(folder.absolute())
        ]
        found = [one for file in files if (one := self._take(file, base))]
        if not files:
            raise InputNotFound(f"{path} matches no image: check the pattern")
        return _sorted(found)

    def remote(self, url: str) -> list[_Found]:
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
        results = None if self.out is None or local_path(self.out) else f"{str(self.out).rstrip('/')}/"
        found, matched = [], False
        for name, info in listed.items():
            file, below = str(system.unstrip_protocol(name)), PurePosixPath(name).relative_to(base)
            if info.get("type") != "file" or (results is not None and file.startswith(results)):
                continue
            # A file that is named is taken whatever it is.
            if path not in listed and any(part.startswith(".") for part in below.parts):
                continue
            matched = True
            if path in listed or below.suffix.lower() in self.suffixes:
                found.append(_Found(file, below, info.get("size"), listed=remote_version(info)))
            else:
                self.passed[file] = self.unread
        if not matched and glob.has_magic(path):
            raise InputNotFound(f"{url} matches no image: check the pattern")
        return _sorted(found)

    def _walk(self, folder: Path, out: Path | None) -> Iterator[Path]:
        """The files below a folder that are not hidden and no links out of it."""
        root, results = folder.resolve(), out.resolve() if out else None
        for parent, folders, files in os.walk(folder, onerror=self._unlisted):
            # Linked folders are listed here but never entered.
            for name in [name for name in folders if _is_link(Path(parent, name)) and not name.startswith(".")]:
                self.passed[str(Path(parent, name))] = "a link to a folder: name the folder itself"
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".") and (results is None or not _same(Path(parent, name), results))
            ]
            for name in files:
                file = Path(parent, name)
                if name.startswith("."):
                    continue
                if _is_link(file) and not (file.is_file() and file.resolve().is_relative_to(root)):
                    self.passed[str(file)] = "a link out of the folder, or to nothing: name the file itself"
                else:
                    yield file

    def _take(self, file: Path, base: Path) -> _Found | None:
        """A file of a folder or glob where it is to be read; else why not is entered."""
        content, suffix = content_suffix(file), file.suffix.lower()
        if suffix in _BY_NAME:
            self.passed[str(file)] = _BY_NAME[suffix]
        elif (content or suffix) in self.suffixes:
            return _Found(file, file.relative_to(base), content=content)
        elif (content or suffix) in VIDEO_SUFFIXES:
            self.passed[str(file)] = "a video, which is not taken here"
        else:
            self.passed[str(file)] = self.unread
        return None

    def _unlisted(self, error: OSError) -> None:
        self.passed[str(error.filename)] = f"a folder that cannot be listed: {error.strerror}"


def content_suffix(path: Path) -> str | None:
    """The suffix that a file should have by its first bytes; None where they are those of no image and no video."""
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


def _same(path: Path, resolved: Path) -> bool:
    try:
        return path.resolve() == resolved
    except OSError:  # too long
        return False


def _sorted(found: Iterable[_Found]) -> list[_Found]:
    return sorted(found, key=lambda one: natural_key(one.below))


def _fixed(parts: Sequence[str]) -> Sequence[str]:
    """The parts of a glob before the first that is a pattern."""
    return parts[: next((i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))]
