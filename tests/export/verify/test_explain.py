"""A planted overflow, a planted underflow and a planted rounding are named, by the layer that has them."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import edited
from called import Called
from half_graphs import CHANNELS, convolutions

from bfr.export.verify import compare as comparing
from bfr.export.verify import explain as explaining
from bfr.export.verify.compare import open_reference, verify
from bfr.export.verify.explain import Explanation, compare_graphs, explain, explain_all
from bfr.export.verify.walk import walk
from bfr.runtime.bundle.bundle import Bundle, describe_file
from bfr.runtime.errors import InvalidOption, MissingDependency, VerificationFailed
from bfr.runtime.restore.plan import make_plan

pytest.importorskip("polygraphy")
pytest.importorskip("onnxruntime")
LAYERS = 6
PLANTED = "denoiser.output_blocks.0.0.in_layers.2"


def found(folder: Path, scales: dict[int, float], *, quirk: bool = False) -> Explanation:
    inputs = {"x": np.random.default_rng(1).random((1, CHANNELS, 8, 8), np.float32)}
    full, half = (convolutions(folder, half, scales, layers=LAYERS, quirk=quirk and half) for half in (False, True))
    return compare_graphs(full, half, inputs, "body", "fp16")


@pytest.mark.parametrize("quirk", [False, True])
@pytest.mark.parametrize("layer", [0, 3])
def test_the_layer_that_overflows_is_named(tmp_path: Path, layer: int, quirk: bool) -> None:
    found_ = found(tmp_path, {layer: 1.3e5, layer + 1: 1e-5}, quirk=quirk)
    assert found_.first is not None
    assert (found_.first.name, found_.first.operator) == (f"body.{layer}", "Conv")
    assert found_.first.error == np.inf
    assert found_.first.largest > explaining.HALF_MAX
    assert found_.worst[0] == found_.first  # the first of all that are not finite after it
    assert found_.largest.largest >= found_.first.largest
    assert f"body.{layer} (Conv, float16)" in str(found_)
    assert "overflows" in str(found_)


def test_the_layer_that_underflows_is_named(tmp_path: Path) -> None:
    found_ = found(tmp_path, {2: 1e-7, 3: 1e5})
    assert found_.first is not None
    assert found_.first.name == "body.2"
    assert 0.1 < found_.first.error < 10


def test_a_graph_that_bears_half_has_no_jump_and_every_layer_is_compared(tmp_path: Path) -> None:
    found_ = found(tmp_path, {}, quirk=True)
    assert found_.first is None
    assert found_.compared == found_.layers == 2 * LAYERS
    assert found_.worst[0].error < 5e-3
    assert [layer.error for layer in found_.worst] == sorted((layer.error for layer in found_.worst), reverse=True)
    assert len(found_.worst) == explaining.SHOWN
    assert json.loads(json.dumps(found_.as_json()))["first"] is None


def test_infinite_errors_are_text_in_json(tmp_path: Path) -> None:
    listed = json.loads(json.dumps(found(tmp_path, {1: 1e5, 2: 1e-5}).as_json(), allow_nan=False))
    assert listed["first"]["error"] == "inf"
    assert listed["first"]["name"] == "body.1"


def test_what_is_marked_at_a_time_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(tmp_path, {1: 1e5, 2: 1e-5})
    monkeypatch.setattr(explaining, "PART", 3)
    assert found(tmp_path, {1: 1e5, 2: 1e-5}) == whole


@pytest.mark.export
def test_int8_is_matched_though_the_quantizer_moves_nodes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    import onnx

    from bfr.export.onnx.quantize import quantize_graph

    plan = make_plan(tiny_bundle, tiny_bundle.preset())
    inputs = next(i for name, i, _ in walk(tiny_bundle, plan, open_reference(tiny_bundle), 1) if name == "denoiser")
    full = tiny_bundle.graph("denoiser", "fp32")
    int8, _ = quantize_graph(full, tmp_path / "int8.onnx", iter([inputs]))
    found_ = compare_graphs(full, int8, inputs, "denoiser", "int8")
    shapes = sum(node.op_type == "Shape" for node in onnx.load(full, load_external_data=False).graph.node)
    assert found_.compared == found_.layers - shapes > 100  # a shape is no result of a layer
    assert 1e-3 < found_.worst[0].error < 0.5


def with_overflow(bundle: Bundle, folder: Path) -> Bundle:
    """A copy whose layer PLANTED makes values beyond half, in both precisions; the norm after it makes up for it."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(bundle.folder, folder)
    with edited(folder) as manifest:
        for variant in manifest["networks"]["denoiser"]["variants"].values():
            path = folder / variant["weights"][0]["path"]
            state = load_file(path)
            name = next(key for key in state if key.removeprefix("denoiser.") == f"{PLANTED}.weight".split(".", 1)[1])
            state[name] = state[name] * state[name].dtype.type(30_000)
            save_file(state, path)
            variant["weights"] = [describe_file(folder, path).model_dump()]
    return Bundle.open(folder)


def test_a_failed_verification_names_the_layer(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's CPU keeps float32 between two casts: its result shows no overflow, so the floor is raised."""
    bundle = with_overflow(tiny_bundle, tmp_path / "b")
    reference = open_reference(bundle)
    monkeypatch.setattr(comparing, "network_floor", lambda entry, _: 200.0 if "fp16" in entry.variants else 0.0)
    with pytest.raises(VerificationFailed, match="the floor is 200 dB") as caught:
        verify(bundle, reference, "fp16", steps=1)
    first = next(line for line in str(caught.value).splitlines() if "first jump" in line)
    assert PLANTED in first
    assert "overflows" in first


@pytest.mark.slow
def test_every_network_in_half_is_explained(tiny_bundle: Bundle) -> None:
    plan = make_plan(tiny_bundle, tiny_bundle.preset())
    (asked,) = explain_all(tiny_bundle, plan, open_reference(tiny_bundle), "fp16", "onnxruntime-cpu")
    assert (asked.network, asked.precision, asked.first) == ("denoiser", "fp16", None)
    assert asked.compared == asked.layers


def test_without_polygraphy_the_failure_is_told_and_the_remedy(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(MissingDependency, match=r"polygraphy.*explain"):
        explain(tiny_bundle, "denoiser", "fp16", {})
    monkeypatch.setattr(comparing, "network_floor", lambda entry, _: 200.0 if "fp16" in entry.variants else 0.0)
    with pytest.raises(VerificationFailed, match="the floor is 200 dB") as caught:
        verify(tiny_bundle, open_reference(tiny_bundle), "fp16", steps=1)
    assert "explain" in str(caught.value)


def test_the_gpu_that_is_asked_for_is_the_one_that_is_explained(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*_: Any, providers: list[Any], **__: Any) -> None:
        asked.append(providers)
        raise RuntimeError("no GPU")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(RuntimeError, match="no GPU"):
        explain(tiny_bundle, "denoiser", "fp16", {}, backend="onnxruntime-cuda", index=3)
    assert asked == [[("CUDAExecutionProvider", {"device_id": "3", "use_tf32": "0"})]]


def test_the_float32_graph_on_the_cpu_has_nothing_to_be_compared_with(tiny_bundle: Bundle) -> None:
    with pytest.raises(InvalidOption, match="nothing to compare"):
        explain(tiny_bundle, "estimator", "fp16", {})  # it has no variant in half


@pytest.mark.parametrize("fails", [False, True])
def test_the_command_prints_layers_also_where_it_fails(
    fails: bool, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(*_: Any, **__: Any) -> list[Any]:
        if fails:
            raise VerificationFailed("below its floor")
        return []

    made = Explanation("denoiser", "fp16", "onnxruntime-cpu", 1, 1, None, LAYER, (LAYER,))
    monkeypatch.setattr(comparing, "verify", compare)
    monkeypatch.setattr(explaining, "explain_all", lambda *_: [made])
    call = Called(monkeypatch, capsys)
    command = ("verify", tiny_bundle.folder, "--explain", "--backend", "onnxruntime-cpu")
    for more in ((), ("--json",)):
        done = call(*command, *more)
        assert done.status == int(fails)
        assert ("below its floor" in done.stderr) == fails
        if more:
            explained = json.loads(done.stdout)["explained"]
            assert [one["worst"][0]["name"] for one in explained] == ["body.1"] * len(explained)
        else:
            assert "first jump" in done.stdout


LAYER = explaining.Layer("body.1", "Conv", "val_1", "float16", 3.0, 1e-3)
