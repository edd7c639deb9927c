"""Bundles of the Hugging Face Hub, against a small one of our own on the loopback."""

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bfr.runtime.bundle import hub
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import BundleCorrupt, BundleInvalid, InvalidOption

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as huggingface_hub calls to upload and download one repository."""

    files: dict[str, bytes]
    objects: dict[str, bytes]
    requests: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.requests.append(path)
        if "org/none" in path:
            self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        elif "/tree/" in path:
            tree = [{"type": "file", "path": name, "size": len(d), "oid": "0"} for name, d in self.files.items()]
            self.answer(tree)
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer({"id": "org/mini", "sha": COMMIT, "siblings": siblings, "private": False})
        elif (data := self.files.get(path.rsplit("/", 1)[-1])) is not None:
            self.answer(data, ETag=f'"{hashlib.sha256(data).hexdigest()}"')
        else:
            self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        self.objects[self.path.rsplit("/", 1)[-1]] = self.body()
        self.answer({})

    def do_POST(self) -> None:
        path, data = urlsplit(self.path).path, self.body()
        self.requests.append(path)
        if path.endswith("/repos/create"):
            self.answer({"url": f"http://{self.headers['Host']}/org/mini"})
        elif path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            asked = json.loads(data)["files"]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in asked
            ]
            self.answer({"files": modes})
        elif path.endswith("/objects/batch"):
            where = f"http://{self.headers['Host']}/put/"
            objects = [
                {**one, "actions": {"upload": {"href": where + one["oid"]}}} for one in json.loads(data)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")
        elif "/commit/" in path:
            for line in map(json.loads, data.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.objects[value["oid"]]
            where = f"http://{self.headers['Host']}/org/mini/commit/{COMMIT}"
            self.answer({"commitUrl": where, "commitOid": COMMIT, "success": True})
        else:
            self.answer({"error": path}, 404)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    from huggingface_hub import constants

    handler = type("Handler", (Hub,), {"files": {}, "objects": {}, "requests": []})
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{served.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("BFR_HOME", str(tmp_path / "home"))
    yield handler
    served.shutdown()


def test_a_bundle_is_pushed_and_pulled(server: type[Hub], tiny_bundle: Bundle) -> None:
    address = hub.push(tiny_bundle, "hf://org/mini")
    assert address == f"hf://org/mini@{COMMIT}"
    assert server.files.keys() >= {"manifest.json", "estimator.onnx"}
    pulled = Bundle.open(address)
    assert pulled.hash == tiny_bundle.hash
    assert pulled.check_all()
    asked = len(server.requests)
    assert Bundle.open(Path(address)).folder == pulled.folder  # also as the Path that options make of it
    assert len(server.requests) == asked  # a commit never changes


def test_an_interrupted_download_is_finished(server: type[Hub], tiny_bundle: Bundle) -> None:
    address = hub.push(tiny_bundle, "hf://org/mini")
    folder, asked = hub.pull(address), len(server.requests)
    for file in (folder / ".whole", next(folder.glob("*.safetensors"))):
        file.unlink()  # as if it had ended before these came
    assert Bundle.open(address).check_all()
    assert len(server.requests) > asked


def test_what_was_changed_there_is_found_out(server: type[Hub], tiny_bundle: Bundle) -> None:
    hub.push(tiny_bundle, "hf://org/mini")
    name = next(name for name in server.files if name.endswith(".safetensors"))
    server.files[name] = server.files[name][:-1] + b"?"
    with pytest.raises(BundleCorrupt):
        Bundle.open("hf://org/mini").check_all()


def test_what_is_not_there_says_what_to_check(server: type[Hub]) -> None:
    assert not server.files
    with pytest.raises(BundleInvalid, match="check its name"):
        Bundle.open("hf://org/none")


def test_a_hub_that_cannot_be_reached_says_what_to_check(
    server: type[Hub], tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The types of its errors are those of the HTTP library that huggingface_hub uses."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(BundleInvalid, match=r"accepted no upload .*check the name, the network"):
            hub.push(tiny_bundle, "hf://org/mini")
        with pytest.raises(BundleInvalid, match=r"cannot be downloaded .*check its name"):
            hub.pull("hf://org/mini")
    assert not server.requests


@pytest.mark.parametrize("address", ["hf://mini", "hf://a/b/c", "hf://a/../b", "hf://", "hf:a/b"])
def test_no_address(address: str) -> None:
    with pytest.raises(InvalidOption, match="hf://owner/name"):
        hub.pull(address)
    with pytest.raises(InvalidOption, match="hf://owner/name"):
        Bundle.open(Path(address))
