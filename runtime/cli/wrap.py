"""`bfr wrap`."""

from pathlib import Path
from typing import Annotated

import typer

from bfr.export.options import WrapOptions
from bfr.runtime.cli.options import Flags, expanded
from bfr.runtime.cli.terminal import say
from bfr.runtime.errors import MissingDependency
from bfr.runtime.install import install_command
from bfr.runtime.restore.options import OpenOptions


@expanded
def wrap(
    model: Annotated[Path, typer.Argument(help="An ONNX file of one network that restores an aligned face.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new bundle.")],
    options: Annotated[WrapOptions, Flags(names={"values": ("--set",)})],
    opened: Annotated[OpenOptions, Flags(only=("threads",))],
) -> None:
    """Make a bundle of any single-network restorer, so that every command runs it: restore, video, verify, bench."""
    try:
        from bfr.export.onnx.wrap import wrap as wrap_file
    except ImportError as error:
        raise MissingDependency(f"bfr wrap needs {install_command('export', 'cpu')} ({error})") from error

    bundle = wrap_file(model, out, options, threads=opened.threads, say=say)
    print(f"{bundle.folder}: wrapped and verified, hash {bundle.hash}")
