"""`bfr build` as a user runs it, on a machine without a GPU."""

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from bundles import edited
from called import Called
from rich.console import Console

from bfr.export.tensorrt.progress import Tick
from bfr.runtime.backends import board
from bfr.runtime.backends import tensorrt_key as trt
from bfr.runtime.backends.cuda import bindings as cuda
from bfr.runtime.bundle.bundle import Bundle, default_bundle, describe_file
from bfr.runtime.cli import build as cli_build
from bfr.runtime.errors import MissingDependency


def test_a_dry_run_needs_no_gpu_and_writes_nothing(call: Called) -> None:
    pytest.importorskip("tensorrt_rtx")
    before = sorted(default_bundle().iterdir())
    done = call("build", "--dry-run", "--library", "tensorrt-rtx")
    assert done.status == 0
    assert done.stdout.count("can be built") == 2
    done = call("build", "mini", "--dry-run", "--library", "tensorrt-rtx", "--for", "jetson", "--json")
    assert done.status == 0
    assert [(entry["network"], entry["problem"]) for entry in json.loads(done.stdout)] == [
        ("estimator", None),
        ("denoiser", None),
    ]
    assert sorted(default_bundle().iterdir()) == before


def test_a_graph_that_cannot_be_read_ends_a_dry_run_with_an_error(call: Called, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from onnx import helper

    folder = Path(shutil.copytree(default_bundle(), tmp_path / "b"))
    graph = folder / "estimator.onnx"
    names, side = ("degraded", "estimate"), Bundle.open(folder).manifest.image_size
    image = [helper.make_tensor_value_info(name, 1, ["batch", 3, side, side]) for name in names]
    unknown = helper.make_graph([helper.make_node("Unknown", names[:1], names[1:])], "g", image[:1], image[1:])
    graph.write_bytes(helper.make_model(unknown, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())
    with edited(folder) as manifest:
        entry = manifest["networks"]["estimator"]["variants"]["fp32"]
        entry["graph"] = describe_file(folder, graph).model_dump()
    done = call("build", folder, "--dry-run", "--library", "tensorrt-rtx")
    assert done.status == 1
    assert "estimator.onnx cannot be read by tensorrt-rtx" in done.stdout
    assert "denoiser in fp32" in done.stdout
    assert "nothing was built" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_that_gpu_nothing_is_built(call: Called, home: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert "--dry-run" in call.refused("build", "--library", "tensorrt-rtx", "--device", "99")
    assert not home.exists()


def test_wrong_options(call: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_build, "find_library", lambda _: "tensorrt-rtx")
    monkeypatch.setattr(board, "this_board", lambda: board.Board(None, 64.0, 0.0))
    for arguments, message in (
        (("--batches", "1,x"), "batches 'x' is not accepted"),
        (("--batches", "0"), "batches '0'"),
        (("--workspace", "0"), "choose 1 or more"),
        (("--level", "6"), "choose between 0 and 5"),
        (("--library", "onnx"), "choose one of auto, tensorrt, tensorrt-rtx"),
        (("--for", "phone"), "jetson is the only one"),
        (("--for", "jetson"), "this machine is not one"),
        (("--precision", "bf16"), "no network in bf16"),
    ):
        assert message in call.refused("build", *arguments)
    assert call("build", tmp_path).status == 2  # no bundle


def test_the_library_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"tensorrt-rtx"}

    def load(name: str) -> Any:
        if name not in there:
            raise MissingDependency(f"{name} cannot be imported: pip install it")
        return object()

    monkeypatch.setattr(trt, "load_library", load)
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    assert cli_build.find_library("auto") == "tensorrt-rtx"
    there.add("tensorrt")
    assert cli_build.find_library("auto") == "tensorrt"
    monkeypatch.setattr(cuda, "device_count", lambda: 0)
    assert cli_build.find_library("auto") == "tensorrt-rtx"  # parses graphs without a GPU
    assert cli_build.find_library("tensorrt-rtx") == "tensorrt-rtx"
    there.clear()
    with pytest.raises(MissingDependency, match=r"(?s)tensorrt-rtx .*tensorrt "):
        cli_build.find_library("auto")


def test_jetpack_6_refuses_a_newer_opset(
    call: Called, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "b"))
    with edited(folder) as manifest:
        for network in manifest["networks"].values():
            network["variants"]["fp32"]["opset"] = 21
    library = type("trt", (), {"__version__": "10.3.0"})
    monkeypatch.setattr(trt, "load_library", lambda _: library)
    assert "bfr export tiny --opset 20" in call.refused(
        "build", folder, "--for", "jetson", "--library", "tensorrt", "--dry-run"
    )


def test_progress_on_a_terminal_and_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """P19: without a terminal a line at least every 5 seconds."""
    assert cli_build.EVERY < 5
    monkeypatch.setattr(cli_build, "EVERY", 0.2)
    lines: list[str] = []
    monkeypatch.setattr(cli_build, "say", lines.append)
    monkeypatch.setattr(cli_build, "stderr", Console(file=io.StringIO(), force_terminal=False))
    begin = time.monotonic()
    with cli_build.progress_lines() as report:
        for i in range(10):
            report(Tick("denoiser", f"phase {i}", i, None))
            time.sleep(0.05)
    assert 1 <= len(lines) <= 1 + (time.monotonic() - begin) / 0.2
    assert "elapsed, remaining time unknown" in lines[0]
    shown = io.StringIO()
    monkeypatch.setattr(cli_build, "stderr", Console(file=shown, force_terminal=True, width=100))
    with cli_build.progress_lines() as report:
        report(Tick("denoiser", "Timing [x]", 3.0, 9.0))
        time.sleep(0.3)
    assert "Timing [x], 0:03 elapsed, about 0:09 remain" in shown.getvalue()
