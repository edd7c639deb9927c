"""What `bfr doctor` finds out about GPUs and boards, and what runs on them; which extra this machine needs."""

import ctypes
import os
import re
import shutil
import subprocess
from importlib import import_module

from bfr.runtime.backends.board import JetPack, highest_opset, power_mode, this_board
from bfr.runtime.cli import machine
from bfr.runtime.cli.machine import Report
from bfr.runtime.errors import BfrError
from bfr.runtime.install import install_command

SMI_TIMEOUT_SECONDS = 10
_CUDA_13_CAPABILITY = 7.5  # Turing: CUDA 13 left out what is older
_ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu")
_TENSORRT = ("tensorrt", "tensorrt-rtx")


def probe_board(report: Report) -> None:
    """A Jetson board, and its power mode."""
    board = this_board(machine.ROOT)
    if board.model is None:
        return
    release = "" if board.release is None else f", Jetson Linux {board.release[0]}.{board.release[1]}"
    mode = power_mode(machine.ROOT)
    report.facts["board"] = f"{board.model}{release}, {board.memory:.1f} GiB{f', power mode {mode}' if mode else ''}"


def probe_gpus(report: Report) -> None:
    """NVIDIA GPUs, as `nvidia-smi` has them. On a board it knows nothing, or is not there."""
    report.facts["GPU"] = "no NVIDIA GPU found" if "board" not in report.facts else "integrated, see board"
    if (smi := shutil.which("nvidia-smi")) is None or "board" in report.facts:
        return
    query = [smi, "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    remedy = "reinstall or update the NVIDIA driver and restart; in a container, start it with --gpus all"
    try:
        asked = subprocess.run(  # noqa: S603
            query, capture_output=True, encoding="utf-8", errors="replace", timeout=SMI_TIMEOUT_SECONDS, check=False
        )
    except OSError as error:
        report.problem(f"nvidia-smi cannot be run ({error.strerror})", remedy)
        return
    except subprocess.TimeoutExpired:
        report.problem(f"nvidia-smi gave no answer in {SMI_TIMEOUT_SECONDS} s", remedy)
        return
    gpus = [line.rsplit(", ", 3) for line in asked.stdout.splitlines() if line.count(", ") >= 3]
    if asked.returncode or not gpus:
        said = " ".join((asked.stderr or asked.stdout).split())[:200] or "nothing"
        report.problem(f"nvidia-smi found no GPU (exit status {asked.returncode}): {said}", remedy)
        return
    report.facts["GPU"] = "; ".join(
        f"{name}, driver {driver}, compute capability {capability}, "
        + (f"{memory} MiB" if memory.isdecimal() else "memory shared with the CPU or unknown")
        for name, driver, capability, memory in gpus
    )


def _has_gpu(report: Report) -> bool:
    return "board" in report.facts or "driver" in report.facts.get("GPU", "")


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the driver runs, as (13, 0); None without a driver. Makes no context."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    found = ctypes.c_int()
    return None if driver.cuDriverGetVersion(ctypes.byref(found)) else (found.value // 1000, found.value % 1000 // 10)


def _jetpack(report: Report) -> JetPack | None:
    return this_board(machine.ROOT).jetpack(driver_cuda()) if "board" in report.facts else None


def _extras(report: Report) -> tuple[str, str, str]:
    """The extras of pyproject.toml that this machine needs, for ONNX Runtime and for TensorRT, and why.

    The second is empty where no engine runs here.
    """
    if not _has_gpu(report):
        return "cpu", "tensorrt", "no NVIDIA GPU"
    if "board" in report.facts:
        if (jetpack := _jetpack(report)) is None:
            return "cpu", "jetson", "a board of unknown JetPack; of JetPack 6 it is jetson-cu12"
        if jetpack.instead:
            return "cpu", "", f"JetPack {jetpack.name}"
        highest = highest_opset(jetpack.tensorrt)
        opset = f"; it reads graphs of opset {highest} or less" if highest else ""
        return "cpu", jetpack.extra, f"JetPack {jetpack.name}, which brings TensorRT {jetpack.tensorrt}{opset}"
    cuda = driver_cuda()
    runs = f"the driver runs CUDA {cuda[0]}.{cuda[1]}" if cuda else "the driver's CUDA version is unknown"
    if old := sorted(found for found in _capabilities(report) if float(found) < _CUDA_13_CAPABILITY):
        return "gpu-cu12", "gpu-cu12", f"{runs}; CUDA 13 and today's TensorRT leave out compute capability {old[0]}"
    suffix = "-cu12" if cuda and cuda[0] < 13 else ""
    return f"gpu{suffix}", f"tensorrt{suffix}", runs


def probe_extra(report: Report) -> None:
    """The extra that this machine needs, and the command that installs it."""
    onnxruntime, tensorrt, why = _extras(report)
    if "board" not in report.facts:
        needed = dict.fromkeys((onnxruntime, tensorrt) if _has_gpu(report) else (onnxruntime,))
        report.facts["extra"] = f"{' or '.join(needed)} ({why})"
        report.facts["install"] = install_command(onnxruntime)
    elif (jetpack := _jetpack(report)) is not None and jetpack.instead:
        report.facts["extra"] = f"none ({why})"
        report.facts["install"] = jetpack.instead
        report.problem(f"bfr does not run engines on JetPack {jetpack.name}", jetpack.instead)
    else:
        report.facts["extra"] = f"{onnxruntime},{tensorrt} ({why})"
        environment = "sudo apt install nvidia-jetpack; python3 -m venv --system-site-packages bfr"
        report.facts["install"] = f"{environment}; bfr/bin/{install_command(onnxruntime, tensorrt)}"


def probe_onnxruntime(report: Report) -> None:
    """ONNX Runtime, and what it was compiled for."""
    installed = [f"{name} {found}" for name in _ONNXRUNTIME if (found := machine.version(name))]
    report.facts["onnxruntime"] = " and ".join(installed) or "not installed"
    extra, tensorrt, _ = _extras(report)
    if len(installed) > 1:
        found = f"{report.facts['onnxruntime']} are both installed and overwrite each other's files"
        remedy = f"pip uninstall -y {' '.join(_ONNXRUNTIME)}; {install_command(extra)}"
        report.problem(found, remedy)
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except Exception as error:  # missing, or its native libraries do not load
        if not installed and machine.distribution("tensorrt"):
            return
        found = f"ONNX Runtime cannot be imported ({error})" if installed else "ONNX Runtime is not installed"
        options = "--force-reinstall" if installed else ""
        report.problem(found, install_command(extra, options=options))
        return
    report.facts["onnxruntime providers"] = ", ".join(providers) + " (compiled in; not tried)"
    if "CUDAExecutionProvider" in providers:
        if not _has_gpu(report):
            found = "onnxruntime-gpu is installed but no NVIDIA GPU was found: the CPU will be used"
            report.problem(found, "install the NVIDIA driver, or in a container start it with --gpus all")
    elif _has_gpu(report) and tensorrt and not machine.distribution("tensorrt"):
        found = "there is a GPU, but this ONNX Runtime runs on the CPU only"
        remedy = f"pip uninstall -y onnxruntime; {install_command(extra)}"
        if "board" in report.facts:
            remedy = (
                "use TensorRT, which JetPack brings: `sudo apt install nvidia-jetpack`, and make this environment with "
                "--system-site-packages"
            )
        report.problem(found, remedy)


def probe_cuda(report: Report) -> None:
    """What a GPU's own work needs: the driver through cuda-python, and the compiler of the project's kernels."""
    if not machine.version("cuda-bindings"):
        onnxruntime, tensorrt, _ = _extras(report)
        extra = tensorrt if any(map(machine.distribution, _TENSORRT)) or "board" in report.facts else onnxruntime
        if _has_gpu(report) and extra:
            found = "there is a GPU, but cuda-bindings are not installed: no GPU backend of bfr can run"
            report.problem(found, install_command(extra))
        return
    from bfr.runtime.backends.cuda.bindings import NOT_STARTED, count_devices

    count, error = count_devices()
    report.facts["CUDA"] = f"{count} GPU{'s' * (count != 1)} usable"
    if not count and _has_gpu(report) and _extras(report)[1]:
        remedy = f"install the extra that it needs: {report.facts['extra']}"
        if "board" in report.facts:
            remedy += "; a container needs --runtime nvidia, and this user the group video"
        else:
            remedy = f"update the NVIDIA driver, or {remedy}"
        report.problem(f"CUDA cannot use the GPU: {error}", NOT_STARTED.get(error, remedy))
    try:
        from bfr.runtime.backends.cuda.kernels import compile_kernels

        for capability in sorted(_capabilities(report)) or ["9.0"]:
            compile_kernels(capability)
        report.facts["CUDA"] += ", NVRTC works"
    except BfrError as error:
        report.facts["CUDA"] += ", NVRTC does not work"
        if _has_gpu(report):
            report.problem("NVRTC does not work", str(error))


def _capabilities(report: Report) -> set[str]:
    """The compute capabilities that `nvidia-smi` lists, as "9.0"."""
    return set(re.findall(r"compute capability (\d+\.\d+)", report.facts["GPU"]))


def probe_tensorrt(report: Report) -> None:
    """TensorRT and TensorRT for RTX."""
    for name in _TENSORRT:
        if not machine.distribution(name):
            continue
        try:
            imported = import_module(name.replace("-", "_")).__version__
        except Exception as error:  # its native libraries do not load
            extra = _extras(report)[1] if name == "tensorrt" else name
            remedy = f"{install_command(extra, options='--force-reinstall')}; on a Jetson, JetPack brings TensorRT"
            report.problem(f"{name} cannot be imported ({error})", remedy)
            continue
        report.facts[name] = f"{imported}, can be imported"
        _rtx_capabilities(report, name)
        if not _has_gpu(report):
            report.facts[name] += "; engines run on an NVIDIA GPU, and there is none"


def _rtx_capabilities(report: Report, name: str) -> None:
    from bfr.runtime.backends.tensorrt_key import RTX_CAPABILITIES

    if name == "tensorrt-rtx" and (unknown := sorted(_capabilities(report) - set(RTX_CAPABILITIES))):
        text = f"tensorrt-rtx does not support GPUs of compute capability {', '.join(unknown)}"
        remedy = f"{install_command(_extras(report)[1])} and build with --library tensorrt"
        report.problem(text, remedy)


def probe_backends(report: Report) -> None:
    """Whether the packages of each row of the registry are there; nothing is imported but the registry."""
    from bfr.runtime.backends.registry import BACKENDS

    for row in BACKENDS.values():
        found = "installed" if row.installed else f"not installed: {install_command(row.extra)}"
        if row.where == "cuda" and not _has_gpu(report):
            found += "; it needs an NVIDIA GPU"
        report.facts[f"backend {row.name}"] = f"{row.help}; {found}"
