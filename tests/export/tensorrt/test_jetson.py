"""`bfr build --for jetson`, as far as it can be tested without a board."""

import pytest

from bfr.export.options import BuildOptions
from bfr.export.tensorrt.jetson import advice, check_board, check_opsets, jetson_options
from bfr.runtime.backends.board import Board
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import InvalidOption


def board(memory: float, swap: float = 0.0, model: str | None = "NVIDIA Jetson Orin Nano") -> Board:
    return Board(model, memory, swap)


def test_a_machine_that_is_no_board_is_refused() -> None:
    with pytest.raises(InvalidOption, match="BFR_JETSON"):
        check_board(board(16, model=None))
    check_board(board(16))


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
    estimator = networks["estimator"].model_copy(update={"kind": "wrapped"})
    theirs = mini.manifest.model_copy(update={"networks": {"estimator": estimator}})
    with pytest.raises(InvalidOption, match="export its ONNX file with opset 20 or lower, and wrap that"):
        check_opsets(Bundle(mini.folder, theirs, mini.hash), "10.3.0")
    check_opsets(newer, "10.13.2")
    check_opsets(newer, "11.4.1")
