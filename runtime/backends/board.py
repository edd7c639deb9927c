"""Jetson boards: which one this is, its JetPack, and its power mode. Needs no GPU and no package.

From NVIDIA's public tables; nothing here was run on a board.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OVERRIDE = "BFR_JETSON"  # names the board if no file does, as in containers without the board's files
_ASK_SECONDS = 5
_TREE = ("model", "compatible")  # files of the device tree


@dataclass(frozen=True, slots=True)
class JetPack:
    """A release.

    Attributes:
        name: NVIDIA's name of it.
        python, tensorrt: The versions that it brings.
        extra: The extra of bfr that it needs.
        instead: Why bfr does not run on it, and what to do; None if it does.
    """

    name: str
    python: str
    tensorrt: str
    extra: str
    instead: str | None = None


OPSETS = (((10, 9), 20), ((10, 14), 22))  # TensorRT before this version, highest opset it reads whole
# First release of Jetson Linux -> its JetPack; the last row that is not later counts.
JETPACKS = {
    (0, 0): JetPack("4", "3.6", "8.2", "", "JetPack 4 has Python 3.6, and the board takes no later one"),
    (34, 0): JetPack("5", "3.8", "8.5", "", "JetPack 5 has Python 3.8: an Orin takes JetPack 7.2 or 6.2"),
    (36, 0): JetPack("6.0", "3.10", "8.6", "", "JetPack 6.0 has TensorRT 8.6: update to JetPack 7.2 or 6.2"),
    (36, 4): JetPack("6.2", "3.10", "10.3", "jetson-cu12"),
    (38, 0): JetPack("7", "3.12", "10.13", "jetson"),
    (39, 0): JetPack("7.2", "3.12", "10.16", "jetson"),
}


@dataclass(frozen=True, slots=True)
class Board:
    """A Jetson board, or another machine.

    Attributes:
        model: Name of the board; None if this machine is none.
        memory: GiB.
        swap: GiB.
        release: Release of Jetson Linux, as (36, 4); None if no file names it.
    """

    model: str | None
    memory: float
    swap: float
    release: tuple[int, int] | None = None

    def jetpack(self, cuda: tuple[int, int] | None = None) -> JetPack | None:
        """Return its JetPack by the release, or by the CUDA version of the driver; None if both are unknown."""
        release = self.release
        if release is None and cuda is not None:
            release = (36, 4) if cuda < (13, 0) else (38, 0) if cuda < (13, 2) else (39, 0)
        return None if release is None else [one for first, one in JETPACKS.items() if first <= release][-1]


def highest_opset(tensorrt: str) -> int | None:
    """The highest opset that a version of TensorRT reads whole; None if it reads all that `bfr export` offers."""
    numbers = tuple(int(part) for part in tensorrt.split(".")[:2])
    return next((opset for before, opset in OPSETS if numbers < before), None)


def this_board(root: Path = Path("/")) -> Board:
    """Return the board that this runs on.

    Names of boards differ ("NVIDIA Orin NX Developer Kit", those of other makers). What they share is the device tree's
    `compatible`, and L4T's release file, which NVIDIA's container runtime mounts.

    Args:
        root: The root folder of the board's files.
    """
    trees = root / "proc/device-tree", root / "sys/firmware/devicetree/base"  # the first is a link to the second
    model, kinds = (next(filter(None, (words_of(tree / file) for tree in trees)), "") for file in _TREE)
    name, release = " ".join(model.split()), root / "etc/nv_tegra_release"
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+)", words_of(release), re.IGNORECASE)
    known = bool(re.search(r"(?<!\w)nvidia,tegra\d", kinds)) or os.path.isfile(release) or "jetson" in name.lower()  # noqa: PTH113  (raises nothing)
    called = os.environ.get(OVERRIDE, "").strip() or ((name or "a Tegra board") if known else None)
    room = memory(root)
    return Board(
        called, room.get("MemTotal", 0.0), room.get("SwapTotal", 0.0), (int(match[1]), int(match[2])) if match else None
    )


def power_mode(root: Path = Path("/")) -> str | None:
    """Return the power mode of a board, as `15W`; None if this is no board, or the mode is unknown.

    `nvpmodel` keeps the number in its status file, and the names in its configuration. If a container has neither,
    this runs the program.
    """
    if this_board(root).model is None:
        return None
    number = re.search(r"pmode:0*(\d+)", words_of(root / "var/lib/nvpmodel/status"))
    if number is None:
        return _asked_mode()
    names = re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", words_of(root / "etc/nvpmodel.conf"))
    return dict(names).get(number[1], number[1])


def _asked_mode() -> str | None:
    if (program := shutil.which("nvpmodel")) is None:
        return None
    try:
        asked = subprocess.run([program, "-q"], capture_output=True, timeout=_ASK_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"NV Power Mode:\s*(\S+)", asked.stdout.decode("utf-8", "replace"))
    return found[1] if found else None


def memory(root: Path = Path("/")) -> dict[str, float]:
    """Return the kernel's figures of memory in GiB, by its names, as `MemTotal`."""
    lines = re.findall(r"^(\w+):\s*(\d+) kB", words_of(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kib) / 2**20 for name, kib in lines}


def words_of(path: Path) -> str:
    """Return the text of a file of the kernel, zeros as spaces; empty if it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").replace("\0", " ")
    except OSError:
        return ""
