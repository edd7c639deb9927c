"""Fuzz the readers of strangers' files for as long as is wanted: `python tests/fuzz/run.py --seconds 3600`.

Each reader runs in a process of its own, with bounded memory, and takes its turn. A finding is an exception that is not
one of ours, a process that dies, an input that takes longer than LONGEST, or one that runs out of memory. Its file is
kept, and `--target NAME --seed N --only NUMBER` reads the same one again, with a traceback.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections import Counter
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from mutate import mutated

from bfr.runtime.errors import BfrError

LONGEST = 30.0  # seconds an input
TURN = 20.0  # seconds a reader
MEMORY = 1 << 30  # bytes beyond what the reader uses with its seeds
HERE = Path(__file__).parent


def load(path: Path) -> Any:
    """The targets of a file, by name."""
    spec = spec_from_file_location("fuzz_targets", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = module_from_spec(spec)
    sys.modules["fuzz_targets"] = module
    spec.loader.exec_module(module)
    return {one.name: one for one in module.TARGETS}


def attempt(target: Any, data: bytes) -> str | None:
    """What is wrong with how a reader took a file; None where nothing is."""
    try:
        target.read(data)
    except BfrError as error:
        return "out of memory" if "does not fit into memory" in str(error) else None
    except MemoryError:
        return "out of memory"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}"
    return None


def work(path: Path, name: str, seed: int, begin: int, seconds: float, files: int, at: Any, findings: Any) -> None:
    """In a process: read damaged files from number `begin` on; `at` is the number of the one that is being read."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the decoders in C have much to say
    target = load(path)[name]
    seeds = target.seeds()
    for one in seeds:
        attempt(target, one)  # whatever is imported and kept is so by now
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, -1))
    number, until = begin, time.time() + seconds
    while time.time() < until and number < begin + files:
        at.value = number
        if problem := attempt(target, mutated(seeds, target.words, f"{name} {seed} {number}")):
            findings.put((number, problem))
        number += 1
    at.value = number
    findings.close()
    findings.join_thread()


def turn(path: Path, name: str, seed: int, begin: int, seconds: float, files: int) -> tuple[int, list[tuple[int, str]]]:
    """One turn of a reader: the number to go on with, and its findings."""
    context = multiprocessing.get_context("spawn")
    at, queue = context.Value("q", -1), context.Queue()
    process = context.Process(target=work, args=(path, name, seed, begin, seconds, files, at, queue))
    process.start()
    found: list[tuple[int, str]] = []
    seen, since = -1, time.time()
    while process.is_alive():
        process.join(0.2)
        while not queue.empty():
            found.append(queue.get())
        if at.value != seen:
            seen, since = at.value, time.time()
        elif at.value >= 0 and time.time() - since > LONGEST:
            process.kill()
            found.append((seen, f"takes longer than {LONGEST:g} s"))
            return seen + 1, found
    while not queue.empty():
        found.append(queue.get())
    if process.exitcode:
        found.append((max(at.value, begin), f"the process died with status {process.exitcode}"))
        return max(at.value, begin) + 1, found
    return at.value, found


def main() -> int:
    """Fuzz, print what was found, and return 1 where anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of all readers together")
    parser.add_argument("--files", type=int, default=1 << 62, help="damaged files of each reader")
    parser.add_argument("--target", action="append", help="a reader; all of them if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="read this one file, and show its traceback")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"), help="where files of findings are kept")
    parser.add_argument("--targets", type=Path, default=HERE / "targets.py")
    asked = parser.parse_args()
    targets = load(asked.targets)
    names = [name for name in asked.target or targets if not (need := targets[name].needs) or find_spec(need)]
    if asked.only is not None:
        for name in names:
            targets[name].read(mutated(targets[name].seeds(), targets[name].words, f"{name} {asked.seed} {asked.only}"))
        return 0
    end, numbers, kinds = time.time() + asked.seconds, dict.fromkeys(names, 0), Counter[tuple[str, str]]()
    left = dict.fromkeys(names, asked.files)
    while time.time() < end and any(left.values()):
        for name in [name for name in names if left[name]]:
            begin = numbers[name]
            seconds = min(TURN, max(1.0, end - time.time()))
            numbers[name], found = turn(asked.targets, name, asked.seed, begin, seconds, left[name])
            left[name] -= min(left[name], numbers[name] - begin)
            for number, problem in found:
                kinds[name, problem.split(":")[0]] += 1
                print(f"{name} {asked.seed} {number}: {problem}", flush=True)
                if kinds[name, problem.split(":")[0]] <= 5:  # of one kind a few will do
                    asked.out.mkdir(parents=True, exist_ok=True)
                    data = mutated(targets[name].seeds(), targets[name].words, f"{name} {asked.seed} {number}")
                    (asked.out / f"{name}-{asked.seed}-{number}.bin").write_bytes(data)
    for name in names:
        print(f"{name}: {numbers[name]} files, {sum(n for (of, _), n in kinds.items() if of == name)} findings")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
