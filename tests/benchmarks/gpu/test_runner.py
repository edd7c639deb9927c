"""The stages' runner, with stages that are small scripts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bfr.benchmarks.gpu import stages
from bfr.benchmarks.gpu.__main__ import run_one, run_stages
from bfr.benchmarks.gpu.measure import Context, NeedsGpu, Stage, _profile
from bfr.benchmarks.gpu.stages import STAGES

# Stands for `python -m bfr.benchmarks.gpu`: `--stage NAME` says what becomes of the stage, which it notes first.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
folder, name = Path(sys.argv[1]), sys.argv[sys.argv.index("--stage") + 1]
def record(**entry):
    path = folder / "out" / "results.json"
    results = json.loads(path.read_text())
    results["stages"][name] = entry
    (folder / "new").write_text(json.dumps(results))
    (folder / "new").replace(path)
with (folder / "ran").open("a") as ran:
    print(name, file=ran)
print("the first line of", name)
if name.startswith("slow"):
    (folder / "waits").write_text(str(os.getpid()))
    record(status="cut off", figures={"so far": 1})
    time.sleep(600)
if name == "dies":
    record(status="cut off", figures={"so far": 2})
    print("its last words", file=sys.stderr)
    sys.exit(7)
record(status="done", figures={"value": name})
"""


def stage(name: str, seconds: int = 600, least: int = 0) -> Stage:
    return Stage(name, lambda _: {}, seconds, least, "?")


def run(folder: Path, *stages: Stage, seconds: float = 10_000, resume: Path | None = None) -> dict[str, Any]:
    """The stages' entries, as `results.json` has them."""
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    run_stages(stages, command, folder / "out", folder / "work", seconds=seconds, resume=resume)
    return dict(json.loads((folder / "out" / "results.json").read_text())["stages"])


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().split()


@pytest.mark.parametrize(("status", "compiler"), [("done", None), ("timed out", ()), ("skipped", ()), (None, ())])
def test_a_chain_is_compiled_as_the_stage_before_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str | None, compiler: Any
) -> None:
    """In this run or in an earlier one: a compilation that did not end would not end here either."""
    given: list[dict[str, Any]] = []

    def restore(_context: Context, _name: str, **options: Any) -> dict[str, Any]:
        given.append(options)
        return {}

    monkeypatch.setattr(stages, "restore", restore)
    if status:
        (tmp_path / "results.json").write_text(json.dumps({"stages": {"autotuned": {"status": status}}}))
    context = Context(tmp_path, tmp_path, tmp_path, True, 100.0, None, lambda _: None)
    next(stage for stage in STAGES if stage.name == "chain torch-cuda:fp16").run(context)
    assert given == [{"batch": 1, "steps": None, "repeats": 10, "compiler": compiler}]


def test_each_stage_is_recorded_whatever_becomes_of_the_one_before(tmp_path: Path) -> None:
    found = run(tmp_path, stage("dies"), stage("slow", seconds=3), stage("good"))
    assert ran(tmp_path) == ["dies", "slow", "good"]
    assert found["dies"]["status"] == "failed"
    assert found["dies"]["last lines"] == ["the first line of dies", "its last words"]
    assert "status 7" in found["dies"]["why"]
    assert found["slow"]["status"] == "timed out"
    assert found["slow"]["last lines"] == ["the first line of slow"]
    assert found["good"]["status"] == "done"
    # What a stage found before it ended is kept, and its log comes back.
    figures = [found[name]["figures"] for name in ("dies", "slow", "good")]
    assert figures == [{"so far": 2}, {"so far": 1}, {"value": "good"}]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "its last words" in log
    assert "the first line of good" in log


def test_a_stage_that_has_too_little_time_left_is_skipped_and_said_so(tmp_path: Path) -> None:
    found = run(tmp_path, stage("long", least=90), stage("short"), seconds=60)
    assert found["long"]["status"] == "skipped"
    assert "90 at least are needed" in found["long"]["why"]
    assert ran(tmp_path) == ["short"]


def test_resuming_runs_what_is_not_done(tmp_path: Path) -> None:
    run(tmp_path, stage("good"), stage("dies"))
    found = run(tmp_path, stage("good"), stage("dies"), stage("new"), resume=tmp_path / "out")
    assert ran(tmp_path) == ["good", "dies", "dies", "new"]
    assert found["good"]["figures"] == {"value": "good"}
    assert found["new"]["status"] == "done"


def test_without_resume_everything_runs_anew(tmp_path: Path) -> None:
    run(tmp_path, stage("good"))
    run(tmp_path, stage("good"))
    assert ran(tmp_path) == ["good", "good"]


def test_missing_weights_are_made_anew_on_resuming(tmp_path: Path) -> None:
    run(tmp_path, stage("weights"))
    run(tmp_path, stage("weights"), resume=tmp_path / "out")
    assert ran(tmp_path) == ["weights", "weights"]
    (tmp_path / "work" / "bundle").mkdir()
    run(tmp_path, stage("weights"), resume=tmp_path / "out")
    assert ran(tmp_path) == ["weights", "weights"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("cut", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_cut_off_leaves_what_was_found(tmp_path: Path, cut: signal.Signals) -> None:
    runner = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from test_runner import *\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "run(Path(sys.argv[2]), stage('good'), stage('slow'), stage('never'))"
    )
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", runner, str(Path(__file__).parent), str(tmp_path)], stderr=subprocess.DEVNULL
    )
    results = tmp_path / "out" / "results.json"
    while '"so far": 1' not in (results.read_text() if results.is_file() else ""):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(cut)
    process.wait()
    found = json.loads(results.read_text())["stages"]
    assert found["good"]["status"] == "done"
    assert found["slow"]["status"] == "cut off"
    assert found["slow"]["figures"] == {"so far": 1}
    assert "never" not in found
    if cut == signal.SIGKILL:  # nobody could end the stage
        os.kill(int((tmp_path / "waits").read_text()), signal.SIGKILL)
    else:
        found = run(tmp_path, stage("good"), stage("never"), resume=tmp_path / "out")
        assert found["never"]["status"] == "done"
        assert ran(tmp_path) == ["good", "slow", "never"]


def context(folder: Path) -> Context:
    return Context(folder, folder, folder, gpu=False, seconds=60, faces=None, keep=lambda _: None)


def test_a_stage_that_raises_keeps_its_figures_and_says_why(tmp_path: Path) -> None:
    def breaks(context: Context) -> dict[str, Any]:
        context.keep({"first": 1})
        context.below({"first": 1}, "second").keep({"milliseconds": 2})
        raise ValueError("no such kernel")

    entry = run_one(Stage("breaks", breaks, 1, 1, "?"), context(tmp_path))
    assert entry == json.loads((tmp_path / "results.json").read_text())["stages"]["breaks"]
    assert entry["status"] == "failed"
    assert entry["why"] == "ValueError: no such kernel"
    assert entry["figures"] == {"first": 1, "second": {"milliseconds": 2}}


def test_a_stage_that_needs_a_gpu_is_skipped_for_that_reason(tmp_path: Path) -> None:
    def needs(_: Context) -> dict[str, Any]:
        raise NeedsGpu

    entry = run_one(Stage("needs", needs, 1, 1, "?"), context(tmp_path))
    assert entry == {"status": "skipped", "why": "needs a GPU", "figures": {}}


def test_regions_around_kernels_are_no_kernels(tmp_path: Path) -> None:
    """Compiled code marks its regions, which a profiler shows among the kernels of a GPU."""
    torch = pytest.importorskip("torch")

    def call() -> None:
        with torch.profiler.record_function("## Call CompiledFxGraph ##"):
            torch.ones(8).add_(1)

    count, rows = _profile(call, context(tmp_path))
    names = {row["name"] for row in rows}
    assert "aten::add_" in names
    assert not any("Compiled" in name for name in names)
    assert count == sum(row["calls"] for row in rows)


def test_the_limits_of_the_stages_allow_for_their_least() -> None:
    assert all(0 < stage.least < stage.seconds for stage in STAGES)
    assert len({stage.name for stage in STAGES}) == len(STAGES)
