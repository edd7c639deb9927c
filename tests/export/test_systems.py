"""Every system of the family, end to end: exported, verified, run from its bundle by ONNX Runtime."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import SYSTEMS, shared, unpacked
from interpreter import python
from PIL import Image
from safetensors.numpy import load_file
from systems import MAKERS, SIZE, export_tiny
from typer.testing import CliRunner

from bfr.export import bundle as exporting
from bfr.export.bundle import export_system
from bfr.export.options import ExportOptions
from bfr.export.pytorch.eager import EagerDevice
from bfr.export.verify.compare import open_reference, verify
from bfr.export.verify.walk import call_network, output_shapes, walk
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import Manifest, Variant
from bfr.runtime.cli.main import app
from bfr.runtime.errors import BundleInvalid, InputNotFound, InvalidOption
from bfr.runtime.restore.plan import make_plan
from bfr.runtime.restore.restorer import Restorer


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Bundle]]:
    return request.param, shared(request.param, tmp_path_factory)


def faces() -> list[Any]:
    made = [np.random.default_rng(i).integers(1, 256, (SIZE, SIZE, 3), dtype=np.uint8) for i in range(3)]
    for i, face in enumerate(made):
        face[8 : 16 + i, 10:20] = 0  # the hole of those that inpaint
    return made


def restored(bundle: Bundle, batch: int, *, count: int = 3, **options: Any) -> list[Any]:
    given = {name: value for name, value in options.items() if value is not None}
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu", batch=batch, threads=1, **given) as restorer:
        return restorer.restore(faces()[:count])


@pytest.mark.export
@pytest.mark.parametrize(
    "name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("timed", *SYSTEMS))]
)
def test_an_export_gives_the_bundle_that_lies_in_the_tree(name: str, tmp_path: Path) -> None:
    """The same weights, interface and pictures; another torch may write another graph for them."""
    made, kept = export_tiny(name, tmp_path), unpacked(name, tmp_path / "kept")
    apart: Any = {"verified": True, "made_with": True, "networks": {"__all__": {"variants", "source", "more_sources"}}}
    assert made.manifest.model_dump(exclude=apart) == kept.manifest.model_dump(exclude=apart)
    for network, entry in kept.manifest.networks.items():
        for precision, variant in entry.variants.items():
            (again,) = made.network(network).variants[precision].weights
            old, new = load_file(kept.folder / variant.weights[0].path), load_file(made.folder / again.path)
            assert old.keys() == new.keys()
            assert all(np.array_equal(old[key], new[key]) for key in old)
    for old, new in zip(restored(kept, 3), restored(made, 3), strict=True):
        assert np.abs(old.astype(int) - new).max() <= 1


@pytest.mark.export
@pytest.mark.parametrize(
    "name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("inpainting", "clrface"))]
)
def test_a_time_table_is_the_default_and_changes_no_picture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the denoiser makes of a timestep, computed ahead: the same operations in eager PyTorch, the same bytes."""
    plain = unpacked(name, tmp_path / "plain")

    def exported(stage: Any, network: str, *rest: Any) -> Variant:
        if network != "estimator":
            return export_variant(stage, network, *rest)
        variant = plain.network(network).variants["fp32"]  # a table of times changes nothing in it
        for file in (variant.graph, *variant.weights):
            shutil.copy(plain.folder / file.path, rest[2])
        return variant

    export_variant = exporting._export_variant
    monkeypatch.setattr(exporting, "_export_variant", exported)
    timed = export_tiny(name, tmp_path, time_table=None, precision=("fp32",))
    conditioner = timed.network("conditioner")
    assert "conditioner" not in plain.manifest.networks
    assert conditioner.variants.keys() == {"fp32"}
    features = conditioner.outputs[0].shape[1]
    assert int(features) > 30
    assert next(t.shape for t in timed.network("denoiser").inputs if t.name == "t") == ("batch", features)
    assert {check.what for check in timed.manifest.verified} >= {"conditioner, batch 1", "conditioner, batch 3"}
    eager = []
    for bundle in (timed, plain):
        with Restorer(bundle, EagerDevice(), bundle.preset(), batch=3) as restorer:
            eager.append(restorer.restore(faces()))
    for one, other in zip(*eager, strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(restored(timed, 3), restored(plain, 3), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_an_image_is_restored_alike_alone_and_in_company(system: tuple[str, Bundle]) -> None:
    """Batch 1 and batch 3, on ONNX Runtime; the CPU's kernels give the same bytes."""
    name, bundle = system
    alone, together = restored(bundle, 1), restored(bundle, 3)
    for face, one, other in zip(faces(), alone, together, strict=True):
        assert np.array_equal(one, other)
        assert one.shape == face.shape
        assert (one != face).any(), f"{name} changed nothing"
    assert not np.array_equal(alone[0], alone[1])


def test_every_network_and_the_chain_were_compared_with_eager(system: tuple[str, Bundle]) -> None:
    _, bundle = system
    checks = {check.what: check for check in bundle.manifest.verified}
    for network in bundle.manifest.networks:
        for batch in (1, 3):
            assert checks[f"{network}, batch {batch}"].psnr_db > 90
    chains = [check for what, check in checks.items() if what.startswith("loop")]
    assert len(chains) == 1
    assert chains[0].psnr_db > 80


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_modules_made_anew_from_a_bundle_are_those_that_it_was_made_of(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As `bfr verify` compares with: nothing but the bundle's own files."""
    bundle = shared(name, tmp_path_factory)
    checks = verify(bundle, open_reference(bundle), "fp32", threads=1)
    assert len(checks) == 2 * len(bundle.manifest.networks) + 1
    assert all(check.psnr_db > check.floor_db for check in checks)


WITHOUT_TORCH = """
import json, sys
for name in ("torch", "onnx", "diffusers", "transformers"):
    sys.modules[name] = None
from bfr.runtime.cli.main import main
for words in json.load(sys.stdin):
    sys.argv = ["bfr", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
"""


def test_a_bundle_needs_no_torch(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A process in which torch, onnx and diffusers cannot be imported restores the same pictures."""
    Image.fromarray(faces()[0]).save(tmp_path / "face.png")
    bundles = {name: shared(name, tmp_path_factory) for name in SYSTEMS}
    commands = []
    for name, bundle in bundles.items():
        verb = ["inpaint"] if name == "inpainting" else ["restore", "--aligned", "--threads", "1"]
        options = ["--bundle", str(bundle.folder), "--backend", "onnxruntime-cpu"]
        commands.append([*verb, str(tmp_path / "face.png"), "-o", str(tmp_path / name), *options])
    python(WITHOUT_TORCH, input=json.dumps(commands), timeout=240)
    for name, bundle in bundles.items():
        with Image.open(tmp_path / name / "face.png") as found:
            assert np.array_equal(np.asarray(found), restored(bundle, 1, count=1)[0]), name
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert [image["status"] for image in report["images"]] == ["restored"]


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return shared("inpainting", tmp_path_factory)


def test_inpainting_keeps_every_known_pixel_and_fills_the_hole(inpainting: Bundle) -> None:
    for face, found in zip(faces(), restored(inpainting, 3), strict=True):
        hole = (face == 0).all(axis=2)
        assert np.array_equal(found[~hole], face[~hole])
        assert (found[hole] != 0).any(axis=1).mean() > 0.9
    with Restorer.open(inpainting.folder, backend="onnxruntime-cpu", threads=1) as restorer:
        large = np.random.default_rng(5).integers(1, 256, (70, 70, 3), dtype=np.uint8)
        mask = np.zeros((70, 70), bool)
        mask[20:40, 15:50] = True
        found = restorer.restore([large], inputs={"mask": [mask]})[0]
        assert np.array_equal(found[~mask], large[~mask])
        assert (found[mask] != large[mask]).any(axis=1).mean() > 0.9
        painted = large.copy()
        painted[mask] = 77  # what stands in the hole says nothing
        again = restorer.restore([painted], inputs={"mask": [mask]})[0]
        assert np.abs(again[mask].astype(int) - found[mask]).max() <= 1


def test_the_strength_of_mask_guidance_can_be_chosen(inpainting: Bundle) -> None:
    none, default, same = (restored(inpainting, 1, count=1, guidance=g)[0] for g in (0.0, None, 0.5))
    assert np.array_equal(default, same)
    assert not np.array_equal(default, none)


def test_a_stage_has_a_sampler_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = shared("diffbfr", tmp_path_factory)
    preset = bundle.preset()
    loops = {loop.name: loop for loop in make_plan(bundle, preset).loops}
    assert [len(loop.table) for loop in loops.values()] == [4, 4, 2]
    assert loops["denoise-texture"].table.timesteps[0] == 40.5
    assert loops["denoise-low"].shape == (3, 16, 16)
    changed = make_plan(bundle, bundle.preset(steps=3))
    assert [len(loop.table) for loop in changed.loops] == [3, 3, 2]
    unknown = preset.model_copy(update={"stages": {"denoise": preset.stages["denoise-texture"]}})
    with pytest.raises(InvalidOption, match="denoise: tiny-diffbfr"):
        make_plan(bundle, unknown)
    with pytest.raises(InvalidOption, match="guid"):
        make_plan(bundle, bundle.preset(guidance=1.0))


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return shared("identity", tmp_path_factory)


def test_guidance_can_be_left_out_or_made_stronger(guided: Bundle) -> None:
    plain, default, strong = (restored(guided, 1, count=1, guidance=g)[0].astype(int) for g in (0.0, None, 2.0))
    assert 0 < np.abs(default - plain).mean() < np.abs(strong - plain).mean()
    assert make_plan(guided, guided.preset()).calls()["guide"] == 6
    assert "guide" not in make_plan(guided, guided.preset(guidance=0.0)).calls()


def test_a_reference_is_one_for_each_image_or_for_all(guided: Bundle) -> None:
    other = np.random.default_rng(9).integers(1, 256, (50, 50, 3), dtype=np.uint8)
    with Restorer.open(guided.folder, backend="onnxruntime-cpu", batch=3, threads=1, guidance=2.0) as restorer:
        without = restorer.restore(faces())
        mixed = restorer.restore(faces(), inputs={"reference": [None, other, None]})
        assert [np.array_equal(a, b) for a, b in zip(without, mixed, strict=True)] == [True, False, True]
        restorer.fixed = {"reference": other}
        every = restorer.restore(faces())
        assert np.array_equal(every[1], mixed[1])
        assert not np.array_equal(every[0], mixed[0])
        with pytest.raises(InvalidOption, match="tiny-identity has no input 'mask': it takes reference"):
            restorer.run(faces(), inputs={"mask": [None] * 3})


@pytest.mark.parametrize("name", ["identity", "clrface"])
@pytest.mark.parametrize("batch", [1, 3])
def test_guidance_is_the_gradient_of_autograd(name: str, batch: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In pixels and in latents: what ONNX Runtime adds to x0 and to the state, within 1e-4 of what autograd adds."""
    bundle = shared(name, tmp_path_factory)
    plan, reference, device = make_plan(bundle, bundle.preset()), open_reference(bundle), CpuDevice(1)
    called = {network: (inputs, made) for network, inputs, made in walk(bundle, plan, reference, batch)}
    inputs, expected = called["guide"]
    shapes = output_shapes(bundle.network("guide"))
    found = call_network(device, device.load(bundle, "guide", "fp32"), inputs, shapes)
    for output, before in (("x0_guided", "x0"), ("x_next_guided", "x_next")):
        added = [float(np.linalg.norm(expected[output][i] - inputs[before][i])) for i in range(batch)]
        assert sum(length > 0.01 for length in added) >= max(
            1, batch - 1
        )  # one may stand at the last step: x_next is x0
        for i, length in enumerate(added):
            assert np.linalg.norm(found[output][i] - expected[output][i]) <= 1e-4 * length


@pytest.mark.parametrize("name", SYSTEMS)
def test_variants_that_a_system_does_not_have_are_refused(name: str, tmp_path: Path) -> None:
    """Before anything is loaded or written."""
    system = MAKERS[name]()
    with pytest.raises(InvalidOption, match="learned variance"):
        export_system(system, tmp_path, tmp_path / "bundle", ExportOptions(learned_variance=True))
    if name in ("diffbfr", "osdface"):
        with pytest.raises(InvalidOption, match="time table"):
            export_system(system, tmp_path, tmp_path / "bundle", ExportOptions(time_table=True))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["clrface", "diffbfr", "osdface"])
def test_a_start_for_each_image_needs_an_estimate_that_is_diffused(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = shared(name, tmp_path_factory)
    adapt = {"typical": 8.0, "least": 5.0, "most": 50.0}
    with pytest.raises(InvalidOption, match="loop"):
        make_plan(bundle, bundle.preset(adapt=adapt))


def rewired(bundle: Bundle, stages: list[dict[str, Any]], **changes: Any) -> Bundle:
    manifest = Manifest.model_validate({**bundle.manifest.model_dump(), "stages": stages, **changes})
    return Bundle(bundle.folder, manifest, bundle.hash)


def test_stages_that_do_not_fit_each_other_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = shared("diffbfr", tmp_path_factory)
    stages = [stage.model_dump() for stage in bundle.manifest.stages]
    cases: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
        (stages[1:], {}, "reads low_quality, which no stage before it makes"),
        (stages, {"result": "other"}, "stage result reads other"),
        ([s for s in stages if s["name"] != "diffuse-high"], {}, "needs either a diffuse stage before it or a source"),
        ([*stages[:2], {**stages[2], "source": "quality"}, *stages[3:]], {}, r"reads quality as \(3, 16, 16\)"),
        ([{**stages[0], "network": "none"}, *stages[1:]], {}, "calls the network none, which the bundle lacks"),
        ([*stages[:5], {**stages[4], "name": "again"}, *stages[5:]], {}, "makes enlarged, which an earlier stage"),
    ]
    for changed, changes, message in cases:
        with pytest.raises(BundleInvalid, match=message):
            make_plan(rewired(bundle, changed, **changes), bundle.preset())
    with pytest.raises(ValueError, match="same name"):
        rewired(bundle, [*stages[:5], stages[4], *stages[5:]])


def test_masks_are_found_by_name(inpainting: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, masks, out = (tmp_path / name for name in ("photos", "masks", "out"))
    photos.mkdir()
    masks.mkdir()
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[4:9, 4:9] = 255
    for i, face in enumerate(faces()[:2]):
        Image.fromarray(face).save(photos / f"{i}.png")
        Image.fromarray(hole if i == 0 else hole.T[:9]).save(masks / f"{i}.bmp")
    command = ["inpaint", str(photos), "--bundle", str(inpainting.folder), "-o", str(out), "--threads", "1"]
    command += ["--backend", "onnxruntime-cpu", "--batch", "2", "--eta", "0.5", "--mask"]
    ended = CliRunner().invoke(app, [*command, str(masks)])
    assert ended.exit_code == 1
    assert "2 images: 1 inpainted, 1 failed" in ended.output
    with Image.open(out / "0.png") as found:
        assert np.array_equal(np.asarray(found)[hole == 0], faces()[0][hole == 0])
    report = json.loads((out / "report.json").read_text())
    assert "give a mask of the image's size" in report["images"][1]["error"]
    assert report["settings"]["sampler"]["eta"] == 0.5
    (masks / "1.bmp").unlink()
    refused = CliRunner().invoke(app, [*command, str(masks), "--overwrite"])
    assert isinstance(refused.exception, InputNotFound)
    assert "has no mask named 1" in str(refused.exception)
    other = CliRunner().invoke(app, ["inpaint", str(photos), "--bundle", str(default_bundle()), "-o", f"{out}2"])
    assert isinstance(other.exception, InvalidOption)
    assert "mini does not inpaint" in str(other.exception)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_latent_that_overflowed_is_no_picture(value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Codes are chosen from NaN as well: in ONNX Runtime too the picture must show it, and its neighbours must not."""
    bundle, device = shared("clrface", tmp_path_factory), CpuDevice(1)
    latents = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    network, shapes = device.load(bundle, "decoder", "fp32"), output_shapes(bundle.network("decoder"))
    whole = call_network(device, network, {"latent_state": latents}, shapes)["restored"]
    latents[1, 2, 5, 7] = value
    found = call_network(device, network, {"latent_state": latents}, shapes)["restored"]
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[[0, 2]], whole[[0, 2]])
