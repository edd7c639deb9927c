"""`bfr serve`: a flag overrides the environment, which overrides the file, which overrides the default."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bfr.runtime.cli import serve as command
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
    file.write_text(CONFIG)
    return file


def printed(*arguments: object, **environment: str) -> tuple[dict[str, object], int]:
    """The options and the port that `--print-config` prints."""
    ended = CliRunner(env=environment).invoke(app, ["serve", "--print-config", *map(str, arguments)])
    assert ended.exit_code == 0, ended.exception or ended.output
    found = yaml.safe_load(ended.stdout)
    return found["applications"][0]["args"], found["http_options"]["port"]


def test_a_file_replaces_defaults(config: Path) -> None:
    expected = {"queue": 3, "timeout": 30.0, "presets": ["fast", "balanced"]}
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


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["serve", "--config", str(tmp_path / "none.toml")])
    assert "none.toml" in str(ended.exception)


def test_every_flag_has_a_variable_that_the_help_names() -> None:
    text = CliRunner().invoke(app, ["serve", "--help"], terminal_width=200).output
    names = {*ServeOptions.model_fields, *ListenOptions.model_fields, "config", "no_jobs", "print_config"} - {"keys"}
    for name in names:
        assert f"env var: {command.ENVIRONMENT}{name.upper()}" in text
