"""The machine that a benchmark ran on: what decides its numbers, and nothing that names its owner."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bfr.runtime import doctor

FACTS = ("CPU", "memory", "board", "GPU", "platform", "python", "numpy", "torch", "onnxruntime", "bfr-runtime")
CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
STAT = Path("/proc/stat")
TIMEOUT_SECONDS = 10


def describe_machine() -> dict[str, str]:
    """CPU, memory, GPU and its clocks, versions and commit, by name. No host name, user name or path."""
    found = doctor.diagnose().facts
    facts = {name: found[name] for name in FACTS if name in found}
    optional = {"GPU clocks": _gpu_clocks(), "matplotlib": _version("matplotlib"), "commit": _commit()}
    return facts | {name: value for name, value in optional.items() if value}


def _busy_seconds() -> float | None:
    """CPU seconds of all cores since the start of the machine that were not idle."""
    if not STAT.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(word) for word in STAT.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuWatch:
    """What other processes, and other guests of the host, take of the CPU from its making on. Linux only.

    Times of threads that wait for each other are worthless on a busy machine, and a load average counts oneself.
    """

    busy: float | None = field(default_factory=_busy_seconds)
    own: float = field(default_factory=time.process_time)
    begin: float = field(default_factory=time.perf_counter)

    def others(self) -> float | None:
        """Cores kept busy by others, on average; None where it is unknown."""
        busy, own, seconds = _busy_seconds(), time.process_time() - self.own, time.perf_counter() - self.begin
        return None if busy is None or self.busy is None else max(0.0, (busy - self.busy - own) / seconds)


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
