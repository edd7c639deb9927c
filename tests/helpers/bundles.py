"""Small bundles for tests: files below `tests/bundles`, which `tests/make_bundles.py` exports."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from once import once

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import MANIFEST

FOLDER = Path(__file__).parents[1] / "bundles"
SYSTEMS = ("clrface", "diffbfr", "diffmac", "dr2", "identity", "inpainting", "osdface", "pgdiff")


def unpacked(name: str, folder: Path) -> Bundle:
    """The bundle `name`, unpacked into `folder`."""
    with zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
        archive.extractall(folder)
    return Bundle.open(folder)


def shared(name: str, factory: pytest.TempPathFactory) -> Bundle:
    """The bundle `name`, unpacked once for all processes of the run. Tests only read it."""
    return Bundle.open(once(factory, name, lambda folder: unpacked(name, folder / "bundle")) / "bundle")


@contextmanager
def edited(folder: Path) -> Iterator[dict[str, Any]]:
    """The manifest of a bundle as JSON, written again with what was changed in it."""
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))
