"""Files and folders that are absent or whole, whatever happens while they are written.

All work is done under a temporary name in the same folder, `.NAME.PID-TAG.part`, and renamed onto the final name at the
end: a rename within one file system is atomic. A long NAME is shortened there, so that whatever name the file system
allows can be written. A killed process leaves its temporary behind; it never blocks anybody, and is removed by the next
writer of the same name, or by `clean_leftovers`, once its process is gone.
"""

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bfr.runtime.errors import WriteFailed

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EFBIG: "the file is larger than this file system allows: choose another disk",
    errno.EROFS: "the file system is read-only: choose a folder that can be written",
    errno.EACCES: "permission denied: choose a folder that can be written, or change its permissions",
    errno.EPERM: "permission denied: choose a folder that can be written, or change its permissions",
    errno.ENOENT: "no folder can be made there, or it was removed: choose another one",
    errno.EIO: "the disk reports an error: check the disk or choose another one",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away or choose another folder",
    errno.EEXIST: "something of that name is in the way: move it away or choose another name",
    errno.ENOTEMPTY: "something of that name is in the way: move it away or choose another name",
    errno.EISDIR: "a folder of that name is in the way: move it away or choose another name",
    errno.EINVAL: "this file system does not take such a name: rename the source, or choose another disk",
    errno.EILSEQ: "this file system does not take such a name: rename the source, or choose another disk",
    errno.EMFILE: "too many open files: raise the limit with 'ulimit -n'",
}
_OF_ONE_NAME = {
    errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR,
    errno.EFBIG, errno.EACCES, errno.EPERM,
}  # fmt: skip
# A process number means something only on the machine that gave it, and folders are shared between containers.
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
_LEFTOVER = re.compile(rf"\.(?P<name>.+)\.(?P<pid>\d+)-{_MACHINE}[0-9a-f]{{8}}\.(?P<kind>part|old)", re.DOTALL)
LONGEST_NAME = 255  # bytes; of ext4, xfs, btrfs, APFS and NTFS, whose units are no smaller
_LONGEST_PART = 96  # bytes of NAME in a temporary name: all of it stays below the 143 bytes of encrypted folders
_in_use: set[str] = set()


def cache_folder() -> Path:
    """Return where downloads are kept: `$BFR_HOME`, else `bfr` in the platform's cache folder. It need not exist yet.

    Raises WriteFailed if the user has no home folder.
    """
    try:
        if home := os.environ.get("BFR_HOME"):
            return Path(home).expanduser()  # files of systemd and Docker leave `~`
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "bfr"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "bfr"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bfr"
    except RuntimeError as error:
        raise WriteFailed("this user has no home folder: set BFR_HOME to a folder that can be written") from error


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 lower-case hexadecimal digits, in constant memory."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Return the sha256 of what is left of an open file, as `sha256_file`."""
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` under `path`, whole or not at all; missing folders are made. Raises WriteFailed."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def shortened(name: str, longest: int = LONGEST_NAME, *, suffix: str = "") -> str:
    """A name and its suffix, in `longest` bytes at most; a longer name is cut and ends in 16 digits of its sha256."""
    data = os.fsencode(name)
    room = longest - len(os.fsencode(suffix))
    if len(data) <= room:
        return name + suffix
    digest = hashlib.sha256(data).hexdigest()[:16]
    kept = data[: room - len(digest) - 1].decode(errors="ignore")  # whole characters; the digest keeps names apart
    return f"{kept}~{digest}{suffix}"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; on success it is synced and renamed onto `path`, replacing a file there.

    The folder is made if missing. On any exception, KeyboardInterrupt too, the temporary is removed and `path` is what
    it was. Raises WriteFailed if the folder cannot be written.
    """
    with _temporary_beside(path) as temporary, _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)  # noqa: PTH105  (one name for tests to make fail)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False, mark: str = "*") -> Iterator[Path]:
    """Yield an empty temporary folder to fill; on success its files are synced and it is renamed to `path`.

    With `replace` an old folder stays in place until the new one is complete; then it is renamed aside, to
    `.NAME.PID-TAG.old`, the new one is renamed in, and only then is the old one deleted. A process killed between the
    two renames leaves `path` absent and the old one whole: `recover_folder` puts it back, and the next call does so
    first. On any exception the temporary is removed and `path` is what it was.
    Raises WriteFailed if the folder cannot be written, and, before any work, where `path` exists without `replace`
    or is no folder of that kind: one that is empty, or has a file that the pattern `mark` finds.
    """
    recover_folder(path)
    if os.path.lexists(path) and not (replace and replaceable(path, mark)):
        raise WriteFailed(
            f"{path} exists and is not a folder: move it away, or choose another name"
            if not path.is_dir()
            else f"{path} has no {mark}, as what would replace it: choose another name, or delete it"
            if replace
            else f"{path} exists: choose another name, delete it, or replace it (--replace)"
        )
    with _temporary_beside(path) as temporary, _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _sync(file)
        _rename_in(temporary, path)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, and delete it. What dead processes left there is deleted first.

    Raises OSError if it cannot be made.
    """
    clean_leftovers(path.parent)
    with _temporary_beside(path) as temporary:
        temporary.mkdir()
        try:
            yield temporary
        finally:
            _remove(temporary)


def replaceable(path: Path, mark: str) -> bool:
    """Whether a folder is of the kind that would replace it: it is empty, or has a file that the pattern finds."""
    return path.is_dir() and (not any(path.iterdir()) or any(path.glob(mark)))


def recover_folder(path: Path) -> None:
    """Mend what a killed `atomic_folder(path)` left: put the old folder back if `path` is absent, delete the rest.

    What a living process is working on is not touched. Raises WriteFailed if the old folder cannot be put back.
    """
    leftovers = _leftovers(path.parent, shortened(path.name, _LONGEST_PART))
    old = [leftover for leftover in leftovers if leftover.suffix == ".old"]
    if old and not os.path.lexists(path):
        # The loser of two recoveries finds the folder in place already.
        with _explained(path), suppress(FileNotFoundError):
            old[-1].rename(path)
    for leftover in leftovers:
        _remove(leftover)


def clean_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders that processes of this machine, now dead, left in `folder`."""
    for leftover in _leftovers(folder):
        if leftover.suffix == ".part":
            _remove(leftover)


def _rename_in(new: Path, path: Path) -> None:
    if not os.path.lexists(path):
        os.rename(new, path)  # noqa: PTH104  (one name for tests to make fail)
        return
    old = new.with_suffix(".old")
    try:
        os.rename(path, old)  # noqa: PTH104
        os.rename(new, path)  # noqa: PTH104
    except BaseException:
        if not os.path.lexists(path):
            os.rename(old, path)  # noqa: PTH104
        raise
    _remove(old)


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    tag = f"{os.getpid()}-{_MACHINE}{secrets.token_hex(4)}"
    temporary = path.parent / f".{shortened(path.name, _LONGEST_PART)}.{tag}.part"
    _in_use.add(temporary.name)
    try:
        yield temporary
    except BaseException:
        _remove(temporary)
        raise
    finally:
        _in_use.discard(temporary.name)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the OSErrors of writing `path` into WriteFailed; those of other files and of networks pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES or not _concerns(error.filename, path):
            raise
        failed = WriteFailed(
            f"cannot write {path.name} in {path.parent.absolute()}: {_REMEDIES[error.errno]} ({error.strerror})"
        )
        failed.errno = error.errno
        raise failed from error


def concerns_one_file(error: WriteFailed) -> bool:
    """Return whether a write failed for its name or place, so that other files of the folder may still be written."""
    return error.errno in _OF_ONE_NAME


def _concerns(filename: object, path: Path) -> bool:
    if not isinstance(filename, str | os.PathLike):
        return True  # writing to an open file names no file
    named, folder = Path(filename).absolute(), path.parent.absolute()
    return folder.is_relative_to(named) or named.is_relative_to(folder)


def _sync(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """The leftovers of dead processes in `folder`, oldest first: all, or those of one final name."""
    found = []
    with suppress(OSError):
        for entry in os.scandir(folder):
            match = _LEFTOVER.fullmatch(entry.name)
            if match and name in (None, match["name"]) and not _alive(int(match["pid"]), entry.name):
                found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.path))
    return [Path(path) for _, path in sorted(found)]


def _alive(pid: int, leftover: str) -> bool:
    if pid == os.getpid():  # the same number as a dead one's: usual in containers, where every run is process 1
        return leftover.removesuffix(".old").removesuffix(".part") + ".part" in _in_use
    if os.name == "nt":
        return True  # no harmless question there: os.kill with 0 sends Ctrl-C
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    """Delete a file, link or folder; what cannot be deleted stays and is harmless."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
