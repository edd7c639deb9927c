"""A folder on a disk or in an object store: `photos`, `file:///photos`, `s3://bucket/photos` and what fsspec knows."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from bfr.runtime.errors import BfrError, InputNotFound, InvalidImage, InvalidOption, MissingDependency, WriteFailed
from bfr.runtime.files import clean_leftovers, write_bytes
from bfr.runtime.install import install_command

# What object stores say of a change, the surest first.
_CHANGES = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
_DRIVES = os.name == "nt"  # `C:a` is in another folder there, and `a:b` a hidden part of the file `a`
LONGEST_KEY = 1024  # bytes, of S3, Google Cloud Storage and Azure
_URL = re.compile(r"[a-z][a-z0-9+.-]+(://|::)", re.IGNORECASE)  # two letters at least: `C:\photos` is a path


def open_url(url: str) -> tuple[Any, str]:
    """An fsspec file system, and the path in it. Raises MissingDependency or InvalidOption naming what is missing."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingDependency(f"{url} needs fsspec: {install_command('cluster')}") from error
    if "::" in url:  # what lies in such a file system has no address of its own, by which a worker could read it
        raise InvalidOption(f"{url} is a chain of file systems: name the last one alone")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # fsspec says which package brings the protocol: "Install s3fs to access S3"
        raise MissingDependency(f"{url} cannot be opened: {error}. On a cluster, every node needs it") from error
    except ValueError as error:
        raise InvalidOption(
            f"{url} cannot be opened ({error}): name a folder, or a URL that fsspec knows, as s3://bucket/folder"
        ) from error
    return system, str(path)


@contextmanager
def reached(action: str, kind: type[BfrError] = WriteFailed) -> Iterator[None]:
    """Turn what a disk raises, or whatever package serves a protocol, into an error of a kind: cannot do `action`."""
    try:
        yield
    except BfrError:
        raise
    except Exception as error:
        raise kind(
            f"cannot {action} ({error}): check the address, the credentials, and the disk or the network"
        ) from error


def local_path(name: str | PathLike[str]) -> Path | None:
    """The path that `name` is on this machine's disks, `file://` included; None if it is another URL."""
    if isinstance(name, PathLike) or not _URL.match(name):
        return Path(name)
    if name.lower().startswith(("file://", "local://")):
        return Path(unquote(open_url(name)[1]))
    return None


def read_bytes(source: str | Path, most: int) -> bytes:
    """The bytes of a file. Raises InputNotFound, and InvalidImage if it cannot be read, or has more than `most`."""
    if (path := local_path(source)) is not None:
        return path.read_bytes()
    system, key = open_url(str(source))
    with reached(f"read {source}", InvalidImage):
        try:
            with system.open(key, "rb") as file:  # of an object whose size no listing says too
                data = bytes(file.read(most + 1))
        except FileNotFoundError as error:
            raise InputNotFound(f"{source} does not exist any more") from error
    if len(data) > most:
        raise InvalidImage(f"{source} has more than {most} bytes: make it smaller, or raise --max-pixels")
    return data


def identity_of(source: str | Path) -> object:
    """What no other file shares: of a local one, through links, its device and inode, else its address.

    None if there is no such file.
    """
    if (path := local_path(source)) is None:
        return source
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def version_of(path: Path) -> str | None:
    """What changes when a file does: its bytes and the time of its last change; None if there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return f"{found.st_size}-{found.st_mtime_ns}"


def remote_version(info: Mapping[str, Any]) -> str:
    """The same of an object, as its store's listing has it: its bytes, and the first of what stores say of a change."""
    change = next((info[name] for name in _CHANGES if info.get(name)), "")
    if isinstance(change, datetime):  # some listings have the one, some the other
        change = change.timestamp()
    return f"{info.get('size')}-{f'{change:.6f}' if isinstance(change, float) else change}"


class Store:
    """The output folder. Files appear in it whole or not at all: by a rename on a disk, by one put elsewhere."""

    def __init__(self, url: str | Path) -> None:
        """Raises what `open_url` raises. The folder need not exist yet."""
        self.folder = local_path(url)
        if self.folder is not None:
            self.folder = self.folder.absolute()
            self.url = str(self.folder)
        else:
            self.system, self._root = open_url(str(url))
            self.url = str(url).rstrip("/")

    def check(self, name: str, suffix: str) -> None:
        """Raise InvalidOption if `name + suffix`, relative with `/` between its parts, would leave the folder.

        That is an absolute name, `..`, a backslash, NUL or another control character, on Windows a drive, and on a disk
        a folder below it that is a link to elsewhere.
        """
        if (
            any(part in ("", ".", "..") for part in name.split("/"))
            or re.search(r"[\x00-\x1f\\]", name + suffix)
            or "/" in suffix
            or (_DRIVES and ":" in name)
        ):
            raise InvalidOption(
                f"the name {name + suffix!r} could leave the output folder {self.url}, or has a backslash or control "
                "character: rename the image"
            )
        if self.folder is None and len(self._path(name + suffix).encode(errors="surrogateescape")) > LONGEST_KEY:
            raise InvalidOption(f"the name {name + suffix!r} is longer than object stores take: shorten it")
        if self.folder is not None:
            path = self.folder / (name + suffix)
            real = os.path.realpath  # for a link to itself too, where Path raises
            if not Path(real(path.parent)).is_relative_to(real(self.folder)):
                raise InvalidOption(
                    f"{path} lies outside the output folder {self.url}, through a link: remove the link"
                )

    def identity(self, name: str) -> object:
        """What no other file shares, see `identity_of`."""
        return identity_of(
            self.folder / name if self.folder is not None else str(self.system.unstrip_protocol(self._path(name)))
        )

    def existing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are there."""
        if self.folder is not None:
            return [name for name in names if identity_of(self.folder / name) is not None]
        there = self.versions()
        return [name for name in names if name in there]

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None if it is not there. Raises WriteFailed if the folder cannot be read."""
        with reached(f"read {name} in {self.url}"):
            try:
                if self.folder is not None:
                    return (self.folder / name).read_bytes()
                return bytes(self.system.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, replacing one of that name. Raises WriteFailed."""
        if self.folder is not None:
            write_bytes(self.folder / name, data)
            return
        path = self._path(name)
        with reached(f"write {name} in {self.url}"):
            try:
                self.system.pipe_file(path, data)
            except FileNotFoundError:  # where folders are more than parts of names: SFTP, SMB, HDFS
                self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
                self.system.pipe_file(path, data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Raises WriteFailed."""
        with reached(f"remove {name} in {self.url}"):
            if self.folder is not None:
                (self.folder / name).unlink(missing_ok=True)
            elif self.system.exists(self._path(name)):
                self.system.rm_file(self._path(name))

    def version(self, name: str) -> str | None:
        """What changes when a file does, as of `version_of`; None if it is not there."""
        if self.folder is not None:
            return version_of(self.folder / name)
        try:
            return remote_version(self.system.info(self._path(name)))
        except FileNotFoundError:
            return None

    def versions(self) -> dict[str, str | None]:
        """The files below the folder, by their paths with `/`, and their versions; none if it does not exist.

        Raises WriteFailed if the folder cannot be read.
        """
        if self.folder is not None:
            files = [file for file in self.folder.rglob("*") if file.is_file()]
            return {file.relative_to(self.folder).as_posix(): version_of(file) for file in files}
        root = self._root.rstrip("/")
        with reached(f"list {self.url}"):
            self.system.invalidate_cache()
            found = self.system.find(root, detail=True)
        return {str(path)[len(root) :].lstrip("/"): remote_version(info) for path, info in found.items()}

    def clean(self, names: Iterable[str]) -> None:
        """Delete temporary files that dead processes of this machine left beside these files."""
        if self.folder is not None:
            for folder in {self.folder, *((self.folder / name).parent for name in names)}:
                if folder.is_dir():
                    clean_leftovers(folder)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
