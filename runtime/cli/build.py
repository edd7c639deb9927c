"""`bfr build`: TensorRT engines for this machine."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bfr.export.options import BuildOptions
from bfr.runtime.cli.options import AS_JSON, Flags, expanded
from bfr.runtime.cli.terminal import conclude, say, stderr, tell, volume
from bfr.runtime.errors import BackendUnavailable, EngineBuildFailed, InvalidOption, MissingDependency
from bfr.runtime.install import install_command
from bfr.runtime.restore.options import OpenOptions

if TYPE_CHECKING:
    from bfr.runtime.backends.tensorrt_key import Library

EVERY = 4.0  # seconds between two lines of progress if there is no terminal


@expanded
def build(
    opened: Annotated[OpenOptions, Flags(only=("device",))],
    options: Annotated[BuildOptions, Flags()],
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder. Default: the system mini.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Parse the graphs and report; build nothing.")] = False,
    target: Annotated[
        str | None, typer.Option("--for", help="jetson: build for fewer batches with less memory, and check the board.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also rebuild engines that are up to date.")] = False,
    as_json: AS_JSON = False,
) -> None:
    """Build TensorRT engines for this GPU, and verify them.

    Publishes the engines only if they agree with float32.
    """
    _need()
    from bfr.export.tensorrt.engine import build_engines
    from bfr.export.tensorrt.progress import still_working
    from bfr.export.tensorrt.support import check_support
    from bfr.runtime.backends.cuda.bindings import Cuda
    from bfr.runtime.backends.tensorrt_key import load_library
    from bfr.runtime.bundle.bundle import Bundle, default_bundle

    if target not in (None, "jetson"):
        raise InvalidOption(f"--for {target!r} is unknown: jetson is the only one")
    chosen = find_library(options.library)
    if target:
        from bfr.export.tensorrt import jetson
        from bfr.runtime.backends.board import this_board

        board = this_board()
        options = jetson.jetson_options(board, options)
    packaged = bundle is None or (str(bundle) == "mini" and not bundle.exists())
    source = Bundle.open(default_bundle() if packaged or bundle is None else bundle)
    precisions = [source.precision(name) for name in options.precision]
    if target and chosen == "tensorrt":
        jetson.check_opsets(source, load_library(chosen).__version__)
    if dry_run:
        found = check_support(source, chosen, precisions)
        if as_json:
            print(json.dumps([{name: getattr(s, name) for name in s.__slots__} for s in found], indent=1))
        else:
            conclude("\n".join(map(str, found)))
        if any(support.problem for support in found):
            raise EngineBuildFailed(f"{chosen} does not read every graph of {source.folder}; nothing was built")
        return
    if target:
        jetson.check_board(board)
        for line in jetson.advice(board):
            tell(line)
    try:
        Cuda(opened.device)
        with progress_lines() as report:
            engines = build_engines(
                source.folder,
                chosen,
                options=options,
                index=opened.device,
                force=force,
                say=tell,
                report=report,
            )
    except BackendUnavailable as error:
        parses = "Without a GPU `bfr build --dry-run --library tensorrt-rtx` still parses the graphs."
        raise BackendUnavailable(f"{error}\n{parses}") from error
    except KeyboardInterrupt as interrupt:
        say("the interrupted build published nothing")
        if still_working():
            os._exit(130)  # a layer is being timed, which nothing can stop; the system takes back the lock
        raise typer.Exit(130) from interrupt
    if as_json:
        print(json.dumps([engine.model_dump() for engine in engines], indent=1))
        return
    for engine in engines:
        conclude(f"{engine.network}, {engine.key.precision}, {engine.key.library}: {engine.file.bytes:,} bytes")
        for check in engine.checks:
            conclude(f"  {check.what}: {check.psnr_db:.1f} dB (floor {check.floor_db:.0f}) against {check.reference}")
    if not engines:
        conclude("every engine is up to date")


def find_library(name: str) -> "Library":
    """The library of a name; `auto` is the first that can be imported. Raises MissingDependency.

    Without a GPU TensorRT-RTX comes first, which parses graphs all the same.
    """
    from bfr.runtime.backends.cuda.bindings import device_count
    from bfr.runtime.backends.tensorrt_key import LIBRARIES, load_library

    errors = []
    for library in LIBRARIES if device_count() else LIBRARIES[::-1]:
        if name in ("auto", library):
            try:
                load_library(library)
            except MissingDependency as error:
                errors.append(str(error))
            else:
                return library
    raise MissingDependency("\n".join(errors))


@contextmanager
def progress_lines() -> Iterator[Callable[[Any], None]]:
    """What shows how far a build is: one line that changes on a terminal, else a line every few seconds."""
    if volume.quiet:
        yield lambda _tick: None
        return
    if stderr.is_terminal:
        with stderr.status("starting") as status:
            yield lambda tick: status.update(str(tick).replace("[", r"\["))
        return
    last = time.monotonic()

    def report(tick: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(str(tick))

    yield report


def _need() -> None:
    """Raise MissingDependency unless there is a lock, and a float32 reference to compare engines with."""
    from importlib.util import find_spec

    if find_spec("filelock") is None:
        raise MissingDependency(
            f"filelock is not installed: {install_command('tensorrt')}, on a Jetson {install_command('jetson')}"
        )
    if find_spec("torch") is None and find_spec("onnxruntime") is None:
        raise MissingDependency(
            "engines are compared with PyTorch or with ONNX Runtime in float32, and neither is installed: "
            f"{install_command('export')}, or {install_command('cpu')}"
        )
