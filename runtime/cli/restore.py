"""`bfr restore`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bfr.runtime.cli.options import OUT, STRIP, Flags, check_aligned, expanded
from bfr.runtime.cli.remote import check_server_options, restore_remotely
from bfr.runtime.cli.terminal import progress_bar, say
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.restore.options import OpenOptions, SamplerOptions

if TYPE_CHECKING:
    from bfr.runtime.jobs.report import Report


@expanded
def restore(
    context: typer.Context,
    inputs: Annotated[list[Path], typer.Argument(help="Photographs, videos, or folders of them.")],
    output: Annotated[JobOptions, Flags(panel="Output", names=OUT, negative=STRIP)],
    photo: Annotated[PhotoOptions, Flags(panel="Photographs")],
    opened: Annotated[OpenOptions, Flags(panel="Networks")],
    sampler: Annotated[SamplerOptions, Flags(panel="Sampler, in place of the preset's")],
    aligned: Annotated[bool, typer.Option("--aligned", help="The images are aligned faces, nothing else.")] = False,
    background: Annotated[Path | None, typer.Option(help="Bundle of one network for the rest of the picture.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Another photograph of the person, for systems that keep an identity.")
    ] = None,
    server: Annotated[str | None, typer.Option(help="Address of a `bfr serve` that restores instead.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Of such a server; or the key itself in BFR_API_KEY.")
    ] = None,
) -> None:
    """Restore the faces of photographs and videos. Writes results and report.json into the output folder."""
    from bfr.runtime.backends.registry import open_device
    from bfr.runtime.faces.background import NetworkBackground
    from bfr.runtime.faces.detect import open_detector
    from bfr.runtime.faces.photo import PhotoRestorer, read_reference
    from bfr.runtime.jobs.run import run_job
    from bfr.runtime.jobs.sources import find_images
    from bfr.runtime.restore.restorer import Restorer

    check_server_options(context, server=server)
    if aligned:
        check_aligned(photo, background)
    items = find_images(inputs, videos=not aligned, out=output.out)
    if not items:
        print("0 images")
        return
    if server is not None:
        report = restore_remotely(server, api_key_file, items, output, None if aligned else photo, opened.preset)
        finish(report, output.out)
        return
    restorer = Restorer.open(opened, **sampler.changes)
    worker: Restorer | PhotoRestorer = restorer
    if not aligned:
        detector, network = open_detector(photo.detector), None
        if background is not None:
            device = open_device(opened.backend, threads=opened.threads, index=opened.device)
            network = NetworkBackground(background, device)
        worker = PhotoRestorer(restorer, photo, detector=detector, background=network)
    if reference is not None:
        restorer.fixed = {"reference": read_reference(reference, worker, output.max_pixels)}
        restorer.inputs.check(1, {name: [picture] for name, picture in restorer.fixed.items()})
    with restorer, progress_bar() as bar:
        task = bar.add_task("restoring", total=len(items))
        report = run_job(
            worker, items, output, progress=lambda done, name: bar.update(task, completed=done, description=name)
        )
    finish(report, output.out)


def finish(report: "Report", out: object, *, shown: int | None = None) -> None:
    """Print what failed, at most `shown` entries, then one line of counts; exit with 1 where anything failed."""
    from bfr.runtime.jobs.report import summary

    failed = [entry for entry in report.entries if entry.error]
    for entry in failed[:shown]:
        say(f"{'failed' if entry.status == 'failed' else 'in part'}: {entry.source}: {entry.error}")
    if len(failed) > len(failed[:shown]):
        say(f"and {len(failed) - len(failed[:shown])} more, see failures.csv")
    print(summary(report, out))
    if failed:
        raise typer.Exit(1)
