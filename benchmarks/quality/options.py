"""What the command lines of the benchmarks of quality share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bfr.benchmarks.publish import Command, Findings
from bfr.benchmarks.quality.faces import read_faces
from bfr.benchmarks.quality.metrics import SHARPNESS, UInt8
from bfr.runtime.backends.device import Device
from bfr.runtime.backends.registry import open_device
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.diffusion.noise import check_seed
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.install import need
from bfr.runtime.restore.restorer import DEFAULT_SEED

Number = TypeVar("Number", int, float)


def faces_command(module: str, doc: str | None, measure: Callable[[argparse.Namespace], Findings]) -> Command:
    """Return a command line with what the benchmarks of quality share."""
    command = Command(module, doc, measure)
    command.add_argument("folder", type=Path, metavar="FOLDER", help="aligned faces, square")
    command.add_argument("--bundle", type=Path, help="folder of the bundle; the default is the system mini")
    command.number("--limit", None, "the first so many images only")
    command.number("--seed", DEFAULT_SEED, "of all noise (%(default)s)")
    command.add_argument("--attribution", metavar="TEXT", help="a line for the report, as licences ask")
    command.add_argument("--backend", default="auto", help="auto, onnxruntime-cpu or onnxruntime-cuda (%(default)s)")
    command.number("--threads", None, "of the CPU backend")
    return command


class Inputs(NamedTuple):
    """What such a command line names.

    Attributes:
        faces: Names and pictures, (S, S, 3) uint8 RGB each, S the system's size.
        facts: What every report says.
    """

    bundle: Bundle
    device: Device
    faces: list[tuple[str, UInt8]]
    facts: dict[str, Any]


def open_inputs(args: argparse.Namespace) -> Inputs:
    """Check the arguments that all share, and open what they name.

    Raises:
        MissingDependency: A package that pictures are measured or drawn with is missing.
        InputNotFound: `folder` is no folder, or has no picture.
        InvalidImage: A picture cannot be read, or is not square.
        InvalidOption: `out` is a file, `limit` is below 1, or `seed` is out of range.
    """
    need("bench", "skimage", "matplotlib")
    if not args.folder.is_dir():
        raise InputNotFound(f"{args.folder} is no folder: name a folder of aligned faces")
    if args.limit is not None and args.limit < 1:
        raise InvalidOption(f"--limit {args.limit} is out of range: choose 1 or more")
    if args.out.exists() and not args.out.is_dir():
        raise InvalidOption(f"{args.out} is a file: name a folder with --out")
    check_seed(args.seed)
    bundle = Bundle.open(args.bundle or default_bundle())
    manifest = bundle.manifest
    faces = read_faces(args.folder, manifest.image_size, args.limit)
    device = open_device(args.backend, threads=args.threads)
    facts = {
        "bundle": {"system": manifest.system, "hash": bundle.hash, "image_size": manifest.image_size},
        "backend": device.name,
        "versions": device.versions,
        "seed": args.seed,
        "images": len(faces),
        "definition": SHARPNESS,
        "attribution": args.attribution,
    }
    return Inputs(bundle, device, faces, facts)


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """Return the numbers of a text as `2,3,4`. Raises InvalidOption, which names `option`, for something else."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidOption(f"{option} {text!r} is not a list of numbers: write them as 2,4,6") from error


def words(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    """Return the words of a text as `a,b`. Raises InvalidOption, which names `option`, if one is not among `known`."""
    found = text.split(",")
    if unknown := [word for word in found if word not in known]:
        raise InvalidOption(f"{option} {unknown[0]!r} is unknown: choose from {', '.join(known)}")
    return found
