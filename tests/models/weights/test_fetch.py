"""Downloads from a server on this machine that can be made to misbehave."""

import errno
import hashlib
import io
import json
import os
import random
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from interpreter import python

from bfr.models.weights import fetch as fetch_module
from bfr.models.weights.fetch import Download, fetch
from bfr.runtime.errors import DownloadFailed, WriteFailed

DATA = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SIZE = len(DATA)


@dataclass
class Server:
    """What the server does, and the Range headers that it was sent."""

    url: str = ""
    data: bytes = DATA
    ranges: bool = True
    stop_after: int | None = None  # bytes of body, then the connection closes
    announce_length: bool = True
    redirect: str | None = None
    status: int | None = None
    wrong_range: bool = False
    requests: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch_module, "CHUNK", 1 << 14)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append(wanted)
            if state.redirect or state.status:
                self.send_response(state.status or 302)
                self.send_header("Location", state.redirect or "")
                self.send_header("Content-Length", "0")
                self.end_headers()
                state.redirect = None
                return
            start, total = 0, len(state.data)
            if wanted and state.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                first = 0 if state.wrong_range else start
                self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if state.announce_length:
                self.send_header("Content-Length", str(total - start))
            self.end_headers()
            self.wfile.write(state.data[start:][: state.stop_after])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state.url = f"http://127.0.0.1:{httpd.server_port}/weights.pth"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_whole_file(server: Server, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    download = Download(server.url, "w.pth", SIZE, SHA256)
    fetched = fetch(download, tmp_path / "a" / "b", progress=lambda done, total: calls.append((done, total)))
    assert (fetched.path, fetched.bytes, fetched.sha256) == (tmp_path / "a" / "b" / "w.pth", SIZE, SHA256)
    assert fetched.resumed_from == 0
    assert fetched.path.read_bytes() == DATA
    assert names(tmp_path / "a" / "b") == ["w.pth"]
    assert server.requests == [None]
    assert calls[0] == (0, SIZE)
    assert calls[-1] == (SIZE, SIZE)
    assert calls == sorted(calls)
    assert len(calls) > 10


def test_a_file_that_is_there_is_checked_and_not_fetched(server: Server, tmp_path: Path) -> None:
    download = Download(server.url, "w.pth", SIZE, SHA256)
    first = fetch(download, tmp_path)
    assert fetch(download, tmp_path) == first
    assert len(server.requests) == 1
    first.path.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(DownloadFailed, match=r"w\.pth.*sha256"):
        fetch(download, tmp_path)
    assert first.path.exists()


@pytest.mark.parametrize("sha256", [SHA256, SHA256.upper(), None])
def test_an_interrupted_transfer_is_resumed(server: Server, tmp_path: Path, sha256: str | None) -> None:
    download = Download(server.url, "w.pth", SIZE, sha256)
    server.stop_after = 100_000
    with pytest.raises(DownloadFailed, match=f"100000 of {SIZE}"):
        fetch(download, tmp_path)
    assert names(tmp_path) == ["w.pth.part"]
    assert (tmp_path / "w.pth.part").read_bytes() == DATA[:100_000]
    server.stop_after = None
    calls: list[int] = []
    fetched = fetch(download, tmp_path, progress=lambda done, _total: calls.append(done))
    assert server.requests == [None, "bytes=100000-"]
    assert fetched.resumed_from == calls[0] == 100_000
    assert fetched.path.read_bytes() == DATA
    assert "w.pth.part" not in names(tmp_path)


def test_an_interruption_by_the_user_keeps_the_part(server: Server, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int | None) -> None:
        if done >= 50_000:
            raise KeyboardInterrupt

    download = Download(server.url, "w.pth", None, SHA256)
    with pytest.raises(KeyboardInterrupt):
        fetch(download, tmp_path, progress=interrupt)
    assert names(tmp_path) == ["w.pth.part"]
    assert fetch(download, tmp_path).resumed_from >= 50_000


def test_a_server_without_range_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "w.pth.part").write_bytes(b"x" * 200_000)
    fetched = fetch(Download(server.url, "w.pth", SIZE, SHA256), tmp_path)
    assert server.requests == ["bytes=200000-"]
    assert fetched.resumed_from == 0
    assert fetched.path.read_bytes() == DATA


@pytest.mark.parametrize("known", [SIZE, None])
def test_a_complete_part_is_only_checked(server: Server, tmp_path: Path, known: int | None) -> None:
    (tmp_path / "w.pth.part").write_bytes(DATA)
    assert fetch(Download(server.url, "w.pth", known, SHA256), tmp_path).resumed_from == SIZE
    assert server.requests == ([] if known else [f"bytes={SIZE}-"])  # the server's 416 says that it is complete


@pytest.mark.parametrize("known", [SIZE, None])
def test_a_part_longer_than_the_file_starts_over(server: Server, tmp_path: Path, known: int | None) -> None:
    (tmp_path / "w.pth.part").write_bytes(DATA + b"more")
    fetched = fetch(Download(server.url, "w.pth", known, SHA256), tmp_path)
    assert fetched.resumed_from == 0
    assert fetched.path.read_bytes() == DATA


def test_a_range_from_elsewhere_is_refused(server: Server, tmp_path: Path) -> None:
    server.wrong_range = True
    (tmp_path / "w.pth.part").write_bytes(DATA[:1000])
    with pytest.raises(DownloadFailed, match="1000"):
        fetch(Download(server.url, "w.pth", SIZE, SHA256), tmp_path)


def test_a_wrong_size_is_refused_before_the_transfer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=f"{SIZE} .*{SIZE + 1}"):
        fetch(Download(server.url, "w.pth", SIZE + 1), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_a_wrong_size_that_was_not_announced_is_refused(server: Server, tmp_path: Path, size: int) -> None:
    server.announce_length = False
    with pytest.raises(DownloadFailed, match=f"{size}"):
        fetch(Download(server.url, "w.pth", size), tmp_path)
    assert "w.pth" not in names(tmp_path)
    assert "hashes.json" not in names(tmp_path)


def test_a_wrong_hash_is_refused_and_the_part_deleted(server: Server, tmp_path: Path) -> None:
    server.data = DATA[:-1] + b"x"
    found = hashlib.sha256(server.data).hexdigest()
    with pytest.raises(DownloadFailed, match=f"{found}.*{SHA256}"):
        fetch(Download(server.url, "w.pth", SIZE, SHA256), tmp_path)
    assert names(tmp_path) == []


def test_the_first_hash_is_recorded_and_binds_later_downloads(server: Server, tmp_path: Path) -> None:
    (tmp_path / "hashes.json").write_text(json.dumps({"other.pth": "00"}))
    download = Download(server.url, "w.pth", SIZE)
    first = fetch(download, tmp_path)
    record = {"other.pth": "00", "w.pth": SHA256}
    assert json.loads((tmp_path / "hashes.json").read_text()) == record
    assert fetch(download, tmp_path) == first
    first.path.unlink()
    server.data = DATA[:-1] + b"x"
    with pytest.raises(DownloadFailed, match=rf"{SHA256}.*hashes\.json"):
        fetch(download, tmp_path)
    assert names(tmp_path) == ["hashes.json"]
    assert json.loads((tmp_path / "hashes.json").read_text()) == record
    server.data = DATA
    assert fetch(download, tmp_path) == first


@pytest.mark.parametrize("text", ["{", "[]", '{"w.pth": 3}', "\x00"])
def test_a_damaged_record_is_named(server: Server, tmp_path: Path, text: str) -> None:
    (tmp_path / "hashes.json").write_text(text)
    with pytest.raises(DownloadFailed, match=r"hashes\.json"):
        fetch(Download(server.url, "w.pth"), tmp_path)
    assert server.requests == []


def test_an_error_of_the_server_is_passed_on(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DownloadFailed, match="404"):
        fetch(Download(server.url, "w.pth"), tmp_path)


def test_no_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"cannot connect.*put it into"):
        fetch(Download("http://127.0.0.1:1/w.pth", "w.pth"), tmp_path)


def test_redirects_are_followed_but_only_to_safe_addresses(server: Server, tmp_path: Path) -> None:
    server.redirect = server.url + "?signed"
    (tmp_path / "w.pth.part").write_bytes(DATA[:1000])
    assert fetch(Download(server.url, "w.pth", SIZE, SHA256), tmp_path).resumed_from == 1000
    assert len(server.requests) >= 2  # more where a connection broke and was tried again
    assert set(server.requests) == {"bytes=1000-"}
    server.redirect = "http://weights.invalid/w.pth"
    with pytest.raises(DownloadFailed, match="https"):
        fetch(Download(server.url, "v.pth"), tmp_path)


@pytest.mark.parametrize(
    "new",
    [
        *("http://weights.org/w", "http://localhost/w", "http://127.0.0.1:8000/w", "ftp://weights.org/w", "file:///w"),
        *(
            "https://localhost/w",
            "https://127.0.0.1/w",
            "https://127.1/w",
            "https://2130706433/w",
            "https://0x7f000001/w",
        ),
        *("https://[::1]/w", "https://[::ffff:127.0.0.1]/w", "https://0.0.0.0/w", "https://a.localhost./w"),
        *(
            "https://169.254.169.254/latest/meta-data",
            "https://10.0.0.1/w",
            "https://192.168.1.1/w",
            "https://box.local/w",
        ),
    ],
)
def test_https_leads_to_public_https_alone(new: str) -> None:
    with pytest.raises(DownloadFailed, match="https"):
        fetch_module._check_redirect("https://weights.org/w.pth", new)


@pytest.mark.parametrize("new", ["https://cdn.weights.org/w", "https://1.1.1.1/w", "https://localhost.weights.org/w"])
def test_public_addresses_are_followed(new: str) -> None:
    fetch_module._check_redirect("https://weights.org/w.pth", new)


def test_the_redirect_of_a_request_is_checked() -> None:
    request = urllib.request.Request("https://weights.org/w.pth")
    with pytest.raises(DownloadFailed, match="localhost"):
        fetch_module._CheckedRedirects().redirect_request(
            request, io.BytesIO(), 302, "Found", HTTPMessage(), "http://localhost/w"
        )


def test_a_file_has_an_end(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "LARGEST", SIZE - 1)
    with pytest.raises(DownloadFailed, match="more than any weights"):
        fetch(Download(server.url, "w.pth"), tmp_path)
    server.announce_length = False
    with pytest.raises(DownloadFailed, match="that were expected"):
        fetch(Download(server.url, "w.pth"), tmp_path)
    with pytest.raises(DownloadFailed, match="that were expected"):
        fetch(Download(server.url, "v.pth", SIZE - 20_000, SHA256), tmp_path)
    monkeypatch.setattr(fetch_module, "LARGEST", SIZE)
    assert fetch(Download(server.url, "u.pth"), tmp_path).bytes == SIZE


def test_a_link_in_the_place_of_a_part_is_not_followed(server: Server, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "w.pth.part").symlink_to(victim)
    assert fetch(Download(server.url, "w.pth", SIZE, SHA256), tmp_path).path.read_bytes() == DATA
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "url", ["http://example.com/w", "ftp://127.0.0.1/w", "file:///w", "http://localhost.evil.com/w"]
)
def test_unsafe_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadFailed, match="https"):
        fetch(Download(url, "w.pth"), tmp_path)


@pytest.mark.parametrize("name", ["../w.pth", "a/w.pth", "a\\w.pth", "/w.pth", "", "..", "w\0.pth"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        fetch(Download("https://127.0.0.1:1/w", name), tmp_path)


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WriteFailed, match=r"file.*BFR_HOME"):
            fetch(Download(server.url, "w.pth"), folder)
    assert server.requests == []


def test_a_read_only_file_system(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def read_only(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode != "r" and path.is_relative_to(tmp_path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode, **options)

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(WriteFailed, match=r"Read-only.*BFR_HOME"):
        fetch(Download(server.url, "w.pth"), tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_folder(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o500)
    with pytest.raises(WriteFailed, match=r"cache.*BFR_HOME"):
        fetch(Download(server.url, "w.pth"), folder)


def test_a_full_disk_keeps_the_part_for_the_next_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    download = Download(server.url, "w.pth", SIZE, SHA256)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        with pytest.raises(WriteFailed, match="free some space"):
            fetch(download, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert names(tmp_path) == ["w.pth.part"]
    assert fetch(download, tmp_path).resumed_from == 150_000
    assert (tmp_path / "w.pth").read_bytes() == DATA


def test_import_opens_no_socket_and_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import socket; socket.socket.connect = lambda *a: sys.exit('connected')\n"
        "import bfr.models.weights.fetch"
    )
    python(code, timeout=30)
