"""The probe: whatever the child process does is an answer."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bfr.benchmarks.speed import probe as p
from bfr.runtime.backends.cuda.bindings import device_count
from bfr.runtime.bundle.bundle import Bundle, default_bundle


@pytest.fixture
def mini() -> Bundle:
    return Bundle.open(default_bundle())


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("import os; os.abort()", "status -6"),
        ("import time; time.sleep(30)", "no answer in 2 s"),
        ("raise SystemExit('no such thing')", "status 1: no such thing"),
        ("print('noise'); print('{\"runs\": true}')", None),
    ],
)
def test_a_crash_and_a_hang_are_answers(
    mini: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, answer: str | None
) -> None:
    run = p.subprocess.run
    monkeypatch.setattr(p.subprocess, "run", lambda _, **options: run([sys.executable, "-c", code], **options))
    found = p.run_child(mini, tmp_path / "engine", 0, 2.0)
    assert found["runs"] == (answer is None)
    assert answer is None or answer in found["said"]


@pytest.mark.skipif(device_count() > 0, reason="a GPU is there")
def test_without_a_gpu_the_child_says_so(mini: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    found = p.run_child(mini, tmp_path / "engine", 0, 60.0)
    assert found["runs"] is False
    assert "CUDA finds none" in found["said"] or "cannot be imported" in found["said"]


class FakeDevice:
    """Gives what the CPU gives, shifted."""

    shift = 0.0

    def __init__(self, *_: Any) -> None:
        from bfr.runtime.backends.onnxruntime import CpuDevice

        self.cpu, self.closed = CpuDevice(), False
        self.facts = type("Facts", (), {"name": "chip", "compute_capability": "9.0"})

    def load_engine(self, path: Path) -> Any:
        mini = Bundle.open(default_bundle())
        return self.cpu.load(mini, mini.estimator, "fp32")

    def read(self, buffer: Any) -> Any:
        return self.cpu.read(buffer) + self.shift

    def close(self) -> None:
        self.closed = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cpu, name)


@pytest.mark.parametrize(("shift", "runs"), [(0.0, True), (0.1, False), (float("nan"), False)])
def test_an_engine_that_runs_must_be_right(
    mini: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float, runs: bool
) -> None:
    monkeypatch.setattr("bfr.runtime.backends.tensorrt.TensorRtDevice", FakeDevice)
    monkeypatch.setattr(FakeDevice, "shift", shift)
    found = p.run_engine(mini, tmp_path, 0)
    assert found["runs"] == runs
    assert runs or "it runs and is wrong" in found["said"]


def test_the_answer_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bfr.runtime.backends.tensorrt_key.load_library", lambda _: type("trt", (), {"__version__": "1"})
    )
    monkeypatch.setattr("bfr.export.tensorrt.builder.build_engine_bytes", lambda *_, **__: b"engine")
    seen: list[bytes] = []

    def run_child(bundle: Bundle, engine: Path, index: int, seconds: float) -> dict[str, Any]:
        seen.append(engine.read_bytes())
        return {"runs": True, "said": "", "gpu": f"chip {index}", "max_abs": 1e-6}

    monkeypatch.setattr(p, "run_child", run_child)
    assert p.main(["--out", str(tmp_path), "--device", "3"]) == 0
    found = json.loads((tmp_path / "probe.json").read_text())
    assert (found["runs"], found["engine_bytes"], found["gpu"]) == (True, 6, "chip 3")
    assert seen == [b"engine"]
    assert "Yes, on chip 3" in (tmp_path / "probe.md").read_text()
