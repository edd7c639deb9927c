"""The machine that a benchmark ran on: what decides its numbers, and nothing that names its owner."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bfr.runtime.cli import doctor

FACTS = ("CPU", "memory", "board", "GPU", "platform", "python", "numpy", "torch", "onnxruntime", "bfr-runtime")
PACKAGES = (
    *("triton", "tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx", "cuda-bindings", "cuda-core"),
    *("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "matplotlib"),
)
CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
WATCHED = "clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.used"
UNITS = ("SM MHz", "memory MHz", "W", "degrees C", "MiB used")
EVERY_MS = 500
STAT = Path("/proc/stat")
TIMEOUT_SECONDS = 10


def describe_machine() -> dict[str, str]:
    """CPU, memory, GPU and its clocks, versions and commit, by name. No host name, user name or path."""
    found = doctor.diagnose().facts
    facts = {name: found[name] for name in FACTS if name in found}
    packages = {name: _version(name) for name in PACKAGES}
    optional = {"GPU clocks": _gpu_clocks(), **packages, "commit": _commit()}
    return facts | {name: value for name, value in optional.items() if value}


def _busy_seconds() -> float | None:
    """CPU seconds of all cores since the start of the machine that were not idle."""
    if not STAT.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(word) for word in STAT.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """CPU seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


@dataclass(frozen=True, slots=True)
class CpuWatch:
    """What other processes, and other guests of the host, take of the CPU from its making on. Linux only.

    Times of threads that wait for each other are worthless on a busy machine, and a load average counts oneself.
    """

    busy: float | None = field(default_factory=_busy_seconds)
    own: float = field(default_factory=_own_seconds)
    begin: float = field(default_factory=time.perf_counter)

    def others(self) -> float | None:
        """Cores kept busy by others, on average; None where it is unknown. Children that have not ended are others."""
        busy, own, seconds = _busy_seconds(), _own_seconds() - self.own, time.perf_counter() - self.begin
        return None if busy is None or self.busy is None else max(0.0, (busy - self.busy - own) / seconds)


class GpuWatch:
    """Clocks, power, temperature and memory of a GPU from its making on, by one `nvidia-smi` that looks twice a second.

    index: its number; None watches nothing.
    """

    def __init__(self, index: int | None) -> None:
        smi = None if index is None else shutil.which("nvidia-smi")
        self._process: subprocess.Popen[str] | None = None
        if smi is not None:
            command = [smi, "-i", str(index), f"--query-gpu={WATCHED}", "--format=csv,noheader,nounits"]
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    [*command, "-lms", str(EVERY_MS)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    stdin=subprocess.DEVNULL,
                    text=True,
                )
            except OSError:
                return
            # Unread, the pipe would fill within an hour and block nvidia-smi: a thread reads it.
            self._lines: list[str] = []
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()

    def stop(self) -> dict[str, str]:
        """What was seen, by name: at first, the ranges meanwhile, and at last. Empty where nothing was."""
        if self._process is None:
            return {}
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        return summarize_watch(self._lines)

    def _read(self, process: "subprocess.Popen[str]") -> None:
        if process.stdout is not None:
            with process.stdout as lines:
                self._lines.extend(lines)


def summarize_watch(lines: Sequence[str]) -> dict[str, str]:
    """Return the GPU's state before, meanwhile and at last.

    Args:
        lines: Of `nvidia-smi`, comma-separated; what it does not know is `[N/A]` and left out.
    """
    rows = [[_number(cell) for cell in line.split(",")] for line in lines if line.count(",") == len(UNITS) - 1]
    if not rows:
        return {}
    ranges = []
    for unit, column in zip(UNITS, zip(*rows, strict=True), strict=True):
        known = [value for value in column if value is not None]
        if known:
            ranges.append(f"{min(known):g} to {max(known):g} {unit}")
    return {
        "GPU before": _state(rows[0]),
        "GPU meanwhile": f"{', '.join(ranges)}, seen {len(rows)} times",
        "GPU at last": _state(rows[-1]),
    }


def _state(row: Sequence[float | None]) -> str:
    return ", ".join(f"{value:g} {unit}" for value, unit in zip(row, UNITS, strict=True) if value is not None)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu_clocks() -> str | None:
    if (smi := shutil.which("nvidia-smi")) is None:
        return None
    values = _output([smi, f"--query-gpu={CLOCKS}", "--format=csv,noheader"])
    if values is None:
        return None
    names = ("SM", "memory", "SM at most", "power limit", "degrees C")
    gpus = [zip(names, line.split(", "), strict=False) for line in values.splitlines()]
    return "; ".join(", ".join(f"{name} {value}" for name, value in gpu) for gpu in gpus)


def _commit() -> str | None:
    """The commit of this code, `-dirty` behind it where files were changed; None outside a checkout of it."""
    folder, git = Path(__file__).resolve().parent, shutil.which("git")
    # Installed into an environment that lies in somebody's checkout, it is not that checkout's code.
    if git is None or _output([git, "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py"]) is None:
        return None
    return _output([git, "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])


def _output(command: list[str]) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
