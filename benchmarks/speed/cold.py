"""One backend alone in a fresh process: time to the first image, and peak memory. In one process they would add up.

`python -m bfr.benchmarks.speed.cold` reads a request from stdin and writes its answer to stdout, both JSON. It imports
what a deployment would import: PyTorch only for an eager backend.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bfr.benchmarks.speed.contender import open_contender
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset

STATUS = Path("/proc/self/status")
SMI = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]


@dataclass(frozen=True, slots=True)
class Cold:
    """A backend's start in a process of its own, ONNX Runtime's threads spinning as they do in use.

    first_result_seconds: from the process's start to the first batch restored. load_seconds: of the networks, hashing
    included. peak_bytes: of resident memory after a batch of each size, sizes ascending. gpu_bytes: what the GPUs' used
    memory grew by, CUDA's context included; None without nvidia-smi. imports_torch: whether torch was imported.
    """

    batch: int
    first_result_seconds: float
    load_seconds: float
    peak_bytes: dict[int, int | None]
    gpu_bytes: dict[int, int | None]
    imports_torch: bool


def cold_start(
    bundle: Path,
    name: str,
    sampler: Preset,
    *,
    batches: tuple[int, ...],
    threads: int,
    index: int = 0,
    limit: float | None = None,
) -> Cold:
    """Start a process, restore a batch of each size in it. limit: seconds that it may take.

    The smallest batch runs the whole sampler; the others one step of it, which needs as much memory. Raises
    RuntimeError, with its last words, where it fails.
    """
    request = {
        "bundle": str(bundle.absolute()),
        "name": name,
        "sampler": sampler.model_dump(),
        "batches": sorted(batches),
        "threads": threads,
        "index": index,
        "gpu_used": gpu_used_bytes(),
        "begin": time.time(),
    }
    command = [sys.executable, "-P", "-m", "bfr.benchmarks.speed.cold"]
    try:
        done = subprocess.run(  # noqa: S603
            command, input=json.dumps(request), capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the fresh process of {name} took more than {limit:g} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"the fresh process of {name} ended with status {done.returncode}: {said[-1]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    for key in ("peak_bytes", "gpu_bytes"):
        answer[key] = {int(batch): found for batch, found in answer[key].items()}
    return Cold(**answer)


def answer_request(request: dict[str, Any]) -> Cold:
    """What the fresh process does."""
    bundle, sampler = Bundle.open(request["bundle"]), Preset.model_validate(request["sampler"])
    contender = open_contender(
        bundle, request["name"], threads=request["threads"], spinning=True, index=request["index"]
    )
    grey = np.full((bundle.manifest.image_size, bundle.manifest.image_size, 3), 0.5, np.float32)
    first_seconds = 0.0
    peak: dict[int, int | None] = {}
    gpu: dict[int, int | None] = {}
    for batch in request["batches"]:
        steps = sampler if not peak else sampler.shortened(1)
        with contender.restorer(bundle, steps, batch) as restorer:
            restorer.restore([grey] * batch)
            # Across processes only the system's clock is common to both.
            first_seconds = first_seconds or time.time() - request["begin"]
            if contender.records:
                restorer.restore([grey] * batch)  # a graph has memory of its own
            peak[batch], used = peak_rss_bytes(), gpu_used_bytes()
            before = request["gpu_used"]
            gpu[batch] = used - before if used is not None and before is not None else None
    return Cold(request["batches"][0], first_seconds, contender.load_seconds, peak, gpu, "torch" in sys.modules)


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


if __name__ == "__main__":
    print(json.dumps(asdict(answer_request(json.load(sys.stdin)))))
