"""The commands in README.md and the documents are ones that there are, with the flags that they have."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from bfr.runtime.cli.main import app
from bfr.runtime.errors import InputNotFound

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "models/systems/mini/README.md")
    if page.name != "CHANGELOG.md"
)  # fmt: skip
ENDS = re.compile(r"[|<>&;].*|\d>.*|\$\(.*")  # of a command, in the shell


def commands_of(text: str) -> list[str]:
    """The lines of code blocks that run `bfr`, those that go on in the next line joined."""
    blocks = re.findall(r"^ *```(?:sh|bash|console)?\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = (re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(bfr .*)", line) for line in lines)
    return [line[1] for line in found if line]


def test_there_are_commands() -> None:
    assert sum(len(commands_of(page.read_text("utf-8"))) for page in PAGES) > 80


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_understood(page: Path) -> None:
    group: Any = get_command(app)
    for line in commands_of(page.read_text("utf-8")):
        words = shlex.split(ENDS.sub("", line.partition(" #")[0]))
        if len(words) < 2 or words[1].startswith("-") or "..." in line:
            continue
        command = group.get_command(None, words[1])
        assert command, line
        try:
            with command.make_context(words[1], words[2:]):
                pass
        except Exception as error:
            if not (isinstance(error, InputNotFound) and "--config" in line):  # a file of options is read at once
                pytest.fail(f"{line}: {error}")
