"""What the command lines of the benchmarks of quality share."""

import argparse
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from bfr.runtime.errors import InputNotFound, InvalidOption, MissingDependency

OTHER_SEEDS = "1,2"
Number = TypeVar("Number", int, float)


def check_common(args: argparse.Namespace) -> None:
    """Check the packages that pictures are measured and drawn with, and `folder`, `out` and `limit`.

    Raises MissingDependency, InputNotFound or InvalidOption.
    """
    missing = [
        name for name, module in (("scikit-image", "skimage"), ("matplotlib", "matplotlib")) if not find_spec(module)
    ]
    if missing:
        raise MissingDependency(f'{" and ".join(missing)} not installed: pip install "bfr-runtime[bench]"')
    if not args.folder.is_dir():
        raise InputNotFound(f"{args.folder} is no folder: name a folder of aligned faces")
    if args.limit is not None and args.limit < 1:
        raise InvalidOption(f"--limit {args.limit} is out of range: choose 1 or more")
    if args.out.exists() and not args.out.is_dir():
        raise InvalidOption(f"{args.out} is a file: name a folder with --out")


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """The numbers of `2,3,4`. Raises InvalidOption for anything else."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidOption(f"{option} {text!r} is not a list of numbers: write them as 2,4,6") from error


def words(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    """The words of `a,b`. Raises InvalidOption for one that is not known."""
    found = text.split(",")
    if unknown := [word for word in found if word not in known]:
        raise InvalidOption(f"{option} {unknown[0]!r} is unknown: choose from {', '.join(known)}")
    return found


def command_line(module: str, parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The command line without defaults; of paths, the last part alone: a report tells nothing of the machine."""
    parts = ["python", "-m", module, args.folder.resolve().name]
    for name, value in vars(args).items():
        if name == "folder" or value == parser.get_default(name):
            continue
        parts.append(f"--{name.replace('_', '-')}")
        if value is not True:
            parts.append(value.resolve().name if isinstance(value, Path) else str(value))
    return shlex.join(parts)
