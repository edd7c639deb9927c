"""Names: which images a bulk run reads from folders, globs and object stores, and under which names it writes."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bfr.runtime.cluster.bulk.store import Store, identity_of, local_path, open_url
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.images.formats import BY_SUFFIX, result_suffix
from bfr.runtime.jobs.sources import choose_names, list_files, natural_key

_MAGIC = "*?["


@dataclass(frozen=True, slots=True)
class Source:
    """One image of a bulk run.

    url: an absolute path, which every node must see, or a URL. name: where its result goes below the output folder,
    without suffix. bytes: of its file, where the listing says so.
    """

    url: str
    name: str
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    url: str
    below: PurePosixPath | Path
    bytes: int | None = None


def find_sources(inputs: Sequence[str], out: Store) -> list[Source]:
    """The images that `inputs`, files, folders, globs and URLs of them, name: in this order, each in natural order.

    Folders, and what a glob finds, are taken by the rules of `bfr.runtime.jobs.sources.find_images`, and so are names:
    below the folder, or below the part of a glob before its first `*`, `?` or `[`. Raises InputNotFound for what does
    not exist and for a glob that nothing matches, MissingDependency where a URL needs a package.
    """
    found: dict[str, _Found] = {}
    for name in inputs:
        path = local_path(name)
        for one in _remote(name, out) if path is None else _local(path, out):
            found.setdefault(one.url, one)
    names = choose_names([one.below for one in found.values()])
    return [Source(one.url, name, one.bytes) for one, name in zip(found.values(), names, strict=True)]


def choose_outputs(sources: Sequence[Source], out: Store, image_format: str) -> tuple[dict[str, str], dict[str, str]]:
    """URL -> its result, relative to the output folder, and URL -> why it can have none.

    image_format: a suffix, or `same`. Raises InvalidOption where a result would replace an input of the run.
    """
    taken = {identity_of(source.url) for source in sources} - {None}
    outputs, refused = {}, {}
    for source in sources:
        suffix = result_suffix(BY_SUFFIX.get(PurePosixPath(source.url).suffix.lower())) if image_format == "same" else image_format
        try:
            out.check(source.name, suffix)
        except InvalidOption as error:
            refused[source.url] = str(error)
            continue
        output = source.name + suffix
        if out.identity(output) in taken:
            raise InvalidOption(
                f"{output} in {out.url} is an input of this run and would be overwritten: choose another output folder"
            )
        outputs[source.url] = output
    return outputs, refused


def _local(path: Path, out: Store) -> list[_Found]:
    if path.exists() or not glob.has_magic(str(path)):
        files = list_files(path, tuple(BY_SUFFIX), out.folder)
    else:
        base = Path(*_fixed(path.parts))
        matches = [Path(match) for match in glob.iglob(str(path), recursive=True)]  # noqa: PTH207  (a last `**` is files)
        files = [(file, file.relative_to(base)) for file in matches if file.is_file() and _wanted(file)]
        if out.folder is not None:
            files = [one for one in files if not one[0].absolute().is_relative_to(out.folder)]
        if not files:
            raise InputNotFound(f"{path} matches no image: check the pattern")
        files.sort(key=lambda file: natural_key(file[1]))
    return [_Found(str(file.absolute()), below) for file, below in files]


def _remote(url: str, out: Store) -> list[_Found]:
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
    files = [
        _Found(str(system.unstrip_protocol(name)), PurePosixPath(name).relative_to(base), info.get("size"))
        for name, info in listed.items()
        if info.get("type") == "file"
    ]
    if path not in listed:  # a file that is named is taken whatever its suffix
        files = [one for one in files if _wanted(one.below)]
    files = [one for one in files if out.folder is not None or not one.url.startswith(f"{out.url}/")]
    if not files and glob.has_magic(path):
        raise InputNotFound(f"{url} matches no image: check the pattern")
    return sorted(files, key=lambda one: natural_key(one.below))


def _fixed(parts: Sequence[str]) -> Sequence[str]:
    """The parts of a glob before the first that is a pattern."""
    return parts[: next((i for i, part in enumerate(parts) if any(sign in part for sign in _MAGIC)), len(parts))]


def _wanted(path: PurePosixPath | Path) -> bool:
    return path.suffix.lower() in BY_SUFFIX and not any(part.startswith(".") for part in path.parts)
