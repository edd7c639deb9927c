"""The command line. Each command imports what it needs when it runs: `bfr restore` never sees torch."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from bfr.runtime.cli.batch import batches
from bfr.runtime.cli.build import builds
from bfr.runtime.cli.inpaint import inpaints
from bfr.runtime.cli.remote import check_server_options, restore_remotely
from bfr.runtime.cli.serve import serves
from bfr.runtime.cli.terminal import progress_bar, say
from bfr.runtime.cli.tools import tools
from bfr.runtime.cli.wrap import wraps
from bfr.runtime.errors import BfrError, InvalidOption

if TYPE_CHECKING:
    from bfr.runtime.faces.geometry import Selection
    from bfr.runtime.jobs.report import Report

INTERRUPTED = 130  # the exit status of what Ctrl-C ended
app = typer.Typer(
    help="Diffusion-based blind face restoration, deployed: export, verify, restore, benchmark.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(tools)
app.add_typer(builds)
app.add_typer(inpaints)
app.add_typer(batches)
app.add_typer(serves)
app.add_typer(wraps)


def main() -> None:
    """Run the command line; a BfrError is printed as one message and decides the exit status."""
    try:
        app()
    except BfrError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer makes this of KeyboardInterrupt, without a word
            say("interrupted; what was finished is kept")
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bfr {version('bfr-runtime')}")
        raise typer.Exit


@app.callback()
def _top(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def restore(
    context: typer.Context,
    inputs: Annotated[list[Path], typer.Argument(help="Photographs, videos, or folders of them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")],
    aligned: Annotated[bool, typer.Option("--aligned", help="The images are aligned faces, nothing else.")] = False,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; the default is the system mini.")] = None,
    backend: Annotated[
        str, typer.Option(help="auto, tensorrt, tensorrt-rtx, torch-cuda, onnxruntime-cuda or onnxruntime-cpu.")
    ] = "auto",
    preset: Annotated[str | None, typer.Option(help="A preset of the bundle, see `bfr info`.")] = None,
    start: Annotated[
        float | None,
        typer.Option(help="Instead of the preset's: less keeps more of the photograph, more invents more."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the preset's: calls of the denoiser.")] = None,
    solver: Annotated[
        str | None, typer.Option(help="Instead of the preset's: ddim, ddpm, dpmpp-2m, dpmpp-3m or unipc-2.")
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Instead of the preset's: 0 (deterministic) to 1.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Instead of the preset's: time, log-snr, quadratic, or kept ones as ddim250.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Of guided systems, instead of the bundle's strength; 0 leaves it out.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Of such systems: another photograph of the person, whose identity is kept.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, or fp16 or int8 where the bundle has it.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of the noise, 0 to 4294967295.")] = 12345,
    batch: Annotated[int, typer.Option(help="Faces that go through the networks together.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU backend.")] = None,
    device: Annotated[int, typer.Option(help="Number of the GPU.")] = 0,
    faces: Annotated[str, typer.Option(help="Which ones: all, largest or centre.")] = "all",
    min_eye_distance: Annotated[float, typer.Option(help="Faces with less are left as they are, in pixels.")] = 5.0,
    upscale: Annotated[int, typer.Option(help="1, 2 or 4 times the photograph's size.")] = 1,
    blend: Annotated[float, typer.Option(help="0 (faces as they were) to 1 (restored).")] = 1.0,
    keep_colour: Annotated[bool, typer.Option("--keep-colour", help="Faces keep their colours and light.")] = False,
    detector: Annotated[str, typer.Option(help="auto, yunet or haar.")] = "auto",
    background: Annotated[Path | None, typer.Option(help="Bundle of one network for the rest of the picture.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Write a before/after picture beside each result.")
    ] = False,
    html: Annotated[bool, typer.Option("--html", help="Write report.html, with before/after sliders.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Skip what has a result there already.")] = False,
    image_format: Annotated[str, typer.Option("--format", help="Of images: same, png, jpg or webp.")] = "same",
    quality: Annotated[int, typer.Option(help="Of jpg and webp, 1 to 100.")] = 95,
    strip_metadata: Annotated[
        bool, typer.Option("--strip-metadata", help="Write no EXIF data, place or date.")
    ] = False,
    max_pixels: Annotated[int, typer.Option(help="Larger images and frames are refused.")] = 64_000_000,
    codec: Annotated[str | None, typer.Option(help="Of videos: h264 or vp9.")] = None,
    crf: Annotated[int | None, typer.Option(help="Of videos: constant quality, 0 is the best.")] = None,
    server: Annotated[str | None, typer.Option(help="Address of a `bfr serve` that restores instead.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Of such a server; or the key itself in BFR_API_KEY.")
    ] = None,
) -> None:
    """Restore the faces of photographs and videos. Writes results and report.json into the output folder."""
    from bfr.runtime.backends.registry import open_device
    from bfr.runtime.faces.background import NetworkBackground
    from bfr.runtime.faces.detect import open_detector
    from bfr.runtime.faces.photo import PhotoOptions, PhotoRestorer, read_reference
    from bfr.runtime.jobs.run import JobOptions, run_job
    from bfr.runtime.jobs.sources import find_images
    from bfr.runtime.restore.restorer import Restorer

    check_server_options(context, server=server)
    suffix = image_format if image_format == "same" else f".{image_format.removeprefix('.')}"
    options = JobOptions(
        out=out,
        seed=seed,
        format=suffix,
        quality=quality,
        metadata=not strip_metadata,
        compare=compare,
        html=html,
        resume=resume,
        max_pixels=max_pixels,
        codec=codec,
        crf=crf,
    )
    whole = PhotoOptions(cast("Selection", faces), min_eye_distance, upscale, blend, keep_colour)
    if aligned and (whole != PhotoOptions() or background or detector != "auto"):
        raise InvalidOption(
            "--aligned takes each image for a face: leave out --faces, --min-eye-distance, --upscale, --blend, "
            "--keep-colour, --detector and --background, or --aligned"
        )
    items = find_images(inputs, videos=not aligned, out=out)
    if not items:
        print("0 images")
        return
    if server is not None:
        finish(restore_remotely(server, api_key_file, items, options, None if aligned else whole, preset), out)
        return
    overrides = {
        "solver": solver,
        "start": start,
        "steps": steps,
        "eta": eta,
        "spacing": spacing,
        "guidance": guidance,
    }
    restorer = Restorer.open(
        bundle,
        backend=backend,
        preset=preset,
        precision=precision,
        batch=batch,
        threads=threads,
        device=device,
        **{name: value for name, value in overrides.items() if value is not None},
    )
    worker: Restorer | PhotoRestorer = restorer
    if not aligned:
        worker = PhotoRestorer(
            restorer,
            whole,
            detector=open_detector(detector),
            background=NetworkBackground(background, open_device(backend, threads=threads, index=device))
            if background
            else None,
        )
    if reference is not None:
        restorer.fixed = {"reference": read_reference(reference, worker, max_pixels)}
        restorer.inputs.check(1, {name: [picture] for name, picture in restorer.fixed.items()})
    with restorer, progress_bar() as bar:
        task = bar.add_task("restoring", total=len(items))
        report = run_job(
            worker, items, options, progress=lambda done, name: bar.update(task, completed=done, description=name)
        )
    finish(report, out)


def finish(report: "Report", out: Path) -> None:
    """Print what failed, then one line of counts; exit with 1 where anything failed."""
    from bfr.runtime.jobs.report import STATUSES, summary

    for entry in report.entries:
        if entry.error:
            say(f"{'failed' if entry.status == 'failed' else 'in part'}: {entry.source}: {entry.error}")
    faces = sum(entry.faces or 0 for entry in report.entries) if "photo" in report.settings else None
    counts = {status: report.count(status) for status in STATUSES}
    print(summary(counts, faces, report.facts["seconds"], out))
    if any(entry.error for entry in report.entries):
        raise typer.Exit(1)


@app.command()
def info(bundle: Annotated[Path | None, typer.Argument(help="Folder; the default is the system mini.")] = None) -> None:
    """Show what a bundle holds and how it was verified, after checking its files."""
    from bfr.runtime.bundle.bundle import Bundle, default_bundle

    opened = Bundle.open(bundle or default_bundle())
    files, manifest = opened.check_all(), opened.manifest
    print(f"{manifest.title}\nlicence    {manifest.licence.name}: {manifest.licence.notice}\nhash       {opened.hash}")
    for name, network in manifest.networks.items():
        variants = ", ".join(f"{p} (opset {v.opset})" for p, v in network.variants.items())
        cost = "" if network.gflop is None else f", {network.gflop} GFLOP a call"
        size = f"{network.parameter_count / 1e6:.2f} M parameters{cost}"
        print(f"network    {name}: {network.architecture}, {size}, {variants}")
    for name, preset in manifest.presets.items():
        print(f"preset     {name}{' (default)' * (name == manifest.default_preset)}: {preset}")
    for engine in manifest.engines:
        key = engine.key
        where = f"{key.library} {key.version}, {key.gpu}, batches {', '.join(map(str, key.buckets))}"
        print(f"engine     {engine.network} in {key.precision}: {where}, {engine.file.bytes:,} bytes")
    proofs = (check for engine in manifest.engines for check in engine.checks)  # the loop's is with every engine
    for check in dict.fromkeys((*manifest.verified, *proofs)):
        found = f"{check.psnr_db} dB, largest error {check.max_abs:.1e}"
        print(f"verified   {check.what}, {check.precision}, {check.backend}: {found}")
    print(f"files      {files} checked, all as the manifest says")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what works on this machine, and what to do about what does not."""
    from bfr.runtime.cli import doctor as checks
    from bfr.runtime.files import cache_folder

    report = checks.diagnose(cache_folder())
    print(checks.as_json(report) if as_json else checks.render(report))
