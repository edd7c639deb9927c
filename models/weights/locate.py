"""Find a published file in a folder: bfr's own, its authors' tree, or a hub's download."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from bfr.models.systems.system import SystemSpec
from bfr.models.weights.fetch import Download
from bfr.models.weights.identify import SUFFIXES
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.files import sha256_file
from bfr.runtime.text import listed

DEPTH = 6  # folders below the named one: as deep as hubs put a file below their cache
SHOWN = 6
Progress = Callable[[str], None]


def locate(folder: Path, download: Download) -> Path | None:
    """The file of a download in a folder or in one of its folders; None if there is none.

    Its names are looked for in turn, the published one first, each as its .safetensors copy before itself; of one name
    the file nearest to the top. Folders whose name begins with a dot are skipped. Raises InvalidOption if two files of
    the same name, as near to the top, differ.
    """
    names = [PurePosixPath(name) for name in (download.file, *download.also)]
    wanted = list(dict.fromkeys(one for name in names for one in (name.with_suffix(".safetensors"), name)))
    for name in wanted:  # at once where they lie flat, as bfr puts them
        if (path := folder / name).is_file():
            return path
    files = list(_files(folder))
    for name in wanted:
        if found := [path for path in files if path.parts[-len(name.parts) :] == name.parts]:
            depth = min(len(path.parts) for path in found)
            return _one([path for path in found if len(path.parts) == depth], folder)
    return None


def find_weights(folder: Path, download: Download, system: SystemSpec) -> Path:
    """As `locate`. Raises InputNotFound with the names that were looked for, what is there, and the remedy."""
    if folder.is_file():
        raise InputNotFound(f"{folder} is a file: give its folder with --weights, not the file")
    path = locate(folder, download)
    if path is not None:
        return path
    names = " or ".join((download.file, *download.also))
    files = [path for path in _files(folder) if any(end in path.name.lower() for end in SUFFIXES)]  # a.PTH, a.pth.part
    there = sorted(path.relative_to(folder).as_posix() for path in files)
    seen = f"has {listed(there, SHOWN)}" if there else "has no checkpoint" if folder.is_dir() else "does not exist"
    remedy = f"`bfr fetch {system.name}` downloads it, or give the folder that has it with --weights"
    if download.file in system.by_hand:
        remedy = f"{system.by_hand[download.file]}. Put it there, or give the folder that has it with --weights"
    elif not system.published:
        remedy = "its authors did not publish it: give the folder of your own weights with --weights, or use --seeded"
    raise InputNotFound(
        f"{download.file} of {system.name} is not in {folder}, which {seen}. It may be called {names}: {remedy}"
    )


def _files(folder: Path) -> Iterator[Path]:
    """Every file of a folder, to DEPTH folders down, in a fixed order."""
    top = len(folder.parts)
    for where, folders, files in os.walk(folder):
        here = Path(where)
        deeper = len(here.parts) - top < DEPTH
        folders[:] = sorted(name for name in folders if deeper and not name.startswith("."))
        yield from (here / name for name in sorted(files) if (here / name).is_file())


def _one(paths: Sequence[Path], folder: Path) -> Path:
    """The one file of several that are equal."""
    first = paths[0]
    others = [path for path in paths[1:] if not path.samefile(first)]
    if others and len({(path.stat().st_size, sha256_file(path)) for path in paths}) > 1:
        names = " and ".join(path.relative_to(folder).as_posix() for path in paths)
        raise InvalidOption(f"{folder} has {names}, which differ: give the folder of the right one with --weights")
    return first


def usable_weights(system: SystemSpec, folder: Path, scratch: Path, progress: Progress = lambda _: None) -> Path:
    """Return the folder to export a system from: `folder`, or `scratch` with the converted files.

    Args:
        system: The system; it has an importer if its weights are not published network by network.
        folder: The folder of the networks' own files, or of the published ones.
        scratch: An empty folder with room for all networks in float32.
        progress: Called with a line before the conversion.

    Raises:
        InputNotFound: Neither is there, or some of the published files are not.
        InvalidCheckpoint, InvalidOption, MissingDependency, WriteFailed: As the importer does.
    """
    own = [download for spec in system.networks.values() for download in spec.files.values()]
    if system.importer is None or not folder.is_dir() or all(locate(folder, download) for download in own):
        return folder
    if not any(locate(folder, source) for source in system.sources):
        published = ", ".join(source.also[0] if source.also else source.file for source in system.sources)
        raise InputNotFound(
            f"{folder} has neither the published files of {system.name} ({published}) nor the files converted from "
            f"them ({', '.join(download.file for download in own)}): `bfr fetch {system.name}` downloads and converts "
            "them"
        )
    progress(f"converting the published files in {folder}")
    system.importer(folder, scratch)
    return scratch
