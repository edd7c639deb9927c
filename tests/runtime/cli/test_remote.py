"""`--server`: the API key leaves the environment before a picture of a stranger is decoded."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bfr.runtime.cli import remote
from bfr.runtime.errors import InvalidOption

KEY = "a-key-of-some-length"


def test_the_key_of_the_environment_is_taken_out_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(remote.KEY_VARIABLE, KEY)
    assert remote._key(None) == KEY
    assert remote.KEY_VARIABLE not in os.environ
    assert remote._key(None) is None


def test_without_a_server_no_decoder_inherits_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.KEY_VARIABLE, KEY)
    context: Any = SimpleNamespace(params={}, get_parameter_source=lambda _name: None)
    remote.check_server_options(context, server="http://localhost:1")
    assert os.environ[remote.KEY_VARIABLE] == KEY
    remote.check_server_options(context, server=None)
    assert remote.KEY_VARIABLE not in os.environ


@pytest.mark.parametrize("name", ["overwrite", "quiet", "verbose", "as_json", "out"])
def test_what_is_done_here_goes_with_a_server(name: str) -> None:
    given = SimpleNamespace(name="COMMANDLINE")
    context: Any = SimpleNamespace(params={name: True}, get_parameter_source=lambda _name: given)
    remote.check_server_options(context, server="http://localhost:1")


def test_the_key_of_a_servers_own_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"\ufeff# anna's\r\n\r\n  # not this\r\n{KEY} name=anna\r\nother\r\n", "utf-8")
    assert remote._key(file) == KEY
    file.write_text("# none yet\n")
    with pytest.raises(InvalidOption, match="holds no API key"):
        remote._key(file)
