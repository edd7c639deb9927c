"""`bfr build --for jetson`, as far as it can be tested without a board."""

from pathlib import Path

import pytest

from bfr.export.options import BuildOptions
from bfr.export.tensorrt.jetson import Board, advice, check_board, check_opsets, jetson_options, this_board
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import InvalidOption


def board(memory: float, swap: float = 0.0, model: str | None = "NVIDIA Jetson Orin Nano") -> Board:
    return Board(model, memory, swap)


MEMORY = b"MemTotal:        7802864 kB\nMemFree: 1 kB\nSwapTotal:       3901424 kB\n"
MODEL, COMPATIBLE, RELEASE = "proc/device-tree/model", "proc/device-tree/compatible", "etc/nv_tegra_release"


def machine(root: Path, **files: bytes) -> Path:
    """A root folder with the files of a machine that tell what it is."""
    places = {"model": MODEL, "compatible": COMPATIBLE, "release": RELEASE}
    for name, data in {**files, "memory": MEMORY}.items():
        path = root / places.get(name, "proc/meminfo")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.mark.parametrize(
    "files",
    [
        {"model": b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"},
        {"model": b"NVIDIA Orin NX Developer Kit\0", "compatible": b"nvidia,p3509-0000+p3767-0000\0nvidia,tegra234\0"},
        {
            "model": b"NVIDIA Orin Nano Developer Kit\0",
            "compatible": b"nvidia,p3768-0000+p3767-0003\0nvidia,tegra234\0",
        },
        {"model": b"Antmicro Job\0", "compatible": b"antmicro,job\0nvidia,p3767-0000\0nvidia,tegra234\0"},
        {
            "model": b"NVIDIA Jetson AGX Thor Developer Kit\0",
            "compatible": b"nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0",
        },
        {"release": b"# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"},  # a container
    ],
)
def test_a_board_is_recognized(files: dict[str, bytes], tmp_path: Path) -> None:
    found = this_board(machine(tmp_path, **files))
    assert found.memory == pytest.approx(7802864 / 2**20)
    assert found.swap == pytest.approx(3901424 / 2**20)
    check_board(found)


def test_another_machine_is_not_and_can_be_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi = machine(tmp_path / "pi", model=b"Raspberry Pi 5\0", compatible=b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    for root in (pi, tmp_path / "none"):
        with pytest.raises(InvalidOption, match="BFR_JETSON"):
            check_board(this_board(root))
    monkeypatch.setenv("BFR_JETSON", "Orin NX")
    assert this_board(tmp_path / "none").model == "Orin NX"


@pytest.mark.parametrize(("memory", "limit"), [(7.4, 1024), (15.3, 2048), (30.0, None), (61.4, None)])
def test_the_memory_decides_the_workspace(memory: float, limit: int | None) -> None:
    options = jetson_options(board(memory), BuildOptions())
    assert (options.buckets, options.workspace) == ((1, 2), limit)
    given = BuildOptions(batches=(1,), workspace=512, level=2, aux_streams=0)
    assert jetson_options(board(memory), given) == given


def test_advice() -> None:
    assert any("swap file of 8 GiB" in line for line in advice(board(7.4, 3.7)))
    assert not any("swap file" in line for line in advice(board(7.4, 16.0)))
    assert not any("swap file" in line for line in advice(board(61.4)))
    assert all(any("nvpmodel" in line for line in advice(board(memory))) for memory in (7.4, 61.4))


def test_opsets() -> None:
    mini = Bundle.open(default_bundle())
    check_opsets(mini, "10.3.0")
    networks = {
        name: entry.model_copy(
            update={"variants": {p: v.model_copy(update={"opset": 21}) for p, v in entry.variants.items()}}
        )
        for name, entry in mini.manifest.networks.items()
    }
    newer = Bundle(mini.folder, mini.manifest.model_copy(update={"networks": networks}), mini.hash)
    with pytest.raises(InvalidOption, match=r"opset 21.*10\.3\.0.*--opset 20"):
        check_opsets(newer, "10.3.0")
    check_opsets(newer, "10.13.2")
    check_opsets(newer, "11.4.1")
