"""`bfr export-triton`."""

from pathlib import Path
from typing import Annotated

import typer

from bfr.export.options import TritonOptions
from bfr.runtime.cli.options import AS_JSON, Flags, expanded
from bfr.runtime.cli.places import check_new
from bfr.runtime.cli.terminal import conclude_with


@expanded
def export_triton(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new model repository.")],
    options: Annotated[TritonOptions, Flags()],
    as_json: AS_JSON = False,
) -> None:
    """Write a model repository for NVIDIA's Triton server."""
    from bfr.export.triton import MARK
    from bfr.export.triton import export_triton as write
    from bfr.runtime.bundle.bundle import Bundle

    check_new(out, replace=options.replace, mark=MARK)
    models = write(Bundle.open(bundle), out, options)
    text = f"{out}: {', '.join(models)}; next: tritonserver --model-repository {out}"
    conclude_with({"folder": str(out), "models": list(models)}, text, as_json=as_json)
