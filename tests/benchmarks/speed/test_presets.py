import json
from pathlib import Path

import pytest

from bfr.benchmarks.speed import presets
from bfr.benchmarks.speed.presets import Cost
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InvalidOption


def test_every_preset_is_timed_on_every_backend(tiny_bundle: Bundle, tmp_path: Path) -> None:
    backends = "onnxruntime-cpu,eager-cpu"
    options = ["--backends", backends, "--repeats", "2", "--threads", "1"]
    assert presets.main([str(tiny_bundle.folder), "--out", str(tmp_path), *options]) == 0
    costs = json.loads((tmp_path / "presets.json").read_text())["costs"]
    assert [(cost["preset"], cost["backend"]) for cost in costs] == [
        (preset, backend) for preset in ("reference", "short") for backend in backends.split(",")
    ]
    assert [cost["calls"] for cost in costs] == [6, 6, 2, 2]
    assert all(len(cost["seconds"]) == 2 and min(cost["seconds"]) > 0 for cost in costs)
    denoiser = tiny_bundle.network("denoiser").gflop or 0.0
    assert costs[0]["gflop"] - costs[2]["gflop"] == pytest.approx(4 * denoiser)


def test_ratios_are_to_the_first_preset_on_the_same_backend() -> None:
    costs = [
        Cost("reference", "a", "slow", 100, 1000.0, (9.0, 8.0, 10.0)),
        Cost("reference", "b", "slow", 100, 1000.0, (3.0, 3.0, 3.0)),
        Cost("fast", "a", "quick", 10, 100.0, (1.0, 2.0, 0.5)),
        Cost("fast", "b", "quick", 10, 100.0, (2.0, 2.0, 2.0)),
    ]
    rows = [line.split(" | ") for line in presets.as_markdown(costs).splitlines() if line.startswith("| fast")]
    assert [row[-2:] for row in rows] == [["9.00x", "10.00x |"], ["1.50x", "10.00x |"]]


def test_what_cannot_be_timed_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="choose at least 1"):
        presets.measure(tiny_bundle, ["short"], ["onnxruntime-cpu"], repeats=0, warmup=0, threads=1)
    folder, out = str(tiny_bundle.folder), str(tmp_path / "out")
    assert presets.main([folder, "--out", out, "--presets", "best"]) != 0
    assert not (tmp_path / "out").exists()
