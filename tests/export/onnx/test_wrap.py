from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bfr.export.onnx import wrap as wrapping
from bfr.export.onnx.wrap import wrap
from bfr.export.onnx.wrap_graph import WrapOptions
from bfr.export.verify.compare import open_reference, verify
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InputNotFound, InvalidCheckpoint, InvalidOption
from bfr.runtime.faces.background import NetworkBackground
from bfr.runtime.images.encode import write_image
from bfr.runtime.jobs.run import JobOptions, run_job
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.restore.restorer import Restorer

SIZE = 16
COLOURS = np.array([0.9, 0.5, 0.2], np.float32)


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]) -> Path:
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def darkening(path: Path, *, batch: Any = "n", baked: bool = False, size: Any = SIZE) -> Path:
    """A network that halves each channel by its own factor; `baked`: whose reshape holds the batch of 1."""
    constants = {"factor": COLOURS.reshape(1, 3, 1, 1), "shape": np.array([1 if baked else -1, 3, SIZE, SIZE])}
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y0"]), helper.make_node("Reshape", ["y0", "shape"], ["y"])]
    return save(path, nodes, [value("x", [batch, 3, size, size])], [value("y", [batch, 3, size, size])], constants)


def faces(count: int) -> list[Any]:
    return [np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for i in range(count)]


def restored(bundle: Bundle, batch: int = 1) -> list[Any]:
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu", batch=batch, threads=1) as restorer:
        return restorer.restore(faces(3))


@pytest.mark.parametrize("batch", ["n", 1])
def test_a_file_runs_as_a_bundle_at_any_batch(tmp_path: Path, batch: Any) -> None:
    """Also one whose graph fixes a batch of 1 for no reason."""
    options = WrapOptions(input_range=(0, 1), output_range=(0, 1))
    bundle = wrap(darkening(tmp_path / "dark.onnx", batch=batch), tmp_path / "bundle", options)
    assert bundle.manifest.batches is None
    assert {check.batch for check in bundle.manifest.verified} == {1, 3}
    alone, together = restored(bundle), restored(bundle, batch=3)
    for face, one, other in zip(faces(3), alone, together, strict=True):
        assert np.array_equal(one, other)
        assert np.abs(one - face * COLOURS).max() <= 0.51


def test_a_file_that_cannot_leave_its_batch_runs_one_image_at_a_time(tmp_path: Path) -> None:
    said: list[str] = []
    options = WrapOptions(input_range=(0, 1), output_range=(0, 1))
    bundle = wrap(darkening(tmp_path / "dark.onnx", batch=1, baked=True), tmp_path / "bundle", options, say=said.append)
    assert bundle.manifest.batches == (1,)
    assert said[0].startswith("batches of 1 only")
    assert np.abs(restored(bundle)[1] - faces(3)[1] * COLOURS).max() <= 0.51
    with pytest.raises(InvalidOption, match="bundle's graphs run batches of 1 here"):
        Restorer.open(bundle.folder, backend="onnxruntime-cpu", batch=2)


def test_ranges_colours_layout_and_types_become_part_of_the_graph(tmp_path: Path) -> None:
    """BGR bytes, channels last, as image tools export them: the network swaps nothing but adds a tint of its own."""
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "tint"], ["g"]),
        helper.make_node("Cast", ["g"], ["result"], to=TensorProto.UINT8),
    ]
    tint = np.array([0.5, 0.25, 1.0], np.float32)  # blue, green, red
    shape = ["n", SIZE, SIZE, 3]
    path = save(
        tmp_path / "bgr.onnx",
        nodes,
        [value("image", shape, TensorProto.UINT8)],
        [value("result", shape, TensorProto.UINT8)],
        {"tint": tint},
    )
    options = WrapOptions(input_range=(0, 255), output_range=(0, 255), colour="bgr")
    bundle = wrap(path, tmp_path / "bundle", options, name="tinter", licence="MIT")
    assert (bundle.manifest.system, bundle.manifest.licence.name) == ("tinter", "MIT")
    for face, found in zip(faces(3), restored(bundle), strict=True):
        assert np.array_equal(found, (face * tint[::-1]).astype(np.uint8))  # their cast cuts off


def test_further_inputs_become_constants(tmp_path: Path) -> None:
    """As CodeFormer's fidelity weight, a float64."""
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "w32"], ["y"]),
        helper.make_node("Neg", ["x"], ["other"]),
    ]
    image = ["n", 3, SIZE, SIZE]
    inputs = [value("x", image), value("w", [], TensorProto.DOUBLE)]
    path = save(tmp_path / "w.onnx", nodes, inputs, [value("y", image), value("other", image)], {})
    with pytest.raises(InvalidOption, match=r"2 .*--output"):
        wrap(path, tmp_path / "bundle", WrapOptions(values={"w": 0.5}))
    with pytest.raises(InvalidOption, match="--set w="):
        wrap(path, tmp_path / "bundle", WrapOptions(output="y"))
    with pytest.raises(InvalidOption, match="no further input 'v'"):
        wrap(path, tmp_path / "bundle", WrapOptions(output="y", values={"w": 0.5, "v": 1}))
    assert not (tmp_path / "bundle").exists()
    bundle = wrap(path, tmp_path / "bundle", WrapOptions(output="y", values={"w": 0.5}))
    for face, found in zip(faces(3), restored(bundle), strict=True):
        assert np.abs(found - ((face / 127.5 - 1) * 0.5 + 1) * 127.5).max() <= 0.51


def test_an_open_size_is_chosen(tmp_path: Path) -> None:
    path = darkening(tmp_path / "open.onnx", size="side")
    with pytest.raises(InvalidOption, match="--size"):
        wrap(path, tmp_path / "bundle", WrapOptions())
    assert wrap(path, tmp_path / "bundle", WrapOptions(size=SIZE)).manifest.image_size == SIZE
    with pytest.raises(InvalidOption, match="16x16"):
        wrap(darkening(tmp_path / "fixed.onnx"), tmp_path / "other", WrapOptions(size=32))


def test_a_result_in_another_range_than_declared_is_warned_of(tmp_path: Path) -> None:
    said: list[str] = []
    options = WrapOptions(input_range=(0, 255), output_range=(-1, 1))
    wrap(darkening(tmp_path / "dark.onnx"), tmp_path / "a", options, say=said.append)
    assert any("is --output-range right?" in text for text in said)
    said.clear()
    wrap(darkening(tmp_path / "dark.onnx"), tmp_path / "b", WrapOptions(), say=said.append)
    assert not any("--output-range" in text for text in said)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="does not exist"):
        wrap(tmp_path / "none.onnx", tmp_path / "bundle", WrapOptions())
    whole = darkening(tmp_path / "dark.onnx").read_bytes()
    for i, data in enumerate((b"", b"<html>", whole[: len(whole) // 2])):
        (tmp_path / f"{i}.onnx").write_bytes(data)
        with pytest.raises(InvalidCheckpoint, match="ONNX"):
            wrap(tmp_path / f"{i}.onnx", tmp_path / "bundle", WrapOptions())
    for options in ({"input_range": (1.0, 1.0)}, {"colour": "grb"}):
        with pytest.raises(InvalidOption):
            WrapOptions(**options)  # type: ignore[arg-type]


def test_it_is_verified_like_any_other_and_has_no_sampler(tmp_path: Path) -> None:
    bundle = wrap(darkening(tmp_path / "dark.onnx"), tmp_path / "bundle", WrapOptions())
    checks = verify(bundle, open_reference(bundle), "fp32", threads=1)
    assert [check.what for check in checks] == ["restorer, batch 1", "restorer, batch 3", "chain"]
    with pytest.raises(InvalidOption, match="steps"):
        Restorer.open(bundle.folder, backend="onnxruntime-cpu", steps=3)
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu") as restorer:
        assert str(restorer.sampler) == "no loop"
        assert restorer.warm_up() > 0


def test_a_run_over_files_counts_to_its_end(tmp_path: Path) -> None:
    bundle = wrap(darkening(tmp_path / "dark.onnx"), tmp_path / "bundle", WrapOptions())
    for i, face in enumerate(faces(3)):
        write_image(tmp_path / "in" / f"{i}.png", face)
    seen: list[float] = []
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu", batch=2, threads=1) as restorer:
        items, options = find_images([tmp_path / "in"]), JobOptions(out=tmp_path / "out")
        report = run_job(restorer, items, options, progress=lambda done, _: seen.append(done))
    assert report.count("restored") == 3
    assert seen[-1] == 3
    assert report.settings["sampler"]["solver"] is None


def test_an_enlarger_is_a_background(tmp_path: Path) -> None:
    """A network of scale 2 serves `bfr restore --background`."""
    size = 48
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")]
    path = save(
        tmp_path / "x2.onnx",
        nodes,
        [value("x", ["n", 3, size, size])],
        [value("y", ["n", 3, 2 * size, 2 * size])],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    bundle = wrap(path, tmp_path / "bundle", WrapOptions(input_range=(0, 1), output_range=(0, 1)))
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    found = NetworkBackground(bundle.folder, CpuDevice(1)).enlarge(picture, 2)
    assert np.array_equal(found, picture.repeat(2, axis=0).repeat(2, axis=1))


def test_a_file_is_wrapped_where_only_onnxruntime_gpu_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version

    def gpu_only(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", gpu_only)
    monkeypatch.setattr(wrapping, "version", gpu_only, raising=False)
    options = WrapOptions(input_range=(0, 1), output_range=(0, 1))
    bundle = wrap(darkening(tmp_path / "dark.onnx"), tmp_path / "bundle", options)
    assert bundle.manifest.made_with["onnxruntime"] == ort.__version__
