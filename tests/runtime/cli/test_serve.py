"""`bfr serve`: a flag overrides the environment, which overrides the file, which overrides the default."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bfr.runtime.cli import serve as command
from bfr.runtime.cli.commands import load
from bfr.runtime.cli.main import app
from bfr.runtime.serve.options import ListenOptions, ServeOptions

CONFIG = """
port = 8100
queue = 3
timeout = 30
presets = ["fast", "balanced"]
no_jobs = true
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "bfr.toml"
    file.write_text(f"\ufeff{CONFIG}", "utf-8")  # as some editors begin a file
    return file


def printed(*arguments: object, **environment: str) -> tuple[dict[str, object], int]:
    """The options and the port that `--print-config` prints."""
    variables = {"BFR_API_KEY": "k" * 24, **environment}
    ended = CliRunner(env=variables).invoke(app, ["serve", "--print-config", "--no-jobs", *map(str, arguments)])
    assert ended.exit_code == 0, ended.exception or ended.output
    found = yaml.safe_load(ended.stdout)
    options = found["applications"][0]["args"]
    assert len(options.pop("keys")) == 1
    return options, found["http_options"]["port"]


def test_a_file_replaces_defaults(config: Path) -> None:
    expected = {"queue": 3, "timeout": 30.0, "presets": ["fast", "balanced"], "precision": "fp32"}
    assert printed("--config", config) == (expected, 8100)
    assert printed(BFR_SERVE_CONFIG=str(config)) == (expected, 8100)


def test_the_environment_overrides_the_file_and_flags_override_both(config: Path) -> None:
    environment = {"BFR_SERVE_QUEUE": "4", "BFR_SERVE_PORT": "8200", "BFR_SERVE_PRESETS": "fast reference"}
    options, port = printed("--config", config, **environment)
    assert (options["queue"], options["presets"], options["timeout"], port) == (4, ["fast", "reference"], 30.0, 8200)
    options, port = printed("--queue", 5, "--preset", "balanced", "--config", config, **environment)
    assert (options["queue"], options["presets"], options["timeout"], port) == (5, ["balanced"], 30.0, 8200)
    options, port = printed("--no-jobs", **environment)
    assert (options["queue"], port) == (4, 8200)
    assert "timeout" not in options  # the default


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("queu = 3", ("'queu'", "queue")),
        ("keys = ['1']", ("'keys'",)),
        ("queue = 0", ("queue 0", "1 or more")),
        ("presets = 'fast'", ("presets 'fast'",)),
        ("port = 'eighty'", ("port 'eighty'",)),
        ("queue", ("TOML",)),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "bfr.toml"
    file.write_text(text)
    ended = CliRunner().invoke(app, ["serve", "--print-config", "--config", str(file)])
    assert ended.exit_code != 0
    assert all(word in str(ended.exception) for word in (str(file), *words))


def test_sigterm_before_the_server_runs_ends_it() -> None:
    """The first process of a container ignores SIGTERM unless it asks for it."""
    code = (
        "import sys, time, types\nfake = types.ModuleType('bfr.runtime.serve.server')\n"
        "fake.serve_forever = lambda *_: (print('begun', flush=True), time.sleep(1e6))\n"
        "sys.modules[fake.__name__] = fake\nsys.argv = ['bfr', 'serve', '--no-jobs']\n"
        "from bfr.runtime.cli.main import main\nmain()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as server:  # noqa: S603
        assert server.stderr is not None
        assert b"begun" in server.stderr.readline()
        server.terminate()
        assert server.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--port", "-1"), "port -1"),
        (("--drain", "-1"), "drain"),
        (("--bundle", "nothing"), "NAME=FOLDER"),
        (("--bundle", "a=/nowhere"), "/nowhere"),
        (("--api-key-file", "/nowhere"), "/nowhere"),
        (("--photo-replicas", "2"), "photo-replicas"),
    ],
)
def test_what_cannot_be_served_is_refused(arguments: tuple[str, ...], word: str, tmp_path: Path) -> None:
    ended = CliRunner(env={"BFR_HOME": str(tmp_path)}).invoke(app, ["serve", *arguments])
    assert ended.exit_code != 0
    assert word in str(ended.exception) + ended.output


def test_every_flag_has_a_variable_of_its_name_or_one_that_the_help_names() -> None:
    text = CliRunner().invoke(app, ["serve", "--help"], terminal_width=200).output
    flags = {parameter.name: parameter for parameter in load("serve").params}
    names = {*ServeOptions.model_fields, *ListenOptions.model_fields, "config", "no_jobs", "print_config"} - {"keys"}
    for name in names:
        variable = f"{command.ENVIRONMENT}{name.upper()}"
        assert flags[name].envvar == variable
        assert f"--{name.replace('_', '-')}" in flags[name].opts or f"env var: {variable}" in text
