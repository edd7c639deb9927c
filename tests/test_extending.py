"""The examples of docs/extending.md, run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"


@pytest.mark.export
def test_the_examples_run_as_they_stand(tmp_path: Path) -> None:
    """All of the page in one process, which the rows that they add die with."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    script = tmp_path / "extending.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


def test_the_files_that_it_names_are_there() -> None:
    named = re.findall(r"`((?:runtime|models|export|tests)/[\w/]+\.py)`", PAGE.read_text())
    missing = [name for name in named if not (PAGE.parent.parent / name).is_file() and "NAME" not in name]
    assert named
    assert not missing
