"""One command for a GPU that is there for ten minutes: `python -m bfr.benchmarks.gpu`.

    python -m bfr.benchmarks.gpu PREPARED --prepare [--bundle BUNDLE]   here: what the other machine needs
    PREPARED/run.sh --out OUT [--seconds 590] [--resume [EARLIER]]      there: everything, in the order that matters
    PREPARED/run.sh --out OUT --train FACES [--seconds 180]             there: does training work?
    python -m bfr.benchmarks.gpu PREPARED --out OUT --rehearse          here: all of it, small, on the CPU
    python -m bfr.benchmarks.gpu --report OUT                           here: benchmarks/results/GPU/report.md

Every stage runs in a process of its own with a time limit. `results.json` is written anew while a stage finds figures
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

SECONDS, TRAINING_SECONDS, REHEARSAL_SECONDS = 590, 180, 3600
RESERVE = 15  # seconds that no stage but the last takes: for the compiler's cache
LAST_LINES = 15
POLL = 0.5  # seconds between two looks at what a stage has found so far


def run_stages(
    stages: Sequence[Stage], command: Sequence[str], out: Path, work: Path, *, seconds: float, resume: Path | None
) -> dict[str, Any]:
    """Run the stages one after the other and write `results.json`; return its content.

    Args:
        stages: In order.
        command: To which a stage's name and its seconds are added: it runs one stage and writes `work/NAME.json`.
        out: Folder of `results.json` and `log.txt`.
        work: Folder of everything else.
        seconds: For all stages together.
        resume: Folder of an earlier `results.json`, whose finished stages are not run again.
    """
    deadline = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    earlier = read_results(resume) if resume else {}
    done = {name: entry for name, entry in earlier.get("stages", {}).items() if entry["status"] == "done"}
    if resume:
        say(f"{len(done)} stages are done already; {unpack_cache(resume, work / 'inductor')} parts of compiled code")
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    results: dict[str, Any] = {"format": 1, "date_utc": now, "rehearsal": "--rehearse" in command, "stages": done}

    def write(name: str, entry: dict[str, Any]) -> None:
        results["stages"][name] = entry
        write_json(out / "results.json", results)

    for stage in stages:
        # The weights do not come back from the machine: this stage generates them wherever they are missing.
        if stage.name in done and not (stage.name == "weights" and not (work / "bundle").is_dir()):
            continue
        left = deadline - time.monotonic() - (0 if stage is stages[-1] else RESERVE)
        if left < stage.least:
            why = f"{max(left, 0):.0f} s were left, {stage.least} at least are needed"
            write(stage.name, {"status": "skipped", "why": why})
        else:
            _run_stage(stage, [*command, "--stage", stage.name], min(stage.seconds, left), out, work, write)
        entry = results["stages"][stage.name]
        say(f"{stage.name}: {entry['status']}, {entry.get('seconds', 0):.1f} s {entry.get('why', '')}")
    return results


def _run_stage(stage: Stage, command: list[str], seconds: float, out: Path, work: Path, write: Any) -> None:
    """Run one stage in its own process group; record what it found, however it ends."""
    found, log = work / f"{stage.name}.json", work / f"{stage.name}.log"
    found.unlink(missing_ok=True)
    entry: dict[str, Any] = {"status": "cut off", "figures": {}}
    begin, seen = time.monotonic(), 0.0
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
    write(stage.name, entry)
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
            while process.poll() is None and time.monotonic() - begin < seconds:
                time.sleep(POLL)
                if found.is_file() and found.stat().st_mtime != seen:
                    seen = found.stat().st_mtime
                    write(stage.name, {**entry, **json.loads(found.read_text()), "status": "cut off"})
            ended = process.poll() is not None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the compiler's workers too
                process.wait()
    if found.is_file():
        entry.update(json.loads(found.read_text()))
    if not ended:
        entry.update(status="timed out", why=f"stopped after {seconds:.0f} s")
    elif entry["status"] not in ("done", "skipped", "failed"):
        entry.update(status="failed", why=f"its process ended with status {process.returncode}")
    if entry["status"] in ("timed out", "failed"):
        entry["last lines"] = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    entry["seconds"] = time.monotonic() - begin
    write(stage.name, entry)
    with (out / "log.txt").open("a") as together:
        together.write(f"== {stage.name}\n{log.read_text(errors='replace')[-100_000:]}\n")


def run_one(stage: Stage, context: Context) -> dict[str, Any]:
    """Run a stage in this process; return its entry in `results.json`, and write it as it grows."""
    figures: dict[str, Any] = {}

    def keep(found: dict[str, Any]) -> None:
        figures.update(found)
        write_json(context.work / f"{stage.name}.json", {"status": "running", "figures": figures})

    context = replace(context, keep=keep)
    entry: dict[str, Any] = {"status": "done"}
    try:
        figures.update(stage.run(context))
    except NeedsGpu:
        entry = {"status": "skipped", "why": "needs a GPU"}
    except Exception as error:
        traceback.print_exc()
        entry = {"status": "failed", "why": f"{type(error).__name__}: {error}"[:500]}
    entry["figures"] = figures
    write_json(context.work / f"{stage.name}.json", entry)
    return entry


def read_results(folder: Path) -> dict[str, Any]:
    """`results.json` of an earlier run; empty where there is none."""
    path = folder / "results.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


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
        return _measure(args)
    except BfrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _measure(args: argparse.Namespace) -> int:
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
    command = [sys.executable, "-m", "bfr.benchmarks.gpu", str(prepared), "--out", str(out), "--work", str(work)]
    command += ["--rehearse"] if args.rehearse else []
    command += ["--train", str(args.train.resolve())] if args.train else []
    resume = None if args.resume is None else out if args.resume == Path() else args.resume.resolve()
    usual = REHEARSAL_SECONDS if args.rehearse else TRAINING_SECONDS if args.train else SECONDS
    seconds = args.seconds or usual
    results = run_stages(stages, command, out, work, seconds=seconds, resume=resume)
    (out / "report.md").write_text(report.as_markdown(results))
    return int(any(entry["status"] in ("failed", "timed out") for entry in results["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
