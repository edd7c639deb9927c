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


ORIN = b"nvidia,p3767-0005\0nvidia,tegra234\0"


@pytest.mark.parametrize(
    ("files", "model", "jetpack"),
    [
        ({"release": b"# R36 (release), REVISION: 4.3\r\n"}, "a Tegra board", "6.2"),
        ({"release": b"R36 (release), REVISION: 4.4, GCID: 1"}, "a Tegra board", "6.2"),
        ({"release": b"# r38 (release),  revision:  2.1"}, "a Tegra board", "7"),
        ({"release": b"# R34 (release), REVISION: 1.1"}, "a Tegra board", "5"),
        ({"release": b"# R35 (release), REVISION: 6.1", "compatible": ORIN}, "a Tegra board", "5"),
        ({"release": b"# R41 (release), REVISION: 0.0"}, "a Tegra board", "7.2"),
        ({"release": b""}, "a Tegra board", None),
        ({"release": b"\xff\xfe\x00garbage"}, "a Tegra board", None),
        ({"release": b"# R99999999999999999999 (release)"}, "a Tegra board", None),
        ({"compatible": b"nvidia,tegra264"}, "a Tegra board", None),
        ({"compatible": b"acme,carrier\0nvidia,tegra234\0", "model": b"Acme\0\0"}, "Acme", None),
        ({"compatible": ORIN, "model": b"NVIDIA \xe9\xff Orin NX\n\0"}, "NVIDIA \ufffd\ufffd Orin NX", None),
        ({"compatible": ORIN, "model": b"\0"}, "a Tegra board", None),
        ({"model": b"NVIDIA Jetson Orin Nano Developer Kit\0"}, "NVIDIA Jetson Orin Nano Developer Kit", None),
        ({"base/compatible": ORIN, "base/model": b"NVIDIA IGX Orin\0"}, "NVIDIA IGX Orin", None),
        ({"compatible": b"acme,integra-1\0acme,tegra-like\0", "model": b"Integra\0"}, None, None),
        ({"compatible": b"notnvidia,tegra1\0xnvidia,tegra234\0"}, None, None),
        ({"compatible": b"", "model": b""}, None, None),
        ({"release/folder": b"a mount of a file that the host has not"}, None, None),
        ({"modes": MODES, "status": b"pmode:0001"}, None, None),
    ],
)
def test_other_files_of_boards(
    files: dict[str, bytes], model: str | None, jetpack: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BFR_JETSON", " ")
    found = this_board(machine(tmp_path, **files))
    assert found.model == model
    assert (told.name if (told := found.jetpack()) else None) == jetpack


@pytest.mark.parametrize("text", [b"", b"MemTotal:\nSwapTotal: some kB\n\xff", b"MemTotal: 8 MB\n"])
def test_memory_that_is_not_told_is_none(text: bytes, tmp_path: Path) -> None:
    root = machine(tmp_path, **BOARDS["a container on an Orin"])
    (root / "proc/meminfo").write_bytes(text)
    assert (this_board(root).memory, this_board(root).swap) == (0.0, 0.0)


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
@pytest.mark.parametrize(
    ("script", "mode"),
    [
        (b"#!/bin/sh\necho 'NV Power Mode: 15W'\necho 0\n", "15W"),
        (
            b"#!/bin/sh\necho 'NVPM WARN: fan mode is not set!'\nprintf 'NV Power Mode: MODE_30W\\n\\377\\n3'\n",
            "MODE_30W",
        ),
        (b"#!/bin/sh\necho 'NVPM ERROR: Error opening /var/lib/nvpmodel/status' >&2\nexit 255\n", None),
        (b"\x7fELF of another machine", None),
    ],
)
def test_in_a_container_the_program_is_asked(
    script: bytes, mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "nvpmodel"
    program.parent.mkdir()
    program.write_bytes(script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert power_mode(machine(tmp_path / "root", release=release(36, "4.3"))) == mode


def test_an_engine_of_another_power_mode_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    mini = Bundle.open(default_bundle())
    network = next(iter(mini.manifest.networks))
    keys = []
    for mode in ("15W", "MAXN", "MAXN"):
        here = tensorrt_key.Machine(*(getattr(MACHINE, name) for name in MACHINE.__slots__[:-1]), power=mode)
        keys.append(engine_key(mini, network, "fp32", here, options={}))
    assert keys[1] == keys[2]
    assert key_differences(keys[0], keys[1]) == ["power: the engine has 15W, wanted is MAXN"]
