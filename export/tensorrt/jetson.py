"""`bfr build --for jetson`: options for the small memory of a Jetson board and the TensorRT of its JetPack.

TensorRT comes with JetPack: 10.3 with JetPack 6.1 and 6.2, later ones with JetPack 7. None of this was run on a board.
"""

from bfr.export.options import BuildOptions
from bfr.runtime.backends.board import OVERRIDE, Board, highest_opset, power_mode
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InvalidOption

BUCKETS = (1, 2)
# Boards share one memory between CPU and GPU, and report a little less than they are sold with.
WORKSPACE_MIB = ((9.0, 1024), (18.0, 2048))  # GiB of the board at most, MiB of workspace
SWAP_GIB = 8.0


def jetson_options(board: Board, given: BuildOptions) -> BuildOptions:
    """Return the builder's options on a board: the given ones, and for the others defaults by its memory."""
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
    mode = power_mode()
    now = f"it is {mode}" if mode else "`sudo nvpmodel -q` shows it"
    lines.append(
        f"choose the power mode first ({now}, docs/jetson.md): an engine is valid only in the mode it was built in"
    )
    return lines


def check_opsets(bundle: Bundle, version: str) -> None:
    """Raise InvalidOption if a graph has an opset that this version of TensorRT does not fully support."""
    if (highest := highest_opset(version)) is None:
        return
    higher = {
        f"{name} in {precision} has opset {variant.opset}"
        for name, entry in bundle.manifest.networks.items()
        for precision, variant in entry.variants.items()
        if variant.opset > highest
    }
    if higher:
        remedy = f"`{bundle.made_by} --opset {highest} -o FOLDER` on the machine that exports"
        if bundle.wrapped:
            remedy = f"export its ONNX file with opset {highest} or lower, and wrap that"
        raise InvalidOption(f"{'; '.join(sorted(higher))}; TensorRT {version} reads up to {highest}: {remedy}")


def check_board(board: Board) -> None:
    """Raise InvalidOption if this is no Jetson: an engine runs on the GPU that it was built on and no other."""
    if board.model is None:
        raise InvalidOption(
            "--for jetson builds on the Jetson itself, and this machine is not one: an engine fits only the GPU that "
            "it was built on. Here you can only check the graphs, with `--for jetson --dry-run`. In a container on a "
            f"board, set the environment variable {OVERRIDE} to the board's name"
        )
