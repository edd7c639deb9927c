"""`bfr export`: whole and verified, or nothing."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bfr.export import bundle as exporting
from bfr.export.bundle import export_system, fits_half
from bfr.export.options import ExportOptions
from bfr.export.pytorch.eager import EagerDevice, EagerNetwork
from bfr.export.pytorch.reference import load_reference
from bfr.export.verify.compare import compare, eager_reference, verify
from bfr.export.verify.walk import smooth_image
from bfr.models.catalog import NetworkSpec
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import Check, Preset
from bfr.runtime.errors import (
    BundleInvalid,
    InputNotFound,
    InvalidCheckpoint,
    InvalidOption,
    VerificationFailed,
    WriteFailed,
)
from bfr.runtime.restore.restorer import Restorer


def test_what_was_exported_is_described_and_verified(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert set(manifest.networks["estimator"].variants) == {"fp32"}  # it has no half precision that is known safe
    assert set(manifest.networks["denoiser"].variants) == {"fp32", "fp16"}
    assert [tensor.name for tensor in manifest.networks["denoiser"].inputs] == ["x", "h1", "h2", "t", "row", "noise"]
    for precision in ("fp32", "fp16"):
        checks = [check for check in manifest.verified if check.precision == precision]
        whats = ["estimator, batch 1", "estimator, batch 3", "denoiser, batch 1", "denoiser, batch 3"]
        assert sorted(check.what for check in checks[:4]) == sorted(whats)
        assert checks[4].what.startswith("loop, preset reference, ddim, 4 steps from t = 20")
        assert all(check.psnr_db >= check.floor_db for check in checks)
    exact = [check.max_abs for check in manifest.verified if check.precision == "fp32"]
    assert max(exact) < 1e-4
    half = [check for check in manifest.verified if check.precision == "fp16" and check.what.startswith("denoiser")]
    assert all(1e-5 < check.relative < 1e-2 for check in half)
    assert manifest.networks["denoiser"].parameter_count == sum(
        parameter.numel() for parameter in load_reference(tiny_bundle)["denoiser"].parameters()
    )


def test_the_reference_made_from_the_bundle_is_the_exported_network(tiny_bundle: Bundle) -> None:
    networks: Any = {name: EagerNetwork(module) for name, module in load_reference(tiny_bundle).items()}
    face = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    eager = Restorer(tiny_bundle, EagerDevice(), tiny_bundle.preset("reference"), networks=networks)
    with Restorer.open(tiny_bundle.folder, backend="onnxruntime-cpu") as restorer:
        difference = restorer.restore([face])[0].astype(int) - eager.restore([face])[0]
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"model_channels": 1.5}},
        {"parameters": {"surprise": 1}},
        {"parameters": {"num_res_blocks": 10**6}},
        {"parameters": {"model_channels": 1 << 14}},
        {"architecture": "swinir"},
        {"options": {"surprise": 1}},
        {"kind": "conditioner"},
        {"kind": "step-learned"},
    ],
)
def test_parameters_that_build_no_network_are_an_error_of_the_bundle(tiny_bundle: Bundle, change: Any) -> None:
    entry = tiny_bundle.network("denoiser")
    changed = {name: getattr(entry, name) | value if name == "parameters" else value for name, value in change.items()}
    networks = tiny_bundle.manifest.networks | {"denoiser": entry.model_copy(update=changed)}
    bundle = replace(tiny_bundle, manifest=tiny_bundle.manifest.model_copy(update={"networks": networks}))
    with pytest.raises(BundleInvalid, match="denoiser cannot be built as"):
        load_reference(bundle)


def test_a_network_that_differs_is_found_out(tiny_bundle: Bundle) -> None:
    reference = load_reference(tiny_bundle)
    with torch.no_grad():
        reference["denoiser"].get_parameter("denoiser.out.2.weight").mul_(1.1)
    with pytest.raises(VerificationFailed, match="denoiser, batch 1"):
        verify(tiny_bundle, eager_reference(reference), "fp32")


def test_a_result_that_is_not_finite_is_found_out() -> None:
    good = smooth_image((3, 8, 8), 0)
    bad = good.copy()
    bad[0, 0, 0] = np.inf
    common: Any = {"device": "d", "precision": "fp16", "batch": 1, "floor": 40.0}
    with pytest.raises(VerificationFailed, match="NaN or Inf"):
        compare("x", good, bad, **common)
    assert compare("x", good, good, **common).max_abs == 0


def test_nothing_unverified_is_published(
    tiny_system: Any, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_export(monkeypatch)

    def fail(*_: Any, **__: Any) -> list[Check]:
        raise VerificationFailed("no")

    monkeypatch.setattr(exporting, "verify", fail)
    with pytest.raises(VerificationFailed):
        export_system(tiny_system, tiny_weights, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def fake_export(monkeypatch: pytest.MonkeyPatch, error: OSError | None = None) -> None:
    def export_graph(_module: Any, _inputs: Any, _outputs: Any, path: Path, **_: Any) -> tuple[Path, Path]:
        path.write_bytes(b"graph")
        if error:
            raise error
        path.with_suffix(".safetensors").write_bytes(b"weights")
        return path, path.with_suffix(".safetensors")

    monkeypatch.setattr(exporting, "export_graph", export_graph)
    monkeypatch.setattr(exporting, "verify", lambda *_, **__: [])


def test_a_full_disk_leaves_nothing(
    tiny_system: Any, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_export(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(WriteFailed, match="full"):
        export_system(tiny_system, tiny_weights, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_is_kept_until_it_is_replaced(
    tiny_system: Any, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_export(monkeypatch)
    first = export_system(tiny_system, tiny_weights, tmp_path / "out")
    with pytest.raises(WriteFailed):
        export_system(tiny_system, tiny_weights, tmp_path / "out")
    monkeypatch.setattr(exporting, "verify", lambda *_, **__: (_ for _ in ()).throw(VerificationFailed("no")))
    with pytest.raises(VerificationFailed):
        export_system(tiny_system, tiny_weights, tmp_path / "out", ExportOptions(replace=True))
    assert Bundle.open(tmp_path / "out").hash == first.hash
    monkeypatch.setattr(exporting, "verify", lambda *_, **__: [])
    export_system(tiny_system, tiny_weights, tmp_path / "out", ExportOptions(replace=True))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


CHILD = """
import sys, time
from pathlib import Path
from bfr.export import bundle as exporting
from bfr.models.catalog import SYSTEMS
def export_graph(module, inputs, outputs, path, **_):
    path.write_bytes(b"graph"); path.with_suffix(".safetensors").write_bytes(b"weights")
    return path, path.with_suffix(".safetensors")
def verify(*_, **__):
    print("verifying", flush=True)
    time.sleep(float(sys.argv[3]))
    return []
exporting.export_graph, exporting.verify = export_graph, verify
exporting.export_system(SYSTEMS["mini"], Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.export
@pytest.mark.slow
def test_a_killed_export_leaves_no_bundle_and_blocks_nobody(tmp_path: Path) -> None:
    weights = default_bundle()
    out = tmp_path / "bundles" / "mini"
    command = [sys.executable, "-c", CHILD, str(weights), str(out)]
    child = subprocess.Popen([*command, "60"], stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert child.stdout is not None
    assert child.stdout.readline() == "verifying\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not out.exists()
    time.sleep(0.1)
    subprocess.run([*command, "0"], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    assert json.loads((out / "manifest.json").read_text())["system"] == "mini"
    assert [path.name for path in out.parent.iterdir()] == ["mini"]


def test_wrong_checkpoints(tiny_system: Any, tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="bfr fetch tiny"):
        export_system(tiny_system, tmp_path, tmp_path / "out")
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "weights"))
    shutil.copy(folder / "denoiser.pth", folder / "estimator.pth")
    with pytest.raises(InvalidCheckpoint, match="unexpected"):
        export_system(tiny_system, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def other_unet(system: Any, **changes: Any) -> dict[str, Any]:
    denoiser = system.networks["denoiser"]
    made = replace(denoiser, weights=None, parameters={**denoiser.parameters, **changes})
    return {"networks": {**system.networks, "denoiser": made}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda _: {"name": "a/b"}, "system: String should match"),
        (lambda s: {"presets": {"mine": s.presets["short"]}}, "preset 'reference' is unknown: tiny has mine"),
        (lambda s: {"presets": {**s.presets, "x": Preset(start=300)}}, "with preset 'x': start 300 is out of range"),
        (lambda _: {"result": "other"}, "stage result reads other"),
        (lambda s: other_unet(s, out_channels=5), r"denoiser \(unet\) does not run as step at 32x32: "),
        (lambda s: {"networks": {**s.networks, "more": NetworkSpec("estimator", "no", {}, None)}}, "'no' is unknown"),
        (lambda s: {"networks": {**s.networks, "more": NetworkSpec("estimator", "none", {}, None)}}, "set half=None"),
    ],
)
def test_what_does_not_fit_is_told_before_the_export(
    tiny_system: Any, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, sentence: str
) -> None:
    monkeypatch.setattr(exporting, "export_graph", None)
    system = replace(tiny_system, **change(tiny_system))
    with pytest.raises(InvalidOption, match=sentence):
        export_system(system, tiny_weights, tmp_path / "out", ExportOptions(precision=("fp16",)))


def test_float32_is_always_exported_and_other_opsets_are_refused() -> None:
    """Half precision falls back on it."""
    assert ExportOptions(precision=("fp16",)).precision == ("fp32", "fp16")
    with pytest.raises(InvalidOption, match="choose one of 18, 20, 21, 23"):
        ExportOptions(opset=22)  # type: ignore[arg-type]


def test_weights_exact_in_half_are_recognized() -> None:
    module = torch.nn.Linear(4, 4)
    assert not fits_half(module)
    assert fits_half(module.half().float())
