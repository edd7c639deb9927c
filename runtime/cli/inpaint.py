"""`bfr inpaint`."""

from pathlib import Path
from typing import Annotated

import typer

from bfr.runtime.cli.options import AS_JSON, OUT, OVERWRITE, STRIP, Flags, expanded
from bfr.runtime.cli.places import open_places
from bfr.runtime.cli.restore import check_printed, finish
from bfr.runtime.cli.terminal import image_progress
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.restore.options import OpenOptions, SamplerOptions


@expanded
def inpaint(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT", help="Pictures of aligned faces, folders or patterns of them; - is standard input."
        ),
    ],
    opened: Annotated[OpenOptions, Flags()],
    sampler: Annotated[SamplerOptions, Flags(without=("weight",))],
    output: Annotated[
        JobOptions,
        Flags(only=("out", "seed", "max_pixels", "metadata", "compare", "html", "resume"), names=OUT, negative=STRIP),
    ],
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Image, or folder of images by name, that is white where to inpaint. Default: inpaint pixels that "
            "are 0."
        ),
    ] = None,
    overwrite: OVERWRITE = False,
    as_json: AS_JSON = False,
) -> None:
    """Inpaint the masked parts of aligned faces.

    Known pixels stay bit-identical. Writes PNG files and report.json.
    """
    from bfr.runtime.bundle.bundle import Bundle, default_bundle
    from bfr.runtime.errors import InvalidOption
    from bfr.runtime.jobs.run import run_job
    from bfr.runtime.restore.restorer import Restorer

    check_printed(output, as_json=as_json)
    png = output.model_copy(update={"format": ".png"})
    with open_places(inputs, png, overwrite=overwrite) as places:
        found = places.found
        manifest = Bundle.open(opened.bundle or default_bundle()).manifest
        if "mask" not in {one.name for one in manifest.inputs}:
            raise InvalidOption(
                f"{manifest.system} does not inpaint: name a bundle that does with --bundle, as "
                "`bfr export difface-inpainting` makes it"
            )
        with (
            Restorer.open(opened, **sampler.changes) as restorer,
            image_progress("inpainting", len(found.items)) as progress,
        ):
            report = run_job(
                restorer, found.items, places.options, mask=mask, passed_over=found.passed_over, progress=progress
            )
        finish(report, places, done="inpainted", as_json=as_json)
