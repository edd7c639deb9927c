"""The command line and the files of a benchmark."""

import json
import math
from pathlib import Path

import pytest

from bfr.benchmarks.publish import Command
from bfr.runtime.errors import InvalidOption


@pytest.fixture
def command() -> Command:
    made = Command("bfr.benchmarks.speed.example", "An example.", lambda _: ({"found": math.inf}, "# Title\n\nText.\n"))
    made.add_argument("folder", type=Path)
    made.add_argument("--geometry", action="store_true")
    made.add_argument("--batches", type=int, nargs="+", default=[1])
    made.number("--limit", 8)
    return made


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ""),
        (["--limit", "8", "--batches", "1"], ""),  # what the defaults say anyway
        (["--limit", "9", "--geometry"], " --geometry --limit 9"),
        (["--batches", "2", "4"], " --batches 2 4"),
    ],
)
def test_a_report_names_its_command_without_defaults_and_folders(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    arguments = [str(tmp_path / "my faces"), "--out", str(tmp_path / "out"), *options]
    assert command(arguments) == 0
    expected = f"python -m bfr.benchmarks.speed.example --out out 'my faces'{words}"
    command.failed = lambda figures: math.isinf(figures["found"])
    assert command(arguments) == 1
    text = (tmp_path / "out" / "example.md").read_text()
    assert text == f"# Title\n\n```\n{expected}\n```\n\nText.\n"
    assert capsys.readouterr().out == 2 * (text + "\n")
    content = json.loads((tmp_path / "out" / "example.json").read_text())
    assert (content["command"], content["found"]) == (expected, None)
    assert "CPU" in content["machine"]


def test_what_the_user_can_mend_is_a_line(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: object) -> tuple[dict[str, object], str]:
        raise InvalidOption("--limit 0 is out of range")

    command.measure = refuse
    assert command([str(tmp_path), "--out", str(tmp_path / "out")]) == InvalidOption.exit_code
    assert capsys.readouterr().err == "error: --limit 0 is out of range\n"
    assert not (tmp_path / "out").exists()


def test_an_input_that_is_missing_is_named(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(_: object) -> tuple[dict[str, object], str]:
        return {}, (tmp_path / "photograph.jpg").read_text()

    command.measure = measure
    assert command([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"error: {tmp_path / 'photograph.jpg'} is not there" in capsys.readouterr().err
