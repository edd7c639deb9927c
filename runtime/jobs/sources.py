"""Names: which images and videos a run reads from files, folders, globs and object stores, and where results go."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path, PurePath, PurePosixPath
from unicodedata import normalize

from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.files import shortened
from bfr.runtime.images.formats import BY_SUFFIX, NAMES, result_suffix
from bfr.runtime.jobs.search import Found, Search, natural_key
from bfr.runtime.jobs.store import Store, identity_of, local_path, version_of
from bfr.runtime.text import listed, without_secrets
from bfr.runtime.video.formats import MEDIA_TYPES as VIDEO_TYPES
from bfr.runtime.video.formats import SUFFIXES as VIDEO_SUFFIXES
from bfr.runtime.video.formats import output_suffix

MEDIA_TYPES = {suffix: one.media_type for suffix, one in BY_SUFFIX.items()} | VIDEO_TYPES
_SHOWN = 10  # files of a message that were skipped


@dataclass(frozen=True, slots=True)
class Item:
    """One image or video of a run.

    Attributes:
        source: The file to read, a path or a URL.
        name: Where its result goes below the output folder, relative, `/` between its parts, without suffix. No two
            items of a run share one, on file systems that ignore case or composed accents neither.
        bytes: Size of its file, if the listing of an object store has it.
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
        """Its path on this machine; None for any other URL."""
        return local_path(self.source)

    @property
    def suffix(self) -> str:
        """The suffix of its content; if that is not known or a video too, of its name, in lower case."""
        named = PurePosixPath(self.source).suffix.lower()
        if self.content is None or (named in VIDEO_SUFFIXES and self.content in VIDEO_SUFFIXES):
            return named
        return self.content

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its content if that is known."""
        return self.suffix in VIDEO_SUFFIXES

    def result_suffix(self, image_format: str) -> str:
        """The suffix of its result.

        Args:
            image_format: Suffix of images' results, or `same` for the source's own where it is written.
        """
        if self.is_video:
            return output_suffix(self.suffix)
        return result_suffix(BY_SUFFIX.get(self.suffix)) if image_format == "same" else image_format

    @property
    def version(self) -> str | None:
        """What changes when its file does, see `version_of`; None if there is no such file."""
        return self.listed if self.path is None else version_of(self.path)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was found.

    Attributes:
        passed_over: Files of folders that are not read -> why.
    """

    items: list[Item]
    passed_over: Mapping[str, str] = field(default_factory=dict)


def find_images(inputs: Sequence[Path | str], *, videos: bool = False, out: Path | str | None = None) -> list[Item]:
    """Find the images that `inputs` name, as `find_inputs` does.

    Args:
        inputs: Files, folders and globs, and as text also URLs.
        videos: Find videos too.
        out: The output folder, which is not searched.

    Raises:
        InputNotFound: An input does not exist, or a glob matches nothing.
    """
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
    found: dict[str, Found] = {}  # by path, its folder without links, or by URL
    real = cache(os.path.realpath)
    passed: dict[str, str] = {}
    search = Search(videos, out, passed)
    for name in [inputs] if isinstance(inputs, str | PathLike) else inputs:  # a text would be taken letter by letter
        path = local_path(name)
        for one in search.remote(str(name)) if path is None else search.local(path):
            file = one.file
            found.setdefault(f"{real(file.parent)}/{file.name}" if isinstance(file, Path) else file, one)
    names = choose_names([one.below for one in found.values()])
    items = [
        Item(one.file, name, one.bytes, one.content, one.listed)
        for one, name in zip(found.values(), names, strict=True)
    ]
    return Inputs(items, dict(sorted(passed.items(), key=lambda one: natural_key(PurePath(one[0])))))


def check_found(inputs: Inputs, named: Sequence[object], *, videos: bool = False) -> None:
    """Raise InputNotFound if nothing was found to restore, with what was looked for and what was skipped."""
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


def find_masks(items: Sequence[Item], masks: Path | str) -> dict[str, Path]:
    """The mask of each item, by its key: the one file, or the file in a folder that has the picture's name.

    Raises InputNotFound if there is none, or more than one.
    """
    masks = Path(masks)
    if masks.is_file():
        return {item.key: masks for item in items}
    if not masks.is_dir():
        raise InputNotFound(f"{masks} does not exist: name a mask image, or a folder of masks, with --mask")
    chosen = {}
    for item in items:
        stem = PurePath(item.source).stem
        found = sorted(path for path in masks.iterdir() if path.stem == stem and path.is_file())
        if len(found) != 1:
            problem = "no mask" if not found else f"{len(found)} masks"
            raise InputNotFound(f"{masks} has {problem} named {stem}: give each picture one of its name")
        chosen[item.key] = found[0]
    return chosen


def choose_outputs(items: Sequence[Item], store: Store, image_format: str) -> tuple[dict[str, str], dict[str, str]]:
    """Choose the names of results. One that the suffix would make too long for a file system is shortened.

    Returns key of an item -> its result, relative to the output folder, and key -> why it can have none. Raises
    InvalidOption if a result would replace an input of the run, by any name of that file.
    """
    taken = {identity_of(item.source) for item in items} - {None}
    outputs, refused = {}, {}
    for item in items:
        suffix = item.result_suffix(image_format)
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


def check_free(outputs: Iterable[str], store: Store) -> None:
    """Raise InvalidOption, which names them, if results would replace files in the output folder."""
    there = store.existing(outputs)
    if there:
        raise InvalidOption(
            f"{listed(there, _SHOWN)} in {store.url} would be replaced: give --overwrite to replace, --resume to "
            "continue, or choose another output folder"
        )


def choose_names(paths: Sequence[PurePath]) -> list[str]:
    """The names of results by the rules of `find_images`.

    Args:
        paths: Paths of the sources, below their inputs.
    """
    plain = [path.with_suffix("").as_posix() for path in paths]
    long = [f"{name}_{path.suffix[1:]}" if path.suffix else name for name, path in zip(plain, paths, strict=True)]
    shared = Counter(map(folded, plain))
    # A name that nothing shares comes first to its own: `a_jpg.png` beside `a.jpg` and `a.png` stays `a_jpg`.
    taken = {name for name, count in shared.items() if count == 1}
    names = []
    for short, full in zip(plain, long, strict=True):
        if shared[folded(short)] == 1:
            names.append(short)
            continue
        name, number = full, 2
        while folded(name) in taken:
            name, number = f"{full}_{number}", number + 1
        taken.add(folded(name))
        names.append(name)
    return names


def folded(name: str) -> str:
    """A name without what some file systems ignore: case, and how accents are composed."""
    return normalize("NFC", name.casefold())
