"""`bfr info`."""

import json
from typing import TYPE_CHECKING, Annotated, Any

from bfr.runtime.cli.options import AS_JSON, Flags, expanded
from bfr.runtime.cli.terminal import say, show, tell
from bfr.runtime.errors import BackendUnavailable, BundleInvalid, MissingDependency
from bfr.runtime.restore.options import OpenOptions

if TYPE_CHECKING:
    from pathlib import Path

    from bfr.runtime.bundle.bundle import Bundle
    from bfr.runtime.bundle.manifest import Preset
    from bfr.runtime.jobs.speed import Speed


@expanded
def info(
    opened: Annotated[
        OpenOptions, Flags(only=("bundle", "backend", "precision", "batch", "threads", "device"), argument="bundle")
    ],
    as_json: AS_JSON = False,
) -> None:
    """Show a bundle, and what its presets cost on this machine.

    Checks the bundle's files first. Measures the seconds per face once for each backend, and caches them.
    """
    from bfr.runtime.bundle.bundle import Bundle, default_bundle
    from bfr.runtime.bundle.machine import MachineFiles

    if opened.bundle is not None and opened.bundle.is_file():
        _show_file(opened.bundle, as_json=as_json)
        return
    bundle = Bundle.open(opened.bundle or default_bundle())
    files, manifest = bundle.check_all(), bundle.manifest
    record = MachineFiles(bundle.hash).read()
    proofs = (check for engine in record.engines for check in engine.checks)  # the loop's is with every engine
    checks = list(dict.fromkeys((*manifest.verified, *record.verified, *proofs)))
    presets = _presets(bundle, opened)
    if as_json:
        kept = {"system", "title", "image_size", "inputs", "batches", "weight", "licence", "networks", "default_preset"}
        found = manifest.model_dump(mode="json", include=kept)
        found |= {"folder": str(bundle.folder), "hash": bundle.hash, "files": files, "presets": presets}
        found["engines"] = [engine.model_dump(mode="json") for engine in record.engines]
        found["verified"] = [check.model_dump(mode="json") for check in checks]
        print(json.dumps(found, indent=1))
        return
    show(f"{manifest.title}\nlicence    {manifest.licence.name}: {manifest.licence.notice}\nhash       {bundle.hash}")
    more = "".join(f", and a {one.name} (--{one.name})" for one in manifest.inputs)
    show(f"takes      aligned faces of {manifest.image_size}x{manifest.image_size} pixels, others are resized{more}")
    made = [t.shape[-1] for network in manifest.networks.values() for t in network.outputs if t.name == manifest.result]
    if made and made[-1] != manifest.image_size:
        show(f"makes      {made[-1]}x{made[-1]}; faces come back at their own size, an enlarger's tiles at this one")
    sizes = "any" if manifest.batches is None else ", ".join(map(str, manifest.batches))
    show(f"batches    {sizes} (--batch)")
    if manifest.weight is not None:
        show(f"weight     {manifest.weight:g} where none is given (--weight)")
    if bundle.denoisers:
        show(
            f"timesteps  {manifest.schedule.timesteps} in training; a lower start (t, --start) keeps more of the input"
        )
    for name, network in manifest.networks.items():
        variants = ", ".join(f"{p} (opset {v.opset})" for p, v in network.variants.items())
        cost = "" if network.gflop is None else f", {network.gflop} GFLOP a call"
        size = f"{network.parameter_count / 1e6:.2f} M parameters{cost}"
        show(f"network    {name}: {network.architecture}, {size}, {variants}")
        if file := network.parameters.get("input_range"):
            show(f"           {_file_words(network.parameters, file)}")
        if network.source.sha256:
            show(f"           from {network.source.file}, sha256 {network.source.sha256}")
    for name, preset in presets.items():
        calls = " and ".join(f"{count} of {network}" for network, count in preset["calls"].items())
        cost = "" if preset["gflop"] is None else f", {preset['gflop']:.0f} GFLOP"
        default = " (default)" * (name == manifest.default_preset)
        show(f"preset     {name}{default}: {preset['words']}\n           {preset['text']}; {calls}{cost}")
    if len(presets) > 1:
        show("           see them side by side: bfr restore old.jpg --html --preset " + ",".join(presets))
    for engine in record.engines:
        key = engine.key
        where = f"{key.library} {key.version}, {key.gpu}, batches {', '.join(map(str, key.buckets))}"
        show(f"engine     {engine.network} in {key.precision}: {where}, {engine.file.bytes:,} bytes")
    for check in checks:
        agreement = f"{check.psnr_db} dB, largest error {check.max_abs:.1e}"
        extent = ", quick" * (check.extent == "quick")
        show(f"verified   {check.what}, {check.precision}, {check.backend}: {agreement}{extent}")
    show(f"files      {files} checked, all as the manifest says")


def _file_words(parameters: dict[str, Any], read: list[float]) -> str:
    """How a wrapped file was read and written."""
    ranges = [f"{black:g}..{white:g}" for black, white in (read, parameters["output_range"])]
    fixed = "".join(f", {name} fixed to {value:g}" for name, value in parameters.get("values", {}).items())
    return f"the file reads {parameters['colour']} in {ranges[0]}, makes {ranges[1]}{fixed}"


def _show_file(path: "Path", *, as_json: bool) -> None:
    """The metadata of an ONNX file, its `metadata_props`. Raises BundleInvalid for what is no ONNX file."""
    from bfr.runtime.bundle.manifest import LARGEST_GRAPH
    from bfr.runtime.bundle.onnx_info import read_metadata

    if path.stat().st_size > LARGEST_GRAPH:
        raise BundleInvalid(f"{path} has {path.stat().st_size:,} bytes, more than an ONNX file: name an ONNX file")
    found = read_metadata(path.read_bytes(), path)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        show(f"{name.removeprefix('bfr.'):12} {value}")
    if not found:
        show(f"{path.name} has no metadata: `bfr wrap` finds out what it reads and writes")


def _presets(bundle: "Bundle", opened: OpenOptions) -> dict[str, dict[str, Any]]:
    """Name -> what a preset is, in words too, how often it calls each network for a face, GFLOP and seconds."""
    from bfr.runtime.restore.plan import make_plan

    networks, found = bundle.manifest.networks, {}
    plans = {name: make_plan(bundle, preset) for name, preset in bundle.manifest.presets.items()}
    speed = _speed(bundle, opened)
    seconds = {name: None if speed is None else speed.seconds(plan) for name, plan in plans.items()}
    most = max(plans, key=lambda name: plans[name].steps, default="")
    for name, preset in bundle.manifest.presets.items():
        calls = plans[name].calls()
        costs = [networks[network].gflop for network in calls]
        known = [cost * count for cost, count in zip(costs, calls.values(), strict=True) if cost is not None]
        whole = sum(known) if len(known) == len(costs) else None
        words = [_in_seconds(seconds[name], speed)] if speed is not None else []
        if name == most:
            words += ["what the others are compared with"] * (len(plans) > 1)
        elif seconds[name] and seconds[most]:
            words += [f"{seconds[most] / seconds[name]:.3g} times as fast as {most}"]  # type: ignore[operator]
        words += _freedom(preset, bundle.manifest.schedule.timesteps)
        found[name] = {
            "text": str(preset), "words": "; ".join(words), "calls": calls, "gflop": whole, "seconds": seconds[name],
        }  # fmt: skip
    return found


def _speed(bundle: "Bundle", opened: OpenOptions) -> "Speed | None":
    """How long a face takes here, measured if it is not known; None, with a message, if nothing runs it."""
    from bfr.runtime.jobs.speed import kept_speed, speed_of
    from bfr.runtime.restore.restorer import Restorer

    if kept := kept_speed(bundle, opened):
        return kept
    try:
        with Restorer.open(opened) as restorer:
            return speed_of(restorer, opened, tell)
    except (MissingDependency, BackendUnavailable) as error:
        if opened.backend != "auto":
            raise
        say(f"the seconds per face are unknown: {error}")
        return None


def _in_seconds(seconds: float | None, speed: "Speed") -> str:
    from bfr.runtime.jobs.page import duration

    about = f"{seconds:.2g} s" if (seconds or 0) < 10 else duration(round(seconds or 0))
    return f"about {about} a face here ({speed.backend}, {speed.precision})"


def _freedom(preset: "Preset", timesteps: int) -> list[str]:
    """How much a preset may invent, by how much noise its loop begins with."""
    if preset.solver is None:
        return []
    spaced = preset.spacing.removeprefix("ddim")
    share = preset.start / (int(spaced) if spaced.isdecimal() else timesteps)
    limits = ((0.05, "keeps close to the input"), (0.25, "changes detail"), (0.6, "invents detail"))
    words = next((words for limit, words in limits if share <= limit), "invents most of the face")
    return [words + ", less where little is to be mended" * (preset.adapt is not None)]
