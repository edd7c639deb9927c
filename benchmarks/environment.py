"""The machine that a benchmark ran on: what decides its numbers, and nothing that names its owner."""

import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bfr.runtime import doctor

FACTS = ("CPU", "memory", "board", "GPU", "platform", "python", "numpy", "torch", "onnxruntime", "bfr-runtime")
CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
TIMEOUT_SECONDS = 10


def describe_machine() -> dict[str, str]:
    """CPU, memory, GPU and its clocks, versions, load and commit, by name. No host name, user name or path."""
    found = doctor.diagnose().facts
    facts = {name: found[name] for name in FACTS if name in found}
    if hasattr(os, "getloadavg"):
        facts["load average before"] = f"{os.getloadavg()[0]:.2f}"
    optional = {"GPU clocks": _gpu_clocks(), "matplotlib": _version("matplotlib"), "commit": _commit()}
    return facts | {name: value for name, value in optional.items() if value}


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
