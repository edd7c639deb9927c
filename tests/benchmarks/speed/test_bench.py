"""Benchmarks of speed: contenders that take turns, what is derived from their times, and the report."""

import dataclasses
import json
import re
import sys
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interpreter import python
from typer.testing import CliRunner

from bfr.benchmarks.environment import CpuWatch, GpuWatch, describe_machine, peak_rss_bytes, summarize_watch
from bfr.benchmarks.speed import bench as b
from bfr.benchmarks.speed import plots, report
from bfr.benchmarks.speed.apart import Lost
from bfr.benchmarks.speed.contender import Contender, default_threads, open_contender, split_name
from bfr.benchmarks.speed.interleave import Race, synthetic_faces, time_batch
from bfr.benchmarks.speed.options import BenchOptions
from bfr.benchmarks.speed.player import Entry, Player
from bfr.benchmarks.speed.results import BackendResult, Results, Run, Timing, drift, statistics, summarize
from bfr.benchmarks.speed.roofline import Ceilings, Cost
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.cli.main import app
from bfr.runtime.errors import BackendUnavailable, BundleInvalid, InvalidOption, MissingDependency
from bfr.runtime.install import install_command
from bfr.runtime.restore.plan import make_plan

ABSOLUTE = re.compile(r"(?<![\w.:/)])/(home|root|tmp|usr|work|opt|var|private|Users)\b|[A-Z]:\\")


def sample(seconds: float, network: float = 0.0) -> Timing:
    return Timing(seconds, {"network": network, "estimate": 0.1, "denoise": 0.6})


def contender(fakes: Any, name: str, calls: list[str], eps: float = 0.0) -> Contender:
    def noted(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        calls.append(name)
        return np.full_like(x, eps)

    networks = {"estimator": fakes.identity(), "denoiser": fakes.step(noted)}
    return Contender(name, fakes.Device(), networks)


def race(bundle: Bundle, *contenders: Contender) -> Race:
    """The contenders in this process; whatever one raises ends it, as in a process of its own."""

    def caller(player: Player) -> Any:
        def call(method: str, *arguments: Any) -> Any:
            try:
                return getattr(player, method)(*arguments)
            except Exception as error:
                raise Lost(str(error)) from error

        return call

    found = Race()
    for one in contenders:
        player = Player(one, bundle, bundle.preset("short", start=1))
        player.joules = lambda: (None, "not here")  # type: ignore[method-assign]
        found.add(one.name, caller(player), one.first_calls)
    return found


def make_results(**changes: Any) -> Results:
    first, samples = sample(3.0), [sample(1.0, 0.9), sample(2.0, 1.0)]
    runs = [
        Run(name, first, samples, np.full((1, 4, 4, 3), level, np.float32))
        for name, level in (("eager-cpu", 0.1), ("onnxruntime-cpu", 0.0))
    ]
    measurements = [summarize(run, batch, 6, gflop=3.0, baseline=runs[0]) for batch in (1, 2) for run in runs]
    backends = [BackendResult(name, "fp32", {"library": "1"}, 0.5, None) for name in ("eager-cpu", "onnxruntime-cpu")]
    sampler = {"solver": "ddim", "spacing": "ddim250", "start": 6, "eta": 0.5}
    fields: dict[str, Any] = {"system": "tiny", "title": "a | title", "bundle_sha256": "0" * 64, "image_size": 32}
    fields |= {"preset": "reference", "sampler": sampler, "steps": 6, "seed": 1, "baseline": "eager-cpu"}
    fields |= {"date_utc": "2000-01-01T00:00:00+00:00", "command": "command", "repeats": 2, "warmup": 1, "threads": 1}
    fields |= {"machine": {"CPU": "a | b, 2 cores"}, "others_cores": 0.0, "skipped": {"eager-half": "no GPU"}}
    return Results(**{**fields, "backends": backends, "measurements": measurements, **changes})


def table_widths(markdown: str) -> list[set[int]]:
    """The number of columns of each table's rows; one number a table is a table that parses."""
    tables = re.findall(r"(?:^\|.*\|$\n?)+", markdown, re.MULTILINE)
    return [{len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} for table in tables]


def reported(plots: str | None = None, **changes: Any) -> str:
    """The report of such results, whose tables parse."""
    text = report.as_markdown(make_results(**changes), **({"roofline": plots} if plots else {}))
    assert all(len(widths) == 1 for widths in table_widths(text))
    return text


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
    baseline = Run("y", sample(5.0), [sample(6.0)])
    found = summarize(Run("x", sample(5.0), samples), 4, 6, gflop=8.0, baseline=baseline)
    assert found.images_per_second == 2.0
    assert found.gflop_per_second == 4.0
    assert found.speedup == 3.0
    assert found.overhead == 0.25
    assert found.step_seconds == pytest.approx(0.1)
    assert found.stages["upload"] == 0.0
    assert (found.first_seconds, found.samples, found.drift) == (5.0, [1.0, 2.0, 9.0], None)


def test_backends_take_turns_in_a_rotating_order(tiny_bundle: Bundle, fakes: Any) -> None:
    calls: list[str] = []
    runs = race(tiny_bundle, *(contender(fakes, name, calls) for name in "abc")).measure(2, repeats=4, warmup=2)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert [(run.name, len(run.samples)) for run in runs] == [(name, 4) for name in "abc"]
    for run in runs:
        assert run.images is not None
        assert run.images.shape == (2, 32, 32, 3)
        assert all(0 < s.stages["network"] < s.seconds for s in run.samples)


def test_results_are_held_against_the_baseline(tiny_bundle: Bundle, fakes: Any) -> None:
    contenders = [contender(fakes, "eager-cpu", []), contender(fakes, "same", []), contender(fakes, "off", [], eps=0.5)]
    runs = race(tiny_bundle, *contenders).measure(1, repeats=1, warmup=1)
    plan = make_plan(tiny_bundle, tiny_bundle.preset("short", start=1))
    base, same, off = b.summarize_all(tiny_bundle, plan, make_results(), 1, runs)
    assert (base.drift, base.speedup) == (None, 1.0)
    assert same.drift is not None
    assert off.drift is not None
    assert same.drift.max_abs == 0.0 < off.drift.max_abs
    assert off.drift.psnr_db < 60.0


def test_a_result_that_is_not_finite_costs_its_row(tiny_bundle: Bundle, fakes: Any) -> None:
    field = race(tiny_bundle, contender(fakes, "bad", [], np.nan), contender(fakes, "good", []))
    runs = field.measure(1, repeats=2, warmup=1)
    assert [(run.name, len(run.samples)) for run in runs] == [("good", 2)]
    assert "NaN" in field.lost["bad"]


@pytest.mark.parametrize("at", [0, 1, 2, 4, 6])
def test_one_that_drops_out_leaves_the_others_their_turns(tiny_bundle: Bundle, fakes: Any, at: int) -> None:
    """While it warms up, in a round, and in the next batch size."""
    calls: list[str] = []
    bad = contender(fakes, "b", calls)
    steps = bad.networks["denoiser"]

    def fail(**inputs: Any) -> Any:
        if calls.count("b") >= at:
            raise RuntimeError("out of memory")
        return steps.function(**inputs)  # type: ignore[attr-defined]

    bad.networks["denoiser"] = fakes.Network(fail)
    field = race(tiny_bundle, contender(fakes, "a", calls), bad, contender(fakes, "c", calls))
    kept: list[list[tuple[str, int]]] = []
    for batch in (1, 2):
        runs = field.measure(
            batch, repeats=3, warmup=1, keep=lambda runs: kept.append([(run.name, len(run.samples)) for run in runs])
        )
    assert [(run.name, len(run.samples)) for run in runs] == [("a", 3), ("c", 3)]
    assert field.lost == {"b": "out of memory"}
    # Calls of `b` that a round of it needs, those of the warm-up included.
    assert [len(names) for names in kept] == [3 if at >= needed else 2 for needed in (2, 3, 4, 6, 7, 8)]
    plan = make_plan(tiny_bundle, tiny_bundle.preset("short", start=1))
    without = b.summarize_all(tiny_bundle, plan, make_results(baseline="b"), 2, runs)
    assert [(m.speedup, m.drift) for m in without] == [(None, None)] * 2
    assert "| b: out of memory |" in reported(measurements=without, lost=field.lost)


def test_the_limit_is_for_networks_in_the_ceilings_precision(tiny_bundle: Bundle, fakes: Any) -> None:
    results = make_results(ceilings=Ceilings("chip", "float32", 1e12, 1e11), costs=[Cost(1, 1e9, 1 << 20, 1 << 22)])
    half = dataclasses.replace(results.backends[1], precision="int8")
    results = dataclasses.replace(results, backends=[results.backends[0], half])
    field = race(tiny_bundle, *(contender(fakes, one.name, []) for one in results.backends))
    runs = field.measure(1, repeats=1, warmup=1)
    plan = make_plan(tiny_bundle, tiny_bundle.preset("short", start=1))
    full, quantized = b.summarize_all(tiny_bundle, plan, results, 1, runs)
    assert full.limit_seconds == pytest.approx(0.001)
    assert full.share == pytest.approx(0.001 / full.step_seconds)
    assert (quantized.limit_seconds, quantized.share) == (None, None)


def test_energy_makes_a_column_of_its_own() -> None:
    metered = [dataclasses.replace(m, joules=12.5 if m.batch == 1 else None) for m in make_results().measurements]
    text = reported(measurements=metered, energy="the CPU's counters")
    for part in ("| J a face |", "| 12.5 |", "Energy: the CPU's counters."):
        assert part in text
    without = reported(energy="this machine measures no energy")
    assert "J a face" not in without
    assert "this machine measures no energy" in without


def test_the_images_are_the_same_in_every_run() -> None:
    first, again = synthetic_faces(2, 32), synthetic_faces(2, 32)
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(*first)
    assert first[0].shape == (32, 32, 3)


def test_json_holds_every_number_and_no_infinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(b, "run_bench", lambda *_: make_results())  # what it keeps meanwhile has the same form
    b.bench(BenchOptions(out=tmp_path))
    found = json.loads((tmp_path / "bench.json").read_text())
    assert set(found) == {"format", *(field.name for field in dataclasses.fields(Results))}
    assert found["measurements"][1]["samples"] == [1.0, 2.0]
    assert set(found["measurements"][1]["seconds"]) == {"p50", "p90", "p99", "mean", "min"}


def test_markdown_has_a_table_a_batch_that_parses() -> None:
    text = report.as_markdown(make_results())
    assert [len(widths) for widths in table_widths(text)] == [1] * 5  # two batches, stages, start, machine
    for part in ("## Batch 1", "## Batch 2", "```\ncommand\n```", "| eager-half: no GPU |"):
        assert part in text
    assert "not idle" not in text
    assert "kept 1.50 of its cores busy" in reported(others_cores=1.5)
    assert "by events on the device" not in text
    assert "by events on the device" in reported(baseline="eager-cuda")  # what the overhead of a GPU is


def test_the_command_can_be_repeated_and_names_no_folder() -> None:
    config = BenchOptions(Path("/home/me/x"), Path("/tmp/o"), backends=("eager-cpu",), batches=(1, 2), steps=3)  # noqa: S108
    assert config.command == (
        "bfr bench BUNDLE --out DIR --backends eager-cpu --batches 1,2 --steps 3 --repeats 20 --warmup 2"
    )
    assert BenchOptions(published=Path("/home/me/clone")).command.endswith(" --published CLONE")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "batches"),
        ({"batches": (0,)}, "batches"),
        ({"batches": (1, 1)}, "twice"),
        ({"repeats": 0}, "repeats"),
        ({"warmup": 0}, "warmup"),
        ({"threads": 0}, "threads"),
        ({"device": -1}, "device"),
        ({"backends": ("eager-cpu", "eager-cpu")}, "twice"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        BenchOptions(Path("x"), Path("y"), **options)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("eager-cpu", ("eager-cpu", "fp32", False)),
        ("eager-half", ("eager-half", "fp16", False)),
        ("eager-half+graph", ("eager-half", "fp16", True)),
        ("onnxruntime-cpu:fp16", ("onnxruntime-cpu", "fp16", False)),
        ("tensorrt:fp16", ("tensorrt", "fp16", True)),
        ("tensorrt-rtx+nograph", ("tensorrt-rtx", "fp32", False)),
        ("torch-cuda:fp16+nograph", ("torch-cuda", "fp16", False)),
        ("torch-cpu", ("torch-cpu", "fp32", False)),
        ("openvino-cpu:int8", ("openvino-cpu", "int8", False)),
    ],
)
def test_a_name_may_carry_a_precision_and_a_graph(name: str, parts: tuple[str, str, bool]) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eager-cpu:fp16", "eager-cpu:fp16"),
        ("torch-cpu:int8", "torch-cpu:int8"),
        ("auto", "onnxruntime-cpu"),
        ("eager-cpu+graph", "goes with eager-cuda, eager-half, +nograph"),
        ("onnxruntime-cuda+graph", "goes with"),  # it frees what the graph would read
        ("onnxruntime-cpu+nograph", "goes with"),
        ("tensorrt+graph", "nograph with tensorrt"),  # it has one without being asked: one thing, one name
        ("onnxruntime-cuda+nograph", "goes with"),
        ("torch-cuda+loop", "goes with"),
    ],
)
def test_a_name_that_makes_no_sense_is_refused(name: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(message)):
        split_name(name)


def test_a_backend_that_records_is_timed_after_its_second_call(tiny_bundle: Bundle, fakes: Any) -> None:
    calls: list[str] = []
    plain, recording = contender(fakes, "p", calls), contender(fakes, "r", calls)
    recording.device.records = True
    assert (plain.records, recording.records) == (False, True)
    race(tiny_bundle, plain, recording).measure(1, repeats=1, warmup=1)
    assert "".join(calls) == "p" + "rr" + "pr"


class GpuPretender:
    """A device of a GPU as far as opening a contender goes."""

    def __init__(self, index: int, **options: Any) -> None:
        self.index, self.options, self.loaded, self.records = index, options, {}, True

    def load(self, bundle: Bundle, name: str, precision: str) -> str:
        self.loaded[name] = precision
        return name


@pytest.mark.parametrize(
    ("name", "options", "denoiser"),
    [
        ("eager-cuda", {"graphs": False, "tf32": False}, "fp32"),
        ("eager-tf32", {"graphs": False, "tf32": True}, "fp32"),
        ("eager-half", {"graphs": False, "tf32": False}, "fp16"),
        ("eager-half+graph", {"graphs": True, "tf32": False}, "fp16"),
    ],
)
def test_eager_on_a_gpu_is_the_published_mode(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, bool], denoiser: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("bfr.export.pytorch.compiled.CompiledDevice", GpuPretender)
    found = open_contender(tiny_bundle, name, threads=1, index=2)
    device: Any = found.device
    assert (device.index, device.options) == (2, {"compiled": False, **options})
    assert device.loaded == {"estimator": "fp32", "denoiser": denoiser}
    assert found.precision == denoiser


@pytest.mark.parametrize(("name", "records"), [("torch-cuda:fp16", True), ("torch-cuda:fp16+nograph", False)])
def test_a_runtime_backend_records_as_its_name_says(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, records: bool
) -> None:
    monkeypatch.setattr("bfr.export.pytorch.compiled.CompiledDevice", GpuPretender)
    found = open_contender(tiny_bundle, name, threads=None, index=1)
    device: Any = found.device
    assert (device.index, found.records) == (1, records)
    assert device.loaded == {"estimator": "fp32", "denoiser": "fp16"}  # the estimator has no other
    assert found.build_seconds is None


def restored(bundle: Bundle, name: str) -> np.ndarray:
    found = open_contender(bundle, name, threads=1)
    assert found.name == name
    with found.restorer(bundle, bundle.preset("short"), 1) as restorer:
        return time_batch(found, restorer, synthetic_faces(1, 32))[1]


def test_every_network_is_compiled_on_a_cpu(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    compiled: list[Any] = []

    def compile_(stage: Any, **options: Any) -> Any:
        compiled.append(options)
        return stage

    monkeypatch.setattr(torch, "compile", compile_)
    assert np.array_equal(restored(tiny_bundle, "torch-cpu"), restored(tiny_bundle, "eager-cpu"))
    assert compiled == [{"fullgraph": True, "dynamic": False}] * len(tiny_bundle.manifest.networks)


def test_openvino_runs_the_bundles_graphs_where_it_is_installed(tiny_bundle: Bundle) -> None:
    if find_spec("openvino"):
        assert drift(restored(tiny_bundle, "openvino-cpu"), restored(tiny_bundle, "eager-cpu")).psnr_db > 80.0
    else:
        with pytest.raises(MissingDependency, match="pip install openvino"):
            open_contender(tiny_bundle, "openvino-cpu", threads=1)


def test_the_baseline_is_eager_pytorch_where_it_is_there(tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert b.choose_baseline(tiny_bundle, ["onnxruntime-cpu", "eager-half", "eager-cuda"]) == "eager-cuda"
    assert b.choose_baseline(tiny_bundle, ["onnxruntime-cpu", "onnxruntime-cpu:fp16"]) == "onnxruntime-cpu"
    with pytest.raises(InvalidOption, match="eager-cpu, eager-cuda"):
        b.run_bench(BenchOptions(tiny_bundle.folder, tmp_path, backends=("eager-gpu",)))


def test_half_on_a_cpu_is_refused_with_the_reason(tiny_bundle: Bundle) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(BackendUnavailable, match="GPU"):
        open_contender(tiny_bundle, "eager-half", threads=1)


@pytest.mark.parametrize(
    ("module", "call"),
    [("torch", lambda _: default_threads()), ("matplotlib", lambda out: b.bench(BenchOptions(out=out)))],
)
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, call: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=re.escape(install_command("bench"))):
        call(tmp_path)


def test_the_parents_memory_is_not_the_childs() -> None:
    ballast = np.ones(40 << 20, np.uint8)
    child = (
        "from bfr.benchmarks.environment import peak_rss_bytes as p; a = p(); b = bytearray(64 << 20); print(a, p())"
    )
    before, after = map(int, python(child).stdout.split())
    own = peak_rss_bytes()
    assert own is not None
    assert own > before + ballast.size
    assert after - before > 50 << 20


def test_a_fresh_process_that_fails_says_why(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with pytest.raises(Lost, match="bundle"):
        b.cold_start(Entry(tmp_path, "onnxruntime-cpu", tiny_bundle.preset("short"), threads=1), (1,), limit=600)


def test_the_machine_is_described_without_its_owner() -> None:
    facts = describe_machine()
    assert {"CPU", "python", "numpy", "torch"} <= set(facts)
    assert not ABSOLUTE.search(json.dumps(facts))
    others = CpuWatch().others()
    assert others is None or others >= 0.0


def test_the_gpu_watch_says_what_it_saw() -> None:
    lines = ["1980, 2619, 90.5, 30, 600\n", "1755, 2619, 700.1, 55, 9000\n", "1980, 2619, [N/A], 40, 9000\n", "broken"]
    assert summarize_watch(lines) == {
        "GPU before": "1980 SM MHz, 2619 memory MHz, 90.5 W, 30 degrees C, 600 MiB used",
        "GPU meanwhile": "1755 to 1980 SM MHz, 2619 to 2619 memory MHz, 90.5 to 700.1 W, 30 to 55 degrees C, "
        "600 to 9000 MiB used, seen 3 times",
        "GPU at last": "1980 SM MHz, 2619 memory MHz, 40 degrees C, 9000 MiB used",
    }
    assert summarize_watch([]) == {}
    assert GpuWatch(None).stop() == {}


def test_the_gpu_watch_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho $@ >&2\nwhile true; do echo '1, 2, 3, 4, 5'; sleep 0.05; done\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    watch = GpuWatch(0)
    time.sleep(0.3)
    assert watch.stop()["GPU before"] == "1 SM MHz, 2 memory MHz, 3 W, 4 degrees C, 5 MiB used"
    assert watch._process is not None
    assert watch._process.returncode is not None


def test_a_limit_makes_two_more_columns_and_a_picture() -> None:
    ceilings, costs = Ceilings("chip", "float16", 1e12, 1e11), [Cost(n, n * 1e9, 1 << 20, 1 << 22) for n in (1, 2)]
    plain = make_results()
    limited = [dataclasses.replace(m, limit_seconds=0.025 * m.batch) for m in plain.measurements]
    given: dict[str, Any] = {"measurements": limited, "ceilings": ceilings, "costs": costs}
    text = reported("roofline.png", **given)
    for part in ("| limit ms | share |", "| 25 | 25% |", "1 TFLOP/s", "(roofline.png)"):  # a step takes 0.1 s
        assert part in text
    picture = plots.roofline(make_results(**given))
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert "limit" not in reported()
    assert plots.roofline(plain) is None


def test_the_build_of_engines_stands_apart() -> None:
    backends = make_results().backends
    built = dataclasses.replace(backends[1], name="tensorrt:fp16", build_seconds=61.25)
    text = reported(backends=[backends[0], built])
    assert "| versions | build s | load s |" in text
    assert "| 61.25 | 0.5 |" in text


@pytest.mark.slow
def test_a_single_backend_alone(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = ["--backends", "onnxruntime-cpu", "--preset", "short", "--threads", "1", "--quick", "--no-cold", "--json"]
    ended = CliRunner().invoke(app, ["bench", str(tiny_bundle.folder), "-o", str(tmp_path / "out"), *options])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert found == json.loads((tmp_path / "out" / "bench.json").read_text())
    assert (found["baseline"], found["complete"]) == ("onnxruntime-cpu", True)
    assert [(m["backend"], m["speedup"], len(m["samples"])) for m in found["measurements"]] == [
        ("onnxruntime-cpu", 1, 3)
    ]
    assert found["backends"][0]["cold"] is None


def test_where_no_backend_begins_the_reasons_are_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = BenchOptions(
        bundle=tiny_bundle.folder, out=tmp_path, backends=("onnxruntime-cpu",), limit=1e-6, cold=False, threads=1
    )
    with pytest.raises(BackendUnavailable, match=r"onnxruntime-cpu: it took more than 1e-06 s to start"):
        b.run_bench(options)


@pytest.mark.slow
def test_a_whole_run_on_a_tiny_bundle(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--backends", "eager-cpu,eager-half,onnxruntime-cpu,onnxruntime-cpu:fp16", "--batches", "2,1", "--quick"]
    folders = [str(tiny_bundle.folder), "--out", str(out)]
    ended = CliRunner().invoke(app, ["bench", *folders, "--preset", "short", "--threads", "1", *options])
    assert ended.exit_code == 0, ended.output
    assert (out / "bench.md").read_text() in ended.stdout
    assert {path.name for path in out.iterdir()} == {"bench.json", "bench.md", "roofline.png"}
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
    limits = [m["limit_seconds"] for m in found["measurements"] if m["backend"] == "eager-cpu"]
    assert limits[0] > limits[1] > 0  # batches of 2 and 1
    markdown = (out / "bench.md").read_text()
    assert all(len(widths) == 1 for widths in table_widths(markdown))
    for text in (markdown, (out / "bench.json").read_text()):
        assert not ABSOLUTE.search(text)
        assert str(tiny_bundle.folder) not in text


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="bundle"):
        b.bench(BenchOptions(tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
