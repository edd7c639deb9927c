"""Resolve the extras for the machines they are made for, and check the sets, without installing anything.

    python .ci/resolve.py [--offline-ok] [WORD...]     # only the rows that contain every WORD, as `tensorrt` or `3.12`

`ROWS` is the table: machine x platform x Python x extras -> packages that must and must not be in the set. uv resolves
each row for its platform and Python from the index's metadata, once with the newest versions and once with the lowest
direct ones. Exit status: 0 all rows hold; 1 a row does not; 2 the index cannot be reached (0 with `--offline-ok`).

TensorRT: its packages are source distributions, and building `tensorrt-cu*-libs` downloads from NVIDIA's own index. uv
reads the metadata of 11.2 and later without building. Only these packages may be source distributions (SDISTS), build
isolation is off, so that no build backend is fetched, and their rows are not resolved with the lowest versions.

JetPack 6 has Python 3.10, which the project excludes so far: there the requirements of the extras are resolved alone.
"""

import argparse
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
NAME = "bfr-runtime"
SDISTS = (
    *(f"tensorrt-cu{major}{part}" for major in (12, 13) for part in ("", "-libs")),
    *("tensorrt-rtx", "tensorrt-rtx-cu13"),
)
X86, WINDOWS, MAC = "x86_64-manylinux_2_28", "x86_64-pc-windows-msvc", "aarch64-apple-darwin"
UBUNTU_22_ARM, UBUNTU_24_ARM = "aarch64-manylinux_2_35", "aarch64-manylinux_2_39"

# What libonnxruntime_providers_cuda.so links to (readelf, 1.31.1 and 1.26.0), and cuDNN, which 1.31 opens as it runs.
PROVIDER_13 = (
    "onnxruntime-gpu>=1.28",
    "nvidia-cublas>=13,<14",  # libcublas.so.13, libcublasLt.so.13
    "nvidia-cuda-runtime>=13,<14",  # libcudart.so.13
    "nvidia-curand>=10,<11",  # libcurand.so.10
    "nvidia-cudnn-cu13>=9,<10",  # libcudnn.so.9
)
PROVIDER_12 = (
    "onnxruntime-gpu<1.27",
    "nvidia-cublas-cu12>=12,<13",  # libcublas.so.12, libcublasLt.so.12
    "nvidia-cuda-runtime-cu12>=12,<13",  # libcudart.so.12
    "nvidia-curand-cu12>=10,<11",  # libcurand.so.10
    "nvidia-cufft-cu12>=11,<12",  # libcufft.so.11
    "nvidia-cudnn-cu12>=9,<10",  # libcudnn.so.9
)
BINDINGS_13, BINDINGS_12 = "cuda-bindings>=13,<14", "cuda-bindings>=12.9,<13"
KERNELS_13 = (BINDINGS_13, "nvidia-cuda-nvrtc>=13,<14")
KERNELS_12 = (BINDINGS_12, "nvidia-cuda-nvrtc-cu12>=12,<13")
# Two majors of one library in a process, or both builds of ONNX Runtime in one environment, break each other.
ONLY_13 = ("*-cu12", "*-cu12-*")
ONLY_12 = ("*-cu13", "*-cu13-*", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cublas", "cuda-toolkit")
NO_GPU = ("onnxruntime-gpu", "cuda-*", "nvidia-*", "tensorrt*", "torch")
JETPACK = ("onnxruntime-gpu", "nvidia-*", "tensorrt*", "torch")  # TensorRT, NVRTC and CUDA come with JetPack


@dataclass(frozen=True, slots=True)
class Row:
    """A machine and the set of packages that extras resolve into on it.

    must: requirements, each met by a package of the set. must_not: patterns that no package's name matches.
    """

    machine: str
    platform: str
    python: str
    extras: tuple[str, ...]
    must: tuple[str, ...]
    must_not: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.machine}, {self.platform}, Python {self.python}: {','.join(self.extras)}"


def _tensorrt(major: int) -> tuple[str, ...]:
    parts = ("", "-bindings", "-libs")
    runtime = "nvidia-cuda-runtime" if major == 13 else "nvidia-cuda-runtime-cu12"  # Polygraphy's
    return (*(f"tensorrt-cu{major}{part}>=10.3,<12" for part in parts), runtime, "polygraphy", "filelock")


_SERVE = (
    *("fastapi", "starlette", "uvicorn", "h11>=0.16,<1", "prometheus-client", "python-multipart"),
    "httpx2>=2.10,<3",
)
_RAY = (*_SERVE, "ray>=2.55,<2.64")
_OTEL = ("opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk")
_RTX = (
    *("tensorrt-rtx>=1.7,<2", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-libs"),
    *("nvidia-cuda-runtime", "polygraphy", "filelock"),
)
_CPU, _CPU_310, _VIDEO = ("onnxruntime>=1.27,<2",), ("onnxruntime>=1.23,<1.24",), ("av>=17.1,<19",)
_OLD = ("async-timeout>=4,<6", "tomli>=2,<3")  # what Python 3.10 lacks
_TORCH = ("torch>=2.11", "onnx", "onnxscript", "safetensors")
_MEASURE = ("matplotlib", "nvidia-ml-py", "scikit-image", "onnx-graphsurgeon")

ROWS = (
    *(Row("CUDA 13", *at, ("gpu",), (*PROVIDER_13, *KERNELS_13), (*ONLY_13, "onnxruntime"))
      for at in ((X86, "3.11"), (X86, "3.13"), (WINDOWS, "3.12"), (UBUNTU_24_ARM, "3.12"))),
    Row("CUDA 13", X86, "3.12", ("gpu", "export"), (*PROVIDER_13, *KERNELS_13, *_TORCH), (*ONLY_13, "onnxruntime")),
    Row("CUDA 13", X86, "3.12", ("tensorrt", "export"), (*_tensorrt(13), *KERNELS_13, *_TORCH),
        (*ONLY_13, "onnxruntime*")),
    *(Row("CUDA 13", X86, python, ("nvidia", *more),
          (*PROVIDER_13, *_tensorrt(13), *KERNELS_13, *_TORCH, *_MEASURE, *wanted),
          (*ONLY_13, "onnxruntime"))
      for python, more, wanted in (("3.11", (), ()), ("3.12", ("serve", "video"), (*_SERVE, *_VIDEO)))),
    Row("CUDA 13", X86, "3.12", ("tensorrt-rtx",), (*_RTX, *KERNELS_13), (*ONLY_13, "tensorrt")),
    *(Row("CUDA 12", X86, python, ("gpu-cu12",), (*PROVIDER_12, *KERNELS_12), (*ONLY_12, "onnxruntime"))
      for python in ("3.11", "3.13")),
    Row("CUDA 12", X86, "3.12", ("tensorrt-cu12",), (*_tensorrt(12), *KERNELS_12), (*ONLY_12, "onnxruntime*")),
    Row("JetPack 7", UBUNTU_24_ARM, "3.12", ("jetson", "cpu", "serve", "video"),
        (BINDINGS_13, "filelock", *_CPU, *_SERVE, *_VIDEO), (*ONLY_13, *JETPACK)),
    Row("JetPack 6", UBUNTU_22_ARM, "3.10", ("jetson-cu12", "cpu", "serve", "video"),
        (BINDINGS_12, "filelock", *_CPU_310, *_SERVE, *_VIDEO, *_OLD), (*ONLY_12, *JETPACK)),
    Row("CPU", X86, "3.10", ("cpu", "client", "video"), (*_CPU_310, *_VIDEO, "async-timeout", "httpx2"), NO_GPU),
    *(Row("CPU", X86, python, ("cpu", "serve", "video"), (*_CPU, *_SERVE, *_VIDEO), NO_GPU)
      for python in ("3.11", "3.12", "3.13")),
    Row("CPU", X86, "3.12", ("cpu", "cluster", "otel", "hub"), (*_CPU, *_RAY, *_OTEL, "huggingface_hub>=1,<3"), NO_GPU),
    *(Row("CPU", platform, "3.12", ("cpu", "video"), (*_CPU, *_VIDEO), NO_GPU) for platform in (WINDOWS, MAC)),
)  # fmt: skip


def requirements(extras: tuple[str, ...], pyproject: Path = PYPROJECT) -> list[str]:
    """The requirements of the extras themselves, those of extras that they name included."""
    table = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
    own = [Requirement(text) for extra in extras for text in table[extra]]
    found = [str(requirement) for requirement in own if requirement.name != NAME]
    nested = tuple(extra for requirement in own if requirement.name == NAME for extra in sorted(requirement.extras))
    return found + (requirements(nested, pyproject) if nested else [])


def violations(row: Row, resolved: dict[str, str]) -> list[str]:
    """What is wrong with a resolved set (name -> version): packages missing, of another version, or forbidden."""
    wrong = []
    for text in row.must:
        wanted = Requirement(text)
        version = resolved.get(canonicalize_name(wanted.name))
        if version is None:
            wrong.append(f"{text} is missing")
        elif not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version} is not {wanted.specifier}")
    for pattern in row.must_not:
        wrong += [f"{name} must not be there" for name in fnmatch.filter(resolved, pattern)]
    return wrong


def resolve(row: Row, resolution: str, uv: str, cache: str) -> tuple[dict[str, str], str]:
    """The set of a row, as name -> version; empty with uv's explanation where there is none."""
    requires_python = SpecifierSet(tomllib.loads(PYPROJECT.read_text())["project"]["requires-python"])
    whole = requires_python.contains(f"{row.python}.99")
    extras = [word for extra in row.extras for word in ("--extra", extra)]
    done = _uv(
        [str(PYPROJECT), *extras] if whole else ["-"],
        ["--python-platform", row.platform, "--python-version", row.python, "--resolution", resolution],
        "" if whole else "\n".join(requirements(row.extras)),
        uv,
        cache,
    )
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", done.stdout, re.MULTILINE))
    return (pins, "") if done.returncode == 0 else ({}, _last(done.stderr))


def _uv(source: list[str], options: list[str], text: str, uv: str, cache: str) -> subprocess.CompletedProcess[str]:
    sdists = [word for name in SDISTS for word in ("--no-binary", name)]
    wheels = ["--only-binary", ":all:", *sdists, "--no-build-isolation"]
    command = [uv, "pip", "compile", *source, *options, *wheels, "--no-header", "--no-annotate", "--cache-dir", cache]
    environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never", "MACOSX_DEPLOYMENT_TARGET": "14.0"}  # of PyAV's wheels
    return subprocess.run(  # noqa: S603
        [*command, "--quiet"], input=text, capture_output=True, text=True, env=environment, check=False
    )


def _last(stderr: str) -> str:
    lines = [line for line in stderr.strip().splitlines() if not line.startswith("warning: The requested Python")]
    return "\n".join(lines[-12:])


def _check(row: Row, uv: str, cache: str) -> tuple[Row, list[str], str]:
    """The row, what is wrong, and the packages that the row names with their newest versions."""
    lowest = not any(Requirement(text).name in SDISTS for text in requirements(row.extras))
    wrong, said = [], ""
    for resolution in ("highest", "lowest-direct")[: 1 + lowest]:
        pins, refused = resolve(row, resolution, uv, cache)
        found = [f"no solution: {refused}"] if refused else violations(row, pins)
        wrong += [f"{resolution}: {what}" for what in found]
        if resolution == "highest":
            said = " ".join(f"{name}=={pins[name]}" for text in row.must if (name := Requirement(text).name) in pins)
    return row, wrong, said


def main() -> int:
    """Resolve and check the rows that were asked for; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("words", nargs="*", help="Resolve only rows that contain all of these words.")
    parser.add_argument("--offline-ok", action="store_true", help="Exit with 0 where the index cannot be reached.")
    asked = parser.parse_args()
    rows = [row for row in ROWS if all(word in re.split(r"[ ,:]+", str(row)) for word in asked.words)]
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if uv is None or not rows:
        print("uv is not installed: pip install uv" if uv is None else "no row contains these words")
        return 1
    with tempfile.TemporaryDirectory() as cache:  # a new one: what the index serves now
        probe = _uv(["-"], [], "filelock", uv, cache)
        if probe.returncode:
            print(f"the package index cannot be reached, no extra was resolved:\n{_last(probe.stderr)}")
            return 0 if asked.offline_ok else 2
        failed = 0
        with ThreadPoolExecutor(4) as pool:
            for row, wrong, said in pool.map(lambda row: _check(row, uv, cache), rows):
                print(f"{'FAILED' if wrong else 'ok'}  {row}\n        {said}", *wrong, sep="\n        ", flush=True)
                failed += bool(wrong)
    print(f"{len(rows) - failed} of {len(rows)} sets hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
