"""The files of a bundle, checked against their entries in the manifest before anything reads them."""

import hashlib
import mmap
from pathlib import Path

from bfr.runtime.bundle.manifest import BundleFile
from bfr.runtime.errors import BundleCorrupt
from bfr.runtime.files import sha256_file, sha256_of

POINTER = b"version https://git-lfs"  # at the beginning of what a clone without Git LFS has in the place of large files


def check_file(folder: Path, file: BundleFile, remedy: str) -> Path:
    """Compare a file with its entry.

    Args:
        folder: The folder that the entry's path starts from.
        file: The entry.
        remedy: How to fix a wrong file, for the error.

    Returns:
        The path of the file.

    Raises:
        BundleCorrupt: The file is missing, or has another size or sha256.
    """
    path = _sized(folder, file, remedy)
    _compare(path, file, sha256_file(path), remedy)
    return path


def read_file(folder: Path, file: BundleFile, remedy: str) -> bytes:
    """Read a file and compare the bytes that were read, as `check_file` does."""
    path = _sized(folder, file, remedy)
    with path.open("rb") as opened:
        data = opened.read(file.bytes + 1)  # bounded, if the file grows meanwhile
    _compare(path, file, hashlib.sha256(data).hexdigest(), remedy)
    return data


def map_file(folder: Path, file: BundleFile, remedy: str) -> mmap.mmap | bytes:
    """Map a file into memory and compare it, as `check_file` does.

    The file is opened once: replacing it later does not change the map, writing into it does.
    """
    path = _sized(folder, file, remedy)
    if not file.bytes:
        return read_file(folder, file, remedy)
    with path.open("rb") as opened:
        _compare(path, file, sha256_of(opened), remedy)
        return mmap.mmap(opened.fileno(), file.bytes, access=mmap.ACCESS_READ)


def _sized(folder: Path, file: BundleFile, remedy: str) -> Path:
    path = folder / file.path
    if not path.is_file():
        raise BundleCorrupt(f"{path} is missing: {remedy}")
    size = path.stat().st_size
    if size != file.bytes:
        with path.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                raise BundleCorrupt(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` there")
        raise BundleCorrupt(f"{path} has {size} bytes, {file.bytes} are recorded: {remedy}")
    return path


def _compare(path: Path, file: BundleFile, found: str, remedy: str) -> None:
    if found != file.sha256:
        raise BundleCorrupt(f"{path} has sha256 {found}, {file.sha256} is recorded: {remedy}")
