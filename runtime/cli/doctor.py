"""What works on this machine, and what to do about what does not. Needs nothing optional, and never raises."""

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bfr.runtime.backends.board import highest_opset, power_mode, this_board
from bfr.runtime.errors import BfrError
from bfr.runtime.install import install_command

MIN_FREE_BYTES = 2 << 30  # published weights of one system, their ONNX files and an engine
SMI_TIMEOUT_SECONDS = 10
_GIB = 1 << 30
_CUDA_13_CAPABILITY = 7.5  # Turing: CUDA 13 left out what is older
_ROOT = Path("/")  # where a board's files are
_CPUINFO, _MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
_OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
_ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu")
_OPTIONAL = ("torch", "onnx", "av", "ray", "tensorrt", "tensorrt-rtx", "cuda-bindings")
_TENSORRT = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not work, and what to do about it."""

    found: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Report:
    """facts: what was looked at -> what was found, in order of printing. problems: the most basic ones first."""

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def diagnose(cache: Path | None = None) -> Report:
    """Look at packages, GPU, board, CPU, memory and disks; at the folder of downloads too where `cache` names it.

    Takes a second: ONNX Runtime is imported and `nvidia-smi` asked; no CUDA context is made, torch is not imported.
    """
    report = Report()
    probes: dict[str, Callable[[Report], None]] = {
        "packages": _packages,
        "board": _board,
        "GPU": _gpus,
        "extra": _extra,
        "ONNX Runtime": _onnxruntime,
        "CUDA": _cuda,
        "TensorRT": _tensorrt,
        "backends": _backends,
        "CPU": _cpu,
        "memory": _memory,
        "disk": lambda report: _disk(report, "this folder", Path.cwd()),
    }
    if cache is not None:
        probes["cache"] = lambda report: _disk(report, "cache", cache)
        probes["face detector"] = lambda report: _detector(report, cache)
    for name, probe in probes.items():
        try:
            probe(report)
        except Exception as error:  # a machine broken in a new way is what this command is for
            report.facts.setdefault(name, "unknown")
            found = f"looking at {name} failed: {type(error).__name__}: {error}"
            report.problems.append(
                Problem(found, "this may be harmless; if not, report it with the output of bfr doctor")
            )
    return report


def render(report: Report) -> str:
    """The report as text: one line a fact, then one line a problem with its remedy."""
    width = max(map(len, report.facts), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in report.facts.items()]
    lines.append("")
    lines += [f"problem: {problem.found} -> {problem.remedy}" for problem in report.problems] or ["no problems found"]
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """The report as a JSON object: `facts` by name, `problems` as a list of `found` and `remedy`."""
    return json.dumps(asdict(report), indent=2)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _distribution(name: str) -> str | None:
    """The version of an optional package; TensorRT's distributions from the index name their CUDA too."""
    return next(filter(None, map(_version, (name, f"{name}-cu13", f"{name}-cu12"))), None)


def _packages(report: Report) -> None:
    report.facts["bfr-runtime"] = _version("bfr-runtime") or "not installed, run from its sources"
    report.facts["python"] = platform.python_version()
    report.facts["platform"] = platform.platform()
    opencv = [name for name in _OPENCV if _version(name)]
    for name in ("numpy", "pillow", *(opencv or _OPENCV[:1])):
        if (found := _version(name)) is None:
            report.problems.append(Problem(f"{name} is not installed", f'pip install "{name}"'))
        report.facts[name] = found or "not installed"
    if len(opencv) > 1:
        found = f"{' and '.join(opencv)} are installed and overwrite each other's files"
        report.problems.append(Problem(found, f"pip uninstall -y {' '.join(opencv)}; pip install '{_OPENCV[0]}<5'"))
    for name in _OPTIONAL:
        report.facts[name] = _distribution(name) or "not installed (optional)"


def _detector(report: Report, cache: Path) -> None:
    from bfr.runtime.faces.detect import YUNET_FILE, open_detector

    if (cache / "yunet" / YUNET_FILE).is_file():
        report.facts["face detector"] = "YuNet"
        return
    try:
        report.facts["face detector"] = f"{open_detector('haar').name}; `bfr fetch yunet` brings a better one"
    except BfrError as error:
        report.facts["face detector"] = "none"
        report.problems.append(Problem(str(error), "bfr fetch yunet"))


def _board(report: Report) -> None:
    board = this_board(_ROOT)
    if board.model is None:
        return
    release = "" if board.release is None else f", Jetson Linux {board.release[0]}.{board.release[1]}"
    mode = power_mode(_ROOT)
    report.facts["board"] = f"{board.model}{release}, {board.memory:.1f} GiB{f', power mode {mode}' if mode else ''}"


def _gpus(report: Report) -> None:
    report.facts["GPU"] = "no NVIDIA GPU found" if "board" not in report.facts else "integrated, see board"
    if (smi := shutil.which("nvidia-smi")) is None:
        return
    query = [smi, "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    remedy = "reinstall or update the NVIDIA driver and restart; in a container, start it with --gpus all"
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=SMI_TIMEOUT_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        report.problems.append(Problem(f"nvidia-smi gave no answer in {SMI_TIMEOUT_SECONDS} s", remedy))
        return
    gpus = [line.rsplit(", ", 3) for line in asked.stdout.splitlines() if line.count(", ") >= 3]
    if asked.returncode or not gpus:
        said = " ".join((asked.stderr or asked.stdout).split())[:200] or "nothing"
        report.problems.append(Problem(f"nvidia-smi found no GPU (exit status {asked.returncode}): {said}", remedy))
        return
    report.facts["GPU"] = "; ".join(
        f"{name}, driver {driver}, compute capability {capability}, "
        + (f"{memory} MiB" if memory.isdecimal() else "memory shared with the CPU or unknown")
        for name, driver, capability, memory in gpus
    )


def _has_gpu(report: Report) -> bool:
    return "board" in report.facts or "driver" in report.facts.get("GPU", "")


def _driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the driver runs, as (13, 0); None without a driver. Makes no context."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    found = ctypes.c_int()
    return None if driver.cuDriverGetVersion(ctypes.byref(found)) else (found.value // 1000, found.value % 1000 // 10)


def _extras(report: Report) -> tuple[str, str, str]:
    """The extras of pyproject.toml that this machine needs, for ONNX Runtime and for TensorRT, and why."""
    if not _has_gpu(report):
        return "cpu", "tensorrt", "no NVIDIA GPU"
    found = _driver_cuda()
    runs = f"the driver runs CUDA {found[0]}.{found[1]}" if found else "the driver's CUDA version is unknown"
    if "board" in report.facts:
        jetpack = this_board(_ROOT).jetpack(found)
        if jetpack is None:
            return "cpu", "jetson", "a board of unknown JetPack"
        highest = highest_opset(jetpack.tensorrt)
        opset = f"; it reads graphs of opset {highest} or less" if highest else ""
        return "cpu", jetpack.extra, f"JetPack {jetpack.name}, which brings TensorRT {jetpack.tensorrt}{opset}"
    capabilities = re.findall(r"compute capability (\d+\.\d+)", report.facts["GPU"])
    if old := [found for found in capabilities if float(found) < _CUDA_13_CAPABILITY]:
        why = f"{runs}; CUDA 13 and today's TensorRT leave out compute capability {old[0]}"
        return "gpu-cu12", "gpu-cu12", why
    suffix = "-cu12" if found and found[0] < 13 else ""
    return f"gpu{suffix}", f"tensorrt{suffix}", runs


def _extra(report: Report) -> None:
    onnxruntime, tensorrt, why = _extras(report)
    needed = dict.fromkeys((onnxruntime, tensorrt) if _has_gpu(report) else (onnxruntime,))
    if "board" not in report.facts:
        report.facts["extra"] = f"{' or '.join(needed)} ({why})"
        report.facts["install"] = install_command(onnxruntime)
        return
    jetpack = this_board(_ROOT).jetpack(_driver_cuda())
    if jetpack is not None and jetpack.instead:
        report.facts["extra"] = f"none ({why})"
        report.facts["install"] = jetpack.instead
        report.problems.append(Problem(f"bfr does not run engines on JetPack {jetpack.name}", jetpack.instead))
        return
    report.facts["extra"] = f"{','.join(needed)} ({why})"
    environment = "sudo apt install nvidia-jetpack; python3 -m venv --system-site-packages bfr"
    report.facts["install"] = f"{environment}; bfr/bin/{install_command(*needed)}"


def _onnxruntime(report: Report) -> None:
    installed = [f"{name} {found}" for name in _ONNXRUNTIME if (found := _version(name))]
    report.facts["onnxruntime"] = " and ".join(installed) or "not installed"
    extra, *_ = _extras(report)
    if len(installed) > 1:
        found = f"{report.facts['onnxruntime']} are both installed and overwrite each other's files"
        remedy = f"pip uninstall -y {' '.join(_ONNXRUNTIME)}; {install_command(extra)}"
        report.problems.append(Problem(found, remedy))
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except Exception as error:  # missing, or its native libraries do not load
        if not installed and _distribution("tensorrt"):
            return
        found = f"ONNX Runtime cannot be imported ({error})" if installed else "ONNX Runtime is not installed"
        options = "--force-reinstall" if installed else ""
        report.problems.append(Problem(found, install_command(extra, options=options)))
        return
    report.facts["onnxruntime providers"] = ", ".join(providers) + " (compiled in; not tried)"
    if "CUDAExecutionProvider" in providers:
        if not _has_gpu(report):
            found = "onnxruntime-gpu is installed but no NVIDIA GPU was found: the CPU will be used"
            report.problems.append(
                Problem(found, "install the NVIDIA driver, or in a container start it with --gpus all")
            )
    elif _has_gpu(report) and not _distribution("tensorrt"):
        found = "there is a GPU, but this ONNX Runtime runs on the CPU only"
        remedy = f"pip uninstall -y onnxruntime; {install_command(extra)}"
        if "board" in report.facts:
            remedy = (
                "use TensorRT, which JetPack brings: `sudo apt install nvidia-jetpack`, and make this environment with "
                "--system-site-packages"
            )
        report.problems.append(Problem(found, remedy))


def _cuda(report: Report) -> None:
    """What a GPU's own work needs: the driver through cuda-python, and the compiler of the project's kernels."""
    if not _version("cuda-bindings"):
        if _has_gpu(report):
            onnxruntime, tensorrt, _ = _extras(report)
            extra = tensorrt if any(map(_distribution, _TENSORRT)) or "board" in report.facts else onnxruntime
            found = "there is a GPU, but cuda-bindings are not installed: no GPU backend of bfr can run"
            report.problems.append(Problem(found, install_command(extra)))
        return
    from bfr.runtime.backends.cuda.bindings import bindings, device_count

    count = device_count()
    report.facts["CUDA"] = f"{count} GPU{'s' * (count != 1)} usable"
    if not count and _has_gpu(report):
        error, _ = bindings()[0].cudaGetDeviceCount()
        remedy = f"update the NVIDIA driver, or install the extra that it needs: {report.facts['extra']}"
        report.problems.append(Problem(f"CUDA cannot use the GPU: {error.name}", remedy))
    try:
        from bfr.runtime.backends.cuda.kernels import compile_kernels

        compile_kernels("9.0")
        report.facts["CUDA"] += ", NVRTC works"
    except BfrError as error:
        report.facts["CUDA"] += ", NVRTC does not work"
        if _has_gpu(report):
            report.problems.append(Problem("NVRTC does not work", str(error)))


def _tensorrt(report: Report) -> None:
    for name in _TENSORRT:
        if not _distribution(name):
            continue
        try:
            imported = import_module(name.replace("-", "_")).__version__
        except Exception as error:  # its native libraries do not load
            extra = _extras(report)[1] if name == "tensorrt" else name
            remedy = f"{install_command(extra, options='--force-reinstall')}; on a Jetson, JetPack brings TensorRT"
            report.problems.append(Problem(f"{name} cannot be imported ({error})", remedy))
            continue
        report.facts[name] = f"{imported}, can be imported"
        _rtx_capabilities(report, name)
        if not _has_gpu(report):
            report.facts[name] += "; engines run on an NVIDIA GPU, and there is none"


def _rtx_capabilities(report: Report, name: str) -> None:
    from bfr.runtime.backends.tensorrt_key import RTX_CAPABILITIES

    found = set(re.findall(r"compute capability ([\d.]+)", report.facts["GPU"]))
    if name == "tensorrt-rtx" and (unknown := sorted(found - set(RTX_CAPABILITIES))):
        text = f"tensorrt-rtx does not support GPUs of compute capability {', '.join(unknown)}"
        remedy = f"{install_command(_extras(report)[1])} and build with --library tensorrt"
        report.problems.append(Problem(text, remedy))


def _backends(report: Report) -> None:
    """Whether the packages of each row of the registry are there; nothing is imported but the registry."""
    from bfr.runtime.backends.registry import BACKENDS

    for row in BACKENDS.values():
        found = "installed" if row.installed else f"not installed: {install_command(row.extra)}"
        if row.where == "cuda" and not _has_gpu(report):
            found += "; it needs an NVIDIA GPU"
        report.facts[f"backend {row.name}"] = f"{row.help}; {found}"


def _cpu(report: Report) -> None:
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report.facts["CPU"] = f"{model}, {usable} of {os.cpu_count()} logical cores usable"


def _memory(report: Report) -> None:
    if not _MEMINFO.exists():
        report.facts["memory"] = "unknown on this platform"
        return
    kib = {line.split(":")[0]: int(line.split()[1]) for line in _MEMINFO.read_text().splitlines()}
    available, total = kib["MemAvailable"] * 1024 / _GIB, kib["MemTotal"] * 1024 / _GIB
    report.facts["memory"] = f"{available:.1f} of {total:.1f} GiB available"


def _disk(report: Report, name: str, folder: Path) -> None:
    """Free space of a folder, or of where it would be made; whether it can be written."""
    exists = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(exists).free
    report.facts[name] = f"{folder}, {free / _GIB:.1f} GiB free" + ("" if folder.exists() else ", not made yet")
    choose = "set BFR_HOME to another folder" if name == "cache" else "choose another output folder"
    if not exists.is_dir() or not os.access(exists, os.W_OK | os.X_OK):
        found = f"{name} cannot be written: {exists} is read-only for this user, or a file"
        report.problems.append(Problem(found, f"{choose}, or change its permissions"))
    if free < MIN_FREE_BYTES:
        found = f"{name} has {free / _GIB:.1f} GiB free, less than {MIN_FREE_BYTES / _GIB:.0f} GiB"
        report.problems.append(Problem(found, f"free some space at {exists}, or {choose}"))
