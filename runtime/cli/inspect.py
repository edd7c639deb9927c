"""`bfr info` and `bfr doctor`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bfr.runtime.cli.options import AS_JSON
from bfr.runtime.cli.terminal import show

if TYPE_CHECKING:
    from bfr.runtime.bundle.bundle import Bundle


def info(
    bundle: Annotated[
        Path | None, typer.Argument(help="Folder, or mini, or hf://owner/name; the default is the system mini.")
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Show what a bundle takes and holds, what this machine built of it, and how it was verified.

    Its files are checked first.
    """
    from bfr.runtime.bundle.bundle import Bundle, locate
    from bfr.runtime.bundle.machine import MachineFiles

    opened = Bundle.open(locate(bundle))
    files, manifest = opened.check_all(), opened.manifest
    record = MachineFiles(opened.hash).read()
    proofs = (check for engine in record.engines for check in engine.checks)  # the loop's is with every engine
    checks = list(dict.fromkeys((*manifest.verified, *record.verified, *proofs)))
    presets = _presets(opened)
    if as_json:
        kept = {"system", "title", "image_size", "inputs", "batches", "weight", "licence", "networks", "default_preset"}
        found = manifest.model_dump(mode="json", include=kept)
        found |= {"folder": str(opened.folder), "hash": opened.hash, "files": files, "presets": presets}
        found["engines"] = [engine.model_dump(mode="json") for engine in record.engines]
        found["verified"] = [check.model_dump(mode="json") for check in checks]
        print(json.dumps(found, indent=1))
        return
    show(f"{manifest.title}\nlicence    {manifest.licence.name}: {manifest.licence.notice}\nhash       {opened.hash}")
    more = "".join(f", and a {one.name} (--{one.name})" for one in manifest.inputs)
    show(f"takes      aligned faces of {manifest.image_size}x{manifest.image_size} pixels, others are resized{more}")
    sizes = "any" if manifest.batches is None else ", ".join(map(str, manifest.batches))
    show(f"batches    {sizes} (--batch)")
    if manifest.weight is not None:
        show(f"weight     {manifest.weight:g} where none is given (--weight)")
    if opened.denoisers:
        show(
            f"timesteps  {manifest.schedule.timesteps} in training; a lower start (t, --start) keeps more of the input"
        )
    for name, network in manifest.networks.items():
        variants = ", ".join(f"{p} (opset {v.opset})" for p, v in network.variants.items())
        cost = "" if network.gflop is None else f", {network.gflop} GFLOP a call"
        size = f"{network.parameter_count / 1e6:.2f} M parameters{cost}"
        show(f"network    {name}: {network.architecture}, {size}, {variants}")
    for name, preset in presets.items():
        calls = " and ".join(f"{count} of {network}" for network, count in preset["calls"].items())
        cost = "" if preset["gflop"] is None else f", {preset['gflop']:.0f} GFLOP"
        default = " (default)" * (name == manifest.default_preset)
        show(f"preset     {name}{default}: {preset['text']}; a face takes {calls}{cost}")
    for engine in record.engines:
        key = engine.key
        where = f"{key.library} {key.version}, {key.gpu}, batches {', '.join(map(str, key.buckets))}"
        show(f"engine     {engine.network} in {key.precision}: {where}, {engine.file.bytes:,} bytes")
    for check in checks:
        agreement = f"{check.psnr_db} dB, largest error {check.max_abs:.1e}"
        extent = ", quick" * (check.extent == "quick")
        show(f"verified   {check.what}, {check.precision}, {check.backend}: {agreement}{extent}")
    show(f"files      {files} checked, all as the manifest says")


def _presets(bundle: "Bundle") -> dict[str, dict[str, Any]]:
    """Name -> what each preset is in words, how often it calls each network for a face, and GFLOP where known."""
    from bfr.runtime.restore.plan import make_plan

    networks, found = bundle.manifest.networks, {}
    for name, preset in bundle.manifest.presets.items():
        calls = make_plan(bundle, preset).calls()
        costs = [networks[network].gflop for network in calls]
        known = [cost * count for cost, count in zip(costs, calls.values(), strict=True) if cost is not None]
        whole = sum(known) if len(known) == len(costs) else None
        found[name] = {"text": str(preset), "calls": calls, "gflop": whole}
    return found


def doctor(
    as_json: AS_JSON = False,
) -> None:
    """Show what works on this machine, and what to do about what does not."""
    from bfr.runtime.cli import doctor as checks
    from bfr.runtime.files import cache_folder

    report = checks.diagnose(cache_folder())
    show(checks.as_json(report) if as_json else checks.render(report))
