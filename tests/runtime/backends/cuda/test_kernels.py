"""The kernels' own source, compiled for the CPU and compared with the host's noise; and by NVRTC for GPUs."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bfr.runtime.backends.cuda import kernels
from bfr.runtime.diffusion.noise import fill_normal
from bfr.runtime.errors import BackendUnavailable, MissingDependency
from bfr.runtime.install import install_command

# A grid as two loops. Threads past the end are run as well: a kernel that forgets to stop would write there.
SHIM = """
#include <cmath>
struct dim { unsigned int x, y; };
static dim blockIdx, blockDim, threadIdx;
struct float4 { float x, y, z, w; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::sqrt; using std::log;
#define BFR_DEVICE static inline
#define BFR_KERNEL static
#define BFR_NANOSECONDS(into) into = ++nanoseconds
static unsigned long long nanoseconds = 0;
#include "kernels.cu"
#define GRID(gx, gy, block, call) \\
    blockDim = {block, 1}; \\
    for (unsigned int by = 0; by < gy; ++by) for (unsigned int bx = 0; bx < gx; ++bx) \\
        for (unsigned int t = 0; t < block; ++t) { blockIdx = {bx, by}; threadIdx = {t, 0}; call; }
extern "C" void run_fill_normal(
    unsigned int gx, unsigned int gy, unsigned int block,
    float* out, const unsigned int* keys, unsigned int step, unsigned int quads
) { GRID(gx, gy, block, fill_normal(out, keys, step, quads)) }
extern "C" void run_diffuse(
    unsigned int gx, unsigned int gy, unsigned int block,
    float* x, const float* estimate, const float* noise, const float* levels, unsigned int count
) { GRID(gx, gy, block, diffuse(x, estimate, noise, levels, count)) }
extern "C" void run_stamp(
    unsigned int gx, unsigned int gy, unsigned int block, unsigned int* times, unsigned int index
) { GRID(gx, gy, block, stamp((unsigned long long*)times, index)) }
"""
Floats = np.ctypeslib.ndpointer(np.float32, flags="C")
Words = np.ctypeslib.ndpointer(np.uint32, flags="C")


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Runs a kernel of `kernels.cu` on arrays."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "shim.cpp").write_text(SHIM)
    command = [compiler, "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-I", str(kernels.SOURCE.parent)]
    subprocess.run([*command, "shim.cpp", "-o", "shim.so"], cwd=folder, check=True, capture_output=True)  # noqa: S603
    library = ctypes.CDLL(str(folder / "shim.so"))

    def run(name: str, grid: tuple[int, int], *arguments: Any) -> None:
        types = {np.ndarray: None, int: ctypes.c_uint32, float: ctypes.c_float}
        function = getattr(library, f"run_{name}")
        function.argtypes = [ctypes.c_uint32] * 3 + [
            (Words if a.dtype == np.uint32 else Floats) if isinstance(a, np.ndarray) else types[type(a)]
            for a in arguments
        ]
        function(*grid, kernels.BLOCK, *arguments)

    return run


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (12345, 7), (2**32 - 1, 2**32 - 1)])
def test_the_noise_is_the_hosts(on_the_cpu: Callable[..., None], seed: int, step: int) -> None:
    images, size = (3, 2**32 - 1, 3), 3 * 40 * 40
    quads = size // 4
    guard = np.full((len(images) * size + 1000,), np.float32(7))
    keys = np.array([[seed, image] for image in images], np.uint32)
    on_the_cpu("fill_normal", (-(-quads // kernels.BLOCK), len(images)), guard, keys, step, quads)
    found = guard[: len(images) * size].reshape(len(images), size)
    expected = np.empty_like(found)
    for row, image in zip(expected, images, strict=True):
        fill_normal(row, seed=seed, image=image, step=step)
    assert np.abs(found - expected).max() < 2e-6  # a few units in the last place of numbers up to 6
    assert np.mean(found == expected) > 0.5
    assert (guard[len(images) * size :] == 7).all(), "the kernel wrote behind its array"


def test_diffuse(on_the_cpu: Callable[..., None]) -> None:
    estimate, noise = np.random.default_rng(0).normal(size=(2, 2, 1000)).astype(np.float32)
    levels = np.array([[0.6, 0.8], [0.96, 0.28]], np.float32)
    x = np.full((3, 1000), np.float32(7))
    on_the_cpu("diffuse", (4, 2), x, estimate, noise, levels, 1000)
    for image, (signal, sigma) in enumerate(levels):
        assert np.array_equal(x[image], signal * estimate[image] + sigma * noise[image])
    assert (x[2] == 7).all()


def test_one_thread_stamps_one_time(on_the_cpu: Callable[..., None]) -> None:
    times = np.full(3, 2**64 - 1, np.uint64)
    for index in (0, 2):
        on_the_cpu("stamp", (1, 1), times.view(np.uint32), index)
    assert times[0] < times[2] < times[1] == 2**64 - 1
    assert times[2] - times[0] == 1


@pytest.mark.parametrize("capability", ["7.5", "8.7", "9.0", "12.0"])
def test_nvrtc_compiles_them(capability: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    assert kernels.compile_kernels(capability)[:4] == b"\x7fELF"


def test_a_gpu_that_is_newer_than_nvrtc_gets_ptx() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    image = kernels.compile_kernels("99.0")
    assert b".target sm_" in image
    assert all(f".entry {name}".encode() in image for name in kernels.NAMES)


def test_a_gpu_that_is_too_old_is_explained() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    with pytest.raises(BackendUnavailable, match=r"the GPU has 3.0: the NVRTC of CUDA 12 .*\[gpu-cu12\]"):
        kernels.compile_kernels("3.0")


@pytest.mark.parametrize(
    ("bindings", "remedy"),
    [
        ("13.5.0", 'pip install "nvidia-cuda-nvrtc==13.*", or'),
        ("12.9.10", "pip install nvidia-cuda-nvrtc-cu12, or"),
        (None, f"{install_command('EXTRA')} with"),
    ],
)
def test_without_nvrtc(monkeypatch: pytest.MonkeyPatch, bindings: str | None, remedy: str) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    def version(name: str) -> str:
        if bindings is None:
            raise PackageNotFoundError(name)
        return bindings

    monkeypatch.setattr(kernels, "import_module", missing)
    monkeypatch.setattr(kernels, "version", version)
    with pytest.raises(MissingDependency, match=re.escape(remedy)):
        kernels.compile_kernels("8.01")


def test_source_that_does_not_compile_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    bad = tmp_path / "kernels.cu"
    bad.write_text("extern C nonsense")
    monkeypatch.setattr(kernels, "SOURCE", bad)
    with pytest.raises(BackendUnavailable, match=r"(?s)refuses the project's kernels: .*error"):
        kernels.compile_kernels("8.6")
