"""The commands that need more than the runtime: fetch, export, verify, bench."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from bfr.benchmarks.speed.options import BenchOptions
from bfr.export.options import ExportOptions
from bfr.runtime.cli.options import AS_JSON, OUT, QUIET, VERBOSE, Flags, expanded
from bfr.runtime.cli.places import check_new, conclude_bundle
from bfr.runtime.cli.terminal import conclude, progress_bar, say, show, tell
from bfr.runtime.errors import InputNotFound, InvalidOption, VerificationFailed
from bfr.runtime.install import need
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
    _quiet: QUIET = False,
    _verbose: VERBOSE = False,
    as_json: AS_JSON = False,
) -> None:
    """Download published weights, or the face detector `yunet`.

    They are checked, and kept as safetensors too.
    """
    told, files = say if as_json else conclude, list[dict[str, Any]]()
    if system == "yunet":
        _fetch_yunet(folder, told, files)
    else:
        _fetch_system(system, folder, told, files, accepted=accept_license)
    if as_json:
        print(json.dumps({"system": system, "files": files}, indent=1))


def _fetch_system(
    system: str,
    folder: Path | None,
    told: Callable[[str], None],
    files: list[dict[str, Any]],
    *,
    accepted: bool,
) -> None:
    need("export", "torch", "safetensors")
    from bfr.models.catalog import get_system
    from bfr.models.weights.checkpoint import check_layout, convert, load_state_dict, own_weights
    from bfr.models.weights.locate import locate
    from bfr.runtime.files import cache_folder

    spec = get_system(system)
    if spec.packaged:
        told(f"the weights of {system} come with the package; there is nothing to fetch")
        return
    if not spec.published:
        raise InvalidOption(
            f"nobody has published weights of {system}: train your own and name their folder with "
            f"`bfr export {system} --weights FOLDER`, or try the machinery with `bfr export {system} --seeded`"
        )
    (told if accepted else show)(
        f"{spec.title}\nlicence: {spec.licence.name}, {spec.licence.url}\n{spec.licence.notice}"
    )
    if not accepted:
        raise InvalidOption("read the licence above, and run this again with --accept-license if you accept it")
    target, by_hand = folder or cache_folder() / system, dict[str, str]()
    if spec.importer:
        need("sd", "diffusers")  # before gigabytes are downloaded
        for download in spec.sources:
            there = locate(target, download)
            if there and there.parent != target:  # in a tree of somebody: ours is checked again
                told(f"{there} is there")
                continue
            got = _download(download, target, files)
            told(f"{got.path.name}, {got.bytes} bytes, sha256 {got.sha256}")
        spec.importer(target, target)
        told(f"converted; next: bfr export {system} -o bundles/{system}")
        return
    for name, network in spec.networks.items():
        for part, download in network.files.items():
            if download.file in spec.by_hand:
                by_hand[download.file] = spec.by_hand[download.file]
                continue
            there = locate(target, download)
            if there and there.parent != target:
                told(f"{name}: {there} is there")
                continue
            got = _download(download, target, files)
            module = network.build().get_submodule(part)
            check_layout(module, own_weights(module, load_state_dict(got.path)), got.path)
            safe = got.path.with_suffix(".safetensors")
            convert(got.path, safe)
            told(f"{name}: {got.path.name}, {got.bytes} bytes, sha256 {got.sha256}; safe copy {safe.name}")
    for file, where in by_hand.items():
        told(f"{file} cannot be downloaded for you: {where}. Put it into {target}")
    told(f"next: bfr export {system} -o bundles/{system}")


@expanded
def export(
    system: Annotated[
        str,
        typer.Argument(
            help="mini, difface, difface-identity, difface-inpainting, pgdiff, pgdiff-reference, osdface, dr2, "
            "diffbfr, diffmac or clr-face."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new bundle.")],
    options: Annotated[ExportOptions, Flags(names={"time_table": ("--time-table/--no-time-table",)})],
    weights: Annotated[Path | None, typer.Option(help="Folder of the checkpoints; default: fetched ones.")] = None,
    seeded: Annotated[
        bool,
        typer.Option("--seeded", help="Weights made from their names, for tests and timings: nothing is restored."),
    ] = False,
    _quiet: QUIET = False,
    _verbose: VERBOSE = False,
    as_json: AS_JSON = False,
) -> None:
    """Export a system to ONNX, verified against PyTorch.

    The bundle appears only when it is whole and agrees with eager float32.
    """
    if seeded and weights:
        raise InvalidOption("--seeded makes weights of its own: leave out --weights, or --seeded")
    check_new(out, replace=options.replace)
    if weights is not None and not weights.is_dir():
        raise InputNotFound(f"there is no folder {weights}: name the one of the checkpoints with --weights")
    need("export", "torch", "onnx", "onnxscript", "safetensors", "onnxruntime")
    from bfr.export.bundle import export_system
    from bfr.models.catalog import get_system
    from bfr.models.weights.locate import usable_weights
    from bfr.runtime.files import cache_folder

    spec = get_system(system)
    source = weights or spec.packaged or cache_folder() / system
    with TemporaryDirectory() as scratch:
        if seeded:
            from bfr.models.weights.seeded import write_seeded

            spec, source = spec.untrained(), Path(scratch)
            write_seeded(spec, source)
        source = usable_weights(spec, source, Path(scratch), tell)
        bundle = export_system(spec, source, out, options, progress=tell)
    conclude_bundle(bundle, "exported and verified", as_json=as_json)


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
    _quiet: QUIET = False,
    _verbose: VERBOSE = False,
    as_json: AS_JSON = False,
) -> None:
    """Compare a bundle with eager float32 PyTorch.

    Every network and the whole loop are, in every precision of the bundle; int8 on the CPU, which it is for, whatever
    the backend. Where a network is below its floor, the message names the layer; --explain does so where none is, too.
    Both need the extra `explain`.
    """
    need("export", "torch", "safetensors", "onnxruntime")
    from bfr.export.verify.compare import open_reference
    from bfr.export.verify.compare import verify as compare
    from bfr.export.verify.explain import PACKAGES, Explanation, explain_all
    from bfr.runtime.backends.cuda.device import GpuDevice
    from bfr.runtime.backends.registry import open_device
    from bfr.runtime.bundle.bundle import Bundle
    from bfr.runtime.bundle.machine import MachineFiles
    from bfr.runtime.restore.plan import make_plan

    if explain:
        need("explain", *PACKAGES)
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
                checks += compare(whole, reference, precision, device=where, preset=preset, gpu=gpu, progress=tell)
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
            conclude(str(one))
        for check in checks:
            found = f"{check.psnr_db:6.1f} dB (floor {check.floor_db:.0f}), largest {check.max_abs:.1e}"
            conclude(f"{check.what}, {check.precision}, {check.backend}: {found}, relative {check.relative:.1e}")
    if failed:
        raise failed


@expanded
def bench(
    options: Annotated[BenchOptions, Flags(argument="bundle", names=OUT, negative={"cold": "--no-cold"})],
    others: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[OTHER]...", help="More bundles: each is measured, and one table has all."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="3 repeats after 1 call: a trial, not a result.")] = False,
    _quiet: QUIET = False,
    _verbose: VERBOSE = False,
    as_json: AS_JSON = False,
) -> None:
    """Measure latency, throughput, memory and drift of backends.

    They take turns with eager PyTorch where that is there. Names for --backends: eager-cpu, eager-cuda, eager-tf32,
    eager-half, and those of `bfr restore --backend`, each with :fp16 or :int8 behind it, +graph or +nograph.
    """
    from bfr.benchmarks.speed.compare import as_table, read_bench
    from bfr.benchmarks.speed.contender import split_name
    from bfr.runtime.bundle.bundle import Bundle, default_bundle

    bundles = [options.bundle or default_bundle(), *(others or ())]
    for bundle in map(Bundle.open, bundles):
        bundle.preset(options.preset if bundle.denoisers or not others else None)
        for name in options.backends:
            bundle.precision(split_name(name).precision)
    if others and options.compare:
        raise InvalidOption("--compare is for one bundle: leave out the others, or --compare")
    old = None if options.compare is None else read_bench(options.compare)
    need("bench", "torch", "safetensors", "matplotlib", "onnxruntime")
    from bfr.benchmarks.speed.bench import bench as measure
    from bfr.benchmarks.speed.several import bench_several

    if quick:
        options = options.model_copy(update={"repeats": 3, "warmup": 1})
    report = bench_several(bundles, options, tell) if others else measure(options, tell)
    found = report.with_name("bench.json").read_text("utf-8")
    if as_json:
        print(found)
        return
    conclude(report.read_text("utf-8"))
    if old is not None:
        conclude(as_table(old, json.loads(found)))


def _download(weights: Any, folder: Path, files: list[dict[str, Any]]) -> Any:
    """Fetch one file under a progress bar, and add what it is to `files`."""
    from bfr.models.weights.fetch import fetch as download

    with progress_bar(download=True) as bar:
        task = bar.add_task(weights.file, total=None)
        got = download(weights, folder, progress=lambda done, total: bar.update(task, completed=done, total=total))
    files.append({"path": str(got.path), "bytes": got.bytes, "sha256": got.sha256})
    if weights.sha256 is None:
        say(f"{weights.file}: no sha256 of it is known. What came is recorded, and what comes later must be the same")
    return got


def _fetch_yunet(folder: Path | None, told: Callable[[str], None], files: list[dict[str, Any]]) -> None:
    from bfr.models.weights.fetch import Download
    from bfr.runtime.faces.detect import YUNET_BYTES, YUNET_FILE, YUNET_SHA256, YUNET_URL
    from bfr.runtime.files import cache_folder

    target = folder or cache_folder() / "yunet"
    told("YuNet, OpenCV's face detector\nlicence: MIT, https://github.com/opencv/opencv_zoo")
    got = _download(Download(YUNET_URL, YUNET_FILE, YUNET_BYTES, YUNET_SHA256), target, files)
    told(f"{got.path.name}, {got.bytes} bytes, sha256 {got.sha256}; `bfr restore` uses it from now on")
