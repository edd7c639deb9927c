"""`bfr export`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from bfr.export.options import ExportOptions
from bfr.runtime.cli.options import AS_JSON, SYSTEMS, Flags, check_system, expanded
from bfr.runtime.cli.places import check_new
from bfr.runtime.cli.terminal import conclude_bundle, tell
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.install import need


@expanded
def export(
    system: Annotated[
        str,
        typer.Argument(help=f"One of {', '.join(SYSTEMS)}."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new bundle.")],
    options: Annotated[ExportOptions, Flags(names={"time_table": ("--time-table/--no-time-table",)})],
    weights: Annotated[Path | None, typer.Option(help="Folder of checkpoints. Default: that of `bfr fetch`.")] = None,
    seeded: Annotated[
        bool,
        typer.Option("--seeded", help="Use random weights, for tests and timings. They restore nothing."),
    ] = False,
    as_json: AS_JSON = False,
) -> None:
    """Export a system to ONNX, and verify it against PyTorch.

    Publishes the bundle only if it agrees with eager float32.
    """
    if seeded and weights:
        raise InvalidOption("--seeded generates the weights: leave out --weights, or --seeded")
    check_new(out, replace=options.replace)
    if weights is not None and not weights.is_dir():
        raise InputNotFound(f"there is no folder {weights}: name the one of the checkpoints with --weights")
    check_system(system)
    need("export", "torch", "onnx", "onnxscript", "safetensors", "onnxruntime")
    from bfr.export.bundle import export_system
    from bfr.models.catalog import get_system
    from bfr.models.weights.locate import usable_weights
    from bfr.runtime.files import cache_folder

    spec = get_system(system)
    source = weights or spec.packaged or cache_folder() / system
    with TemporaryDirectory() as scratch:
        if seeded:
            from bfr.models.weights.seeded import write_seeded

            spec, source = spec.untrained(), Path(scratch)
            write_seeded(spec, source)
        source = usable_weights(spec, source, Path(scratch), tell)
        bundle = export_system(spec, source, out, options, progress=tell)
    conclude_bundle(bundle, "exported and verified", as_json=as_json)
