"""The commands that need more than the runtime: fetch, export, verify, bench."""

import json
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from bfr.benchmarks.speed.options import BenchOptions
from bfr.export.options import ExportOptions
from bfr.runtime.cli.options import OUT, Flags, expanded
from bfr.runtime.cli.terminal import progress_bar, say
from bfr.runtime.errors import InvalidOption, MissingDependency, VerificationFailed
from bfr.runtime.install import install_command
from bfr.runtime.restore.options import OpenOptions


def fetch(
    system: Annotated[
        str,
        typer.Argument(
            help="difface, difface-identity, difface-inpainting, pgdiff, pgdiff-reference, osdface, or yunet (the face "
            "detector)."
        ),
    ],
    accept_license: Annotated[bool, typer.Option("--accept-license", help="You have read and accept it.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where to; the default is bfr's cache folder.")] = None,
) -> None:
    """Download a system's published weights, check them, and keep a safetensors copy; or the face detector `yunet`."""
    if system == "yunet":
        _fetch_yunet(folder)
        return
    _need("export", "torch", "safetensors")
    from bfr.models.catalog import get_system
    from bfr.models.weights.checkpoint import check_layout, convert, load_state_dict, own_weights
    from bfr.models.weights.locate import locate
    from bfr.runtime.files import cache_folder

    spec = get_system(system)
    if spec.packaged:
        print(f"the weights of {system} come with the package; there is nothing to fetch")
        return
    if not spec.published:
        raise InvalidOption(
            f"nobody has published weights of {system}: train your own and name their folder with "
            f"`bfr export {system} --weights FOLDER`, or try the machinery with `bfr export {system} --seeded`"
        )
    print(f"{spec.title}\nlicence: {spec.licence.name}, {spec.licence.url}\n{spec.licence.notice}")
    if not accept_license:
        raise InvalidOption("read the licence above, and run this again with --accept-license if you accept it")
    target, by_hand = folder or cache_folder() / system, dict[str, str]()
    if spec.importer:
        _need("sd", "diffusers")  # before gigabytes are downloaded
        for download in spec.sources:
            there = locate(target, download)
            if there and there.parent != target:  # in a tree of somebody: ours is checked again
                print(f"{there} is there")
                continue
            got = _download(download, target)
            print(f"{got.path.name}, {got.bytes} bytes, sha256 {got.sha256}")
        spec.importer(target, target)
        print(f"converted; next: bfr export {system} -o bundles/{system}")
        return
    for name, network in spec.networks.items():
        for part, download in network.files.items():
            if download.file in spec.by_hand:
                by_hand[download.file] = spec.by_hand[download.file]
                continue
            there = locate(target, download)
            if there and there.parent != target:
                print(f"{name}: {there} is there")
                continue
            got = _download(download, target)
            module = network.build().get_submodule(part)
            check_layout(module, own_weights(module, load_state_dict(got.path)), got.path)
            safe = got.path.with_suffix(".safetensors")
            convert(got.path, safe)
            print(f"{name}: {got.path.name}, {got.bytes} bytes, sha256 {got.sha256}; safe copy {safe.name}")
    for file, where in by_hand.items():
        print(f"{file} cannot be downloaded for you: {where}. Put it into {target}")
    print(f"next: bfr export {system} -o bundles/{system}")


@expanded
def export(
    system: Annotated[
        str,
        typer.Argument(
            help="mini, difface, difface-identity, difface-inpainting, pgdiff, pgdiff-reference, osdface, diffbfr or "
            "clr-face."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new bundle.")],
    options: Annotated[ExportOptions, Flags(names={"time_table": ("--time-table/--no-time-table",)})],
    weights: Annotated[Path | None, typer.Option(help="Folder of the checkpoints; default: fetched ones.")] = None,
    seeded: Annotated[
        bool,
        typer.Option("--seeded", help="Weights made from their names, for tests and timings: nothing is restored."),
    ] = False,
) -> None:
    """Export a system to ONNX and verify it against eager float32; the bundle appears only when it is whole."""
    _need("export", "torch", "onnx", "onnxscript", "safetensors", "onnxruntime")
    from bfr.export.bundle import export_system
    from bfr.models.catalog import get_system
    from bfr.models.weights.locate import usable_weights
    from bfr.runtime.files import cache_folder

    if seeded and weights:
        raise InvalidOption("--seeded makes weights of its own: leave out --weights, or --seeded")
    spec = get_system(system)
    source = weights or spec.packaged or cache_folder() / system
    with TemporaryDirectory() as scratch:
        if seeded:
            from bfr.models.weights.seeded import write_seeded

            spec, source = spec.untrained(), Path(scratch)
            write_seeded(spec, source)
        source = usable_weights(spec, source, Path(scratch), say)
        bundle = export_system(spec, source, out, options, progress=say)
    print(f"{bundle.folder}: exported and verified, hash {bundle.hash}")


@expanded
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    opened: Annotated[OpenOptions, Flags(only=("backend", "device"))],
    preset: Annotated[str, typer.Option(help="The preset whose loop is run.")] = "reference",
    record: Annotated[
        bool,
        typer.Option("--record", help="Keep the result on this machine: `auto` takes the fastest verified backend."),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Name the layers that part from float32, their range and their error.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare every network and the whole loop with eager float32 PyTorch, in every precision of the bundle.

    int8 is compared on the CPU, which it is for, whatever the backend. Where a network is below its floor, the message
    names the layer; --explain does so where none is, too. Both need the extra `explain`.
    """
    _need("export", "torch", "safetensors", "onnxruntime")
    from bfr.export.verify.compare import open_reference
    from bfr.export.verify.compare import verify as compare
    from bfr.export.verify.explain import Explanation, explain_all, need_polygraphy
    from bfr.runtime.backends.cuda.device import GpuDevice
    from bfr.runtime.backends.registry import open_device
    from bfr.runtime.bundle.bundle import Bundle
    from bfr.runtime.bundle.machine import MachineFiles
    from bfr.runtime.restore.plan import make_plan

    if explain:
        need_polygraphy()
    whole = Bundle.open(bundle)
    whole.check_all()
    reference = open_reference(whole, opened.device)
    plan = make_plan(whole, whole.preset(preset if whole.denoisers else None))
    checks, failed = [], None
    explained: list[Explanation] = []
    for precision in whole.precisions:
        name = "onnxruntime-cpu" if precision == "int8" else opened.backend  # int8 is for the CPU
        with closing(open_device(name, whole, precision=precision, index=opened.device)) as where:
            gpu = where.facts.name if isinstance(where, GpuDevice) else None
            if explain:
                explained += explain_all(whole, plan, reference, precision, where.name)
            try:
                checks += compare(whole, reference, precision, device=where, preset=preset, gpu=gpu, progress=say)
            except VerificationFailed as error:
                failed = error
                break
    if record and not failed:
        MachineFiles(whole.hash).record_checks(checks)
    if as_json:
        listed: Any = [check.model_dump() for check in checks]
        if explain:
            listed = {"checks": listed, "explained": [one.as_json() for one in explained]}
        print(json.dumps(listed, indent=1))
    else:
        for one in explained:
            print(one)
        for check in checks:
            found = f"{check.psnr_db:6.1f} dB (floor {check.floor_db:.0f}), largest {check.max_abs:.1e}"
            print(f"{check.what}, {check.precision}, {check.backend}: {found}, relative {check.relative:.1e}")
    if failed:
        raise failed


@expanded
def bench(
    options: Annotated[BenchOptions, Flags(argument="bundle", names=OUT, negative={"cold": "--no-cold"})],
    quick: Annotated[bool, typer.Option("--quick", help="3 repeats after 1 call: a trial, not a result.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print bench.json instead of the tables.")] = False,
) -> None:
    """Measure every backend against eager PyTorch, interleaved: latency, throughput, memory, energy, drift."""
    _need("bench", "torch", "safetensors", "matplotlib", "onnxruntime")
    from bfr.benchmarks.speed.bench import bench as measure

    if quick:
        options = options.model_copy(update={"repeats": 3, "warmup": 1})
    report = measure(options, say)
    print((report.with_name("bench.json") if as_json else report).read_text())


def _need(extra: str, *packages: str) -> None:
    """Raise MissingDependency with the extra to install, unless all packages are there."""
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing == ["onnxruntime"]:
        extra = "cpu"
    if missing:
        raise MissingDependency(f"{', '.join(missing)} not installed: {install_command(extra)}")


def _download(weights: Any, folder: Path) -> Any:
    """Fetch one file under a progress bar."""
    from bfr.models.weights.fetch import fetch as download

    with progress_bar(download=True) as bar:
        task = bar.add_task(weights.file, total=None)
        got = download(weights, folder, progress=lambda done, total: bar.update(task, completed=done, total=total))
    if weights.sha256 is None:
        say(f"{weights.file}: no sha256 of it is known. What came is recorded, and what comes later must be the same")
    return got


def _fetch_yunet(folder: Path | None) -> None:
    from bfr.models.weights.fetch import Download
    from bfr.runtime.faces.detect import YUNET_BYTES, YUNET_FILE, YUNET_SHA256, YUNET_URL
    from bfr.runtime.files import cache_folder

    target = folder or cache_folder() / "yunet"
    print("YuNet, OpenCV's face detector\nlicence: MIT, https://github.com/opencv/opencv_zoo")
    got = _download(Download(YUNET_URL, YUNET_FILE, YUNET_BYTES, YUNET_SHA256), target)
    print(f"{got.path.name}, {got.bytes} bytes, sha256 {got.sha256}; `bfr restore` uses it from now on")
