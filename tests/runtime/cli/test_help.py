"""What a newcomer reaches for: `python -m bfr`, `--version`, completion, and a help that is grouped and whole."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from bfr.runtime.cli.help import EXAMPLES
from bfr.runtime.cli.main import COMMANDS, app

GROUPS = {group: [c.__name__.replace("_", "-") for c in commands] for group, commands in COMMANDS.items()}
NAMES = [name for names in GROUPS.values() for name in names]


def shown(*arguments: str) -> str:
    ended = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "80"}, terminal_width=80)
    assert ended.exit_code == 0
    return ended.output


def test_bfr_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "bfr", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == f"bfr {version('bfr-runtime')}"


def test_commands_are_grouped_by_task() -> None:
    lines = shown().splitlines()
    heading, found = "", {}
    for line in lines:
        if line.endswith(":") and not line.startswith(" "):
            heading = line.removesuffix(":")
        elif line.startswith("  ") and line.split()[0] in NAMES and not line.startswith("   "):
            found.setdefault(heading, []).append(line.split()[0])
    assert found == GROUPS


@pytest.mark.parametrize("name", [None, *NAMES])
def test_no_help_is_cut_off_at_80_columns(name: str | None) -> None:
    text = shown(*([name] if name else []))
    names = ("[OPTIONS] COMMAND [ARGS]...", "}...", "INPUT...")
    for usual in (*names, "[[SINK]...]...", "[SINK]...", "[[OTHER]...]...", "[OTHER]..."):
        text = text.replace(usual, "")
    assert "..." not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for command in [name] if name else NAMES:
        function = next(
            one for commands in COMMANDS.values() for one in commands if one.__name__ == command.replace("-", "_")
        )
        summary = (function.__doc__ or "").splitlines()[0]
        assert " ".join(summary.split(". ")[0].removesuffix(".").split()) in " ".join(text.split())


@pytest.mark.parametrize("name", [None, *NAMES])
def test_every_command_knows_h(name: str | None) -> None:
    words = [name] if name else []
    ended = CliRunner().invoke(app, [*words, "-h"], env={"COLUMNS": "80"}, terminal_width=80)
    assert ended.exit_code == 0
    assert ended.output == shown(*words)


def test_restore_groups_its_flags() -> None:
    text = shown("restore").partition("Arguments:")[2]
    expected = (
        "\nBasics:", "--out", "--preset", "\nFaces:", "--blend", "\nOutput:", "--quality", "--json", "\nSpeed:",
        "--threads", "\nSampler:", "--eta", "--seed", "\nVideo:", "--crf", "\nServer:", "--api-key-file", "\nExamples:",
    )  # fmt: skip
    places = [text.index(part) for part in expected]
    assert places == sorted(places)


def test_every_flag_of_restore_has_a_task() -> None:
    options = shown("restore").partition("\nOptions:\n")[2].partition("\nExamples:")[0]
    assert re.findall(r"--[a-z-]+", options) == ["--help"]


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_of_flags_that_there_are(name: str) -> None:
    command = get_command(app).commands[name]
    assert EXAMPLES[name]
    for line in EXAMPLES[name].strip().splitlines():
        words = shlex.split(line, comments=True)
        assert words[:2] == ["bfr", name]
        command.make_context(name, words[2:])


@pytest.mark.parametrize("name", NAMES)
def test_summaries_fit_a_line(name: str) -> None:
    assert re.search(rf"^  {name} +\S.*\.$", shown(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"serve"}))
def test_every_command_prints_json(name: str) -> None:
    flags = {flag for one in get_command(app).commands[name].params for flag in one.opts}
    assert "--json" in flags
    assert "--quiet" in flags or name == "doctor"


def test_choices_are_completed() -> None:
    environment = {"_BFR_COMPLETE": "complete_bash", "COMP_WORDS": "bfr restore --faces ", "COMP_CWORD": "3"}
    ended = CliRunner().invoke(app, [], env=environment, prog_name="bfr")
    assert ended.output.split() == ["all", "largest", "centre"]
