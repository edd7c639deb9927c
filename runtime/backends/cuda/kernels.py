"""The kernels of `kernels.cu`, compiled by NVRTC for this machine's GPU. Compiling itself needs no GPU."""

from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bfr.runtime.backends.cuda.bindings import remedy
from bfr.runtime.errors import BackendUnavailable, MissingDependency
from bfr.runtime.install import install_command

SOURCE = Path(__file__).with_suffix(".cu")
NAMES = ("fill_normal", "diffuse", "stamp")
BLOCK = 256  # threads


@cache
def compile_kernels(compute_capability: str) -> bytes:
    """Machine code for a compute capability, as `9.0`; PTX where NVRTC is older than the GPU.

    Raises MissingDependency without NVRTC, BackendUnavailable if it fails.
    """
    try:
        nvrtc: Any = import_module("cuda.bindings.nvrtc")
        supported = _check(nvrtc, nvrtc.nvrtcGetSupportedArchs())[1:]
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependency(
            f"NVRTC, CUDA's run-time compiler, cannot be used ({error}): {_remedy()}, or install the CUDA toolkit"
        ) from error
    known = [int(arch) for arch in supported[0]]
    wanted = int(compute_capability.replace(".", ""))
    older = [arch for arch in known if arch <= wanted]
    if not older:
        raise BackendUnavailable(
            f"this NVRTC compiles for compute capability {min(known) / 10} and later, the GPU has "
            f"{compute_capability}: the NVRTC of CUDA 12 goes down to 5.0 "
            f"({install_command('gpu-cu12')} in a new environment)"
        )
    return _compile(nvrtc, "sm" if wanted in known else "compute", max(older))


def _remedy() -> str:
    """Install the NVRTC that the installed cuda-bindings load; CUDA 12's package has another name."""
    try:
        major = version("cuda-bindings").split(".")[0]
    except PackageNotFoundError:
        return remedy()
    return "pip install nvidia-cuda-nvrtc-cu12" if major == "12" else f'pip install "nvidia-cuda-nvrtc=={major}.*"'


def _compile(nvrtc: Any, kind: str, arch: int) -> bytes:
    (_, program) = _check(nvrtc, nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), b"kernels.cu", 0, [], []))
    try:
        options = [f"--gpu-architecture={kind}_{arch}".encode(), b"--fmad=false"]
        error, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            _, size = _check(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
            log = b" " * size
            nvrtc.nvrtcGetProgramLog(program, log)
            raise BackendUnavailable(f"NVRTC refuses the project's kernels: {log.decode(errors='replace')}")
        get = "nvrtcGetCUBIN" if kind == "sm" else "nvrtcGetPTX"
        _, size = _check(nvrtc, getattr(nvrtc, f"{get}Size")(program))
        image = b" " * int(size)
        _check(nvrtc, getattr(nvrtc, get)(program, image))  # written in place: that is how these bindings return bytes
        return image
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _check(nvrtc: Any, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    if answer[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC reports {answer[0].name}")
    return answer
