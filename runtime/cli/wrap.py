"""`bfr wrap`."""

from pathlib import Path
from typing import Annotated

import typer

from bfr.export.options import WrapOptions
from bfr.runtime.cli.options import AS_JSON, Flags, expanded
from bfr.runtime.cli.places import check_new
from bfr.runtime.cli.terminal import conclude_bundle, tell
from bfr.runtime.errors import InputNotFound, MissingDependency
from bfr.runtime.install import install_command
from bfr.runtime.restore.options import OpenOptions


@expanded
def wrap(
    model: Annotated[
        Path,
        typer.Argument(help="An ONNX file of one network that restores an aligned face, or a folder of OSDFace's."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new bundle.")],
    options: Annotated[WrapOptions, Flags(names={"values": ("--set",)})],
    opened: Annotated[OpenOptions, Flags(only=("threads",))],
    as_json: AS_JSON = False,
) -> None:
    """Make a bundle of any single-network ONNX restorer.

    Every command accepts the bundle: restore, serve, verify, bench and others.
    """
    check_new(out, replace=options.replace)
    if not model.exists():
        raise InputNotFound(f"{model} does not exist: name an ONNX file, or the folder of OSDFace's")
    try:
        from bfr.export.onnx.wrap import wrap as wrap_file
    except ImportError as error:
        raise MissingDependency(f"bfr wrap needs {install_command('export', 'cpu')} ({error})") from error

    bundle = wrap_file(model, out, options, threads=opened.threads, say=tell)
    conclude_bundle(bundle, "wrapped and verified", as_json=as_json)
