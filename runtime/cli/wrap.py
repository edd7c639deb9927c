"""`bfr wrap`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from bfr.runtime.cli.options import Flags, expanded
from bfr.runtime.cli.terminal import say
from bfr.runtime.errors import InvalidOption, MissingDependency
from bfr.runtime.install import install_command
from bfr.runtime.restore.options import OpenOptions

if TYPE_CHECKING:
    from typing import Literal


@expanded
def wrap(
    model: Annotated[Path, typer.Argument(help="An ONNX file of one network that restores an aligned face.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new bundle.")],
    opened: Annotated[OpenOptions, Flags(only=("threads",))],
    input_range: Annotated[
        str | None,
        typer.Option(help="Black and white of its input: -1..1, 0..1 or 0..255; default: what it looks like."),
    ] = None,
    output_range: Annotated[str | None, typer.Option(help="Black and white of its output.")] = None,
    colour: Annotated[str, typer.Option(help="Order of its channels: rgb or bgr.")] = "rgb",
    size: Annotated[
        int | None, typer.Option(help="Side of its input in pixels, where the file leaves it open.")
    ] = None,
    input_name: Annotated[str | None, typer.Option("--input", help="Its input, where several could be.")] = None,
    output_name: Annotated[str | None, typer.Option("--output", help="Its output, where several could be.")] = None,
    reference_name: Annotated[
        str | None, typer.Option("--reference", help="Its input for a second picture, `bfr restore --reference`.")
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option("--set", help="The value of a further input, as w=0.5; may be repeated.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, the file as it is; fp16 adds a variant in half; may be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the system; the default is the file's.")] = None,
    licence: Annotated[str, typer.Option(help="Of the weights, for the manifest.")] = "unknown",
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is there.")] = False,
) -> None:
    """Make a bundle of any single-network restorer, so that every command runs it: restore, video, verify, bench."""
    try:
        from bfr.export.onnx.wrap import wrap as wrap_file
        from bfr.export.onnx.wrap_read import WrapOptions
    except ImportError as error:
        raise MissingDependency(f"bfr wrap needs {install_command('export', 'cpu')} ({error})") from error

    options = WrapOptions(
        input=input_name,
        output=output_name,
        reference=reference_name,
        input_range=_range("--input-range", input_range) if input_range else None,
        output_range=_range("--output-range", output_range) if output_range else None,
        colour=cast("Literal['rgb', 'bgr']", colour),
        size=size,
        values=dict(_value(one) for one in value or ()),
    )
    if unknown := set(precision or ()) - {"fp32", "fp16"}:
        raise InvalidOption(f"--precision {min(unknown)!r} is not offered for wrapped files: choose fp32 or fp16")
    bundle = wrap_file(
        model,
        out,
        options,
        name=name,
        licence=licence,
        precisions=("fp32", "fp16") if "fp16" in (precision or ()) else ("fp32",),
        replace=replace,
        threads=opened.threads,
        say=say,
    )
    print(f"{bundle.folder}: wrapped and verified, hash {bundle.hash}")


def _range(option: str, text: str) -> tuple[float, float]:
    try:
        black, white = (float(part) for part in text.split(".."))
    except ValueError as error:
        raise InvalidOption(f"{option} {text!r} is not understood: name black and white, as -1..1 or 0..255") from error
    return black, white


def _value(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError as error:
        raise InvalidOption(f"--set {text!r} is not understood: name an input and its value, as w=0.5") from error
