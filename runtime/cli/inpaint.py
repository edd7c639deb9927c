"""`bfr inpaint`."""

from pathlib import Path
from typing import Annotated

import typer

from bfr.runtime.cli.options import OUT, STRIP, Flags, expanded
from bfr.runtime.cli.restore import finish, require
from bfr.runtime.cli.terminal import progress_bar
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.restore.options import OpenOptions, SamplerOptions


@expanded
def inpaint(
    inputs: Annotated[list[Path], typer.Argument(help="Pictures of aligned faces, or folders of them.")],
    opened: Annotated[OpenOptions, Flags(without=("batch",))],
    sampler: Annotated[SamplerOptions, Flags(only=("guidance",))],
    output: Annotated[
        JobOptions,
        Flags(only=("out", "seed", "max_pixels", "metadata", "compare", "html", "resume"), names=OUT, negative=STRIP),
    ],
    mask: Annotated[
        Path | None,
        typer.Option(
            help="White where the picture is inpainted: an image, or a folder of them by name; "
            "without it, pixels that are 0."
        ),
    ] = None,
) -> None:
    """Inpaint masked areas of aligned faces; known pixels stay as they are. Writes PNG files and report.json."""
    from bfr.runtime.errors import InvalidOption
    from bfr.runtime.jobs.run import run_job
    from bfr.runtime.jobs.sources import find_inputs
    from bfr.runtime.restore.restorer import Restorer

    found = find_inputs(inputs, out=output.out)
    require(found, inputs, output.out)
    with Restorer.open(opened, **sampler.changes) as restorer, progress_bar() as bar:
        if "mask" not in restorer.inputs.others:
            raise InvalidOption(
                f"{restorer.bundle.manifest.system} does not inpaint: name a bundle that does with --bundle, as "
                "`bfr export difface-inpainting` makes it"
            )
        task = bar.add_task("inpainting", total=len(found.items))
        report = run_job(
            restorer,
            found.items,
            output.model_copy(update={"format": ".png"}),
            mask=mask,
            passed_over=found.passed_over,
            progress=lambda done, name: bar.update(task, completed=done, description=name),
        )
    finish(report, output.out, done="inpainted")
