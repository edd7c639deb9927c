"""The command line. Each command imports what it needs when it runs: `bfr restore` never sees torch."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bfr.runtime.errors import BfrError, InvalidOption, MissingDependency

app = typer.Typer(
    help="Diffusion-based blind face restoration, deployed: export, verify, restore, benchmark.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

BundleArgument = Annotated[Path, typer.Argument(help="Folder of the bundle.")]


def main() -> None:
    """Run the command line; a BfrError is printed as one message and decides the exit status."""
    try:
        app()
    except BfrError as error:
        errors.print(f"error: {error}", style="red", markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted; finished results stay where they are")
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
    with restorer, _progress() as bar:
        task = bar.add_task("restoring", total=len(items))
        report = run_job(
            restorer, items, options, progress=lambda done, name: bar.update(task, completed=done, description=name)
        )
    for entry in report.entries:
        if entry.status == "failed":
            errors.print(f"failed: {entry.source}: {entry.error}", markup=False)
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


@app.command()
def fetch(
    system: Annotated[str, typer.Argument(help="A system whose weights are published, as difface.")],
    accept_license: Annotated[bool, typer.Option("--accept-license", help="You have read and accept it.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where to; the default is bfr's cache folder.")] = None,
) -> None:
    """Download a system's published weights, check them, and keep a safetensors copy."""
    _need("export", "torch", "safetensors")
    from bfr.models.catalog import get_system
    from bfr.models.checkpoint import check_layout, convert, load_state_dict
    from bfr.models.fetch import cache_folder

    spec = get_system(system)
    if spec.packaged:
        print(f"the weights of {system} come with the package; there is nothing to fetch")
        return
    print(f"{spec.title}\nlicence: {spec.licence.name}, {spec.licence.url}\n{spec.licence.notice}")
    if not accept_license:
        raise InvalidOption("read the licence above, and run this again with --accept-license if you accept it")
    target = folder or cache_folder() / system
    for name, network in spec.networks.items():
        got = _download(network.weights, target)
        check_layout(network.build(), load_state_dict(got.path), got.path)
        safe = got.path.with_suffix(".safetensors")
        convert(got.path, safe)
        print(f"{name}: {got.path.name}, {got.bytes} bytes, sha256 {got.sha256}; safe copy {safe.name}")
    print(f"next: bfr export {system} -o bundles/{system}")


@app.command()
def export(
    system: Annotated[str, typer.Argument(help="difface or mini.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new bundle.")],
    weights: Annotated[Path | None, typer.Option(help="Folder of the checkpoints; default: fetched ones.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32 always; give fp16 to add it.")] = None,
    opset: Annotated[int, typer.Option(help="18, 20, 21 or 23; JetPack 6 needs 20 or less.")] = 21,
    learned_variance: Annotated[bool, typer.Option(help="DDPM with the learned variance, instead of DDIM.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is there.")] = False,
) -> None:
    """Export a system to ONNX and verify it against eager float32; the bundle appears only when it is whole."""
    _need("export", "torch", "onnx", "onnxscript", "safetensors", "onnxruntime")
    from bfr.export.bundle import export_system
    from bfr.models.catalog import get_system
    from bfr.models.fetch import cache_folder

    spec = get_system(system)
    source = weights or spec.packaged or cache_folder() / system
    precisions: Any = tuple(dict.fromkeys(["fp32", *(precision or [])]))
    bundle = export_system(
        spec,
        source,
        out,
        precisions=precisions,
        opset=opset,
        learned_variance=learned_variance,
        replace=replace,
        progress=lambda text: errors.print(text, markup=False),
    )
    print(f"{bundle.folder}: exported and verified, hash {bundle.hash}")


@app.command()
def verify(
    bundle: BundleArgument,
    backend: Annotated[str, typer.Option(help="auto, onnxruntime-cpu or onnxruntime-cuda.")] = "auto",
    preset: Annotated[str, typer.Option(help="The preset whose loop is run.")] = "reference",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare every network and the whole loop with eager float32 PyTorch, in every precision of the bundle."""
    _need("export", "torch", "safetensors", "onnxruntime")
    from bfr.export.reference import load_reference
    from bfr.export.verify import verify as compare
    from bfr.runtime.bundle import Bundle

    opened = Bundle.open(bundle)
    opened.check_all()
    reference = load_reference(opened)
    checks = [
        check
        for precision in opened.precisions
        for check in compare(
            opened,
            reference,
            precision,
            backend=backend,
            preset=preset,
            progress=lambda text: errors.print(text, markup=False),
        )
    ]
    if as_json:
        print(json.dumps([check.model_dump() for check in checks], indent=1))
        return
    for check in checks:
        found = f"{check.psnr_db:6.1f} dB (floor {check.floor_db:.0f}), largest {check.max_abs:.1e}"
        print(f"{check.what}, {check.precision}, {check.backend}: {found}, relative {check.relative:.1e}")


@app.command()
def bench(
    bundle: Annotated[Path | None, typer.Argument(help="Folder; the default is the system mini.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for bench.json, bench.md and bench.png.")] = Path("bench"),
    backends: Annotated[str, typer.Option(help="Separated by commas; default: what works here.")] = "",
    batches: Annotated[str, typer.Option(help="Images a call, separated by commas.")] = "1",
    preset: Annotated[str, typer.Option(help="A preset of the bundle.")] = "reference",
    start: Annotated[int | None, typer.Option(help="Number of steps, instead of the preset's.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed calls of each backend and batch.")] = 20,
    threads: Annotated[int | None, typer.Option(help="Of the CPU, for all; default: PyTorch's choice.")] = None,
) -> None:
    """Measure every backend against eager PyTorch, interleaved: latency, throughput, memory, drift."""
    _need("bench", "torch", "safetensors", "matplotlib", "onnxruntime")
    from bfr.benchmarks.bench import BenchConfig
    from bfr.benchmarks.bench import bench as measure
    from bfr.runtime.bundle import default_bundle

    try:
        sizes = tuple(int(batch) for batch in batches.split(","))
    except ValueError as error:
        raise InvalidOption(f"batches {batches!r}: numbers separated by commas are needed, as 1,2,4") from error
    config = BenchConfig(
        bundle=bundle or default_bundle(),
        out=out,
        backends=tuple(name for name in backends.split(",") if name),
        batches=sizes,
        preset=preset,
        start=start,
        repeats=repeats,
        threads=threads,
    )
    print(measure(config, lambda text: errors.print(text, markup=False)).read_text())


def _need(extra: str, *packages: str) -> None:
    """Raise MissingDependency with the extra to install, unless all packages are there."""
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing == ["onnxruntime"]:
        extra = "cpu"
    if missing:
        raise MissingDependency(f'{", ".join(missing)} not installed: pip install "bfr-runtime[{extra}]"')


def _download(weights: Any, folder: Path) -> Any:
    """Fetch one file under a progress bar."""
    from bfr.models.fetch import fetch as download

    with _progress(download=True) as bar:
        task = bar.add_task(weights.file, total=None)
        return download(weights, folder, progress=lambda done, total: bar.update(task, completed=done, total=total))


def _progress(*, download: bool = False) -> Progress:
    from rich.progress import DownloadColumn, TransferSpeedColumn

    amount = (DownloadColumn(), TransferSpeedColumn()) if download else (MofNCompleteColumn(),)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=errors,
    )
