"""The machine that a benchmark ran on: what decides its numbers, and nothing that names its owner."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bfr.runtime.cli import doctor
from bfr.runtime.cli.machine import version

FACTS = ("CPU", "memory", "board", "GPU", "platform", "python", "numpy", "torch", "onnxruntime", "bfr-runtime")
PACKAGES = (
    *("triton", "tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx", "cuda-bindings", "cuda-core"),
    *("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "matplotlib"),
)
CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
WATCHED = "clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.used"
UNITS = ("SM MHz", "memory MHz", "W", "degrees C", "MiB used")
EVERY_MS = "500"
STAT, STATUS = Path("/proc/stat"), Path("/proc/self/status")
TIMEOUT_SECONDS = 10


def describe_machine() -> dict[str, str]:
    """CPU, memory, GPU and its clocks, versions and commit, by name. No host name, user name or path."""
    found = doctor.diagnose().facts
    facts = {name: found[name] for name in FACTS if name in found}
    packages = {name: version(name) for name in PACKAGES}
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
        """Cores kept busy by others, on average; None if it is unknown. Children that have not ended are others."""
        busy, own, seconds = _busy_seconds(), _own_seconds() - self.own, time.perf_counter() - self.begin
        return None if busy is None or self.busy is None else max(0.0, (busy - self.busy - own) / seconds)


class GpuWatch:
    """A GPU's clocks, power, temperature and memory from its making on: one `nvidia-smi` looks twice a second."""

    def __init__(self, index: int | None) -> None:
        """Watch the GPU of this number; None watches nothing."""
        smi = None if index is None else shutil.which("nvidia-smi")
        self._process: subprocess.Popen[bytes] | None = None
        if smi is not None:
            self._seen = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process lives)
            command = [smi, "-i", str(index), f"--query-gpu={WATCHED}", "--format=csv,noheader,nounits"]
            with suppress(OSError):
                self._process = subprocess.Popen(  # noqa: S603
                    [*command, "-lms", EVERY_MS], stdout=self._seen, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
                )

    def stop(self) -> dict[str, str]:
        """What was seen, by name: at first, the ranges meanwhile, and at last. Empty if nothing was."""
        if self._process is None:
            return {}
        self._process.terminate()
        self._process.wait()
        self._seen.seek(0)
        return summarize_watch(self._seen.read().decode().splitlines())


def summarize_watch(lines: Sequence[str]) -> dict[str, str]:
    """Return the GPU's state before, meanwhile and at last, from lines of `nvidia-smi`; `[N/A]` is skipped."""
    rows = [[_number(cell) for cell in line.split(",")] for line in lines if line.count(",") == len(UNITS) - 1]
    if not rows:
        return {}
    ranges = []
    for unit, column in zip(UNITS, zip(*rows, strict=True), strict=True):
        if known := [value for value in column if value is not None]:
            ranges.append(f"{min(known):g} to {max(known):g} {unit}")
    before, last = (
        ", ".join(f"{value:g} {unit}" for value, unit in zip(row, UNITS, strict=True) if value is not None)
        for row in (rows[0], rows[-1])
    )
    meanwhile = f"{', '.join(ranges)}, seen {len(rows)} times"
    return {"GPU before": before, "GPU meanwhile": meanwhile, "GPU at last": last}


def gpu_used_bytes() -> int | None:
    """Memory in use on all GPUs together, whoever uses it; None if nvidia-smi does not say.

    There may be no GPU, no driver, or a GPU that shares the CPU's memory.
    """
    cells = [cell for (cell,) in _query_gpus("memory.used", "nounits")]
    return sum(map(int, cells)) << 20 if cells and all(map(str.isdecimal, cells)) else None


def resident_bytes(pid: int | str = "self") -> int | None:
    """Resident memory of a process, now; None if there is no /proc."""
    statm = Path(f"/proc/{pid}/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def peak_rss_bytes() -> int | None:
    """The peak of the resident memory of this process; None on Windows.

    Linux keeps `ru_maxrss` over an exec, so that a child inherits its parent's peak: there VmHWM is the true one.
    """
    if STATUS.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _query_gpus(fields: str, *more: str) -> list[list[str]]:
    """The fields of each GPU, as nvidia-smi prints them; none if it is not there."""
    smi = shutil.which("nvidia-smi")
    said = smi and _output([smi, f"--query-gpu={fields}", f"--format={','.join(('csv', 'noheader', *more))}"])
    return [line.split(", ") for line in (said or "").splitlines()]


def _gpu_clocks() -> str:
    names = ("SM", "memory", "SM at most", "power limit", "degrees C")
    gpus = [zip(names, gpu, strict=False) for gpu in _query_gpus(CLOCKS)]
    return "; ".join(", ".join(f"{name} {value}" for name, value in gpu) for gpu in gpus)


def _commit() -> str | None:
    """The commit of this code, `-dirty` behind it where files were changed; None outside a checkout of it."""
    folder, git = Path(__file__).resolve().parent, shutil.which("git")
    # An installation inside another project's checkout is not that checkout's code.
    if git is None or _output([git, "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py"]) is None:
        return None
    return describe_commit(folder)


def describe_commit(folder: Path) -> str | None:
    """The commit of the checkout that holds a folder, `-dirty` behind it; None if there is none, or no git."""
    git = shutil.which("git")
    return git and _output([git, "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])


def _output(command: list[str]) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
