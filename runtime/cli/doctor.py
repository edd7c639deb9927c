"""`bfr doctor`: what works on this machine, and how to fix the rest. Needs nothing optional, and never raises."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bfr.runtime.cli import gpus, machine
from bfr.runtime.cli.machine import Report
from bfr.runtime.cli.options import AS_JSON, expanded
from bfr.runtime.cli.terminal import show, volume
from bfr.runtime.files import cache_folder

_log = logging.getLogger("bfr")


@expanded
def doctor(as_json: AS_JSON = False) -> None:
    """Show what works on this machine, and how to fix the rest."""
    report = diagnose(cache_folder())
    if as_json:
        show(json.dumps(asdict(report), indent=2))
    elif not volume.quiet:
        show(render(report))
    elif report.problems:
        show("\n".join(map(str, report.problems)))


def diagnose(cache: Path | None = None) -> Report:
    """Examine packages, GPU, board, CPU, memory and disks, and the folder of downloads if `cache` names it.

    Takes a second: ONNX Runtime is imported and `nvidia-smi` asked; no CUDA context is made, torch is not imported.
    """
    report = Report()
    probes: dict[str, Callable[[Report], None]] = {
        "packages": machine.probe_packages,
        "board": gpus.probe_board,
        "GPU": gpus.probe_gpus,
        "extra": gpus.probe_extra,
        "ONNX Runtime": gpus.probe_onnxruntime,
        "CUDA": gpus.probe_cuda,
        "TensorRT": gpus.probe_tensorrt,
        "backends": gpus.probe_backends,
        "CPU": machine.probe_cpu,
        "memory": machine.probe_memory,
        "disk": lambda report: machine.probe_disk(report, "this folder", Path.cwd()),
    }
    if cache is not None:
        probes["cache"] = lambda report: machine.probe_disk(report, "cache", cache)
    for name, probe in probes.items():
        _log.info("looking at %s", name)
        try:
            probe(report)
        except Exception as error:  # a machine broken in a new way is what this command is for
            report.facts.setdefault(name, "unknown")
            report.problem(
                f"looking at {name} failed: {type(error).__name__}: {error}",
                "this may be harmless; if not, report it with the output of bfr doctor",
            )
    return report


def render(report: Report) -> str:
    """The report as text: one line a fact, then one line a problem with its remedy."""
    width = max(map(len, report.facts), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in report.facts.items()]
    return "\n".join([*lines, "", *(map(str, report.problems) if report.problems else ["no problems found"])])
