"""Compares how ONNX Runtime's threads wait on the CPU: `python -m bfr.benchmarks.speed.spinning BUNDLE --out DIR`.

Restores faces with threads that spin between the calls of networks too (ONNX Runtime's default), only within a call
(`bfr restore`), or never (`bfr serve`): in separate processes, one at a time. Writes `spinning.json` and `spinning.md`.
"""

import argparse
import sys
from contextlib import closing
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import onnxruntime as ort

from bfr.benchmarks.publish import Command, Findings
from bfr.benchmarks.speed.apart import Apart
from bfr.benchmarks.speed.contender import Contender
from bfr.benchmarks.speed.interleave import Race
from bfr.benchmarks.speed.player import Player
from bfr.benchmarks.speed.results import statistics
from bfr.benchmarks.tables import page, table
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.restore.chains import load_networks

WAITS = {"between calls": (True, "0"), "within calls": (True, "1"), "never": (False, "1")}


def open_player(folder: Path, wait: str, threads: int) -> Player:
    """Open a bundle whose threads wait as named in WAITS."""
    spinning, stop = WAITS[wait]

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, name: str, value: str) -> None:
            super().add_session_config_entry(name, stop if name == "session.force_spinning_stop" else value)

    bundle, device = Bundle.open(folder), CpuDevice(threads, spinning=spinning)
    with patch.object(ort, "SessionOptions", Options):
        networks = load_networks(bundle, device, "fp32")
    return Player(Contender(wait, device, networks), bundle, bundle.preset())


def measure(args: argparse.Namespace) -> Findings:
    """Time the three ways on the same faces."""
    seconds: dict[str, list[float]] = {wait: [] for wait in WAITS}
    for _ in range(args.rounds):
        for wait in WAITS:
            race = Race()
            with closing(Apart(open_player, args.bundle.resolve(), wait, args.threads, limit=600)) as process:
                race.add(wait, process.call, 1)
                (run,) = race.measure(1, repeats=args.repeats, warmup=2)
            seconds[wait] += [sample.seconds for sample in run.samples]
    found = {wait: statistics(taken) for wait, taken in seconds.items()}
    least = min(one.p50 for one in found.values())
    rows = [(name, f"{one.p50:.4g}", f"{one.min:.4g}", f"{one.p50 / least:.2f}x") for name, one in found.items()]
    text = table(("threads spin", "p50 s", "min s", "of the fastest"), rows)
    intro = (
        f"{args.threads} threads; {args.rounds} rounds of {args.repeats} calls each. One process runs at a time: "
        "threads that spin between calls slow other processes too."
    )
    return {"seconds": seconds}, page("# Spinning", "## Seconds of a face", intro, text)


main = Command("bfr.benchmarks.speed.spinning", __doc__, measure)
main.add_argument("bundle", type=Path, metavar="BUNDLE")
main.number("--rounds", 3, "processes of each, in turns (%(default)s)")
main.number("--repeats", 20, "timed calls of each process (%(default)s)")
main.number("--threads", 2, "threads of each network (%(default)s)")

if __name__ == "__main__":
    # The processes find the functions of the module by its name, not those of `__main__`.
    sys.exit(import_module(main.module).main())
