"""`bfr restore`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bfr.runtime.cli.options import OUT, STRIP, Flags, check_aligned, expanded
from bfr.runtime.cli.remote import check_server_options, restore_remotely
from bfr.runtime.cli.terminal import one_line, progress_bar, say, show
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.restore.options import OpenOptions, SamplerOptions

if TYPE_CHECKING:
    from bfr.runtime.jobs.report import Report
    from bfr.runtime.jobs.sources import Inputs

SHOWN = 20  # lines of a kind; the report has them all


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
    from bfr.runtime.jobs.sources import find_inputs
    from bfr.runtime.restore.restorer import Restorer

    check_server_options(context, server=server)
    if aligned:
        check_aligned(photo, background)
    found = find_inputs(inputs, videos=not aligned, out=output.out)
    require(found, inputs, output.out, videos=not aligned)
    if server is not None:
        report = restore_remotely(server, api_key_file, found, output, None if aligned else photo, opened.preset)
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
        task = bar.add_task("restoring", total=len(found.items))
        report = run_job(
            worker,
            found.items,
            output,
            passed_over=found.passed_over,
            progress=lambda done, name: bar.update(task, completed=done, description=name),
        )
    finish(report, output.out)


def require(found: "Inputs", named: list[Path], out: Path, *, videos: bool = False) -> None:
    """Raise InputNotFound where there is nothing to restore; what was passed over is in the report all the same."""
    from bfr.runtime.jobs.report import Report, describe_passed_over, write_report
    from bfr.runtime.jobs.sources import check_found

    if not found.items and found.passed_over:
        facts = {"seconds": 0.0, "passed_over": describe_passed_over(found.passed_over)}
        write_report(Report((), {}, facts), out)
    check_found(found, named, videos=videos)


def finish(report: "Report", out: object, *, table: str = "report.json", done: str = "restored") -> None:
    """Print what failed, what was reduced and what was passed over, then one line of counts; exit with 1 for failures.

    table: where all of it stands. done: what `restored` is called.
    """
    from bfr.runtime.jobs.report import passed_over, summary

    failed = [entry for entry in report.entries if entry.error]
    noted = [(entry.source, note) for entry in report.entries for note in entry.notes]
    passed = passed_over(report)
    _say_some(
        [f"{'failed' if e.status == 'failed' else 'in part'}: {one_line(e.source)}: {e.error}" for e in failed], table
    )
    _say_some([f"warning: {one_line(source)}: {note}" for source, note in noted], table)
    _say_some([f"passed over: {one_line(one['source'])}: {one['reason']}" for one in passed], table)
    show(summary(report, out, done=done))
    if failed:
        raise typer.Exit(1)


def _say_some(lines: list[str], table: str) -> None:
    for line in lines[:SHOWN]:
        say(line)
    if len(lines) > SHOWN:
        say(f"and {len(lines) - SHOWN} more, see {table}")
