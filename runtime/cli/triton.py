"""`bfr export-triton`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.cli.options import AS_JSON, QUIET
from bfr.runtime.cli.places import check_new
from bfr.runtime.cli.terminal import conclude


def export_triton(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new model repository.")],
    precision: Annotated[Precision, typer.Option(help="Networks without this precision run in fp32.")] = "fp32",
    processor: Annotated[Literal["gpu", "cpu"], typer.Option(help="What runs the networks.")] = "gpu",
    batch: Annotated[int, typer.Option(help="Faces that go through a network together, at most.")] = 8,
    instances: Annotated[int, typer.Option(help="Loops that run beside each other.")] = 2,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a folder that is there.")] = False,
    _quiet: QUIET = False,
    as_json: AS_JSON = False,
) -> None:
    """Write a model repository for NVIDIA's Triton server."""
    check_new(out, replace=replace)
    from bfr.export.triton import export_triton as write
    from bfr.runtime.bundle.bundle import Bundle

    models = write(
        Bundle.open(bundle),
        out,
        precision=precision,
        processor=processor,
        batch=batch,
        instances=instances,
        replace=replace,
    )
    if as_json:
        print(json.dumps({"folder": str(out), "models": list(models)}))
    else:
        conclude(f"{out}: {', '.join(models)}; next: tritonserver --model-repository {out}")
