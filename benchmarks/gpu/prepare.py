"""What travels to the machine with the GPU and back: a small bundle, packages, the tree by links, the compiler's cache.

`prepare` makes a folder from which the machine needs nothing else: no network, nothing installed. The networks have
seeded weights, which do not travel: the machine generates them again, and checks their sha256.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bfr.benchmarks
from bfr.benchmarks.publish import write_json
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.files import check_file
from bfr.runtime.bundle.manifest import MANIFEST, BundleFile
from bfr.runtime.errors import InputNotFound, InvalidOption, MissingDependency
from bfr.runtime.files import atomic_folder, sha256_file, write_bytes

FOLDERS = ("benchmarks", "export", "models", "runtime")
PACKAGES = ("pydantic", "typing_extensions")  # with what they need: what images for PyTorch lack
PYTHON = "3.12"
LIMIT_BYTES = 60 << 20  # of the folder and the tree together
PART_BYTES = 16 << 20  # of the compiler's cache: the way back takes no larger file, and not many
MAX_PARTS = 5
RUN = """#!/bin/sh
# run.sh --out OUT [OPTION...]: the measurements, with the packages and the links of this folder.
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here/ns:$here/site" exec "${PYTHON:-python3}" -m bfr.benchmarks.gpu "$here" "$@"
"""
Progress = Callable[[str], None]


def prepare(
    folder: Path,
    bundle: Path | None,
    *,
    packages: Sequence[str] = PACKAGES,
    progress: Progress = lambda _: None,
) -> dict[str, int]:
    """Make `folder` anew; it belongs inside the tree, with which it travels, since it refers to the code by links.

    Args:
        folder: What is made: `ns`, `site`, `bundle`, `run.sh`, `prepared.json`.
        bundle: A bundle whose weights are made from names; None exports the published DifFace, for minutes.
        packages: Are downloaded for Linux, x86-64 and Python 3.12, with what they need.
        progress: Called with what is being done.

    Returns:
        Bytes by part, `total` among them, the tree included.

    Raises:
        InvalidOption: The total is larger than LIMIT_BYTES.
        MissingDependency: pip cannot download the packages.
        WriteFailed: `folder` is there, and is neither empty nor an earlier one of these.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if bundle is None:
            bundle = _export(Path(scratch), progress)
        tree = Path(bfr.benchmarks.__path__[0]).resolve().parent
        size_of_tree = tree_bytes(tree, folder.resolve())  # before what is made here stands in it
        with atomic_folder(folder, replace=True, mark="prepared.json") as partial:
            left = copy_bundle(Bundle.open(bundle), partial / "bundle", progress)
            progress(f"{left:,} bytes of weights stay behind; the machine generates them again")
            download(packages, partial / "site")
            (partial / "ns" / "bfr").mkdir(parents=True)
            for name in FOLDERS:
                # Relative to where the folder will stand.
                (partial / "ns" / "bfr" / name).symlink_to(
                    os.path.relpath(tree / name, folder.resolve() / "ns" / "bfr"), target_is_directory=True
                )
            write_bytes(partial / "run.sh", RUN.encode())
            (partial / "run.sh").chmod(0o755)
            sizes = {part: folder_bytes(partial / part) for part in ("bundle", "site")}
            sizes["tree"] = size_of_tree
            sizes["total"] = sum(sizes.values())
            write_json(partial / "prepared.json", {"bytes": sizes, "bytes of weights left behind": left})
            if sizes["total"] > LIMIT_BYTES:
                listed = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items())
                raise InvalidOption(
                    f"{listed}: more than {LIMIT_BYTES >> 20} MiB. Prepare a bundle exported with --seeded"
                )
    return sizes


def _export(scratch: Path, progress: Progress) -> Path:
    from bfr.export.bundle import export_system
    from bfr.export.options import ExportOptions
    from bfr.models.catalog import get_system
    from bfr.models.weights.seeded import write_seeded

    system = get_system("difface")
    write_seeded(system, scratch / "weights")
    folder = scratch / "difface"
    options = ExportOptions(precision=("fp16",))
    export_system(system, scratch / "weights", folder, options, verified=False, progress=progress)
    return folder


def float32_files(bundle: Bundle) -> dict[str, tuple[BundleFile, tuple[BundleFile, ...]]]:
    """Every network's graph and weights in float32: PyTorch makes half of those, so that no others travel."""
    found = {name: network.variants["fp32"] for name, network in bundle.manifest.networks.items()}
    return {name: (variant.graph, variant.weights) for name, variant in found.items()}


def copy_bundle(bundle: Bundle, folder: Path, progress: Progress = lambda _: None) -> int:
    """Copy what cannot be generated again; return the bytes of what can. Its files are checked."""
    folder.mkdir(parents=True)
    shutil.copyfile(bundle.folder / MANIFEST, folder / MANIFEST)
    left = 0
    for name, (graph, weights) in float32_files(bundle).items():
        for file in (graph, *weights):
            bundle.check(file)
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if weights == (file,) and _made_from_names(bundle, name, file, target):
                left += file.bytes - (_others(target).stat().st_size if _others(target).exists() else 0)
                continue
            if file in weights:
                progress(f"{file.path} cannot be made from names: it travels")
            shutil.copyfile(bundle.folder / file.path, target)
    return left


def _made_from_names(bundle: Bundle, name: str, file: BundleFile, target: Path) -> bool:
    """Whether `rebuild` makes a file of weights; writes beside `target` what it needs of what the exporter computed."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    found = rebuild(bundle, name, target)
    if found not in (None, file.sha256):
        with safe_open(bundle.folder / file.path, "np") as stored, safe_open(target, "np") as made:
            others = {key: stored.get_tensor(key) for key in sorted({*stored.keys()} - {*made.keys()})}
        save_file(others, _others(target))
        found = rebuild(bundle, name, target)
        if found != file.sha256:
            _others(target).unlink()
    target.unlink(missing_ok=True)
    return found == file.sha256


def _others(path: Path) -> Path:
    """The file beside a file of weights with those of its tensors that are not in the network's state."""
    return path.with_suffix(".others.safetensors")


def complete_bundle(source: Path, folder: Path) -> dict[str, Any]:
    """Copy a prepared bundle and make its missing weights; return what was made, in how many seconds.

    Raises BundleCorrupt for a file, generated or copied, that has not the sha256 of the manifest.
    """
    shutil.copytree(source, folder, dirs_exist_ok=True)
    bundle = Bundle.open(folder)
    made: dict[str, Any] = {}
    for name, (graph, weights) in float32_files(bundle).items():
        for file in weights:
            if not (folder / file.path).is_file():
                begin = time.perf_counter()
                rebuild(bundle, name, folder / file.path)
                made[file.path] = {"bytes": file.bytes, "seconds": time.perf_counter() - begin}
        for file in (graph, *weights):
            check_file(folder, file, "the weights made from names differ here: prepare a bundle that holds its weights")
    return {"made": made, "checked by sha256": True}


def rebuild(bundle: Bundle, name: str, path: Path) -> str | None:
    """Write the weights of a network as functions of its parameters' names, as `bfr export --seeded` does.

    Returns their sha256. What `_others` holds beside `path` is added. None if the network is not one that is made of an
    architecture alone.
    """
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from bfr.models.catalog import ARCHITECTURES
    from bfr.models.networks.unet import UNet
    from bfr.models.stages.kinds import make_stage
    from bfr.models.stages.step import cut_variance, has_variance
    from bfr.models.weights.seeded import LOOP_SCALE, seed_weights

    entry = bundle.network(name)
    if entry.more_sources or entry.architecture not in ARCHITECTURES:
        return None
    module = ARCHITECTURES[entry.architecture](**entry.parameters)
    step = entry.kind.startswith("step")
    state = module.state_dict()
    seed_weights(module, {key: factor for key, factor in LOOP_SCALE.items() if step and key in state})
    cut = step and not entry.kind.startswith("step-learned")
    unet = module if cut and isinstance(module, UNet) else None
    if unet is not None and has_variance(unet, entry.options.get("channels")):
        cut_variance(unet)
    stage = make_stage(entry.kind, module, entry.options)
    prefix = f"{stage.wraps}." if stage.wraps else ""
    arrays = {
        key.removeprefix(prefix): np.asarray(value.detach().numpy(), order="C")
        for key, value in stage.state_dict().items()
    }
    if _others(path).exists():
        arrays |= load_file(_others(path))
    save_file(arrays, path)
    return sha256_file(path)


def download(packages: Sequence[str], site: Path) -> None:
    """Unpack packages and what they need into `site`, for Linux, x86-64 and Python PYTHON."""
    site.mkdir(parents=True)
    if not packages:
        return
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_27", "_2_28")]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", str(site)]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}", *platforms, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise MissingDependency(f"pip downloads no {', '.join(packages)}: {done.stderr.strip()[-500:]}")


def folder_bytes(folder: Path) -> int:
    """Of all files, compiled Python and what links point to left out."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def tree_bytes(tree: Path, without: Path) -> int:
    """Of the files of a checkout that git does not ignore, `without` left out; of FOLDERS if there is no git."""
    git = shutil.which("git")
    if git is not None and (tree / ".git").exists():
        command = [git, "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
        paths = [tree / name for name in listed.split("\0") if name]
        return sum(path.lstat().st_size for path in paths if path.is_file() and not path.is_relative_to(without))
    return sum(folder_bytes(tree / name) for name in FOLDERS)


def pack_cache(folder: Path, out: Path) -> dict[str, Any]:
    """Archive a folder as `cache.tar.gz.NN`, in parts of PART_BYTES, if there is one that is not too large."""
    if not folder.is_dir():
        return {"parts": 0, "why": "nothing was compiled"}
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "cache.tar.gz"
        with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
            packed.add(folder, arcname=".")
        size = archive.stat().st_size
        count = -(-size // PART_BYTES)
        if count > MAX_PARTS:
            return {"parts": 0, "bytes": size, "why": f"more than {MAX_PARTS} parts of {PART_BYTES >> 20} MiB"}
        with archive.open("rb") as data:
            for number in range(count):
                write_bytes(out / f"cache.tar.gz.{number:02}", data.read(PART_BYTES))
    return {"parts": count, "bytes": size}


def unpack_cache(out: Path, folder: Path) -> int:
    """Unpack what `pack_cache` wrote; returns the number of parts, 0 if there are none."""
    parts = sorted(out.glob("cache.tar.gz.[0-9][0-9]"))
    if not parts:
        return 0
    with tempfile.TemporaryFile() as joined:
        for part in parts:
            joined.write(part.read_bytes())
        joined.seek(0)
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=joined, mode="r:gz") as packed:
            packed.extractall(folder, filter="data")
    return len(parts)


def check_prepared(folder: Path) -> None:
    """Raise InputNotFound unless `prepare` made the folder."""
    if not (folder / "bundle" / MANIFEST).is_file():
        raise InputNotFound(f"{folder} holds no prepared bundle: make it with --prepare {folder}")
