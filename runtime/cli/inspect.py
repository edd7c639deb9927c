"""`bfr info` and `bfr doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from bfr.runtime.cli.terminal import show


def info(bundle: Annotated[Path | None, typer.Argument(help="Folder; the default is the system mini.")] = None) -> None:
    """Show what a bundle holds, what this machine built of it, and how it was verified, after checking its files."""
    from bfr.runtime.bundle.bundle import Bundle, default_bundle
    from bfr.runtime.bundle.machine import MachineFiles

    opened = Bundle.open(bundle or default_bundle())
    files, manifest = opened.check_all(), opened.manifest
    show(f"{manifest.title}\nlicence    {manifest.licence.name}: {manifest.licence.notice}\nhash       {opened.hash}")
    for name, network in manifest.networks.items():
        variants = ", ".join(f"{p} (opset {v.opset})" for p, v in network.variants.items())
        cost = "" if network.gflop is None else f", {network.gflop} GFLOP a call"
        size = f"{network.parameter_count / 1e6:.2f} M parameters{cost}"
        show(f"network    {name}: {network.architecture}, {size}, {variants}")
    for name, preset in manifest.presets.items():
        show(f"preset     {name}{' (default)' * (name == manifest.default_preset)}: {preset}")
    record = MachineFiles(opened.hash).read()
    for engine in record.engines:
        key = engine.key
        where = f"{key.library} {key.version}, {key.gpu}, batches {', '.join(map(str, key.buckets))}"
        show(f"engine     {engine.network} in {key.precision}: {where}, {engine.file.bytes:,} bytes")
    proofs = (check for engine in record.engines for check in engine.checks)  # the loop's is with every engine
    for check in dict.fromkeys((*manifest.verified, *record.verified, *proofs)):
        found = f"{check.psnr_db} dB, largest error {check.max_abs:.1e}"
        extent = ", quick" * (check.extent == "quick")
        show(f"verified   {check.what}, {check.precision}, {check.backend}: {found}{extent}")
    show(f"files      {files} checked, all as the manifest says")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what works on this machine, and what to do about what does not."""
    from bfr.runtime.cli import doctor as checks
    from bfr.runtime.files import cache_folder

    report = checks.diagnose(cache_folder())
    show(checks.as_json(report) if as_json else checks.render(report))
