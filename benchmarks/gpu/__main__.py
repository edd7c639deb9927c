"""One command for ten minutes on a GPU: `python -m bfr.benchmarks.gpu`.

    python -m bfr.benchmarks.gpu PREPARED --prepare [--bundle BUNDLE]   here: what the other machine needs
    PREPARED/run.sh --out OUT [--seconds 590] [--resume [EARLIER]]      there: everything, in the order that matters
    PREPARED/run.sh --out OUT --train FACES [--seconds 180]             there: does training work?
    python -m bfr.benchmarks.gpu PREPARED --out OUT --rehearse          here: all of it, small, on the CPU
    python -m bfr.benchmarks.gpu --report OUT                           here: benchmarks/results/GPU/report.md

Every stage runs in a separate process with a time limit. `results.json` is written anew while a stage finds figures
and after it: whatever ends the command loses no more than the figure that was being measured. A stage that fails or is
stopped is recorded with its last lines, and the next one begins; one that has too little time left is skipped.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bfr.benchmarks.gpu import report
from bfr.benchmarks.gpu.measure import Context, NeedsGpu, Stage
from bfr.benchmarks.gpu.prepare import check_prepared, prepare, unpack_cache
from bfr.benchmarks.gpu.stages import STAGES, TRAINING
from bfr.benchmarks.publish import say, write_json
from bfr.runtime.errors import BfrError
from bfr.runtime.files import clean_leftovers

SECONDS, TRAINING_SECONDS, REHEARSAL_SECONDS = 590, 180, 3600
RESERVE = 15  # seconds that no stage but the last takes: for the compiler's cache
LAST_LINES = 15


def run_stages(
    stages: Sequence[Stage],
    command: Sequence[str],
    out: Path,
    work: Path,
    *,
    seconds: float,
    resume: Path | None = None,
    rehearsal: bool = False,
) -> dict[str, Any]:
    """Run the stages one after the other; return the content of `results.json`.

    Args:
        stages: The stages in order.
        command: To which a stage's name and its seconds are added: it runs one stage, which records itself.
        out: Folder of `results.json` and `log.txt`.
        work: Folder of everything else.
        seconds: For all stages together.
        resume: Folder of an earlier `results.json`, whose finished stages are not run again.
        rehearsal: Whether the figures are a CPU's.
    """
    deadline = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    earlier = read_results(resume)["stages"] if resume else {}
    done = {name: entry for name, entry in earlier.items() if entry["status"] == "done"}
    if resume:
        say(f"{len(done)} stages are done already; {unpack_cache(resume, work / 'inductor')} parts of compiled code")
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(out / "results.json", {"format": 1, "date_utc": now, "rehearsal": rehearsal, "stages": done})
    for stage in stages:
        # The weights do not come back from the machine: this stage generates them wherever they are missing.
        if stage.name in done and not (stage.name == "weights" and not (work / "bundle").is_dir()):
            continue
        left = deadline - time.monotonic() - (0 if stage is stages[-1] else RESERVE)
        if left < stage.least:
            entry = {"status": "skipped", "why": f"{max(left, 0):.0f} s were left, {stage.least} at least are needed"}
        else:
            entry = _run_stage(stage, [*command, "--stage", stage.name], min(stage.seconds, left), out, work)
        record(out, stage.name, entry)
        say(f"{stage.name}: {entry['status']}, {entry.get('seconds', 0):.1f} s {entry.get('why', '')}")
    clean_leftovers(out)  # of stages that were stopped
    return read_results(out)


def _run_stage(stage: Stage, command: list[str], seconds: float, out: Path, work: Path) -> dict[str, Any]:
    """Run one stage in its own process group; return its entry, however it ends."""
    log = work / f"{stage.name}.log"
    record(out, stage.name, {"status": "cut off", "figures": {}})
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
    with log.open("wb") as lines:
        process = subprocess.Popen(  # noqa: S603
            [*command, "--seconds", f"{seconds:.1f}"],
            stdout=lines,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        finally:
            ended = process.poll()
            if ended is None:
                os.killpg(process.pid, signal.SIGKILL)  # the compiler's workers too
                process.wait()
    entry = dict(read_results(out)["stages"][stage.name])
    if ended is None:
        entry.update(status="timed out", why=f"stopped after {seconds:.0f} s")
    elif entry["status"] == "cut off":
        entry.update(status="failed", why=f"its process ended with status {ended}")
    said = log.read_text(errors="replace")
    if entry["status"] in ("timed out", "failed"):
        entry["last lines"] = said.splitlines()[-LAST_LINES:]
    with (out / "log.txt").open("a") as together:
        together.write(f"== {stage.name}\n{said[-100_000:]}\n")
    return {**entry, "seconds": time.monotonic() - begin}


def run_one(stage: Stage, context: Context) -> dict[str, Any]:
    """Run a stage in this process; return its entry in `results.json`, and write it as it grows."""
    figures: dict[str, Any] = {}

    def keep(found: dict[str, Any]) -> None:
        figures.update(found)
        record(context.out, stage.name, {"status": "cut off", "figures": figures})

    entry: dict[str, Any] = {"status": "done"}
    try:
        figures.update(stage.run(replace(context, keep=keep)))
    except NeedsGpu:
        entry = {"status": "skipped", "why": "needs a GPU"}
    except Exception as error:
        traceback.print_exc()
        entry = {"status": "failed", "why": f"{type(error).__name__}: {error}"[:500]}
    entry["figures"] = figures
    record(context.out, stage.name, entry)
    return entry


def record(out: Path, name: str, entry: dict[str, Any]) -> None:
    """Write a stage's entry into `results.json`. The runner and its one running stage take turns."""
    results = read_results(out)
    results["stages"][name] = entry
    write_json(out / "results.json", results)


def read_results(folder: Path) -> dict[str, Any]:
    """`results.json` of a run; one without stages if there is none."""
    path = folder / "results.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {"stages": {}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 where a stage failed or was stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m bfr.benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prepared", type=Path, nargs="?", metavar="PREPARED", help="folder of --prepare")
    parser.add_argument("--prepare", action="store_true", help="make PREPARED, inside the tree")
    parser.add_argument("--bundle", type=Path, help="with --prepare: an exported bundle of seeded weights")
    parser.add_argument("--out", type=Path, help="folder of what comes back")
    parser.add_argument("--work", type=Path, help="folder of what does not (PREPARED/work)")
    parser.add_argument("--seconds", type=float, help=f"for everything ({SECONDS}; {TRAINING_SECONDS} with --train)")
    parser.add_argument("--resume", type=Path, nargs="?", const=Path(), metavar="EARLIER", help="an earlier OUT (OUT)")
    parser.add_argument("--train", type=Path, metavar="FACES", help="train mini on them instead, 90 s a network")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU")
    parser.add_argument("--report", type=Path, metavar="OUT", help="write the tables of a run")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where to (%(default)s)")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the running stage is ended and recorded
    try:
        if args.report:
            print(report.publish(read_results(args.report), args.results))
            return 0
        if args.prepared is None:
            parser.error("name the folder PREPARED, or --report OUT")
        if args.prepare:
            for part, size in prepare(args.prepared, args.bundle, progress=say).items():
                print(f"{part:>8} {size / 2**20:6.1f} MiB")
            return 0
        check_prepared(args.prepared)
        if args.out is None:
            parser.error("name the folder of the results with --out")
        return _measure(args, sys.argv[1:] if arguments is None else arguments)
    except BfrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _measure(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    prepared, out = args.prepared.resolve(), args.out.resolve()
    work = args.work.resolve() if args.work else prepared / "work"
    stages: Sequence[Stage] = TRAINING if args.train else STAGES
    if args.rehearse:  # a CPU may be slow, and other work beside it
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        stages = tuple(replace(stage, seconds=REHEARSAL_SECONDS, least=0) for stage in (*STAGES, *TRAINING))
    if args.stage:
        stage = next(stage for stage in (*STAGES, *TRAINING) if stage.name == args.stage)
        context = Context(prepared, work, out, not args.rehearse, args.seconds, args.train, lambda _: None)
        return int(run_one(stage, context)["status"] == "failed")
    shutil.rmtree(work / "train", ignore_errors=True)
    command = [sys.executable, "-m", "bfr.benchmarks.gpu", *arguments]
    resume = None if args.resume is None else out if args.resume == Path() else args.resume.resolve()
    seconds = args.seconds or (REHEARSAL_SECONDS if args.rehearse else TRAINING_SECONDS if args.train else SECONDS)
    results = run_stages(stages, command, out, work, seconds=seconds, resume=resume, rehearsal=args.rehearse)
    (out / "report.md").write_text(report.as_markdown(results))
    return int(any(entry["status"] in ("failed", "timed out") for entry in results["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
