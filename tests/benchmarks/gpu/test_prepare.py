"""What is prepared, and what comes of it on the other side."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import edited, unpacked
from safetensors.numpy import load_file, save_file
from systems import tiny

from bfr.benchmarks.gpu import prepare as p
from bfr.export.bundle import export_system
from bfr.models.weights.seeded import write_seeded
from bfr.runtime.bundle.bundle import Bundle, describe_file
from bfr.runtime.errors import BfrError, InvalidOption, WriteFailed
from bfr.runtime.files import sha256_file

GRAPHS = {"manifest.json", "estimator.onnx", "denoiser.onnx"}
WEIGHTS = {"estimator.safetensors", "denoiser.safetensors"}


@pytest.fixture
def thinned(tmp_path: Path) -> Bundle:
    """A bundle whose weights are not functions of their names alone."""
    return unpacked("tiny", tmp_path / "thinned")


@pytest.fixture
def seeded(tmp_path: Path) -> Bundle:
    """A bundle whose weights are."""
    bundle = unpacked("tiny", tmp_path / "seeded")
    with edited(bundle.folder) as manifest:
        for name, network in manifest["networks"].items():
            (file,) = network["variants"]["fp32"]["weights"]
            p.rebuild(bundle, name, bundle.folder / file["path"])
            file.update(describe_file(bundle.folder, bundle.folder / file["path"]).model_dump())
    return Bundle.open(bundle.folder)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_weights_made_from_names_stay_behind_and_come_back_the_same(seeded: Bundle, tmp_path: Path) -> None:
    left = p.copy_bundle(seeded, tmp_path / "travels")
    assert files(tmp_path / "travels") == GRAPHS
    assert left == sum((seeded.folder / name).stat().st_size for name in WEIGHTS)
    found = p.complete_bundle(tmp_path / "travels", tmp_path / "there")
    assert files(tmp_path / "there") == GRAPHS | WEIGHTS
    assert set(found["made"]) == WEIGHTS
    for name in WEIGHTS:
        assert sha256_file(tmp_path / "there" / name) == sha256_file(seeded.folder / name)


def test_what_the_exporter_added_to_a_file_travels_beside_it(seeded: Bundle, tmp_path: Path) -> None:
    path = seeded.folder / "denoiser.safetensors"
    save_file({**load_file(path), "folded": np.arange(5, dtype=np.float32)}, path)
    file = describe_file(seeded.folder, path)
    with edited(seeded.folder) as manifest:
        manifest["networks"]["denoiser"]["variants"]["fp32"]["weights"] = [file.model_dump()]
    p.copy_bundle(Bundle.open(seeded.folder), tmp_path / "travels")
    assert files(tmp_path / "travels") == GRAPHS | {"denoiser.others.safetensors"}
    p.complete_bundle(tmp_path / "travels", tmp_path / "there")
    assert sha256_file(tmp_path / "there" / "denoiser.safetensors") == file.sha256


def test_other_weights_travel(thinned: Bundle, tmp_path: Path) -> None:
    assert p.copy_bundle(thinned, tmp_path / "travels") == 0
    assert files(tmp_path / "travels") == GRAPHS | WEIGHTS
    assert p.complete_bundle(tmp_path / "travels", tmp_path / "there")["made"] == {}


def test_weights_that_come_out_differently_are_refused(thinned: Bundle, tmp_path: Path) -> None:
    p.copy_bundle(thinned, tmp_path / "travels")
    (tmp_path / "travels" / "denoiser.safetensors").unlink()
    with pytest.raises(BfrError, match="made from names differ"):
        p.complete_bundle(tmp_path / "travels", tmp_path / "there")


def test_the_folder_runs_without_anything_installed(seeded: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    sizes = p.prepare(folder, seeded.folder, packages=())
    assert files(folder) == {"bundle", "ns", "prepared.json", "run.sh", "site"}
    assert sizes == json.loads((folder / "prepared.json").read_text())["bytes"]
    assert sizes["bundle"] == sum(path.stat().st_size for path in (folder / "bundle").iterdir())
    assert sizes["total"] == sizes["bundle"] + sizes["site"] + sizes["tree"]
    assert all((folder / "ns" / "bfr" / name / "__init__.py").is_file() for name in p.FOLDERS)
    link = (folder / "ns" / "bfr" / "runtime").readlink()
    assert not link.is_absolute()
    done = subprocess.run(  # noqa: S603
        [folder / "run.sh", "--help"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--rehearse" in done.stdout


def test_what_is_too_large_is_refused_with_its_parts(
    seeded: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p, "LIMIT_BYTES", 1000)
    with pytest.raises(InvalidOption, match=r"bundle .* MiB, site .* MiB, tree .* MiB, total"):
        p.prepare(tmp_path / "prepared", seeded.folder, packages=())
    assert not (tmp_path / "prepared").exists()
    with pytest.raises(WriteFailed, match=r"has no prepared\.json"):  # another folder is not replaced
        p.prepare(seeded.folder, seeded.folder, packages=())


def test_the_tree_is_what_git_does_not_ignore(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)  # noqa: S603, S607

    git("init")
    for name, size in (("kept", 10), ("new", 200), (".gitignore", 8), ("ignored", 5000), ("prepared/own", 70_000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"ignored\n" if name == ".gitignore" else bytes(size))
    git("add", "kept")
    assert p.tree_bytes(tmp_path, tmp_path / "prepared") == 218


def test_what_is_prepared_counts_once(seeded: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made inside the tree, whose files count too."""
    tree = tmp_path / "tree"
    (tree / "benchmarks").mkdir(parents=True)
    (tree / "benchmarks" / "code").write_bytes(bytes(1000))
    subprocess.run(["git", "init", str(tree)], check=True, capture_output=True)  # noqa: S603, S607
    monkeypatch.setattr(p.bfr.benchmarks, "__path__", [str(tree / "benchmarks")])
    for _ in range(2):
        assert p.prepare(tree / "gpu", seeded.folder, packages=())["tree"] == 1000


def test_the_compilers_cache_travels_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p, "PART_BYTES", 1000)
    (tmp_path / "cache" / "kernels").mkdir(parents=True)
    (tmp_path / "cache" / "kernels" / "one").write_bytes(os.urandom(2500))
    (tmp_path / "out").mkdir()
    assert p.pack_cache(tmp_path / "cache", tmp_path / "out")["parts"] == 3
    assert p.unpack_cache(tmp_path / "out", tmp_path / "again") == 3
    made = (tmp_path / "again" / "kernels" / "one").read_bytes()
    assert made == (tmp_path / "cache" / "kernels" / "one").read_bytes()


def test_a_cache_that_is_too_large_is_left_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p, "PART_BYTES", 100)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "one").write_bytes(os.urandom(2500))
    found = p.pack_cache(tmp_path / "cache", tmp_path)
    assert found["parts"] == 0
    assert "more than 5 parts" in found["why"]
    assert not list(tmp_path.glob("cache.tar*"))


@pytest.mark.export
@pytest.mark.slow
def test_an_exports_weights_are_made_anew_byte_by_byte(tmp_path: Path) -> None:
    write_seeded(tiny(), tmp_path / "weights")
    bundle = export_system(tiny(), tmp_path / "weights", tmp_path / "bundle", verified=False)
    p.copy_bundle(bundle, tmp_path / "travels")
    weights = {*WEIGHTS, "conditioner.safetensors"}  # the time table's, of the denoiser's layers
    assert not weights & files(tmp_path / "travels")
    assert set(p.complete_bundle(tmp_path / "travels", tmp_path / "there")["made"]) == weights
