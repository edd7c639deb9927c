"""Where engines are built: never in the installed bundle."""

import json
import shutil
from pathlib import Path

import pytest

from bfr.export.tensorrt.writable import writable_bundle
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import BundleCorrupt, InvalidOption


def test_the_installed_bundle_is_copied_and_not_changed(tmp_path: Path) -> None:
    for named in (None, Path("mini"), default_bundle()):
        with pytest.raises(InvalidOption, match="-o COPY"):
            writable_bundle(named, None)
    copy = writable_bundle(Path("mini"), tmp_path / "new" / "copy")
    bundle = Bundle.open(copy)
    assert bundle.hash == Bundle.open(default_bundle()).hash
    assert bundle.check_all() == 4
    assert sorted(path.name for path in copy.iterdir()) == [
        "denoiser.onnx",
        "denoiser.safetensors",
        "estimator.onnx",
        "estimator.safetensors",
        "manifest.json",
    ]
    text = (copy / "manifest.json").read_text()
    assert json.loads(text) == json.loads((default_bundle() / "manifest.json").read_text())
    (copy / "engines").mkdir()
    assert writable_bundle(None, copy) == copy  # and stays what it is
    assert (copy / "engines").is_dir()
    assert writable_bundle(copy, None) == copy


def test_another_bundle_is_not_written_over_and_a_damaged_one_not_copied(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with pytest.raises(InvalidOption, match="another bundle"):
        writable_bundle(None, tiny_bundle.folder)
    source = Path(shutil.copytree(default_bundle(), tmp_path / "source"))
    (source / "denoiser.onnx").write_bytes(b"")
    with pytest.raises(BundleCorrupt, match=r"denoiser\.onnx"):
        writable_bundle(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
