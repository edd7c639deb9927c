"""The doctor on machines that are simulated: bare, wrongly installed, with a GPU, a Jetson, a full disk."""

import ctypes
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import boards
import pytest
from called import Called

from bfr.runtime.backends.cuda import bindings as cuda
from bfr.runtime.backends.cuda import kernels
from bfr.runtime.backends.registry import BACKENDS, Backend
from bfr.runtime.cli import gpus
from bfr.runtime.cli import machine as inspected
from bfr.runtime.cli.doctor import diagnose, render
from bfr.runtime.errors import MissingDependency
from bfr.runtime.files import cache_folder
from bfr.runtime.install import install_command

SMI_LINE = "NVIDIA H100 80GB HBM3, 570.10, 9.0, 81559"


class Usage(NamedTuple):
    """What shutil.disk_usage returns, in bytes."""

    total: int
    used: int
    free: int


class Machine:
    """What the doctor looks at, all of it simulated."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.packages = {"numpy": "2.0.0", "pillow": "12.0.0", "opencv-python-headless": "4.12.0"}
        patch.setattr(inspected, "version", self.packages.get)
        patch.setattr(inspected, "ROOT", folder)
        patch.setenv("PATH", str(folder / "bin"))
        patch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 1 << 40))
        patch.setitem(sys.modules, "onnxruntime", None)
        patch.setattr(kernels, "compile_kernels", lambda _: b"")
        patch.setattr(gpus, "driver_cuda", lambda: None)
        (folder / "bin").mkdir()

    def onnxruntime(self, *packages: str, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> None:
        self.packages.update(dict.fromkeys(packages, "1.22.0"))
        module = SimpleNamespace(get_available_providers=lambda: list(providers))
        self.patch.setitem(sys.modules, "onnxruntime", module)

    def cuda(self, count: int, error: str = "cudaSuccess") -> None:
        self.packages["cuda-bindings"] = "13.0.0"
        self.patch.setattr(cuda, "count_devices", lambda: (count, error))

    def tensorrt(self, name: str, version: str) -> None:
        self.packages[name] = version
        self.patch.setitem(sys.modules, name.replace("-", "_"), SimpleNamespace(__version__=version))

    def driver(self, *cuda: int) -> None:
        self.patch.setattr(gpus, "driver_cuda", lambda: cuda or None)

    def jetson(self, release: int) -> None:
        boards.machine(self.folder, release=boards.release(release, "4.3"), model=b"NVIDIA Jetson Orin Nano\0")

    def smi(self, script: str) -> None:
        path = self.folder / "bin" / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def problems(self) -> str:
        return "\n".join(f"{problem.found} -> {problem.remedy}" for problem in diagnose().problems)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


needs_sh = pytest.mark.skipif(os.name == "nt", reason="nvidia-smi is simulated by a shell script")


def test_this_machine_as_it_is(tmp_path: Path) -> None:
    report = diagnose(tmp_path)
    for name in ("python", "platform", "numpy", "pillow", "onnxruntime", "torch", "GPU", "CPU", "memory", "cache"):
        assert report.facts[name]
        assert f"{name} " in render(report)
    assert not [problem for problem in report.problems if problem.found.startswith("looking at")]


def test_nothing_optional_installed(machine: Machine) -> None:
    machine.packages.clear()
    report = diagnose()
    text = render(report)
    assert f"ONNX Runtime is not installed -> {install_command('cpu')}" in text
    assert 'numpy is not installed -> pip install "numpy"' in text
    assert report.facts["tensorrt"] == "not installed (optional)"
    assert report.facts["GPU"] == "no NVIDIA GPU found"
    assert "no problems" not in text


def test_a_machine_in_order_has_no_problems(machine: Machine) -> None:
    machine.onnxruntime("onnxruntime")
    report = diagnose()
    assert report.problems == []
    assert report.facts["onnxruntime"] == "onnxruntime 1.22.0"
    assert report.facts["onnxruntime providers"].startswith("CPUExecutionProvider")
    assert render(report).endswith("no problems found")


def test_both_onnxruntime_packages(machine: Machine) -> None:
    machine.onnxruntime("onnxruntime", "onnxruntime-gpu")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu; pip install" in machine.problems()


def test_onnxruntime_that_cannot_be_imported(machine: Machine) -> None:
    machine.packages["onnxruntime"] = "1.22.0"
    assert "ONNX Runtime cannot be imported" in machine.problems()
    assert "--force-reinstall" in machine.problems()


def test_two_opencv_packages(machine: Machine) -> None:
    machine.packages["opencv-python"] = "4.12.0"
    assert "pip uninstall -y opencv-python-headless opencv-python; pip install" in machine.problems()


@needs_sh
def test_gpu_is_described(machine: Machine) -> None:
    machine.onnxruntime("onnxruntime-gpu", providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    machine.cuda(2)
    machine.smi(f"echo '{SMI_LINE}'; echo 'Odd, name, 570.10, 8.7, [N/A]'")
    report = diagnose()
    assert report.problems == []
    first, second = report.facts["GPU"].split("; ")
    assert first == "NVIDIA H100 80GB HBM3, driver 570.10, compute capability 9.0, 81559 MiB"
    assert second.startswith("Odd, name, driver 570.10, compute capability 8.7, memory shared")


@needs_sh
def test_gpu_with_onnxruntime_for_the_cpu(machine: Machine) -> None:
    machine.onnxruntime("onnxruntime")
    machine.smi(f"echo '{SMI_LINE}'")
    assert f"runs on the CPU only -> pip uninstall -y onnxruntime; {install_command('gpu')}" in machine.problems()


@needs_sh
def test_gpu_without_onnxruntime(machine: Machine) -> None:
    machine.smi(f"echo '{SMI_LINE}'")
    assert f"is not installed -> {install_command('gpu')}" in machine.problems()


def test_onnxruntime_for_a_gpu_that_is_not_there(machine: Machine) -> None:
    machine.onnxruntime("onnxruntime-gpu", providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert "no NVIDIA GPU was found: the CPU will be used -> install the NVIDIA driver" in machine.problems()


@needs_sh
def test_the_lean_tensorrt_runtime_needs_no_onnxruntime(machine: Machine) -> None:
    machine.smi(f"echo '{SMI_LINE}'")
    machine.tensorrt("tensorrt", "10.13.0")
    assert machine.problems() == (
        "there is a GPU, but cuda-bindings are not installed: no GPU backend of bfr can run "
        f"-> {install_command('tensorrt')}"
    )
    machine.cuda(1)
    assert machine.problems() == ""
    assert diagnose().facts["CUDA"] == "1 GPU usable, NVRTC works"
    assert diagnose().facts["tensorrt"] == "10.13.0, can be imported"


@needs_sh
def test_a_driver_that_is_too_old(machine: Machine) -> None:
    machine.smi(f"echo '{SMI_LINE}'")
    machine.tensorrt("tensorrt-rtx", "1.7.1")
    machine.cuda(0, "cudaErrorInsufficientDriver")
    assert "CUDA cannot use the GPU: cudaErrorInsufficientDriver -> update the NVIDIA driver" in machine.problems()
    machine.cuda(0, "cudaErrorSystemNotReady")
    assert "cudaErrorSystemNotReady -> start the fabric manager" in machine.problems()


@needs_sh
def test_a_gpu_without_the_kernels_compiler(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> bytes:
        raise MissingDependency("pip install nvidia-cuda-nvrtc")

    machine.smi(f"echo '{SMI_LINE}'")
    machine.onnxruntime("onnxruntime-gpu", providers=("CUDAExecutionProvider",))
    machine.cuda(1)
    monkeypatch.setattr(kernels, "compile_kernels", missing)
    assert machine.problems() == "NVRTC does not work -> pip install nvidia-cuda-nvrtc"


@needs_sh
def test_a_gpu_that_is_too_old_for_the_kernels_compiler(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(capability: str) -> bytes:
        if capability == "6.1":
            raise MissingDependency("this NVRTC compiles for compute capability 7.5 and later")
        return b""

    machine.smi("echo 'NVIDIA GeForce GTX 1080, 580.10, 6.1, 8192'")
    machine.onnxruntime("onnxruntime-gpu", providers=("CUDAExecutionProvider",))
    machine.cuda(1)
    monkeypatch.setattr(kernels, "compile_kernels", compiled)
    assert machine.problems() == "NVRTC does not work -> this NVRTC compiles for compute capability 7.5 and later"


def test_tensorrt_without_a_gpu_builds_and_does_not_run(machine: Machine) -> None:
    machine.onnxruntime("onnxruntime")
    machine.tensorrt("tensorrt-rtx", "1.7.1")
    assert diagnose().facts["tensorrt-rtx"].endswith("engines run on an NVIDIA GPU, and there is none")
    assert machine.problems() == ""


def test_a_tensorrt_that_does_not_load(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.onnxruntime("onnxruntime")
    machine.packages["tensorrt"] = "11.4.0"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "tensorrt cannot be imported" in machine.problems()
    assert install_command("tensorrt", options="--force-reinstall") in machine.problems()


@needs_sh
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "exit status 18.*mismatch"),
        ("exit 0", "exit status 0.*nothing"),
        ("echo 'Field compute_cap is not valid'; exit 2", "not valid"),
    ],
)
def test_broken_driver(machine: Machine, script: str, said: str) -> None:
    machine.onnxruntime("onnxruntime")
    machine.smi(script)
    (problem,) = diagnose().problems
    assert re.search(said, problem.found)
    assert "driver" in problem.remedy
    assert "--gpus all" in problem.remedy


@needs_sh
def test_driver_that_hangs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "SMI_TIMEOUT_SECONDS", 0.5)
    machine.smi("exec /bin/sleep 30")
    assert "nvidia-smi gave no answer in 0.5 s -> reinstall" in machine.problems()


def test_jetson(machine: Machine) -> None:
    machine.onnxruntime("onnxruntime-gpu", providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    machine.cuda(1)
    machine.jetson(36)
    report = diagnose()
    assert report.facts["board"] == "NVIDIA Jetson Orin Nano, Jetson Linux 36.4, 7.4 GiB"
    assert report.problems == []


@needs_sh
@pytest.mark.parametrize(
    ("cuda", "capability", "extra", "installed"),
    [
        ((13, 0), "9.0", "gpu or tensorrt (the driver runs CUDA 13.0)", "gpu"),
        ((12, 4), "9.0", "gpu-cu12 or tensorrt-cu12 (the driver runs CUDA 12.4)", "gpu-cu12"),
        ((13, 0), "7.0", "gpu-cu12 (the driver runs CUDA 13.0; CUDA 13 and", "gpu-cu12"),
        ((), "9.0", "gpu or tensorrt (the driver's CUDA version is unknown)", "gpu"),
    ],
)
def test_the_extra_for_a_gpu(
    machine: Machine, cuda: tuple[int, ...], capability: str, extra: str, installed: str
) -> None:
    machine.smi(f"echo '{SMI_LINE.replace('9.0', capability)}'")
    machine.driver(*cuda)
    assert diagnose().facts["extra"].startswith(extra)
    assert f"ONNX Runtime is not installed -> {install_command(installed)}" in machine.problems()
    machine.onnxruntime("onnxruntime")
    assert f"cuda-bindings are not installed: no GPU backend of bfr can run -> {install_command(installed)}" in (
        machine.problems()
    )


@pytest.mark.parametrize(
    ("release", "cuda", "extra"),
    [
        (36, (12, 6), "cpu,jetson-cu12 (JetPack 6.2, which brings TensorRT 10.3; it reads graphs of opset 20 or less)"),
        (36, (), "cpu,jetson-cu12 (JetPack 6.2, which brings TensorRT 10.3; it reads graphs of opset 20 or less)"),
        (38, (13, 0), "cpu,jetson (JetPack 7, which brings TensorRT 10.13; it reads graphs of opset 22 or less)"),
        (39, (13, 2), "cpu,jetson (JetPack 7.2, which brings TensorRT 10.16)"),
    ],
)
def test_the_extra_for_a_jetson(machine: Machine, release: int, cuda: tuple[int, ...], extra: str) -> None:
    machine.jetson(release)
    machine.driver(*cuda)
    assert diagnose().facts["extra"] == extra
    assert f"ONNX Runtime is not installed -> {install_command('cpu')}" in machine.problems()
    name = re.split("[, ]", extra)[1]
    assert f"cuda-bindings are not installed: no GPU backend of bfr can run -> {install_command(name)}" in (
        machine.problems()
    )


@pytest.mark.parametrize(
    ("name", "cuda", "extras"),
    [
        ("Orin Nano, JetPack 6.2", (), ("cpu", "jetson-cu12")),
        ("Orin NX, JetPack 7.2", (), ("cpu", "jetson")),
        ("another maker's carrier, no release file", (12, 6), ("cpu", "jetson-cu12")),
        ("AGX Thor, JetPack 7", (), ("cpu", "jetson")),
        ("a container on an Orin", (), ("cpu", "jetson-cu12")),
    ],
)
def test_a_board_is_told_in_one_line_what_to_install(
    machine: Machine, name: str, cuda: tuple[int, ...], extras: tuple[str, ...]
) -> None:
    boards.machine(machine.folder, **boards.BOARDS[name])
    machine.driver(*cuda)
    line = diagnose().facts["install"]
    assert "\n" not in line
    assert line == (
        "sudo apt install nvidia-jetpack; python3 -m venv --system-site-packages bfr; "
        f"bfr/bin/{install_command(*extras)}"
    )


def test_a_board_that_is_too_old_is_told_what_would_help(machine: Machine) -> None:
    boards.machine(machine.folder, **boards.BOARDS["AGX Xavier, JetPack 5"])
    report = diagnose()
    assert report.facts["extra"].startswith("none (JetPack 5")
    assert report.facts["install"] == "JetPack 5 has Python 3.8: an Orin takes JetPack 7.2 or 6.2"
    machine.onnxruntime("onnxruntime")
    assert machine.problems().startswith("bfr does not run engines on JetPack 5 -> JetPack 5 has Python 3.8")
    assert "\n" not in machine.problems()


def test_a_board_whose_gpu_cannot_be_used(machine: Machine) -> None:
    machine.onnxruntime("onnxruntime")
    machine.cuda(0, "cudaErrorNoDevice")
    boards.machine(machine.folder, **boards.BOARDS["another maker's carrier, no release file"])
    assert diagnose().facts["extra"] == "cpu,jetson (a board of unknown JetPack; of JetPack 6 it is jetson-cu12)"
    assert "CUDA cannot use the GPU: cudaErrorNoDevice -> install the extra" in machine.problems()
    assert "--runtime nvidia" in machine.problems()
    boards.machine(machine.folder, **boards.BOARDS["AGX Xavier, JetPack 5"])
    assert "CUDA" not in machine.problems()


def test_the_boards_power_mode_is_told(machine: Machine) -> None:
    boards.machine(machine.folder, **boards.BOARDS["Orin Nano, JetPack 6.2"])
    assert diagnose().facts["board"].endswith("Super, Jetson Linux 36.4, 7.4 GiB, power mode MAXN_SUPER")


def test_the_extra_without_a_gpu(machine: Machine) -> None:
    assert diagnose().facts["extra"] == "cpu (no NVIDIA GPU)"


def test_the_drivers_cuda_is_read_from_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(found: Any) -> int:
        found._obj.value = 12040
        return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(cuDriverGetVersion=version))
    assert gpus.driver_cuda() == (12, 4)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(cuDriverGetVersion=lambda _: 3))
    assert gpus.driver_cuda() is None


@needs_sh
def test_packages_of_another_cuda_than_the_drivers(machine: Machine) -> None:
    machine.smi(f"echo '{SMI_LINE}'")
    machine.driver(12, 4)
    machine.tensorrt("tensorrt-rtx", "1.7.1")
    machine.cuda(0, "cudaErrorInsufficientDriver")
    assert "install the extra that it needs: gpu-cu12 or tensorrt-cu12" in machine.problems()


@needs_sh
@pytest.mark.parametrize("major", [12, 13])
def test_tensorrt_whose_package_names_its_cuda(machine: Machine, major: int) -> None:
    machine.smi(f"echo '{SMI_LINE}'")
    machine.driver(major, 0)
    machine.cuda(1)
    machine.tensorrt("tensorrt", "11.4.0")
    machine.packages[f"tensorrt-cu{major}"] = machine.packages.pop("tensorrt")
    assert diagnose().facts["tensorrt"] == "11.4.0, can be imported"
    assert machine.problems() == ""


def test_little_disk(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.onnxruntime("onnxruntime")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 1 << 30))
    found = [problem.found for problem in diagnose(machine.folder / "cache").problems]
    assert found == ["this folder has 1.0 GiB free, less than 2 GiB", "cache has 1.0 GiB free, less than 2 GiB"]


def test_read_only_cache(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.onnxruntime("onnxruntime")
    (machine.folder / "cache").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != machine.folder / "cache" and access(path, mode))
    for cache in (machine.folder / "cache", machine.folder / "cache" / "not" / "made"):
        (problem,) = diagnose(cache).problems
        assert problem.found.startswith("cache cannot be written")
        assert "set BFR_HOME to another folder" in problem.remedy


def test_a_cache_that_is_a_file(machine: Machine) -> None:
    machine.onnxruntime("onnxruntime")
    (machine.folder / "cache").touch()
    (problem,) = diagnose(machine.folder / "cache").problems
    assert "or a file" in problem.found


def test_a_failing_probe_is_a_line_and_ends_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(report: object) -> None:
        raise RuntimeError("a new kind of broken")

    machine.onnxruntime("onnxruntime")
    for module, names in ((inspected, "packages cpu memory"), (gpus, "board gpus onnxruntime cuda tensorrt")):
        for name in names.split():
            monkeypatch.setattr(module, f"probe_{name}", fail)
    report = diagnose(machine.folder)
    assert len(report.problems) == 8
    assert "looking at GPU failed: RuntimeError: a new kind of broken" in render(report)
    assert "cache" in report.facts


def test_json_says_the_same(machine: Machine, call: Called) -> None:
    report = diagnose(cache_folder())
    parsed = json.loads(call("doctor", "--json").stdout)
    assert parsed["facts"] == report.facts
    assert [(p["found"], p["remedy"]) for p in parsed["problems"]] == [(p.found, p.remedy) for p in report.problems]
    assert parsed["problems"]


def test_quiet_prints_problems_alone_and_verbose_the_steps(machine: Machine, call: Called) -> None:
    machine.onnxruntime("onnxruntime")
    assert call("doctor", "--quiet").stdout == ""
    machine.packages["opencv-python"] = "4.12.0"
    assert re.fullmatch("problem: .* overwrite each other.*\n", call("doctor", "--quiet").stdout)
    assert re.search(r"^ +\d+\.\d s  looking at GPU$", call("doctor", "--verbose").stderr, re.MULTILINE)
    assert call("doctor").stderr == ""


def test_every_row_of_the_registry_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Backend("mine", "mine", "Device", "no_such_package", "mine-extra", "cuda", "a backend of mine")
    monkeypatch.setitem(BACKENDS, "mine", row)
    facts = diagnose().facts
    assert all(f"backend {name}" in facts for name in BACKENDS)
    assert install_command("mine-extra") in facts["backend mine"]


@needs_sh
@pytest.mark.parametrize(("capability", "supported"), [("9.0", False), ("8.9", True)])
def test_a_gpu_that_tensorrt_rtx_does_not_support(machine: Machine, capability: str, supported: bool) -> None:
    machine.smi(f"echo '{SMI_LINE.replace('9.0', capability)}'")
    machine.tensorrt("tensorrt-rtx", "1.7.1")
    machine.cuda(1)
    said = "tensorrt-rtx does not support GPUs of compute capability 9.0 -> pip install"
    assert (said in machine.problems()) != supported
