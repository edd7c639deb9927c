"""What `bfr doctor` finds out about the machine itself: its packages, CPU, memory and disks."""

import os
import platform
import re
import shutil
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from bfr.runtime.backends.board import memory, words_of

MIN_FREE_BYTES = 2 << 30  # published weights of one system, their ONNX files and an engine
ROOT = Path("/")  # where a board's files are
_GIB = 1 << 30
_OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
_OPTIONAL = ("torch", "onnx", "av", "ray", "tensorrt", "tensorrt-rtx", "cuda-bindings")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not work, and what to do about it."""

    found: str
    remedy: str

    def __str__(self) -> str:
        return f"problem: {self.found} -> {self.remedy}"


@dataclass(frozen=True, slots=True)
class Report:
    """What `bfr doctor` prints: what was looked at -> what was found; and problems, the most basic ones first."""

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, found: str, remedy: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(found, remedy))


def version(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def distribution(name: str) -> str | None:
    """The version of an optional package; TensorRT's distributions from the index name their CUDA too."""
    return next(filter(None, map(version, (name, f"{name}-cu13", f"{name}-cu12"))), None)


def probe_packages(report: Report) -> None:
    """Python and its packages."""
    report.facts["bfr-runtime"] = version("bfr-runtime") or "not installed, run from its sources"
    report.facts["python"] = platform.python_version()
    report.facts["platform"] = platform.platform()
    opencv = [name for name in _OPENCV if version(name)]
    for name in ("numpy", "pillow", *(opencv or _OPENCV[:1])):
        if (found := version(name)) is None:
            report.problem(f"{name} is not installed", f'pip install "{name}"')
        report.facts[name] = found or "not installed"
    if len(opencv) > 1:
        found = f"{' and '.join(opencv)} are installed and overwrite each other's files"
        report.problem(found, f"pip uninstall -y {' '.join(opencv)}; pip install '{_OPENCV[0]}<5'")
    for name in _OPTIONAL:
        report.facts[name] = distribution(name) or "not installed (optional)"


def probe_cpu(report: Report) -> None:
    """The processor, and how many of its cores this process may use."""
    match = re.search(r"^model name\s*:\s*(.+)", words_of(ROOT / "proc/cpuinfo"), re.MULTILINE)
    model = match[1] if match else platform.processor() or platform.machine()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report.facts["CPU"] = f"{model}, {usable} of {os.cpu_count()} logical cores usable"


def probe_memory(report: Report) -> None:
    """Memory that is there, and that is available."""
    known = memory(ROOT)
    available, total = known.get("MemAvailable"), known.get("MemTotal")
    report.facts["memory"] = (
        f"{available:.1f} of {total:.1f} GiB available" if available and total else "unknown on this platform"
    )


def probe_disk(report: Report, name: str, folder: Path) -> None:
    """Free space of a folder, or of where it would be made; whether it can be written."""
    exists = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(exists).free
    report.facts[name] = f"{folder}, {free / _GIB:.1f} GiB free" + ("" if folder.exists() else ", not made yet")
    choose = "set BFR_HOME to another folder" if name == "cache" else "choose another output folder"
    if not exists.is_dir() or not os.access(exists, os.W_OK | os.X_OK):
        found = f"{name} cannot be written: {exists} is read-only for this user, or a file"
        report.problem(found, f"{choose}, or change its permissions")
    if free < MIN_FREE_BYTES:
        found = f"{name} has {free / _GIB:.1f} GiB free, less than {MIN_FREE_BYTES / _GIB:.0f} GiB"
        report.problem(found, f"free some space at {exists}, or {choose}")
