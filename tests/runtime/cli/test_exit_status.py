"""The table of exit statuses in docs/command-line.md is the errors'."""

import re
from pathlib import Path

from bfr.runtime import errors
from bfr.runtime.cli.main import INTERRUPTED
from bfr.runtime.errors import BfrError

PAGE = Path(__file__).parents[3] / "docs" / "command-line.md"


def test_the_table_names_each_error_once_with_its_status() -> None:
    block = PAGE.read_text("utf-8").split("<!-- exit statuses -->")[1].split("<!-- end of exit statuses -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.strip().splitlines()[2:]]
    table = {int(status): sorted(re.findall(r"`(\w+)`", names)) for status, _, names in rows}
    found: dict[int, list[str]] = {0: [], 1: [], 2: [], INTERRUPTED: []}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, BfrError) and kind is not BfrError:
            found[kind.exit_code].append(kind.__name__)
    assert table == {status: sorted(names) for status, names in found.items()}
