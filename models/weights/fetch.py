"""Download of published weights: resumed after an interruption, checked, and only then given its final name.

The authors of some weights publish no hashes. For those the sha256 of the first download is recorded in the folder's
`hashes.json`, and every later one must agree with it. Nothing here runs at import; this is the only module of the
package that opens a connection to another machine.
"""

import http.client
import json
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPMessage as Message
from ipaddress import ip_address
from pathlib import Path
from typing import IO, cast

from bfr.runtime.errors import DownloadFailed, WriteFailed
from bfr.runtime.files import sha256_file, write_bytes

CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
LARGEST = 1 << 35  # bytes, of a file whose size is not known beforehand
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Download:
    """One file to fetch: where from, its name in the folder, and its size and sha256 as far as they are published.

    Attributes:
        also: Other names that the same weights have had, or ends of paths where a tree has several files of one name,
            as `unet/diffusion_pytorch_model.safetensors`; see `bfr.models.weights.locate`.
    """

    url: str
    file: str
    bytes: int | None = None
    sha256: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """A downloaded and checked file; `resumed_from` bytes of it had been downloaded before this call."""

    path: Path
    bytes: int
    sha256: str
    resumed_from: int


def fetch(download: Download, folder: Path | str, *, progress: Progress | None = None) -> Fetched:
    """Download a published file into a folder, or check the file that is there.

    The transfer goes to `<file>.part`; interrupted, it stays there and the next call resumes it. One process at a time.

    Args:
        download: The file.
        folder: Destination, created if missing.
        progress: Called with (bytes done, bytes in all or None).

    Raises:
        DownloadFailed: The connection fails, or size or sha256 are not the published ones.
        WriteFailed: The folder cannot be written.
    """
    if not re.fullmatch(r"\w[\w.+-]*", download.file):
        raise ValueError(f"{download.file!r} is not a plain file name")
    _check_url(download.url)
    folder = Path(folder)
    path, part = folder / download.file, folder / f"{download.file}.part"
    recorded = _recorded_hashes(folder)
    resumed_from = 0
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        resumed_from = _transfer(download, part, progress)
    source = path if path.is_file() else part
    with _reading(source):
        size, sha256 = source.stat().st_size, sha256_file(source)
    if problem := _problem(download, size, sha256, recorded.get(download.file)):
        if source is part:
            part.unlink()  # a resumed download would keep the wrong bytes
            raise DownloadFailed(f"{download.url}: {problem}; it was deleted: fetch again")
        raise DownloadFailed(f"{path}: {problem}: delete it and fetch again")
    with _writing(folder):
        if download.sha256 is None and download.file not in recorded:
            # Before the rename: the next call would trust a file without a record.
            recorded = {**_recorded_hashes(folder), download.file: sha256}
            write_bytes(folder / "hashes.json", (json.dumps(recorded, indent=1, sort_keys=True) + "\n").encode())
        if source is part:
            part.replace(path)
    return Fetched(path, size, sha256, resumed_from)


def _transfer(download: Download, part: Path, progress: Progress | None) -> int:
    """Complete `part`; return how many of its earlier bytes were used."""
    with _writing(part.parent):
        if part.is_symlink():  # its name can be guessed: the target may be another user's file
            part.unlink()
        start = part.stat().st_size if part.exists() else 0
    if download.bytes is not None and start >= download.bytes:
        if start == download.bytes:
            return start  # complete, but not renamed: the checks decide
        start = 0
    try:
        response = _open(download.url, start, part.parent)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise DownloadFailed(f"{download.url}: the server answers {error.code} {error.reason}") from error
        if _range_total(error.headers.get("Content-Range")) == start:
            return start
        response, start = _open(download.url, 0, part.parent), 0  # the part is longer than the file: start over
    with response:
        content_range = response.headers.get("Content-Range")
        if response.status == http.client.PARTIAL_CONTENT:
            total = _range_total(content_range)
            if not re.match(rf"bytes {start}-", content_range or ""):
                raise DownloadFailed(
                    f"{download.url}: the server sent {content_range!r}, bfr requested from byte {start}: fetch again"
                )
        else:  # the server does not resume
            start = 0
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
        if None not in (total, download.bytes) and total != download.bytes:
            raise DownloadFailed(
                f"{download.url}: the server offers {total} bytes, expected {download.bytes}: "
                "the published file has changed; look for a newer version of bfr"
            )
        total = total if total is not None else download.bytes
        if total is not None and total > LARGEST:
            raise DownloadFailed(f"{download.url}: the server offers {total:,} bytes, more than any weights have")
        done = _copy(download.url, response, part, start=start, total=total, progress=progress)
    if total is not None and done != total:
        raise DownloadFailed(_interrupted(download.url, done, total, "the connection ended early"))
    return start


def _copy(
    url: str, response: IO[bytes], part: Path, *, start: int, total: int | None, progress: Progress | None
) -> int:
    """Write the response behind the first `start` bytes of `part`; returns the size reached."""
    done = start
    with _writing(part.parent):
        file = part.open("r+b" if start else "wb", buffering=0)
    with file:
        file.seek(start)
        while True:
            if progress:
                progress(done, total)
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise DownloadFailed(_interrupted(url, done, total, str(error) or type(error).__name__)) from error
            if not chunk:
                return done
            with _writing(part.parent):
                view = memoryview(chunk)
                while view:  # a raw write may be short; on a full disk the next one raises
                    view = view[file.write(view) :]
            done += len(chunk)
            if done > (LARGEST if total is None else total):
                raise DownloadFailed(
                    f"{url}: the server sends more than the {total or LARGEST} bytes that were expected"
                )


def _problem(download: Download, size: int, sha256: str, recorded: str | None) -> str | None:
    if download.bytes is not None and size != download.bytes:
        return f"{size} bytes, expected {download.bytes}"
    if download.sha256 is not None and sha256 != download.sha256.lower():
        return f"sha256 is {sha256}, published is {download.sha256}"
    if download.sha256 is None and recorded is not None and sha256 != recorded:
        return (
            f"sha256 is {sha256}, at the first download it was {recorded} (if the authors replaced the file on "
            "purpose, delete its entry in hashes.json)"
        )
    return None


def _recorded_hashes(folder: Path) -> dict[str, str]:
    path = folder / "hashes.json"
    with _reading(path):
        text = path.read_bytes() if path.exists() else b"{}"
    try:
        recorded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DownloadFailed(
            f"{path} is not JSON ({error}): restore it, or delete it to record the hashes again"
        ) from error
    if not isinstance(recorded, dict) or not all(isinstance(value, str) for value in recorded.values()):
        raise DownloadFailed(f"{path} is not a table of file -> sha256: restore it, or delete it to record them again")
    return recorded


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL_HOSTS):
        raise DownloadFailed(f"{url}: bfr downloads over https only")


def _check_redirect(old: str, new: str) -> None:
    """Raise DownloadFailed for a redirect that leaves https, or leads from it to this machine or a private network."""
    _check_url(new)
    if urllib.parse.urlsplit(old).scheme != "https":
        return
    parts = urllib.parse.urlsplit(new)
    if parts.scheme != "https" or _is_private(parts.hostname or ""):
        raise DownloadFailed(f"{old} redirects to {new}: bfr follows redirects to public https addresses only")


def _is_private(host: str) -> bool:
    """Whether a host is this machine or in a private network, by its name or number alone."""
    host = host.rstrip(".").lower()
    if host in ("", "localhost") or host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        try:
            address = ip_address(socket.inet_aton(host))  # 127.1, 0x7f000001, 2130706433
        except OSError:
            return False
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, which release pages use, see `_check_redirect`."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        _check_redirect(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, start: int, folder: Path) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "bfr"})  # noqa: S310  (checked by _check_url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.build_opener(_CheckedRedirects).open(request, timeout=TIMEOUT)
    except (urllib.error.HTTPError, DownloadFailed):
        raise
    except (OSError, http.client.HTTPException) as error:
        raise DownloadFailed(
            f"{url}: cannot connect ({error}): check the network and the proxy settings, or download it elsewhere and "
            f"put it into {folder}"
        ) from error
    return cast(http.client.HTTPResponse, response)


def _range_total(content_range: str | None) -> int | None:
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", content_range or "")
    return int(match[1]) if match else None


def _interrupted(url: str, done: int, total: int | None, reason: str) -> str:
    of = f" of {total}" if total is not None else ""
    return f"{url}: interrupted after {done}{of} bytes ({reason}): run the command again to resume"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except WriteFailed:
        raise
    except OSError as error:
        raise WriteFailed(
            f"cannot write in {folder.absolute()} ({error.strerror or error}): free some space there, or set BFR_HOME "
            "to a folder that can be written"
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadFailed(f"{path} cannot be read ({error.strerror or error}): check its permissions") from error
