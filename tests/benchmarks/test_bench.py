import dataclasses
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bfr.benchmarks import bench as b
from bfr.benchmarks import report
from bfr.benchmarks.cold import cold_start, peak_rss_bytes
from bfr.benchmarks.contender import Contender, default_threads, open_contender, split_name
from bfr.benchmarks.environment import CpuWatch, describe_machine
from bfr.benchmarks.interleave import measure, synthetic_faces
from bfr.benchmarks.results import Results, Sample, drift, statistics, summarize
from bfr.runtime.bundle import Bundle
from bfr.runtime.errors import BackendUnavailable, InvalidOption, MissingDependency, RestorationFailed

ABSOLUTE = re.compile(r"(?<![\w.:/)])/(home|root|tmp|usr|work|opt|var|private|Users)\b|[A-Z]:\\")


def sample(seconds: float, network: float = 0.0) -> Sample:
    return Sample(seconds, {"network": network, "estimate": 0.1, "denoise": 0.6})


def contender(fakes: Any, name: str, calls: list[str], eps: float = 0.0) -> Contender:
    def noted(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        calls.append(name)
        return np.full_like(x, eps)

    networks = {"estimator": fakes.identity(), "denoiser": fakes.step(noted)}
    return Contender(name, fakes.Device(), networks)


def make_results(**changes: Any) -> Results:
    first, samples = sample(3.0), [sample(1.0, 0.9), sample(2.0, 1.0)]
    images = (np.zeros((1, 4, 4, 3), np.float32), np.full((1, 4, 4, 3), 0.1, np.float32))
    measurements = [
        summarize(name, batch, 6, first, samples, gflop=3.0, baseline=samples, images=images if i else None)
        for batch in (1, 2)
        for i, name in enumerate(("eager-cpu", "onnxruntime-cpu"))
    ]
    backends = [b.BackendResult(name, "fp32", {"library": "1"}, 0.5, None) for name in ("eager-cpu", "onnxruntime-cpu")]
    fields: dict[str, Any] = {
        "system": "tiny",
        "title": "a | title",
        "bundle_sha256": "0" * 64,
        "image_size": 32,
        "preset": "reference",
        "sampler": {"solver": "ddim", "spacing": "ddim250", "start": 6, "eta": 0.5},
        "steps": 6,
        "date_utc": "2000-01-01T00:00:00+00:00",
        "command": "command",
        "seed": 1,
        "repeats": 2,
        "warmup": 1,
        "threads": 1,
        "baseline": "eager-cpu",
        "machine": {"CPU": "a | b, 2 cores"},
        "others_cores": 0.0,
        "backends": backends,
        "skipped": {"eager-half": "no GPU"},
        "measurements": measurements,
    }
    return Results(**{**fields, **changes})


def table_widths(markdown: str) -> list[set[int]]:
    """The number of columns of each table's rows; one number a table is a table that parses."""
    tables = re.findall(r"(?:^\|.*\|$\n?)+", markdown, re.MULTILINE)
    return [{len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} for table in tables]


def test_statistics_keep_the_outlier() -> None:
    found = statistics([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (found.min, found.p50, found.mean) == (1.0, 3.0, 22.0)
    assert found.p90 == pytest.approx(61.6)
    assert found.p99 == pytest.approx(96.16)
    one = statistics([2.0])
    assert {one.p50, one.p90, one.p99, one.mean, one.min} == {2.0}


def test_drift_is_psnr_and_the_largest_difference() -> None:
    a = np.zeros((2, 4, 4, 3), np.float32)
    assert drift(a + np.float32(0.1), a).psnr_db == pytest.approx(20.0, abs=1e-4)
    a[0, 0, 0, 0] = 0.5
    assert drift(a, np.zeros_like(a)).max_abs == 0.5
    assert drift(a, a).psnr_db == 240.0


def test_derived_numbers_follow_from_the_medians() -> None:
    samples = [sample(1.0, 0.5), sample(2.0, 1.5), sample(9.0, 9.0)]
    found = summarize("x", 4, 6, sample(5.0), samples, gflop=8.0, baseline=[sample(6.0)], images=None)
    assert found.images_per_second == 2.0
    assert found.gflop_per_second == 4.0
    assert found.speedup == 3.0
    assert found.overhead == 0.25
    assert found.step_seconds == pytest.approx(0.1)
    assert found.stages["upload"] == 0.0
    assert (found.first_seconds, found.samples, found.drift) == (5.0, [1.0, 2.0, 9.0], None)


def test_backends_take_turns_in_a_rotating_order(tiny_bundle: Bundle, fakes: Any) -> None:
    calls: list[str] = []
    contenders = [contender(fakes, name, calls) for name in "abc"]
    runs = measure(tiny_bundle, tiny_bundle.preset("short", start=1), contenders, 2, repeats=4, warmup=2)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert [(run.name, len(run.samples), run.images.shape) for run in runs] == [(n, 4, (2, 32, 32, 3)) for n in "abc"]
    for run in runs:
        assert all(0 < s.stages["network"] < s.seconds for s in run.samples)


def test_results_are_held_against_the_baseline(tiny_bundle: Bundle, fakes: Any) -> None:
    contenders = [contender(fakes, "eager-cpu", []), contender(fakes, "same", []), contender(fakes, "off", [], eps=0.5)]
    runs = measure(tiny_bundle, tiny_bundle.preset("short", start=1), contenders, 1, repeats=1, warmup=1)
    base, same, off = b.summarize_all(tiny_bundle, "eager-cpu", 1, 1, runs)
    assert base.drift is None
    assert base.speedup == 1.0
    assert same.drift is not None
    assert off.drift is not None
    assert same.drift.max_abs == 0.0
    assert off.drift.max_abs > 0.0
    assert off.drift.psnr_db < 60.0


def test_a_result_that_is_not_finite_is_not_timed(tiny_bundle: Bundle, fakes: Any) -> None:
    with pytest.raises(RestorationFailed, match=r"bad: .*NaN"):
        measure(tiny_bundle, tiny_bundle.preset("short"), [contender(fakes, "bad", [], np.nan)], 1, repeats=1, warmup=1)


def test_the_images_are_the_same_in_every_run() -> None:
    first, again = synthetic_faces(2, 32), synthetic_faces(2, 32)
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(*first)
    assert first[0].shape == (32, 32, 3)


def test_json_holds_every_number_and_no_infinity() -> None:
    found = json.loads(report.as_json(make_results()))
    assert set(found) == {"format", *(field.name for field in dataclasses.fields(Results))}
    assert found["measurements"][1]["samples"] == [1.0, 2.0]
    assert set(found["measurements"][1]["seconds"]) == {"p50", "p90", "p99", "mean", "min"}


def test_markdown_has_a_table_a_batch_that_parses() -> None:
    text = report.as_markdown(make_results(), plot="bench.png")
    assert [len(widths) for widths in table_widths(text)] == [1] * 5  # two batches, stages, start, machine
    for part in ("## Batch 1", "## Batch 2", "```\ncommand\n```", "bench.png", "eager-half was skipped: no GPU"):
        assert part in text
    assert "not idle" not in text
    assert "kept 1.50 of its cores busy" in report.as_markdown(make_results(others_cores=1.5), plot="bench.png")


def test_the_plot_is_a_png() -> None:
    assert report.as_png(make_results()).startswith(b"\x89PNG\r\n")


def test_the_command_can_be_repeated_and_names_no_folder() -> None:
    config = b.BenchConfig(Path("/home/me/x"), Path("/tmp/o"), backends=("eager-cpu",), batches=(1, 2), start=3)  # noqa: S108
    assert config.command == (
        "python -m bfr.benchmarks.bench BUNDLE --out DIR --backends eager-cpu --batches 1,2 --preset reference "
        "--start 3 --repeats 20 --warmup 2"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "batches"),
        ({"batches": (0,)}, "batches"),
        ({"batches": (1, 1)}, "twice"),
        ({"repeats": 0}, "repeats"),
        ({"warmup": 0}, "warmup"),
        ({"threads": 0}, "threads"),
        ({"backends": ("eager-gpu",)}, "eager-cpu, eager-cuda"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        b.BenchConfig(Path("x"), Path("y"), **options)


def test_a_name_may_carry_a_precision() -> None:
    assert split_name("onnxruntime-cpu:fp16") == ("onnxruntime-cpu", "fp16")
    assert split_name("eager-half") == ("eager-half", "fp16")
    with pytest.raises(InvalidOption, match="eager-cpu:fp16"):
        split_name("eager-cpu:fp16")


def test_without_a_baseline_nothing_is_measured(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="nothing to compare with"):
        b.run_bench(b.BenchConfig(tiny_bundle.folder, tmp_path, backends=("onnxruntime-cpu",)))


def test_half_on_a_cpu_is_refused_with_the_reason(tiny_bundle: Bundle) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(BackendUnavailable, match="half is for GPUs"):
        open_contender(tiny_bundle, "eager-half", threads=1, spinning=False)


@pytest.mark.parametrize(("module", "call"), [("torch", default_threads), ("matplotlib", report.need_matplotlib)])
def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, module: str, call: Any) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=re.escape('pip install "bfr-runtime[bench]"')):
        call()


def test_the_parents_memory_is_not_the_childs() -> None:
    ballast = np.ones(40 << 20, np.uint8)
    child = "from bfr.benchmarks.cold import peak_rss_bytes as p; a = p(); b = bytearray(64 << 20); print(a, p())"
    found = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout  # noqa: S603
    before, after = map(int, found.split())
    own = peak_rss_bytes()
    assert own is not None
    assert own > before + ballast.size
    assert after - before > 50 << 20


def test_a_fresh_process_that_fails_says_why(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with pytest.raises(RuntimeError, match="is no bundle"):
        cold_start(tmp_path, "onnxruntime-cpu", tiny_bundle.preset("short"), batches=(1,), threads=1)


def test_the_machine_is_described_without_its_owner() -> None:
    facts = describe_machine()
    assert {"CPU", "python", "numpy", "torch"} <= set(facts)
    assert not ABSOLUTE.search(json.dumps(facts))
    others = CpuWatch().others()
    assert others is None or others >= 0.0


def test_a_whole_run_on_a_tiny_bundle(tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    threads = torch.get_num_threads()
    out = tmp_path / "out"
    options = ["--backends", "eager-cpu,eager-half,onnxruntime-cpu,onnxruntime-cpu:fp16", "--batches", "2,1", "--quick"]
    code = b.main([str(tiny_bundle.folder), "--out", str(out), "--preset", "short", "--threads", "1", *options])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert torch.get_num_threads() == threads
    assert printed.out.strip() == str(out / "bench.md")
    assert {path.name for path in out.iterdir()} == {"bench.json", "bench.md", "bench.png"}
    found = json.loads((out / "bench.json").read_text())
    names = [backend["name"] for backend in found["backends"]]
    assert names == [name for name in options[1].split(",") if name not in found["skipped"]]
    for backend in found["backends"]:
        cold = backend["cold"]
        assert cold["imports_torch"] == backend["name"].startswith("eager")
        assert cold["first_result_seconds"] > cold["load_seconds"] > 0
        peaks = [cold["peak_bytes"][batch] for batch in ("1", "2")]
        assert all(1 << 20 < low <= high for low, high in pairwise(peaks))
    by_name = {(m["backend"], m["batch"]): m for m in found["measurements"]}
    assert by_name["onnxruntime-cpu", 2]["drift"]["psnr_db"] > 80.0
    assert 30.0 < by_name["onnxruntime-cpu:fp16", 1]["drift"]["psnr_db"] < 120.0
    assert all(len(m["samples"]) == 3 for m in found["measurements"])
    markdown = (out / "bench.md").read_text()
    assert all(len(widths) == 1 for widths in table_widths(markdown))
    for text in (markdown, (out / "bench.json").read_text()):
        assert not ABSOLUTE.search(text)
        assert str(tiny_bundle.folder) not in text


def test_the_command_explains_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert b.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is no bundle" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
