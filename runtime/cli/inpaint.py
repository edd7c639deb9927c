"""`bfr inpaint`."""

from pathlib import Path
from typing import Annotated

import typer

from bfr.runtime.cli.options import OUT, STRIP, Flags, expanded
from bfr.runtime.cli.terminal import progress_bar, say
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
    from bfr.runtime.jobs.sources import find_images
    from bfr.runtime.restore.restorer import Restorer

    items = find_images(inputs, out=output.out)
    with Restorer.open(opened, **sampler.changes) as restorer, progress_bar() as bar:
        if "mask" not in restorer.inputs.others:
            raise InvalidOption(
                f"{restorer.bundle.manifest.system} does not inpaint: name a bundle that does with --bundle, as "
                "`bfr export difface-inpainting` makes it"
            )
        task = bar.add_task("inpainting", total=len(items))
        report = run_job(
            restorer,
            items,
            output.model_copy(update={"format": ".png"}),
            mask=mask,
            progress=lambda done, name: bar.update(task, completed=done, description=name),
        )
    for entry in report.entries:
        if entry.error:
            say(f"failed: {entry.source}: {entry.error}")
    failed, count = report.count("failed"), len(items)
    print(f"{count} image{'s' * (count != 1)}: {count - failed} inpainted, {failed} failed; see {output.out}")
    if failed:
        raise typer.Exit(1)
