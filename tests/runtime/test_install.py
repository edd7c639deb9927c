"""The command that installs an extra, and that no text names a distribution which is not published."""

import json
import re
import subprocess
import sys
from email.message import Message
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bfr.runtime import install
from bfr.runtime.errors import MissingDependency

ROOT = Path(__file__).parents[2]
# A distribution of this project named to an installer, without an address behind it.
UNPUBLISHED = re.compile(
    r"""(pip3?|pipx|uv|poetry|conda|mamba)\b[^\n;|]*\b(install|add|run)\b[^\n;|&`]*?[\s"']bfr(-runtime)?(\[[^\]\n]*\])?[="'`<>~\s)]"""
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install bfr in a way: what direct_url.json says, whether its sources lie around, which addresses it names."""
    own = install._sources

    def pretend(
        direct: object = None, *, sources: bool = False, urls: tuple[str, ...] = (), there: bool = True
    ) -> None:
        about = Message()
        for url in urls:
            about["Project-URL"] = url
        text = direct if isinstance(direct, str) or direct is None else json.dumps(direct)
        egg_info = SimpleNamespace(read_text=lambda _name: None, metadata=about)  # of the sources, first on the path
        found = [egg_info, SimpleNamespace(read_text=lambda _name: text, metadata=about)] if there else []
        monkeypatch.setattr(metadata, "distributions", lambda *, name: found if name == install.NAME else [])
        monkeypatch.setattr(install, "_sources", own if sources else lambda: None)
        install._origin.cache_clear()

    yield pretend
    install._origin.cache_clear()


def test_a_folder_of_sources_is_named(installed: Any, tmp_path: Path) -> None:
    installed({"url": tmp_path.as_uri(), "dir_info": {}})
    assert install.install_command("cpu") == f'pip install "{tmp_path}[cpu]"'
    installed({"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    assert install.install_command("serve", "cpu") == (
        f'pip install --config-settings editable_mode=strict -e "{tmp_path}[serve,cpu]"'
    )
    for direct, there in ((None, True), (None, False), ("damaged", True), ("[]", True)):
        installed(direct, sources=True, there=there)
        assert install.install_command("cpu") == f'pip install "{ROOT}[cpu]"'


def test_names_with_signs_of_the_shell_stay_names(installed: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a $(touch x) {} folder"
    folder.mkdir()
    installed({"url": folder.as_uri(), "dir_info": {}})
    command = install.install_command("cpu").removeprefix("pip install ")
    said = subprocess.run(["sh", "-c", f"printf %s {command}"], capture_output=True, text=True, check=True)  # noqa: S603, S607
    assert said.stdout == f"{folder}[cpu]"


def test_a_wheel_is_named_by_where_it_came_from(installed: Any, tmp_path: Path) -> None:
    wheel = tmp_path / "bfr_runtime-0.1.0-py3-none-any.whl"
    wheel.touch()
    installed({"url": wheel.as_uri(), "archive_info": {}})
    assert (
        install.install_command("cpu", options="--force-reinstall") == f'pip install --force-reinstall "{wheel}[cpu]"'
    )
    url = "https://example.org/bfr_runtime-0.1.0-py3-none-any.whl"
    installed({"url": url, "archive_info": {}})
    assert install.install_command("cpu") == f'pip install "bfr-runtime[cpu] @ {url}"'
    installed({"url": "https://example.org/bfr", "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    assert install.install_command("cpu") == 'pip install "bfr-runtime[cpu] @ git+https://example.org/bfr@abc"'


def test_where_the_origin_is_gone_the_repository_is_named_or_the_sources(installed: Any, tmp_path: Path) -> None:
    gone = {"url": (tmp_path / "gone").as_uri(), "dir_info": {}}
    for direct in (gone, None, {"url": "http://example.org/a.whl", "archive_info": {}}):
        installed(direct, urls=("Issues, https://example.org/issues", "Repository, https://example.org/bfr"))
        assert install.install_command("cpu") == 'pip install "bfr-runtime[cpu] @ git+https://example.org/bfr"'
        installed(direct)
        assert install.install_command("cpu") == """pip install ".[cpu]", in the folder of bfr's sources"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('pip install "bfr-runtime[cpu]"', True),
        ("python -m pip install --upgrade bfr", True),
        ("pipx install bfr ", True),
        ("uv pip install 'bfr-runtime>=1'", True),
        ('pip install ".[cpu]"', False),
        ('pip install "bfr-runtime[cpu] @ https://example.org/a.whl"', False),
        ("pip install torch; then run bfr export", False),
    ],
)
def test_such_lines_are_found(text: str, found: bool) -> None:
    assert bool(_named(text)) == found


def test_what_is_needed_is_there_or_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    install.need("export", "json", "re")
    for missing, extra in (("onnxruntime", "cpu"), ("torch", "export")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, missing, None)
            with pytest.raises(MissingDependency, match=rf"^{missing} not installed.*\[{extra}\]"):
                install.need("export", "json", missing)


def test_no_text_installs_a_distribution_that_is_not_published() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)  # noqa: S607
    if listed.returncode:
        pytest.skip("no git repository around")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    texts = [path for path in files if path.suffix in (".py", ".md", ".toml", ".yaml", ".yml", ".html", ".service", "")]
    assert len(texts) > 300
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in texts
        if path.is_file() and path != Path(__file__)
        for line in path.read_text("utf-8", errors="replace").splitlines()
        if _named(line)
    ]
    assert wrong == []


def _named(line: str) -> bool:
    return any(" @ " not in line[found.start() :] for found in UNPUBLISHED.finditer(line + " "))
