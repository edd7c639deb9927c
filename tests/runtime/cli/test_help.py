"""What a newcomer reaches for: `python -m bfr`, `--version`, completion, and a help that is grouped and whole."""

import json
import re
import shlex
import subprocess
import sys
from html import unescape
from importlib.metadata import version
from pathlib import Path

import pytest
from interpreter import python
from typer.testing import CliRunner

from bfr.runtime.cli.commands import COMMANDS, load
from bfr.runtime.cli.help import EXAMPLES
from bfr.runtime.cli.main import app

SUMMARIES = {name: summary for commands in COMMANDS.values() for name, summary in commands.items()}
NAMES = list(SUMMARIES)
PICTURES = Path(__file__).parents[3] / "docs" / "images"


def shown(*arguments: str, flag: str = "--help") -> str:
    ended = CliRunner().invoke(app, [*arguments, flag], prog_name="bfr", env={"COLUMNS": "80"}, terminal_width=80)
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
    assert found == {heading: list(commands) for heading, commands in COMMANDS.items()}


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
        assert SUMMARIES[command] in " ".join(text.split())


@pytest.mark.parametrize("name", [None, *NAMES])
def test_every_command_knows_h(name: str | None) -> None:
    words, heading = [name] if name else [], re.compile(r", explained by `bfr \w+ --help`(?=:$)", re.MULTILINE)
    brief, whole = shown(*words, flag="-h"), shown(*words)
    assert heading.search(whole) is None
    if heading.search(brief) is None:
        assert brief == whole
    assert re.findall(r"^\w+:$", heading.sub("", brief), re.MULTILINE) == re.findall(r"^\w+:$", whole, re.MULTILINE)
    flags = re.compile(r"(?<!\S)--[a-z][a-z-]+")
    assert {*flags.findall(whole)} <= {*flags.findall(brief)}


def test_the_short_help_of_serve_leaves_out_what_is_rarely_set() -> None:
    brief, whole = shown("serve", flag="-h"), shown("serve")
    assert len(brief.splitlines()) < 0.75 * len(whole.splitlines())
    assert "--queue 64, --face-queue 256" in brief
    assert "Requests in flight; more are answered 503" in " ".join(whole.split())


@pytest.mark.parametrize(("words", "needed"), [(["-h"], "typer"), (["push", "-h"], "pydantic"), (["info"], "numpy")])
def test_a_command_imports_what_it_needs(words: list[str], needed: str, tmp_path: Path) -> None:
    """The list of commands needs typer alone, a command's help no network, `info` neither OpenCV nor the exporter."""
    code = (
        "import json, sys\nfrom bfr.runtime.cli.main import main\nsys.argv[0] = 'bfr'\n"
        "try:\n    main()\nfinally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    modules = json.loads(python(code, *words, env={"BFR_HOME": str(tmp_path)}).stderr.splitlines()[-1])
    assert needed in modules
    heavy = {
        "typer": ("pydantic", "numpy", "rich", "PIL", "importlib.metadata"),
        "pydantic": ("torch", "cv2", "onnxruntime"),
        "numpy": ("torch", "cv2", "fastapi", "ray", "bfr.export", "bfr.benchmarks", "rich.progress"),
    }[needed]
    assert [name for name in heavy if name in modules] == []


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
    command = load(name)
    assert EXAMPLES[name]
    for line in EXAMPLES[name].strip().splitlines():
        words = shlex.split(line, comments=True)
        assert words[:2] == ["bfr", name]
        command.make_context(name, words[2:])


@pytest.mark.parametrize("name", NAMES)
def test_summaries_fit_a_line(name: str) -> None:
    assert re.search(rf"^  {name} +\S.*\.$", shown(), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_quiet_or_verbose_and_prints_json(name: str) -> None:
    flags = {flag for one in load(name).params for flag in one.opts}
    assert {"--quiet", "--verbose"} <= flags
    assert "--json" in flags or name == "serve"  # its log is JSON, see docs/command-line.md


def test_choices_are_completed() -> None:
    environment = {"_BFR_COMPLETE": "complete_bash", "COMP_WORDS": "bfr restore --faces ", "COMP_CWORD": "3"}
    ended = CliRunner().invoke(app, [], env=environment, prog_name="bfr")
    assert ended.output.split() == ["all", "largest", "centre"]


@pytest.mark.parametrize(("file", "words"), [("help.svg", []), ("help_restore.svg", ["restore"])])
def test_the_pictures_show_the_help(file: str, words: list[str]) -> None:
    drawn = re.findall(r"<text[^>]*>(.*?)</text>", (PICTURES / file).read_text("utf-8"), re.DOTALL)
    printed = f"$ {' '.join(['bfr', *words, '--help'])} {shown(*words)}"
    assert "".join(unescape("".join(drawn)).split()) == "".join(printed.split()), "python .ci/pictures.py"
