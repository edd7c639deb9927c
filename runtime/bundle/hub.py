"""Bundles from and to the Hugging Face Hub: `hf://owner/name`, with `@revision` for a branch, a tag or a commit.

A downloaded bundle is opened like any other: each file must have the sha256 that the manifest names.
"""

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bfr.runtime.errors import BundleInvalid, InvalidOption, MissingDependency
from bfr.runtime.files import cache_folder
from bfr.runtime.install import install_command

if TYPE_CHECKING:
    from bfr.runtime.bundle.bundle import Bundle

_log = logging.getLogger("bfr")
ADDRESS = re.compile(r"hf:/{1,2}([\w.-]+)/([\w.-]+?)(?:@([\w./-]+))?")
"""A `Path` of such an address keeps one slash."""
COMMIT = re.compile(r"[0-9a-f]{40}")
FILES = ["manifest.json", "*.onnx", "*.safetensors", "README.md"]


def is_address(folder: Path | str) -> bool:
    """Return whether this is an address of the Hub, not a folder."""
    return str(folder).startswith("hf:")


def pull(address: Path | str) -> Path:
    """Download the missing files of a bundle into the cache folder, and return its folder.

    A commit that was downloaded whole needs no network. HF_TOKEN and HF_ENDPOINT are those of huggingface_hub.

    Raises:
        InvalidOption: The address is none.
        BundleInvalid: The Hub has no such repository or revision, or cannot be reached.
        MissingDependency: huggingface_hub is not installed.
    """
    owner, name, revision = _parts(address)
    folder = cache_folder() / "hub" / "--".join((owner, name, *(revision or "main").split("/")))
    whole = folder / ".whole"  # an interrupted download lacks it
    if revision and COMMIT.fullmatch(revision) and whole.is_file():
        return folder
    api = _hub()
    _log.info("downloading hf://%s/%s", owner, name)
    try:
        api.snapshot_download(f"{owner}/{name}", revision=revision, local_dir=folder, allow_patterns=FILES)
    except Exception as error:  # the Hub's types, and those of the HTTP library that its version uses
        raise BundleInvalid(
            f"hf://{owner}/{name} cannot be downloaded ({_first_line(error)}): check its name and revision, "
            "the network, and for private ones the token in HF_TOKEN"
        ) from error
    whole.touch()
    return folder


def push(bundle: "Bundle", address: str, *, private: bool = True) -> str:
    """Check the files of a bundle, and upload it.

    Args:
        bundle: The bundle.
        address: `hf://owner/name`, with `@branch` for another branch than `main`.
        private: Whether a repository that is made for it is private.

    Returns:
        The address of the commit.

    Raises:
        InvalidOption: The address is none.
        BundleCorrupt: A file is not the one that the manifest describes.
        BundleInvalid: The Hub refuses, or cannot be reached.
        MissingDependency: huggingface_hub is not installed.
    """
    owner, name, revision = _parts(address)
    files = bundle.check_all()
    api = _hub()
    _log.info("uploading %d files; their sha256 match the manifest", files)
    try:
        api.create_repo(f"{owner}/{name}", private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=f"{owner}/{name}",
            folder_path=bundle.folder,
            revision=revision,
            allow_patterns=FILES,
            commit_message="Upload a bundle of bfr",
        )
    except Exception as error:  # as in `pull`
        raise BundleInvalid(
            f"hf://{owner}/{name} accepted no upload ({_first_line(error)}): check the name, the network, and "
            "that the token in HF_TOKEN may write there"
        ) from error
    return f"hf://{owner}/{name}@{done.oid}"


def _parts(address: Path | str) -> tuple[str, str, str | None]:
    found = ADDRESS.fullmatch(str(address).replace("\\", "/"))
    if not found:
        raise InvalidOption(f"{address} is no address of a bundle: name it as hf://owner/name or hf://owner/name@v1")
    return found[1], found[2], found[3]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _hub() -> Any:
    """Return huggingface_hub's interface to the endpoint that the environment names."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency(f"bundles of the Hugging Face Hub need {install_command('hub')}") from error
    return huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
