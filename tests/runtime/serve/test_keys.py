"""API keys: lines, priorities, rates, and a file that changes."""

import time
from pathlib import Path

import pytest

from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.serve import keys as module
from bfr.runtime.serve.keys import Key, Keys, hash_key

KEY = "k" * 24


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# whose\n{KEY} name=anna priority=2 rate=60\n\n{'b' * 16}\n")
    keys = Keys.read(file, {"BFR_API_KEY": "c" * 16})
    assert [key.digest for key in map(keys.find, ("c" * 16, KEY, "b" * 16)) if key] == [
        hash_key(one) for one in ("c" * 16, KEY, "b" * 16)
    ]
    anna = keys.find(KEY)
    assert anna is not None
    assert (anna.name, anna.priority, anna.rate) == ("anna", 2.0, 60.0)
    assert keys.find(None) is None
    assert keys.find("wrong") is None
    assert not Keys.read(None, {})
    again = Keys([Key.parse(line, "options", hashed=True) for line in keys.lines()])  # as a Serve YAML has them
    assert again.find(KEY) == anna
    assert KEY not in " ".join(keys.lines())
    file.write_bytes(f"\ufeff{KEY} name=anna\r\n".encode())  # as editors on Windows save it
    assert Keys.read(file, {}).find(KEY)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("short\n", "16"),
        ("\n# nothing\n", "no API key"),
        (f"{KEY} priority=0\n", "above 0"),
        (f"{KEY} priority=high\n", "line 1"),
        (f"{KEY} speed=3\n", "'speed'"),
        (f"{'ü' * 20}\n", "ASCII"),
    ],
)
def test_a_wrong_file_is_refused_without_telling_the_key(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(InvalidOption, match=word) as found:
        Keys.read(file, {})
    assert KEY not in str(found.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="none"):
        Keys.read(tmp_path / "none", {})
    (tmp_path / "bytes").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(InputNotFound, match="UTF-8"):
        Keys.read(tmp_path / "bytes", {})


def test_a_file_that_changes_is_read_again_and_a_wrong_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK", 0.0)
    file, other = tmp_path / "keys", "d" * 24
    file.write_text(f"{KEY} rate=1\n")
    keys = Keys.read(file, {"BFR_API_KEY": "c" * 16})
    found = keys.find(KEY)
    assert found is not None
    assert found.spend() == 0
    file.write_text(f"{KEY} rate=1\n{other}\n")
    assert keys.find(other)
    kept = keys.find(KEY)
    assert kept is not None
    assert kept.spend() > 0  # what it sent is not forgotten
    file.write_text("short\n\n")
    assert keys.find(KEY)
    file.write_text(f"{other}\n")
    assert keys.find(KEY) is None
    assert keys.find("c" * 16)
    file.unlink()
    assert keys.find(other)


def test_a_rate_is_so_many_requests_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    key = Key("digest", "name", rate=3)
    assert [key.spend() for _ in range(4)] == [0, 0, 0, 20]
    now += 20
    assert key.spend() == 0
    assert key.spend() == 20
    now += 1000
    assert [key.spend() for _ in range(4)] == [0, 0, 0, 20]
