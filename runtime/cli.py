"""The command line. Each command imports what it needs when it runs: `bfr restore` never sees torch."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from bfr.runtime.cli_tools import tools
from bfr.runtime.errors import BfrError, InvalidOption
from bfr.runtime.terminal import progress_bar, say

app = typer.Typer(
    help="Diffusion-based blind face restoration, deployed: export, verify, restore, benchmark.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(tools)


def main() -> None:
    """Run the command line; a BfrError is printed as one message and decides the exit status."""
    try:
        app()
    except BfrError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted; finished results stay where they are")
        sys.exit(130)


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
    inputs: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")],
    aligned: Annotated[bool, typer.Option("--aligned", help="The images are aligned faces, nothing else.")] = False,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; the default is the system mini.")] = None,
    backend: Annotated[str, typer.Option(help="auto, onnxruntime-cpu or onnxruntime-cuda.")] = "auto",
    preset: Annotated[str, typer.Option(help="A preset of the bundle, see `bfr info`.")] = "reference",
    start: Annotated[int | None, typer.Option(help="Instead of the preset's: N, the number of steps.")] = None,
    eta: Annotated[float | None, typer.Option(help="Instead of the preset's: 0 (deterministic) to 1.")] = None,
    spacing: Annotated[str | None, typer.Option(help="Instead of the preset's: kept timesteps, as ddim250.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, or fp16 where the bundle has it.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of the noise, 0 to 4294967295.")] = 12345,
    batch: Annotated[int, typer.Option(help="Images that go through the networks together.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU backend.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Write a before/after picture beside each result.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Skip images whose result is there already.")] = False,
    suffix: Annotated[str, typer.Option("--format", help="png, jpg or webp.")] = "png",
    quality: Annotated[int, typer.Option(help="Of jpg and webp, 1 to 100.")] = 95,
) -> None:
    """Restore aligned faces. Writes results and report.json into the output folder."""
    from bfr.runtime.folder import find_images
    from bfr.runtime.job import JobOptions, run_job
    from bfr.runtime.restorer import Restorer

    if not aligned:
        raise InvalidOption(
            "whole photographs are not supported yet: crop and align the faces as in FFHQ, and say so with --aligned"
        )
    items = find_images(inputs)
    if not items:
        print("0 images")
        return
    overrides = {"start": start, "eta": eta, "spacing": spacing}
    restorer = Restorer.open(
        bundle,
        backend=backend,
        preset=preset,
        precision=precision,
        batch=batch,
        threads=threads,
        **{name: value for name, value in overrides.items() if value is not None},
    )
    options = JobOptions(
        out=out, seed=seed, suffix=f".{suffix.removeprefix('.')}", quality=quality, compare=compare, resume=resume
    )
    with restorer, progress_bar() as bar:
        task = bar.add_task("restoring", total=len(items))
        report = run_job(
            restorer, items, options, progress=lambda done, name: bar.update(task, completed=done, description=name)
        )
    for entry in report.entries:
        if entry.status == "failed":
            say(f"failed: {entry.source}: {entry.error}")
    counts = ", ".join(f"{report.count(s)} {s}" for s in ("restored", "skipped", "failed") if report.count(s))
    print(f"{len(items)} image{'s' * (len(items) != 1)}: {counts}, in {report.facts['seconds']:.1f} s; see {out}")
    if report.count("failed"):
        raise typer.Exit(1)


@app.command()
def info(bundle: Annotated[Path | None, typer.Argument(help="Folder; the default is the system mini.")] = None) -> None:
    """Show what a bundle holds and how it was verified, after checking its files."""
    from bfr.runtime.bundle import Bundle, default_bundle

    opened = Bundle.open(bundle or default_bundle())
    files, manifest = opened.check_all(), opened.manifest
    print(f"{manifest.title}\nlicence    {manifest.licence.name}: {manifest.licence.notice}\nhash       {opened.hash}")
    for name, network in manifest.networks.items():
        variants = ", ".join(f"{p} (opset {v.opset})" for p, v in network.variants.items())
        size = f"{network.parameter_count / 1e6:.2f} M parameters, {network.gflop} GFLOP a call"
        print(f"network    {name}: {network.architecture}, {size}, {variants}")
    for name, preset in manifest.presets.items():
        settings = ", ".join(f"{key} {value}" for key, value in preset.model_dump().items())
        print(f"preset     {name}: {settings}")
    for check in manifest.verified:
        found = f"{check.psnr_db} dB, largest error {check.max_abs:.1e}"
        print(f"verified   {check.what}, {check.precision}, {check.backend}: {found}")
    print(f"files      {files} checked, all as the manifest says")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what works on this machine, and what to do about what does not."""
    from bfr.models.fetch import cache_folder
    from bfr.runtime import doctor as checks

    report = checks.diagnose(cache_folder())
    print(checks.as_json(report) if as_json else checks.render(report))
