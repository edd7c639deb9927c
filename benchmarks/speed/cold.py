"""One backend alone in a fresh process: time to the first image, and peak memory. In one process they would add up.

The process imports what a deployment would import: PyTorch only for an eager backend.
"""

import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from bfr.benchmarks.speed.apart import Apart
from bfr.benchmarks.speed.contender import open_contender
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset

STATUS = Path("/proc/self/status")
SMI = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]


@dataclass(frozen=True, slots=True)
class Cold:
    """A backend's start in a process of its own, ONNX Runtime's threads spinning as they do in use.

    Attributes:
        first_result_seconds: From the process's start to the first batch restored.
        load_seconds: Seconds of the networks, hashing included.
        peak_bytes: Peak bytes of resident memory after a batch of each size, sizes ascending.
        gpu_bytes: What the GPUs' used memory grew by, CUDA's context included; None without nvidia-smi.
        imports_torch: Whether torch was imported.
    """

    batch: int
    first_result_seconds: float
    load_seconds: float
    peak_bytes: dict[int, int | None]
    gpu_bytes: dict[int, int | None]
    imports_torch: bool


def cold_start(
    bundle: Path, name: str, sampler: Preset, *, batches: tuple[int, ...], threads: int, index: int = 0, limit: float
) -> Cold:
    """Start a process, and restore a batch of each size in it.

    The smallest batch runs the whole sampler; the others one step of it, which needs as much memory.

    Args:
        bundle: Its folder.
        name: Of the contender.
        sampler: What is run.
        batches: Sizes, in any order.
        threads: Of the CPU.
        index: Number of the GPU.
        limit: Seconds that it may take.

    Raises:
        Lost: With its last words, where it fails.
    """
    begin, used = time.time(), gpu_used_bytes()  # of clocks only the system's is common to both processes
    with closing(Apart(import_module, __name__, limit=limit)) as process:
        request = (bundle.absolute(), name, sampler, sorted(batches), threads, index, begin, used)
        found: Cold = process.call(restore_first.__name__, *request)
        return found


def restore_first(
    folder: Path,
    name: str,
    sampler: Preset,
    batches: list[int],
    threads: int,
    index: int,
    begin: float,
    before: int | None,
) -> Cold:
    """Restore a batch of each size; this is what the fresh process does.

    Args:
        folder: Of the bundle.
        name: Of the contender.
        sampler: What is run.
        batches: Sizes, ascending.
        threads: Of the CPU.
        index: Number of the GPU.
        begin: When the process was started, in seconds of the system's clock.
        before: Bytes in use on the GPUs then.
    """
    bundle = Bundle.open(folder)
    contender = open_contender(bundle, name, threads=threads, spinning=True, index=index)
    grey = np.full((bundle.manifest.image_size, bundle.manifest.image_size, 3), 0.5, np.float32)
    first_seconds = 0.0
    peaks: dict[int, int | None] = {}
    grown: dict[int, int | None] = {}
    for batch in batches:
        steps = sampler if not peaks else sampler.shortened(1)
        with contender.restorer(bundle, steps, batch) as restorer:
            restorer.restore([grey] * batch)
            first_seconds = first_seconds or time.time() - begin
            if contender.records:
                restorer.restore([grey] * batch)  # a graph has memory of its own
            peaks[batch], used = peak_rss_bytes(), gpu_used_bytes()
            grown[batch] = None if used is None or before is None else used - before
    return Cold(batches[0], first_seconds, contender.load_seconds, peaks, grown, "torch" in sys.modules)


def peak_rss_bytes() -> int | None:
    """The peak of the resident memory of this process; None on Windows.

    Linux keeps `ru_maxrss` over an exec, so that a child inherits its parent's peak: there VmHWM is the honest one.
    """
    if STATUS.exists():
        found = [line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        if found:
            return int(found[0]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gpu_used_bytes() -> int | None:
    """Memory in use on all GPUs together, whoever uses it; None where nvidia-smi does not say."""
    try:
        asked = subprocess.run(SMI, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        return sum(int(line) for line in asked.stdout.split()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None  # no GPU, no driver, or a GPU that shares the CPU's memory
