"""The command that installs an extra, matching how this package was installed.

No text names a distribution of this project to install from an index: none is published there, and anybody could
register the name.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bfr.runtime.errors import MissingDependency

NAME = "bfr-runtime"  # of the distribution
_PLAIN = re.compile(r"[^\"$`\\!%\n]*")  # safe between double quotes, in shells and on Windows
_EXTRAS = "\0"  # where they go
_REPOSITORY = ("repository", "source", "source code", "homepage")  # labels of [project.urls]


def install_command(*extras: str, options: str = "") -> str:
    """Return the command of pip that adds extras to this installation.

    Args:
        extras: Names of [project.optional-dependencies].
        options: Options of pip, such as `--force-reinstall`.
    """
    asked = f"[{','.join(extras)}]" if extras else ""
    what, flags = _origin()
    where = "" if what is not None else ", in the folder of bfr's sources"
    requirement = (what or f".{_EXTRAS}").replace(_EXTRAS, asked)
    return " ".join(filter(None, ("pip install", options, flags, _quoted(requirement)))) + where


def need(extra: str, *packages: str) -> None:
    """Raise MissingDependency with the extra to install, unless all packages can be imported. Imports nothing.

    Args:
        extra: That brings them; for ONNX Runtime alone it is `cpu`.
        packages: Their import names.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        extra = "cpu" if missing == ["onnxruntime"] else extra
        raise MissingDependency(f"{', '.join(missing)} not installed: {install_command(extra)}")


@contextmanager
def importing(package: str, extra: str) -> Iterator[None]:
    """Raise MissingDependency with the extra to install if an import fails; `package` as people call it."""
    try:
        yield
    except ImportError as error:
        raise MissingDependency(f"{package} is not installed: {install_command(extra)}") from error


@cache
def _origin() -> tuple[str | None, str]:
    """What pip is given, with _EXTRAS where they go, and its options; None if that is not known."""
    from importlib import metadata

    found = [*metadata.distributions(name=NAME)]  # in the folder of the sources, their .egg-info comes first
    for one in found:
        try:
            direct = json.loads(one.read_text("direct_url.json") or "null")
        except ValueError:
            continue
        if isinstance(direct, dict) and (known := _direct(direct)):
            return known
    if sources := _sources():
        return sources, ""
    for entry in found[0].metadata.get_all("Project-URL") or [] if found else []:
        label, _, url = entry.partition(",")
        if label.strip().lower() in _REPOSITORY and url.strip().startswith("https://"):
            return f"{NAME}{_EXTRAS} @ git+{url.strip()}", ""
    return None, ""


def _direct(direct: dict[str, Any]) -> tuple[str, str] | None:
    """Of direct_url.json, see PEP 610: a folder or a wheel that is still there, a repository, a wheel's address."""
    url = str(direct.get("url", ""))
    folder, vcs = direct.get("dir_info"), direct.get("vcs_info")
    if url.startswith("file:"):
        from urllib.request import url2pathname  # brings HTTP along

        path = Path(url2pathname(urlsplit(url).path))
        if not path.exists():
            return None
        editable = isinstance(folder, dict) and folder.get("editable")
        return f"{path}{_EXTRAS}", "--config-settings editable_mode=strict -e" if editable else ""
    if not url.startswith(("https://", "ssh://")):
        return None
    if isinstance(vcs, dict):
        return f"{NAME}{_EXTRAS} @ {vcs.get('vcs', 'git')}+{url}@{vcs.get('commit_id', '')}".rstrip("@"), ""
    return f"{NAME}{_EXTRAS} @ {url}", ""


def _sources() -> str | None:
    """The folder that this file lies in, where it is one of sources."""
    folder = Path(__file__).resolve().parents[1]
    project = folder / "pyproject.toml"
    try:
        text = project.read_text("utf-8")
    except OSError:
        return None
    return f"{folder}{_EXTRAS}" if re.search(rf'^name = "{NAME}"$', text, re.MULTILINE) else None


def _quoted(text: str) -> str:
    return f'"{text}"' if os.name == "nt" or _PLAIN.fullmatch(text) else shlex.quote(text)
