"""Whether TensorRT-RTX runs on this GPU, which its documents may not list: `python -m bfr.benchmarks.speed.probe --out
DIR`.

Builds the engine of the default system's estimator, which needs no GPU, then deserializes and runs it in a process of
its own, since what a library does on a GPU that it does not know may be a crash. Writes `probe.json` and `probe.md`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bfr.benchmarks.publish import publish
from bfr.runtime.backends.tensorrt_key import Library
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import BfrError, VerificationFailed

LIBRARY: Library = "tensorrt-rtx"
SECONDS = 240  # of the child
AGREE = 1e-2  # largest difference from ONNX Runtime on the CPU, of values in [-1, 1]


def probe(bundle: Bundle, index: int = 0, seconds: float = SECONDS) -> dict[str, Any]:
    """Build, then run in a child. `runs` is the answer, `said` the reason against it.

    Raises MissingDependency without the library, EngineBuildFailed.
    """
    from bfr.export.tensorrt.builder import BuildOptions, build_engine_bytes
    from bfr.runtime.backends.tensorrt_key import load_library

    version = load_library(LIBRARY).__version__
    begin = time.perf_counter()
    data = build_engine_bytes(bundle.graph(bundle.estimator, "fp32"), BuildOptions(buckets=(1,)), LIBRARY)
    built = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "estimator.engine"
        engine.write_bytes(data)
        answer = run_child(bundle, engine, index, seconds)
    return {"library": LIBRARY, "version": version, "build_seconds": built, "engine_bytes": len(data), **answer}


def run_child(bundle: Bundle, engine: Path, index: int, seconds: float) -> dict[str, Any]:
    """Run the engine in a child process; a crash or a hang is an answer as well."""
    command = [sys.executable, "-m", "bfr.benchmarks.speed.probe", "--child", str(engine), "--device", str(index)]
    try:
        done = subprocess.run(  # noqa: S603
            [*command, "--bundle", str(bundle.folder)], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"runs": False, "said": f"no answer in {seconds:g} s"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        tail = " ".join(done.stderr.split())[-300:]
        return {"runs": False, "said": f"the process ended with status {done.returncode}: {tail or 'silent'}"}
    return found


def run_engine(bundle: Bundle, engine: Path, index: int) -> dict[str, Any]:
    """What the child does: deserialize, run, compare."""
    from bfr.export.verify.walk import run_network, smooth_image
    from bfr.runtime.backends.onnxruntime import CpuDevice
    from bfr.runtime.backends.tensorrt import TensorRtDevice

    size = bundle.manifest.image_size
    inputs, outputs = {"degraded": smooth_image((3, size, size), 0)[None]}, {"estimate": (3, size, size)}
    try:
        device = TensorRtDevice(LIBRARY, index)
        try:
            gpu = f"{device.facts.name}, compute capability {device.facts.compute_capability}"
            found = run_network(device, device.load_engine(engine), inputs, outputs)
        finally:
            device.close()
        cpu = CpuDevice()
        difference = float(
            np.abs(found - run_network(cpu, cpu.load(bundle, bundle.estimator, "fp32"), inputs, outputs)).max()
        )
        if not difference < AGREE:
            raise VerificationFailed(f"it runs and is wrong: {difference:.1e} from ONNX Runtime on the CPU")
    except BfrError as error:
        return {"runs": False, "said": str(error)}
    return {"runs": True, "said": "", "gpu": gpu, "max_abs": difference}


def as_markdown(found: dict[str, Any]) -> str:
    """The answer."""
    head = f"# Does {found['library']} {found['version']} run here?\n\n"
    build = f"Built in {found['build_seconds']:.1f} s, {found['engine_bytes']:,} bytes. "
    if not found["runs"]:
        return f"{head}{build}No: {found['said']}\n"
    return f"{head}{build}Yes, on {found['gpu']}: within {found['max_abs']:.1e} of ONNX Runtime on the CPU.\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, 0 for either answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("probe"), help="folder of the report")
    parser.add_argument("--bundle", type=Path, help="default: mini")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child is not None:
        print(json.dumps(run_engine(Bundle.open(args.bundle), args.child, args.device)))
        return 0

    def call() -> tuple[dict[str, Any], str]:
        found = probe(Bundle.open(args.bundle or default_bundle()), args.device)
        return found, as_markdown(found)

    return publish(args.out, "probe", "python -m bfr.benchmarks.speed.probe --out DIR", call)


if __name__ == "__main__":
    sys.exit(main())
