"""`bfr fetch`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bfr.runtime.cli.options import AS_JSON, check_system, expanded
from bfr.runtime.cli.places import check_folder
from bfr.runtime.cli.terminal import conclude, progress_bar, say, show
from bfr.runtime.errors import InvalidOption
from bfr.runtime.install import need


@expanded
def fetch(
    system: Annotated[
        str, typer.Argument(help="difface, difface-identity, difface-inpainting, pgdiff, pgdiff-reference or osdface.")
    ],
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the licence that the command prints.")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="Destination. Default: bfr's cache folder.")] = None,
    as_json: AS_JSON = False,
) -> None:
    """Download published weights.

    Checks the files, and stores them as safetensors too.
    """
    if folder is not None:
        check_folder(folder, "--folder")
    report, files = say if as_json else conclude, list[dict[str, Any]]()
    _fetch_system(system, folder, report, files, accepted=accept_license)
    if as_json:
        print(json.dumps({"system": system, "files": files}, indent=1))


def _fetch_system(
    system: str,
    folder: Path | None,
    report: Callable[[str], None],
    files: list[dict[str, Any]],
    *,
    accepted: bool,
) -> None:
    check_system(system)
    need("export", "torch", "safetensors")
    from bfr.models.catalog import get_system
    from bfr.models.weights.checkpoint import check_layout, convert, load_state_dict, own_weights
    from bfr.models.weights.locate import locate
    from bfr.runtime.files import cache_folder

    spec = get_system(system)
    if spec.packaged:
        report(f"the weights of {system} come with the package; there is nothing to fetch")
        return
    if not spec.published:
        raise InvalidOption(
            f"the authors of {system} published no weights: train your own and name their folder with "
            f"`bfr export {system} --weights FOLDER`, or try it with random weights: `bfr export {system} --seeded`"
        )
    (report if accepted else show)(
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
                report(f"{there} is there")
                continue
            got = _download(download, target, files)
            report(f"{got.path.name}, {got.bytes} bytes, sha256 {got.sha256}")
        spec.importer(target, target)
        report(f"converted; next: bfr export {system} -o bundles/{system}")
        return
    for name, network in spec.networks.items():
        for part, download in network.files.items():
            if download.file in spec.by_hand:
                by_hand[download.file] = spec.by_hand[download.file]
                continue
            there = locate(target, download)
            if there and there.parent != target:
                report(f"{name}: {there} is there")
                continue
            got = _download(download, target, files)
            module = network.build().get_submodule(part)
            check_layout(module, own_weights(module, load_state_dict(got.path)), got.path)
            safe = got.path.with_suffix(".safetensors")
            convert(got.path, safe)
            report(f"{name}: {got.path.name}, {got.bytes} bytes, sha256 {got.sha256}; safe copy {safe.name}")
    for file, where in by_hand.items():
        report(f"{file} cannot be downloaded for you: {where}. Put it into {target}")
    report(f"next: bfr export {system} -o bundles/{system}")


def _download(weights: Any, folder: Path, files: list[dict[str, Any]]) -> Any:
    """Fetch one file under a progress bar, and add what it is to `files`."""
    from bfr.models.weights.fetch import fetch as download

    with progress_bar(download=True) as bar:
        task = bar.add_task(weights.file, total=None)
        got = download(weights, folder, progress=lambda done, total: bar.update(task, completed=done, total=total))
    files.append({"path": str(got.path), "bytes": got.bytes, "sha256": got.sha256})
    if weights.sha256 is None:
        say(f"{weights.file}: no sha256 is known. bfr recorded that of this download; later ones must match it")
    return got
