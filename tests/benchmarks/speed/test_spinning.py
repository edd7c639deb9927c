"""The three ways in which threads wait, measured on a tiny bundle; and that the sessions get what was asked for."""

import json
from pathlib import Path
from typing import Any

import pytest

from bfr.benchmarks.speed import spinning
from bfr.runtime.bundle.bundle import Bundle


@pytest.mark.parametrize(("wait", "entries"), [("between calls", "10"), ("within calls", "11"), ("never", "01")])
def test_sessions_wait_as_named(wait: str, entries: str, tiny_bundle: Bundle) -> None:
    player = spinning.open_player(tiny_bundle.folder, wait, 1)
    for network in player.contender.networks.values():
        asked: Any = network.session.get_session_options()  # type: ignore[attr-defined]
        names = ("session.intra_op.allow_spinning", "session.force_spinning_stop")
        assert "".join(map(asked.get_session_config_entry, names)) == entries


@pytest.mark.slow
def test_a_report(tiny_bundle: Bundle, tmp_path: Path) -> None:
    few = ["--rounds", "2", "--repeats", "2", "--threads", "1"]
    assert spinning.main([str(tiny_bundle.folder), "--out", str(tmp_path), *few]) == 0
    assert [len(found) for found in json.loads((tmp_path / "spinning.json").read_text())["seconds"].values()] == [4] * 3
    assert "| never |" in (tmp_path / "spinning.md").read_text()
