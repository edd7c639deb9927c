"""Bulk restoration: names, resuming, exactly one row for each input, and what a killed driver or node leaves."""

import csv
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pytest
from bundles import unpacked
from called import Called
from PIL import Image as Pillow

from bfr.benchmarks.end_to_end.server_process import kill_session
from bfr.runtime.bundle import bundle as bundle_module
from bfr.runtime.bundle.bundle import write_manifest
from bfr.runtime.cluster.bulk import run as driver
from bfr.runtime.cluster.bulk.options import BulkOptions
from bfr.runtime.cluster.bulk.pool import Pool, connected, size_pool
from bfr.runtime.cluster.bulk.run import block_size, run_bulk
from bfr.runtime.cluster.bulk.table import EntryLog, NodeEntry, read_entries, write_table
from bfr.runtime.cluster.bulk.worker import Worker, WorkerSetup
from bfr.runtime.errors import (
    BackendUnavailable,
    BundleInvalid,
    DeviceLost,
    InputNotFound,
    InvalidOption,
    MissingDependency,
    RestorationFailed,
    WriteFailed,
)
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.install import install_command
from bfr.runtime.jobs.report import Report, describe_versions
from bfr.runtime.jobs.run import JobOptions, run_job
from bfr.runtime.jobs.sources import choose_outputs, find_images
from bfr.runtime.jobs.store import Store
from bfr.runtime.restore import restorer as restorer_module
from bfr.runtime.restore.restorer import Restorer

ASTRONAUT = Path(__file__).parents[3] / "docs/images/astronaut_degraded.png"
ALIGNED = BulkOptions(backend="onnxruntime-cpu", preset="fast", batch=2, photo=None)
FAST = ["--aligned", "--preset", "fast", "--backend", "onnxruntime-cpu"]


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """A local Ray in this process, as `bfr batch` starts it: of slow tests, for its threads stay."""
    with connected(None) as started:
        yield started


def noise(folder: Path, *names: str) -> Path:
    """A folder of images, each an aligned face as well as any."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Pillow.fromarray(pixels).resize((64, 48), Pillow.Resampling.BICUBIC).save(path)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(out: Path, name: str = "results.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


def table_of(report: Report) -> list[Any]:
    """What became of the images that have a result, whenever they were made."""
    return [(row.source, row.output, row.width, row.faces, row.seconds) for row in report.entries if row.output]


def batch(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """`bfr batch` in a process of its own, with its Ray; nothing of it is left behind."""
    command = [sys.executable, "-c", "from bfr.runtime.cli.main import main; main()", "batch", *map(str, arguments)]
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            kill_session(process.pid)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.server
class TestWithRay:
    """In a real Ray."""

    @pytest.mark.slow
    def test_it_writes_what_restore_writes(self, tmp_path: Path) -> None:
        """Byte for byte; of names that collide too; a bad file fails alone."""
        folder = noise(tmp_path / "in", "a.jpg", "a.png", "sub/b.webp", "img10.png", "img2.png")
        (folder / "bad.png").write_text("no image")
        expected, out = tmp_path / "expected", tmp_path / "out"
        with Restorer.open(backend="onnxruntime-cpu", preset="fast", precision="fp32", batch=2) as restorer:
            report = run_job(restorer, find_images([folder]), JobOptions(expected))
        said = batch(folder, "-o", out, *FAST, "--batch", 2)
        assert said.returncode == 1
        assert "6 images: 5 restored, 1 failed, in " in said.stdout
        assert "bad.png is not an image" in said.stderr
        made, wanted = tree(out), tree(expected)
        del wanted["report.json"], wanted["resume.jsonl"]
        assert made.keys() - wanted.keys() == {"results.csv", "failures.csv", "batch.json"}
        assert {name: made.get(name) for name in wanted} == wanted
        rows = table(out)
        assert [(row["source"], row["status"], row["output"] or None) for row in rows] == [
            (entry.source, entry.status, entry.output) for entry in report.entries
        ]
        assert [row["width"] for row in rows if row["status"] == "restored"] == ["64"] * 5
        assert [row["source"] for row in table(out, "failures.csv")] == [str(folder / "bad.png")]
        facts = json.loads((out / "batch.json").read_text())
        assert facts["counts"] == {"restored": 5, "already sharp": 0, "no face": 0, "skipped": 0, "failed": 1}
        earlier = json.loads((expected / "report.json").read_text())["settings"]
        assert facts["settings"] == {name: earlier[name] for name in earlier if name not in ("codec", "crf")}

    @pytest.mark.slow
    def test_photographs(self, ray: Any, tmp_path: Path) -> None:
        """Faces are found and pasted as `bfr restore` does; a photograph without one stays byte for byte."""
        folder = noise(tmp_path / "in", "none.jpg")
        (folder / "astronaut.png").write_bytes(ASTRONAUT.read_bytes())
        whole = PhotoOptions(blend=0.8)
        with Restorer.open(backend="onnxruntime-cpu", preset="fast", precision="fp32") as restorer:
            run_job(PhotoRestorer(restorer, whole), find_images([folder]), JobOptions(tmp_path / "expected"))
        options = BulkOptions(backend="onnxruntime-cpu", preset="fast", photo=whole)
        report = run_bulk([folder.as_uri()], (tmp_path / "out").as_uri(), options)
        assert [(row.status, row.faces) for row in report.entries] == [("restored", 1), ("no face", 0)]
        for name in ("astronaut.png", "none.jpg"):
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()

    @pytest.mark.slow
    def test_a_node_with_another_bundle_ends_the_run(
        self, ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The workers compare; no result is mixed in."""
        settings = BulkOptions.settings
        monkeypatch.setattr(BulkOptions, "settings", lambda self: {**settings(self), "bundle_hash": "0" * 64})
        with pytest.raises(BundleInvalid, match=r"node \w{8}"):
            run_bulk([str(noise(tmp_path / "in", "a.png"))], str(tmp_path / "out"), ALIGNED)
        assert tree(tmp_path / "out").keys() == {"batch.json"}

    @pytest.mark.slow
    def test_a_worker_that_died_for_good_is_said(self, ray: Any, tmp_path: Path) -> None:
        """The images of its block are tried again, but not for ever."""
        with (
            mock.patch.object(driver, "RETRIES", 1),
            mock.patch("bfr.runtime.cluster.bulk.worker.Worker", _Dying),
            pytest.raises(RestorationFailed, match="--resume"),
        ):
            run_bulk([str(noise(tmp_path / "in", "a.png"))], str(tmp_path / "out"), ALIGNED)


class _Dying:
    """A worker that an image kills."""

    def __init__(self, _order: Any) -> None:
        pass

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        os._exit(1)


class InProcess:
    """Workers in this process, and no Ray: what they and the driver do over a file system that no other sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.killed_after: int | None = None
        here, monkeypatched = self, monkeypatch

        class Pools:
            @staticmethod
            def ActorPoolStrategy(size: int) -> int:  # noqa: N802
                return size

        class Blocks:
            def __init__(self, tasks: list[dict[str, str]]) -> None:
                self.tasks = tasks

            def map_batches(self, worker: Any, *, fn_constructor_args: Any, **_options: Any) -> "Blocks":
                self.worker = worker(*fn_constructor_args)
                return self

            def iter_batches(self, **_options: Any) -> Iterator[dict[str, list[str]]]:
                for task in self.tasks:
                    rows = self.worker({"task": [task["task"]]})
                    here.done.append(json.loads(task["task"])["output"])
                    if len(here.done) == here.killed_after:
                        raise KeyboardInterrupt
                    yield rows

        node = SimpleNamespace(get_node_id=lambda: "0" * 56)
        monkeypatched.setattr(driver, "connected", lambda _address: nullcontext(importlib.import_module("ray")))
        monkeypatched.setattr("ray.nodes", lambda: nodes((2, 0)))
        monkeypatched.setattr("ray.get_runtime_context", lambda: node)
        monkeypatched.setattr("ray.data.from_items", lambda tasks, **_options: Blocks(tasks))
        monkeypatched.setattr("ray.data.ActorPoolStrategy", Pools.ActorPoolStrategy)


@pytest.fixture(scope="module")
def small_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `tiny`, with a preset of mini's: what is tested here is the same with a hundredth of the work."""
    bundle = unpacked("tiny", tmp_path_factory.mktemp("bundles") / "mini")
    presets = {**bundle.manifest.presets, "fast": bundle.manifest.presets["short"]}
    write_manifest(bundle.folder, bundle.manifest.model_copy(update={"presets": presets}))
    return bundle.folder


@pytest.fixture
def here(small_mini: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    for module in (bundle_module, restorer_module):
        monkeypatch.setattr(module, "default_bundle", lambda: small_mini)
    return InProcess(monkeypatch)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A maker of folders in an object store."""
    system = fsspec.filesystem("memory")
    system.store.clear()

    def make(name: str, *files: str) -> str:
        for path, data in tree(noise(tmp_path / name, *files)).items():
            system.pipe_file(f"/{name}/{path}", data)
        return f"memory://{name}"

    yield make
    system.store.clear()


class TestObjectStores:
    def test_from_and_to_one(self, here: InProcess, memory: Callable[..., str], tmp_path: Path) -> None:
        """The same bytes as between folders; one put for each result."""
        url = memory("in", "a.png", "a.jpg", "sub/b.webp")
        fsspec.filesystem("memory").pipe_file("/in/bad.png", b"no image")
        report = run_bulk([url], "memory://out/x", ALIGNED)
        assert [(row.source, row.status, row.output) for row in report.entries] == [
            ("memory:///in/a.jpg", "restored", "a_jpg.jpg"),
            ("memory:///in/a.png", "restored", "a_png.png"),
            ("memory:///in/bad.png", "failed", None),
            ("memory:///in/sub/b.webp", "restored", "sub/b.webp"),
        ]
        with Restorer.open(backend="onnxruntime-cpu", preset="fast", precision="fp32", batch=2) as restorer:
            run_job(restorer, find_images([tmp_path / "in"]), JobOptions(tmp_path / "expected"))
        store = Store("memory://out/x")
        assert store.versions().keys() == {
            "a_jpg.jpg", "a_png.png", "sub/b.webp", "results.csv", "failures.csv", "batch.json"
        }  # fmt: skip
        for name in ("a_jpg.jpg", "a_png.png", "sub/b.webp"):
            assert store.read(name) == (tmp_path / "expected" / name).read_bytes()
        again = run_bulk([url], "memory://out/x", ALIGNED, resume=True)
        assert [row.status for row in again.entries] == ["skipped", "skipped", "failed", "skipped"]
        assert table_of(again) == table_of(report)

    def test_results_are_not_read_again_and_replace_no_input(self, memory: Callable[..., str]) -> None:
        url = memory("in", "a.png", "out/b.png")
        assert [item.name for item in find_images([url], out="memory:///in/out")] == ["a"]
        with pytest.raises(InvalidOption, match="overwritten"):
            choose_outputs(find_images([url], out="memory://x"), Store("memory:///in"), "same")

    @pytest.mark.parametrize(
        ("pattern", "names"),
        [
            ("memory://in/**/*.png", ["2", "10", "sub/x"]),
            ("memory://in/*.png", ["2", "10"]),
            ("memory://in/sub/x.png", ["x"]),
            ("memory://in/s*/*", ["sub/x"]),
        ],
    )
    def test_globs(self, memory: Callable[..., str], pattern: str, names: list[str]) -> None:
        """Names begin where the pattern does, in natural order."""
        memory("in", "10.png", "2.png", "sub/x.png")
        fsspec.filesystem("memory").pipe_file("/in/sub/notes.txt", b"")
        fsspec.filesystem("memory").pipe_file("/in/.hidden.png", b"")
        assert [item.name for item in find_images([pattern], out="memory://out")] == names

    @pytest.mark.parametrize("url", ["memory://nothing/here", "memory://in/*.webp", "memory://in/x.png"])
    def test_what_is_not_there(self, memory: Callable[..., str], url: str) -> None:
        memory("in", "a.png")
        with pytest.raises(InputNotFound):
            find_images([url], out="memory://out")

    @pytest.mark.parametrize("call", ["cat_file", "find", "exists", "pipe_file"])
    def test_a_network_that_fails_is_said(
        self, memory: Callable[..., str], monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        url = memory("in", "a.png")

        def failing(*_arguments: Any, **_options: Any) -> None:
            raise TimeoutError("no answer")

        monkeypatch.setattr(fsspec.filesystem("memory"), call, failing)
        uses: dict[str, list[Callable[[], Any]]] = {
            "cat_file": [lambda: Store(url).read("a.png")],
            "find": [Store(url).versions, lambda: find_images([url])],
            "exists": [lambda: Store(url).remove("a.png"), lambda: find_images([f"{url}/a.png"])],
            "pipe_file": [lambda: Store(url).write("a.png", b"")],
        }
        for use in uses[call]:
            with pytest.raises((WriteFailed, InputNotFound), match=r"cannot \w+ .*memory.*no answer.*the network"):
                use()

    def test_protocols_that_are_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InvalidOption, match="fsspec"):
            Store("nothing://bucket/x")
        with pytest.raises(InvalidOption, match="chain"):
            Store("simplecache::s3://bucket/x")
        monkeypatch.setitem(sys.modules, "s3fs", None)
        with pytest.raises(MissingDependency, match="s3fs"):
            Store("s3://bucket/x")


class TestResume:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return noise(tmp_path / "in", "a.png", "b.png")

    @pytest.fixture
    def out(self, here: InProcess, folder: Path, tmp_path: Path) -> Path:
        """What a run over the folder leaves."""
        run_bulk([str(folder)], str(tmp_path / "out"), ALIGNED)
        return tmp_path / "out"

    def killed(self, here: InProcess, folder: Path, out: Path, options: BulkOptions = ALIGNED, **how: Any) -> None:
        here.done, here.killed_after = [], 2
        with pytest.raises(KeyboardInterrupt):
            run_bulk([str(folder)], str(out), options, **how)
        here.killed_after = None

    def test_after_an_interrupt(self, here: InProcess, tmp_path: Path) -> None:
        folder, out = noise(tmp_path / "in", "a.png", "b.png", "c.png"), tmp_path / "out"
        self.killed(here, folder, out)
        (rows,) = [read_entries(Store(str(out)), tree(out))]
        assert [row.width for row in rows.values()] == [64]  # of the second one its row was under way
        other = BulkOptions(backend="onnxruntime-cpu", preset="fast", photo=None, seed=1, quality=80)
        with pytest.raises(InvalidOption, match=r"(?s)quality.*95.*80.*seed.*12345.*1"):
            run_bulk([str(folder)], str(out), other, resume=True)
        here.done = []
        report = run_bulk([str(folder)], str(out), ALIGNED, resume=True)
        assert here.done == ["b.png", "c.png"]
        assert [(row.status, row.width) for row in report.entries] == [
            ("skipped", 64), ("restored", 64), ("restored", 64)
        ]  # fmt: skip
        assert not [name for name in tree(out) if name.startswith("rows-")]

    def test_what_is_there_is_skipped_and_what_failed_is_tried_again(
        self, here: InProcess, folder: Path, tmp_path: Path, call: Called
    ) -> None:
        """What is skipped stays in the table as it was."""
        out = tmp_path / "out"
        (folder / "bad.png").write_text("no image")
        assert call("batch", folder, "-o", out, *FAST).status == 1
        rows, made = table(out), tree(out)
        noise(folder, "bad.png")
        (out / "b.png").unlink()
        before = (out / "a.png").stat().st_mtime_ns
        again = call("batch", folder, "-o", out, *FAST, "--resume")
        assert (again.status, "3 images: 2 restored, 1 skipped, in " in again.stdout) == (0, True)
        assert table(out)[0] == rows[0]
        assert (out / "a.png").stat().st_mtime_ns == before
        assert tree(out)["b.png"] == made["b.png"]
        assert not (out / "failures.csv").exists()

    @pytest.mark.slow
    def test_results_of_a_run_before_the_killed_one_are_not_taken(self, here: InProcess, tmp_path: Path) -> None:
        """They were made with other settings, and would pass for those of the run that goes on."""
        folder, out = noise(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg"), tmp_path / "out"
        coarse = BulkOptions(backend="onnxruntime-cpu", preset="fast", photo=None, quality=5)
        run_bulk([str(folder)], str(out), coarse)
        self.killed(here, folder, out)
        here.done = []
        run_bulk([str(folder)], str(out), ALIGNED, resume=True)
        assert here.done == ["b.jpg", "c.jpg"]  # of b its row was lost
        run_bulk([str(folder)], str(tmp_path / "fresh"), ALIGNED)
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()

    def test_a_result_of_another_seed_is_not_skipped(self, folder: Path, out: Path) -> None:
        """{a, b} with one seed, {a} with another, then both with that one: b is not skipped."""
        other = ALIGNED.model_copy(update={"seed": 2})
        run_bulk([str(folder / "a.png")], str(out), other)
        report = run_bulk([str(folder)], str(out), other, resume=True)
        assert [row.status for row in report.entries] == ["skipped", "restored"]

    @pytest.mark.parametrize("lost", ["batch.json", "results.csv"])
    def test_nothing_is_taken_by_its_name(self, folder: Path, out: Path, lost: str) -> None:
        (out / lost).unlink()
        report = run_bulk([str(folder)], str(out), ALIGNED, resume=True)
        assert [row.status for row in report.entries] == ["restored", "restored"]

    @pytest.mark.parametrize("changed", ["in/a.png", "out/a.png"])
    def test_what_changed_is_made_anew(self, folder: Path, out: Path, tmp_path: Path, changed: str) -> None:
        os.utime(tmp_path / changed, ns=(0, 1))
        report = run_bulk([str(folder)], str(out), ALIGNED, resume=True)
        assert [row.status for row in report.entries] == ["restored", "skipped"]

    def test_what_changed_in_an_object_store_is_made_anew(self, here: InProcess, memory: Callable[..., str]) -> None:
        url, system = memory("in", "a.png", "b.png", "c.png"), fsspec.filesystem("memory")
        run_bulk([url], "memory://out", ALIGNED)
        system.pipe_file("/in/a.png", system.cat_file("/in/b.png"))
        system.pipe_file("/out/b.png", b"another")
        report = run_bulk([url], "memory://out", ALIGNED, resume=True)
        assert [row.status for row in report.entries] == ["restored", "restored", "skipped"]

    def test_nothing_left_to_do_needs_no_ray(self, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(driver, "connected", None)
        report = run_bulk([str(folder)], str(out), ALIGNED, resume=True)
        assert [(row.status, row.width) for row in report.entries] == [("skipped", 64)] * 2


def test_names_of_any_length_what_is_passed_over_and_what_is_reduced(here: InProcess, tmp_path: Path) -> None:
    long = 251 * "m"
    folder, out = noise(tmp_path / "in", "a.png", f"{long}.png", f"{long}.bmp"), tmp_path / "out"
    Pillow.new("RGBA", (8, 8), (9, 9, 9, 40)).save(folder / "b.png")
    (folder / "notes.txt").touch()
    report = run_bulk([str(folder)], str(out), ALIGNED.model_copy(update={"format": ".jpg"}))
    assert report.count("restored") == 4
    assert all((out / str(row.output)).is_file() for row in report.entries)
    facts = json.loads((out / "batch.json").read_text())
    assert [Path(one["source"]).name for one in facts["passed_over"]] == ["notes.txt"]
    notes = {Path(row["source"]).name[:3]: row["notes"] for row in table(out)}
    assert "white" in notes["b.p"]
    assert "too long" in notes["mmm"]


class TestExactlyOnce:
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> Report:
        folder = noise(tmp_path / "in", "a.png", "b.png")
        rows = [NodeEntry(str(folder / name), "restored", name) for name in names]
        monkeypatch.setattr(driver._BulkRun, "_restored", lambda *_arguments: iter([[row] for row in rows]))
        return run_bulk([str(folder)], str(tmp_path / "out"), ALIGNED)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["a.png"], "1 of 2 inputs have no row, .*b.png"),
            (["a.png", "b.png", "a.png"], "two rows"),
            (["a.png", "b.png", "c.png"], "no input"),
        ],
    )
    def test_rows_that_are_not_those_of_the_inputs_are_no_success(
        self, here: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], message: str
    ) -> None:
        with pytest.raises(RestorationFailed, match=message):
            self.run(tmp_path, monkeypatch, *names)
        assert not (tmp_path / "out/results.csv").exists()

    def test_rows_that_are(self, here: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert [row.output for row in self.run(tmp_path, monkeypatch, "b.png", "a.png").entries] == ["a.png", "b.png"]


def test_workers_refuse_what_would_not_be_one_result(here: InProcess, tmp_path: Path) -> None:
    """Other versions, and an output folder that is not the driver's."""
    facts, settings = tmp_path / "batch.json", ALIGNED.settings()

    def worker(run: str = "theirs", **versions: str) -> Worker:
        expected = {**describe_versions(), **versions}
        return Worker(WorkerSetup(ALIGNED, str(tmp_path), run, settings["bundle_hash"], expected, threads=1))

    def refusal(worker: Worker) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(worker({"task": []})["row"][0])
        return found

    facts.write_text('{"run": "theirs"}')
    good = worker()
    assert not good.refusal
    assert "is not the folder that this run writes to" in refusal(worker("ours"))["refusal"]
    assert re.search(r"pillow 1.*, not 9\.0", refusal(worker(pillow="9.0"))["refusal"])
    facts.write_text('{"run": "another"}')  # begun meanwhile
    assert "another run has begun" in refusal(good)["refusal"]
    facts.unlink()
    facts.mkdir()  # cannot be read, as on a disk that fails
    found = refusal(good)
    assert found["kind"] == "WriteFailed"
    assert re.match("cannot read batch.json .*check .* the disk.*--resume continues", found["refusal"])


def test_a_lost_gpu_ends_the_worker(here: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a new process can use it again: Ray starts one, see `test_a_worker_that_died_for_good_is_said`."""

    def lost(*_arguments: Any, **_options: Any) -> None:
        raise DeviceLost("an illegal address")

    def ended(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(Restorer, "launch", lost)
    monkeypatch.setattr(os, "_exit", ended)
    with pytest.raises(SystemExit, match="1"):
        run_bulk([str(noise(tmp_path / "in", "a.png"))], str(tmp_path / "out"), ALIGNED)


def test_a_full_disk_ends_the_run_and_says_so(here: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Store.write

    def full(self: Store, name: str, data: bytes) -> None:
        if name == "b.png":
            raise WriteFailed("the disk is full")
        write(self, name, data)

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(WriteFailed, match=r"full .*node \w{8}.*--resume"):
        run_bulk([str(noise(tmp_path / "in", "a.png", "b.png", "c.png"))], str(tmp_path / "out"), ALIGNED)
    assert here.done == ["a.png", "b.png"]
    assert (tmp_path / "out/a.png").is_file()


def test_rows_survive_their_files(tmp_path: Path) -> None:
    """Names with commas, quotes, line ends and bytes that are no text; the latest row of a source counts."""
    store, name = Store(str(tmp_path)), 'a,"b"\n\udcff.png'
    first = NodeEntry(name, "failed", error="x,\ny")
    second = NodeEntry(
        name, "restored", "b.png", width=3, height=4, faces=1, seconds={"all": 0.5}, precision="fp32", backend="cpu",
        node="n", notes=("its alpha", "its pages"), source_version="1-2", output_version="3-\"4\"",
    )  # fmt: skip
    log = EntryLog(store, ["rows-000009.jsonl"])
    for row in (first, second):
        log.add([row])
        log.flush()
    assert sorted(tree(tmp_path)) == ["rows-000010.jsonl", "rows-000011.jsonl"]
    assert read_entries(store, tree(tmp_path)) == {name: second}
    for row in (first, second):
        write_table(store, [row])
        assert read_entries(store, []) == {name: row}


def nodes(*sizes: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in sizes]


@pytest.mark.parametrize(
    ("cluster", "options", "pool"),
    [
        (nodes((2, 0)), {}, Pool(1, 2, 0, 2)),
        (nodes((2, 0)), {"threads": 1}, Pool(1, 2, 0, 1)),
        (nodes((2, 0)), {"workers": 2}, Pool(2, 1, 0, 1)),
        (nodes((8, 0), (8, 0), (0, 0)), {}, Pool(2, 8, 0, 8)),
        (nodes((8, 0), (8, 0)), {"workers": 3}, Pool(3, 4, 0, 4)),
        (nodes((16, 0), (4, 0)), {}, Pool(5, 4, 0, 4)),
        (nodes((16, 4), (16, 4)), {}, Pool(8, 0, 1, None)),
        (nodes((16, 4)), {"workers": 6}, Pool(6, 0, 0.5, None)),
        (nodes((16, 4)), {"backend": "onnxruntime-cpu"}, Pool(1, 16, 0, 16)),
        ([*nodes((4, 0)), {"Alive": False, "Resources": {"CPU": 99}}], {}, Pool(1, 4, 0, 4)),
    ],
)
def test_how_many_workers_fit(cluster: Any, options: dict[str, Any], pool: Pool) -> None:
    assert size_pool(cluster, **{"backend": "auto", **options}) == pool


@pytest.mark.parametrize(("cluster", "workers"), [(nodes((2, 0)), 3), (nodes((0, 0)), None), (nodes((2, 0)), 0)])
def test_workers_that_do_not_fit(cluster: Any, workers: int | None) -> None:
    with pytest.raises(InvalidOption):
        size_pool(cluster, backend="auto", workers=workers)


@pytest.mark.parametrize(
    ("count", "workers", "batch", "size"),
    [(1, 4, 1, 1), (9, 1, 2, 2), (100, 1, 4, 16), (10**6, 8, 1, 32), (5, 1, 8, 8)],
)
def test_blocks_are_whole_batches(count: int, workers: int, batch: int, size: int) -> None:
    assert block_size(count, workers, batch) == size


def test_empty_and_wrong_usage(tmp_path: Path, call: Called) -> None:
    (tmp_path / "empty").mkdir()
    noise(tmp_path / "in", "a.png")
    out = ["-o", tmp_path / "out"]
    assert "PNG, JPEG, WEBP, BMP, TIFF are looked for" in call.refused("batch", tmp_path / "empty", *out)
    for wrong in (
        [tmp_path / "nothing"],
        [tmp_path / "in", "--bundle", tmp_path],
        [tmp_path / "in", "--quality", "0"],
        [tmp_path / "in", "--batch", "0"],
        [tmp_path / "in", "--aligned", "--upscale", "2"],
        [tmp_path / "in", "--preset", "none"],
    ):
        assert "error: " in call.refused("batch", *wrong, *out)
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with mock.patch.dict(os.environ), pytest.raises(MissingDependency, match=re.escape(install_command("cluster"))):
        connected(None).__enter__()


@pytest.mark.server
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_a_cluster_that_does_not_answer(address: str) -> None:
    with mock.patch("ray.is_initialized", return_value=False), pytest.raises(BackendUnavailable, match="--address"):
        connected(address).__enter__()


def test_a_local_ray_that_does_not_start() -> None:
    """Ray raises a plain Exception for it."""
    with (
        mock.patch.dict(os.environ),
        mock.patch("ray.is_initialized", return_value=False),
        mock.patch("ray.init", side_effect=Exception("The current node timed out during startup.")),
        pytest.raises(BackendUnavailable, match="does not start on this machine"),
    ):
        connected(None).__enter__()
