"""Boards are known by their files, in containers too; so is their power mode, which engines are kept for."""

import os
from pathlib import Path

import pytest
from boards import BOARDS, MODES, machine, release
from engine_fakes import MACHINE

from bfr.runtime.backends import tensorrt_key
from bfr.runtime.backends.board import JETPACKS, Board, highest_opset, power_mode, this_board
from bfr.runtime.backends.tensorrt_key import engine_key, key_differences
from bfr.runtime.bundle.bundle import Bundle, default_bundle


@pytest.mark.parametrize(
    ("name", "jetpack"),
    [
        ("Orin Nano, JetPack 6.2", "6.2"),
        ("Orin NX, JetPack 7.2", "7.2"),
        ("another maker's carrier, no release file", None),
        ("AGX Thor, JetPack 7", "7"),
        ("a container on an Orin", "6.2"),
        ("AGX Xavier, JetPack 5", "5"),
    ],
)
def test_a_board_is_recognized(name: str, jetpack: str | None, tmp_path: Path) -> None:
    found = this_board(machine(tmp_path, **BOARDS[name]))
    assert found.model
    assert found.memory == pytest.approx(7802864 / 2**20)
    assert found.swap == pytest.approx(3901424 / 2**20)
    told = found.jetpack()
    assert (told.name if told else None) == jetpack


def test_another_machine_is_not_and_can_be_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi = machine(tmp_path / "pi", model=b"Raspberry Pi 5\0", compatible=b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    for root in (pi, tmp_path / "none"):
        assert this_board(root).model is None
        assert power_mode(root) is None
    monkeypatch.setenv("BFR_JETSON", "Orin NX")
    assert this_board(tmp_path / "none").model == "Orin NX"


@pytest.mark.parametrize(
    ("major", "revision", "jetpack"),
    [(32, "7.5", "4"), (35, "4.1", "5"), (36, "3.0", "6.0"), (36, "4.0", "6.2"), (36, "5.0", "6.2"), (38, "4.0", "7")],
)
def test_the_release_tells_the_jetpack(major: int, revision: str, jetpack: str, tmp_path: Path) -> None:
    told = this_board(machine(tmp_path, release=release(major, revision))).jetpack()
    assert told is not None
    assert told.name == jetpack


def test_without_a_release_the_driver_tells_it() -> None:
    board = Board("a board", 8.0, 0.0)
    names = {cuda: (one.name if (one := board.jetpack(cuda)) else None) for cuda in ((12, 6), (13, 0), (13, 2))}
    assert names == {(12, 6): "6.2", (13, 0): "7", (13, 2): "7.2"}


def test_opsets_by_the_tensorrt_of_a_jetpack() -> None:
    found = {one.name: highest_opset(one.tensorrt) for one in JETPACKS.values() if not one.instead}
    assert found == {"6.2": 20, "7": 22, "7.2": None}


def test_the_power_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    orin = BOARDS["Orin Nano, JetPack 6.2"]
    assert power_mode(machine(tmp_path / "a", **orin)) == "MAXN_SUPER"
    assert power_mode(machine(tmp_path / "b", **{**orin, "modes": b""})) == "2"
    container = machine(tmp_path / "c", release=orin["release"], modes=MODES)
    assert power_mode(container) is None


@pytest.mark.skipif(os.name == "nt", reason="nvpmodel is simulated by a shell script")
def test_in_a_container_the_program_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nvpmodel"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'NV Power Mode: 15W'\necho 0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert power_mode(machine(tmp_path / "root", release=release(36, "4.3"))) == "15W"


def test_an_engine_of_another_power_mode_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    mini = Bundle.open(default_bundle())
    network = next(iter(mini.manifest.networks))
    keys = []
    for mode in ("15W", "MAXN", "MAXN"):
        here = tensorrt_key.Machine(*(getattr(MACHINE, name) for name in MACHINE.__slots__[:-1]), power=mode)
        keys.append(engine_key(mini, network, "fp32", here, options={}))
    assert keys[1] == keys[2]
    assert key_differences(keys[0], keys[1]) == ["power: the engine has 15W, wanted is MAXN"]
