"""`bfr build --for jetson`: what the small memory of a Jetson board and the TensorRT of its JetPack ask for.

TensorRT comes with JetPack: 10.3 with JetPack 6.1 and 6.2, later ones with JetPack 7. None of this was run on a board.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from bfr.export.options import BuildOptions
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InvalidOption

BUCKETS = (1, 2)
# Boards share one memory between CPU and GPU, and report a little less than they are sold with.
WORKSPACE_MIB = ((9.0, 1024), (18.0, 2048))  # GiB of the board at most, MiB of workspace
OPSETS = (((10, 9), 20), ((10, 14), 22))  # TensorRT before this version, highest opset it reads whole
SWAP_GIB = 8.0
OVERRIDE = "BFR_JETSON"  # names the board where nothing else tells it, as in containers without its files


@dataclass(frozen=True, slots=True)
class Board:
    """model: as the board names itself, None where this has no Tegra. memory, swap: in GiB."""

    model: str | None
    memory: float
    swap: float


def this_board(root: Path = Path("/")) -> Board:
    """The board that this runs on. root: where its files are looked for.

    Names of boards differ ("NVIDIA Orin NX Developer Kit", those of other makers). What they share is the device tree's
    `compatible`, and L4T's release file, which NVIDIA's container runtime mounts.
    """
    name = _words(root / "proc/device-tree/model").strip()
    tegra = "tegra" in _words(root / "proc/device-tree/compatible") or (root / "etc/nv_tegra_release").is_file()
    kib = {"MemTotal": 0, "SwapTotal": 0}
    for line in _words(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        if key in kib:
            kib[key] = int(value.split()[0])
    found = os.environ.get(OVERRIDE) or (name or "a Tegra board" if tegra or "jetson" in name.lower() else None)
    return Board(found, kib["MemTotal"] / 2**20, kib["SwapTotal"] / 2**20)


def _words(path: Path) -> str:
    """The text of a file of the kernel, whose strings may end with zeros; nothing where it cannot be read."""
    try:
        return path.read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def jetson_options(board: Board, given: BuildOptions) -> BuildOptions:
    """The builder's options on a board; what is given is taken, the rest follows from its memory."""
    limit = next((mib for most, mib in WORKSPACE_MIB if board.memory <= most), None)
    return given.model_copy(update={"batches": given.batches or BUCKETS, "workspace": given.workspace or limit})


def advice(board: Board) -> list[str]:
    """What to do before a build on this board, one line each."""
    lines = []
    if board.memory <= WORKSPACE_MIB[-1][0] and board.swap < SWAP_GIB:
        lines.append(
            f"{board.memory:.1f} GiB of memory and {board.swap:.1f} GiB of swap: a build may be killed. "
            f"Add a swap file of {SWAP_GIB:.0f} GiB on NVMe (docs/jetson.md), and stop the desktop"
        )
    lines.append("choose the largest power mode first (`sudo nvpmodel -q`, docs/jetson.md): kernels are timed in it")
    return lines


def check_opsets(bundle: Bundle, version: str) -> None:
    """Raise InvalidOption where a graph has an opset that this version of TensorRT does not read whole."""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    highest = next((opset for before, opset in OPSETS if numbers < before), None)
    if highest is None:
        return
    higher = {
        f"{name} in {precision} has opset {variant.opset}"
        for name, entry in bundle.manifest.networks.items()
        for precision, variant in entry.variants.items()
        if variant.opset > highest
    }
    if higher:
        raise InvalidOption(
            f"{'; '.join(sorted(higher))}; TensorRT {version} reads up to {highest}: "
            f"`bfr export {bundle.manifest.system} --opset {highest} -o FOLDER` on the machine that exports"
        )


def check_board(board: Board) -> None:
    """Raise InvalidOption where this is no Jetson: an engine runs on the GPU that it was built on and no other."""
    if board.model is None:
        raise InvalidOption(
            "--for jetson builds on the Jetson itself, and this machine is not one: an engine fits only the GPU that it "
            "was built on. Here `--for jetson --dry-run` looks at the graphs. In a container on a board, set the environment "
            f"variable {OVERRIDE} to the board's name"
        )
