"""What is published: every link of the README is absolute, and pyproject.toml names the address that it is given."""

import re
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
ADDRESS = "https://example.org/owner/name"
release = SimpleNamespace(**run_path(str(ROOT / ".ci" / "release.py")))


def test_what_is_packaged_is_there() -> None:
    """A pattern that matches nothing is left out of the wheel without a word."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for package, patterns in told["tool"]["setuptools"]["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert [pattern for pattern in patterns if not any(folder.glob(pattern))] == []
    assert [name for name in told["project"]["license-files"] if not (ROOT / name).is_file()] == []


def test_the_readme_has_no_relative_link_and_loses_no_file() -> None:
    before = (ROOT / "README.md").read_text("utf-8")
    after = release.absolute(before, ADDRESS, "v1")
    targets = re.findall(r"\]\(([^)\s]+)\)", after)
    assert targets
    assert all(target.startswith(("https://", "http://", "#", "mailto:")) for target in targets)
    own = [target.split("/v1/")[1].split("#")[0] for target in targets if target.startswith(ADDRESS)]
    assert "docs/images/before_after.jpg" in own
    assert [path for path in own if not (ROOT / path).exists()] == []


def test_pictures_are_shown_and_files_are_linked() -> None:
    text = "![a](docs/a.jpg) [b](b.md#c) [d](#e) [f](https://g) [![h](i.png)](j.md)"
    assert release.absolute(text, ADDRESS, "v1") == (
        f"![a]({ADDRESS}/raw/v1/docs/a.jpg) [b]({ADDRESS}/blob/v1/b.md#c) [d](#e) [f](https://g) "
        f"[![h]({ADDRESS}/raw/v1/i.png)]({ADDRESS}/blob/v1/j.md)"
    )


def test_the_urls_of_the_project() -> None:
    before = (ROOT / "pyproject.toml").read_text("utf-8")
    after = tomllib.loads(release.with_urls(before, ADDRESS, "v1"))
    assert after["project"].pop("urls")["Repository"] == ADDRESS
    assert after == tomllib.loads(before)
    with pytest.raises(ValueError, match="already"):
        release.with_urls(release.with_urls(before, ADDRESS, "v1"), ADDRESS, "v1")


@pytest.mark.parametrize("name", ["tests.yml", "release.yml"])
def test_workflows_name_what_there_is(name: str) -> None:
    import yaml

    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text("utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = "\n".join(step.get("run", "") for step in steps)
    named = re.findall(r"\.ci/[\w.]+|docs/\S+\.(?:png|jpg)", commands)
    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []
    assert workflow["permissions"] == {"contents": "read"}
