"""`build_engines`: what is published was built, proven, and fits; P3 to P5 and P15 to P19."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_fakes import MACHINE, FakeBuild, FakeDevice, fake_reference, inspected, opener

from bfr.export.options import BuildOptions
from bfr.export.tensorrt import engine as building
from bfr.export.tensorrt.engine import LOCK, build_engines
from bfr.export.tensorrt.precision import HALF_SHARE
from bfr.export.tensorrt.progress import Tick
from bfr.runtime import files
from bfr.runtime.backends.tensorrt_key import find_engine
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.files import check_file
from bfr.runtime.bundle.machine import RECORD, Engine, MachineFiles
from bfr.runtime.errors import (
    BackendUnavailable,
    BundleCorrupt,
    EngineBuildFailed,
    InvalidOption,
    VerificationFailed,
    WriteFailed,
)

pytestmark = pytest.mark.engines

OPTIONS, HALF = BuildOptions(batches=(1, 2)), BuildOptions(batches=(1, 2), precision=("fp16",))
BOTH = BuildOptions(batches=(1, 2), precision=("fp32", "fp16"))


@pytest.fixture
def folder(tiny_bundle: Bundle, tmp_path: Path, home: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.folder, tmp_path / "tiny"))


def build(
    folder: Path,
    *,
    device: dict[str, Any] | None = None,
    opened: Any = None,
    build: Any = None,
    reference: Any = fake_reference,
    **options: Any,
) -> Any:
    """Call `build_engines` with fakes for the library on its GPU, its builder, and what engines are compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "open_library", opened or opener(folder, **(device or {})))
        patch.setattr(building, "build_engine_bytes", build or FakeBuild())
        patch.setattr(building, "open_reference", reference)
        return build_engines(folder, "tensorrt-rtx", **{"options": OPTIONS, **options})


def machine_of(folder: Path) -> MachineFiles:
    return MachineFiles(Bundle.open(folder).hash)


def engines_of(folder: Path) -> tuple[Engine, ...]:
    return machine_of(folder).read().engines


def files_of(folder: Path) -> set[str]:
    return {path.name for path in machine_of(folder).folder.iterdir()} - {LOCK, RECORD}


def check_whole(folder: Path) -> None:
    for engine in engines_of(folder):
        for file in (engine.file, engine.runtime_cache):
            assert file is not None
            check_file(machine_of(folder).folder, file, "")


def test_a_bundle_of_one_batch_is_built_for_that_batch(folder: Path) -> None:
    """As a wrapped file whose Reshape fixes it."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"batches": [2]}))
    said: list[str] = []
    with pytest.raises(InvalidOption, match=r"batches of 2 only.*--batches"):
        build(folder, options=BuildOptions(batches=(1, 4)))
    assert {engine.key.buckets for engine in build(folder, options=BuildOptions(), say=said.append)} == {(2,)}
    assert "batches of 2: the bundle" in said[0]
    assert build(folder, say=said.append) == []  # 1 and 2 were asked for


def test_engines_are_published_with_key_hash_and_proof(folder: Path) -> None:
    said: list[str] = []
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    built = build(folder, options=HALF, say=said.append)
    bundle = Bundle.open(folder)
    assert engines_of(folder) == tuple(built)
    check_whole(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # nothing is written into a bundle
    assert len(files_of(folder)) == 4  # engines, and what was compiled for them
    estimator, denoiser = built
    assert (estimator.key.precision, denoiser.key.precision) == ("fp32", "fp16")  # the estimator has no half
    assert denoiser.half_share == 0.75
    key = denoiser.key
    assert key.graph_sha256 == bundle.network("denoiser").variants["fp16"].graph.sha256
    assert (key.gpu, key.compute_capability, key.cuda, key.driver, key.version) == (
        "NVIDIA Fake",
        "8.9",
        "13.0",
        "13.1",
        "1.7.1",
    )
    assert key.buckets == (1, 2)
    assert key.options == {"optimization_level": 3, "workspace_mib": None, "max_aux_streams": None, "tf32": False}
    assert denoiser.file.sha256[:12] in denoiser.file.path
    whats = [check.what for check in denoiser.checks]
    assert whats[:2] == ["denoiser, batch 1", "denoiser, batch 2"]
    assert whats[2].startswith("loop, preset reference, ddim, 6 of ddim250")
    assert {check.gpu for check in denoiser.checks} == {"NVIDIA Fake"}
    assert {check.reference for check in denoiser.checks} == {"a reference"}
    assert denoiser.checks[2].seconds_a_step is not None
    assert find_engine(bundle, "denoiser", "fp16", MACHINE) == denoiser
    assert any("published" in line for line in said)


def test_what_fits_is_not_built_again_and_what_does_not_fit_is(folder: Path) -> None:
    first = build(folder)
    again = FakeBuild()
    assert build(folder, build=again) == []
    assert again.asked == []
    # P3: another driver, other buckets or another level ask for other engines, and the old ones go.
    build(folder, build=again, device={"machine": replace(MACHINE, driver="13.2")})
    build(folder, build=again, options=BuildOptions(batches=(1, 2, 4)))
    build(folder, build=again, options=BuildOptions(batches=(1, 2), level=5))
    assert len(again.asked) == 6
    engines = engines_of(folder)
    assert len(engines) == 2
    assert files_of(folder) == {Path(f.path).name for e in engines for f in (e.file, e.runtime_cache) if f}
    assert not {engine.file.path for engine in first} & {engine.file.path for engine in engines}


def test_force_builds_anew_and_a_damaged_engine_is_built_anew(folder: Path) -> None:
    first = build(folder)
    forced = FakeBuild()
    build(folder, build=forced, force=True, options=BOTH)
    # The estimator, which fp16 needs in fp32 as well, is built once.
    assert forced.asked == [(n, "tensorrt-rtx") for n in ("estimator.onnx", "denoiser.onnx", "denoiser.fp16.onnx")]
    engine = engines_of(folder)[0]
    assert engine != first[0]
    path = machine_of(folder).folder / engine.file.path
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    mended = FakeBuild()
    build(folder, build=mended)
    assert mended.asked == [(f"{engine.network}.onnx", "tensorrt-rtx")]
    check_whole(folder)


def test_engines_of_another_library_stay(folder: Path) -> None:
    build(folder)
    other = replace(MACHINE, library="tensorrt", version="11.4.0")
    build(folder, device={"machine": other})
    assert {engine.key.library for engine in engines_of(folder)} == {"tensorrt", "tensorrt-rtx"}
    assert sum(name.endswith(".engine") for name in files_of(folder)) == 4


def test_an_engine_that_is_float32_is_not_published(folder: Path) -> None:
    """P4."""
    with pytest.raises(EngineBuildFailed, match=r"float32.* 20%"):
        build(folder, options=HALF, device={"inspector": inspected(1, 4)})
    assert engines_of(folder) == ()
    assert files_of(folder) == set()
    nothing = {"inspector": '{"Layers": ["a", "b"]}'}
    with pytest.raises(EngineBuildFailed, match="types"):
        build(folder, options=HALF, device={**nothing, "machine": replace(MACHINE, library="tensorrt")})
    build(folder, device={"inspector": '{"Layers": ["a", "b"]}'})  # of fp32 nothing has to be shown


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_where_rtx_shows_no_types_the_networks_own_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    asked: list[tuple[str, str]] = []

    def typed(graph: Path, library: str) -> float:
        asked.append((graph.name, library))
        return share

    monkeypatch.setattr("bfr.export.tensorrt.engine.typed_share", typed)
    nothing = {"inspector": '{"Layers": ["a", "b"]}'}
    if share < HALF_SHARE:
        with pytest.raises(EngineBuildFailed, match=r"float32.* 10%"):
            build(folder, options=HALF, device=nothing)
    else:
        build(folder, options=HALF, device=nothing)
        assert {e.half_share for e in engines_of(folder) if e.key.precision == "fp16"} == {share}
    assert asked == [("denoiser.fp16.onnx", "tensorrt-rtx")]


class Spoiled:
    """A network whose outputs are changed after every call."""

    def __init__(self, network: Any, change: Any) -> None:
        self.network, self.change = network, change

    def bind(self, inputs: Any, outputs: Any) -> Any:
        call = self.network.bind(inputs, outputs)

        def changed() -> None:
            call()
            for buffer in outputs.values():
                buffer[...] = self.change(buffer)

        return changed


def test_engines_that_differ_are_not_published_and_the_old_ones_stay(folder: Path) -> None:
    """P5 and P3: the old engines are there, whole and in the manifest, until new ones are verified."""
    old = build(folder)
    before = files_of(folder)
    for change, message in (
        (lambda values: values * np.float32(1.01), "floor"),
        (lambda values: values * np.float32(np.nan), "NaN or Inf"),
    ):
        with pytest.raises(VerificationFailed, match=message):
            build(folder, force=True, device={"spoil": lambda network, change=change: Spoiled(network, change)})
        assert engines_of(folder) == tuple(old)
        assert files_of(folder) == before
        check_whole(folder)


def test_a_full_disk_leaves_the_old_engines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P15."""
    old = build(folder)
    before = files_of(folder)
    sync = files._sync
    for kind in (".engine", ".cache", RECORD):

        def full(path: Path, kind: str = kind) -> None:
            if kind in path.name:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            sync(path)

        monkeypatch.setattr(files, "_sync", full)
        with pytest.raises(WriteFailed, match="full") as caught:
            build(folder, force=True)
        assert str(machine_of(folder).folder) in str(caught.value)
        assert engines_of(folder) == tuple(old)
        assert files_of(folder) == before


def test_a_cache_folder_that_cannot_be_written_names_the_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WriteFailed, match=r"Read-only.*BFR_HOME"):
        build(folder)


def test_without_that_gpu_nothing_is_written(folder: Path) -> None:
    with pytest.raises(BackendUnavailable, match="GPU 99"):
        build_engines(folder, "tensorrt-rtx", index=99)
    assert not machine_of(folder).folder.exists()


def test_a_precision_that_was_not_exported_and_a_damaged_graph_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidOption, match="bf16"):
        build(folder, options=BuildOptions(precision=("bf16",)))
    with (folder / "denoiser.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleCorrupt, match=r"denoiser\.onnx"):
        build(folder)
    assert files_of(folder) == set()


def test_a_build_reports_and_gives_the_device_back(folder: Path) -> None:
    """P19, the first half: every piece of work reports while it goes on. None here ends before it was reported."""
    ticks: list[Tick] = []
    told = threading.Condition()
    devices: list[FakeDevice] = []
    proofs = iter(BOTH.precision)

    def report(tick: Tick) -> None:
        with told:
            ticks.append(tick)
            told.notify_all()

    def until_told(what: str) -> None:
        with told:
            assert told.wait_for(lambda: what in {tick.what for tick in ticks})

    def slow_build(graph: Path, options: Any, library: Any, *, meter: Any, **more: Any) -> bytes:
        meter.start("timing", None, 10)
        until_told(meter.what)
        return FakeBuild()(graph, options, library, meter=meter, **more)

    def slow_reference(bundle: Bundle, index: int) -> Any:
        until_told(f"{next(proofs)}, the proof")
        return fake_reference(bundle, index)

    def opened(*_: Any) -> FakeDevice:
        devices.append(FakeDevice(folder))
        return devices[-1]

    build(folder, options=BOTH, build=slow_build, reference=slow_reference, opened=opened, report=report)
    assert {"estimator in fp32", "denoiser in fp16", "fp16, the proof"} <= {tick.what for tick in ticks}
    assert "timing" in {tick.phase for tick in ticks}
    assert len(devices) == 2
    assert all(device.closed for device in devices)


def test_the_builders_thread_builds_on_the_devices_gpu(folder: Path) -> None:
    device, built = FakeDevice(folder), []

    def seen_build(*arguments: Any, **options: Any) -> bytes:
        built.append(threading.get_ident())
        assert threading.get_ident() in device.current
        return FakeBuild()(*arguments, **options)

    build(folder, index=1, opened=lambda *_: device, build=seen_build)
    assert built
    assert threading.get_ident() not in built


CHILD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a shell's background jobs ignore it
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engine_fakes import FakeBuild, fake_reference, opener
from bfr.export.tensorrt import engine, progress
from bfr.runtime.backends.cuda import bindings as cuda
folder, mode, seconds = Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])
cuda.Cuda = lambda index: None
leave = os._exit
os._exit = lambda status: (print("walked away", flush=True), leave(status))
def reference(bundle, index):
    if mode == "proof":
        print("proving", flush=True)
        import time; time.sleep(seconds)
    return fake_reference(bundle, index)
build = FakeBuild(0 if mode == "proof" else seconds, folder.parent / "log", deaf=mode == "deaf")
if mode == "deaf":
    progress.GRACE = 1.0
engine.build_engine_bytes, engine.open_library, engine.open_reference = build, opener(folder), reference
sys.argv = ["bfr", "build", str(folder), "--batches", "1,2", "--library", "tensorrt-rtx"]
from bfr.runtime.cli.main import main
main()
"""


def child(folder: Path, mode: str, seconds: float = 0.0) -> "subprocess.Popen[str]":
    code = [sys.executable, "-c", CHILD, str(Path(__file__).parents[2] / "helpers"), str(folder), mode, str(seconds)]
    return subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("mode", ["build", "proof"])
def test_a_killed_build_leaves_nothing_published_and_blocks_nobody(folder: Path, mode: str) -> None:
    """P16."""
    process = child(folder, mode, 60)
    if mode == "proof":
        assert process.stdout is not None
        assert process.stdout.readline() == "proving\n"
    else:
        wait_for(folder.parent / "log", process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert engines_of(folder) == ()
    built = build(folder)
    assert len(built) == 2
    assert files_of(folder) == {Path(f.path).name for e in built for f in (e.file, e.runtime_cache)}


def test_of_eight_processes_one_builds_and_the_others_wait(folder: Path) -> None:
    """P17."""
    processes = [child(folder, "build", 2.0) for _ in range(8)]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, results
    assert sorted((folder.parent / "log").read_text().split()) == ["denoiser.onnx", "estimator.onnx"]
    assert sum("every engine is up to date" in out for out, _ in results) == 7
    assert sum("another process builds" in err for _, err in results) >= 1
    assert all(err.count("another process builds") <= 1 for _, err in results)
    check_whole(folder)


@pytest.mark.parametrize("mode", ["build", "deaf"])
def test_ctrl_c_ends_a_build_and_leaves_nothing(folder: Path, mode: str) -> None:
    """P19, the second half; `deaf` is a build that does not look at its progress monitor."""
    process = child(folder, mode, 60)
    wait_for(folder.parent / "log", process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()  # the build itself takes a minute and then says nothing of an interrupt
    assert process.returncode == 130
    # Work that listens ends by itself; from work that does not the process walks away.
    assert ("walked away" in out) == (mode == "deaf")
    assert "the interrupted build published nothing" in err
    assert "Traceback" not in err
    assert files_of(folder) == set()
    assert engines_of(folder) == ()
