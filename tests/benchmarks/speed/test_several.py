"""`bfr bench A B C`: a folder each, one table, and a bundle that fails costs its rows alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from bfr.benchmarks.speed import several
from bfr.benchmarks.speed.options import BenchOptions
from bfr.benchmarks.speed.several import bench_several
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import BackendUnavailable


def fake(told: list[BenchOptions], failing: str = "") -> Any:
    """A measurement that takes as many seconds as its place, or fails in one folder."""

    def bench(options: BenchOptions, progress: Any) -> Path:
        progress("measured")
        told.append(options)
        if options.out.name == failing:
            raise BackendUnavailable("nothing works here")
        options.out.mkdir(parents=True)
        seconds = float(len(told))
        backend = {
            "name": "onnxruntime-cpu",
            "cold": {"peak_bytes": {"1": 300 * 2**20}, "batch": 1, "first_result_seconds": 2.5},
        }
        measured = {"backend": "onnxruntime-cpu", "batch": 1, "seconds": {"p50": seconds, "p90": seconds + 1}}
        measured |= {"images_per_second": 1 / seconds, "drift": {"max_abs": 0.00025} if seconds > 1 else None}
        found: dict[str, Any] = {"backends": [backend], "measurements": [measured], "baseline": "eager-cpu"}
        found |= {
            "machine": {"cpu": "a CPU"},
            "threads": 2,
            "others_cores": 1.0,
            "skipped": {"onnxruntime-cpu:int8": "it has none"},
            "lost": {},
        }
        (options.out / "bench.json").write_text(json.dumps(found))
        return options.out / "bench.md"

    return bench


def test_a_table_has_all_bundles(tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[BenchOptions] = []
    monkeypatch.setattr(several, "bench", fake(told))
    bundles = [Bundle.open(default_bundle()), tiny_bundle, tiny_bundle]
    path = bench_several(bundles, BenchOptions(out=tmp_path / "out", repeats=7))
    assert [one.out.name for one in told] == ["mini", "tiny-2", "tiny-3"]
    assert [one.bundle for one in told] == [bundle.folder for bundle in bundles]
    assert {one.repeats for one in told} == {7}
    text = path.read_text()
    assert "| mini | onnxruntime-cpu, 1 | 1 (2) | 1 |  | 300 | 2.5 |" in text
    assert "| tiny-3 | onnxruntime-cpu, 1 | 3 (4) | 0.3333 | 2.5e-04 | 300 | 2.5 |" in text
    assert "tiny-2, onnxruntime-cpu:int8 was not measured: it has none" in text
    assert "2 threads; cpu a CPU." in text
    assert "Other processes" in text
    kept = json.loads(path.with_name("bench.json").read_text())
    assert [one["name"] for one in kept["bundles"]] == ["mini", "tiny-2", "tiny-3"]
    for one in kept["bundles"]:
        one["backends"][0]["cold"] = None  # as of --no-cold
    assert "| mini | onnxruntime-cpu, 1 | 1 (2) | 1 |  |\n" in several.as_markdown(kept["bundles"], {})


def test_one_that_fails_is_named_below(tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "bench", fake([], failing="tiny"))
    options = BenchOptions(out=tmp_path / "out")
    text = bench_several([Bundle.open(default_bundle()), tiny_bundle], options).read_text()
    assert "| mini |" in text
    assert "tiny was not measured: nothing works here" in text
