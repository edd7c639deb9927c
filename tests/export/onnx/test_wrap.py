"""A stranger's ONNX file as a bundle: what is found out of it, what becomes part of the graph, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bfr.export.onnx import wrap as wrapping
from bfr.export.onnx.wrap import wrap
from bfr.export.options import WrapOptions
from bfr.export.verify.compare import FLOORS_DB, open_reference, verify
from bfr.export.verify.walk import walk
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.onnx_info import read_metadata
from bfr.runtime.errors import InputNotFound, InvalidCheckpoint, InvalidOption
from bfr.runtime.faces.background import NetworkBackground
from bfr.runtime.images.encode import write_image
from bfr.runtime.jobs.run import JobOptions, run_job
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.restore.plan import make_plan
from bfr.runtime.restore.restorer import Restorer

SIZE = 16
COLOURS = np.array([0.9, 0.5, 0.2], np.float32)
IMAGE: list[Any] = ["n", 3, SIZE, SIZE]
PLAIN = WrapOptions(input_range=(0, 1), output_range=(0, 1))


def save(
    path: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    constants: dict[str, Any],
    *,
    opset: int = 17,
    ir: int = 9,
) -> Path:
    """A model of opset 17; constants: arrays, or numbers of float32, by name."""
    path.parent.mkdir(exist_ok=True)
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir), path)
    return path


def node(kind: str, read: list[str], made: list[str], **attributes: Any) -> Any:
    return helper.make_node(kind, read, made, **attributes)


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def darkening(path: Path, *, batch: Any = "n", baked: bool = False, size: Any = SIZE) -> Path:
    """A network that halves each channel by its own factor; `baked`: whose reshape holds the batch of 1."""
    constants = {"factor": COLOURS.reshape(1, 3, 1, 1), "shape": np.array([1 if baked else -1, 3, SIZE, SIZE])}
    nodes = [node("Mul", ["x", "factor"], ["y0"]), node("Reshape", ["y0", "shape"], ["y"])]
    return save(path, nodes, [value("x", [batch, 3, size, size])], [value("y", [batch, 3, size, size])], constants)


def faces(count: int) -> list[Any]:
    return [np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for i in range(count)]


def weighted(path: Path, name: str, shape: Any = ()) -> Path:
    """A network that multiplies by a float64, as CodeFormer reads its fidelity weight, with further outputs."""
    nodes = [
        node("Cast", [name], ["w32"], to=TensorProto.FLOAT),
        # Of rank 2 a matrix, which takes no other.
        node("MatMul", ["w32", "matrix"], ["w1"]) if shape and len(shape) == 2 else node("Identity", ["w32"], ["w1"]),
        node("Reshape", ["w1", "number"], ["w0"]),
        node("Mul", ["x", "w0"], ["y"]),
        node("Neg", ["x"], ["other"]),
        node("ReduceMean", ["x"], ["mean"], keepdims=0),
    ]
    inputs = [value("x", IMAGE), value(name, shape, TensorProto.DOUBLE)]
    constants = {"matrix": np.ones((1, 1), np.float32), "number": np.array([], np.int64)}
    return save(path, nodes, inputs, [value("mean", []), value("y", IMAGE), value("other", IMAGE)], constants)


def check_weighted(found: list[Any], weight: float) -> None:
    """That these are the three faces, in [-1, 1], times a weight."""
    assert np.abs(np.subtract(found, ((np.array(faces(3)) / 127.5 - 1) * weight + 1) * 127.5)).max() <= 0.51


def metadata(bundle: Bundle) -> dict[str, str]:
    graph = bundle.folder / "restorer.onnx"
    return read_metadata(graph.read_bytes(), graph)


def restored(bundle: Bundle, batch: int = 1, **options: Any) -> list[Any]:
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu", batch=batch, threads=1, **options) as restorer:
        return restorer.restore(faces(3))


def check_darkened(found: list[Any], error: float = 0.51) -> None:
    """That these are the three faces, each channel times its factor."""
    assert np.abs(np.subtract(found, np.multiply(faces(3), COLOURS))).max() <= error


@pytest.mark.parametrize("batch", ["n", 1])
def test_a_file_runs_as_a_bundle_at_any_batch(tmp_path: Path, batch: Any) -> None:
    """Also one whose graph fixes a batch of 1 for no reason."""
    bundle = wrap(darkening(tmp_path / "dark.onnx", batch=batch), tmp_path / "bundle", PLAIN)
    assert bundle.manifest.batches is None
    assert {check.batch for check in bundle.manifest.verified} == {1, 3}
    alone, together = restored(bundle), restored(bundle, batch=3)
    assert np.array_equal(alone, together)
    check_darkened(alone)


def test_a_file_that_cannot_leave_its_batch_runs_one_image_at_a_time(tmp_path: Path) -> None:
    said: list[str] = []
    bundle = wrap(darkening(tmp_path / "dark.onnx", batch=1, baked=True), tmp_path / "bundle", PLAIN, say=said.append)
    assert bundle.manifest.batches == (1,)
    assert metadata(bundle)["bfr.batches"] == "1"
    assert any(line.startswith("batches of 1 only") for line in said)
    check_darkened(restored(bundle))
    assert np.array_equal(restored(bundle, batch=4), restored(bundle))  # one by one


def test_a_file_of_a_larger_batch_is_verified_at_it(tmp_path: Path) -> None:
    """The reference runs other bundles in parts of 4, and explains them with one image."""
    shape = np.array([6, 3 * SIZE * SIZE])
    nodes = [node("Reshape", ["x", "flat"], ["f"]), node("Reshape", ["f", "whole"], ["y"])]
    constants = {"flat": shape, "whole": np.array([6, 3, SIZE, SIZE])}
    ends = [value("x", [6, 3, SIZE, SIZE])], [value("y", [6, 3, SIZE, SIZE])]
    bundle = wrap(save(tmp_path / "six.onnx", nodes, *ends, constants), tmp_path / "bundle", PLAIN)
    assert bundle.manifest.batches == (6,)
    reference = open_reference(bundle)
    assert {check.batch for check in verify(bundle, reference, "fp32")} == {6}
    ((_, inputs, _),) = walk(bundle, make_plan(bundle, bundle.preset()), reference, 1)
    assert {len(one) for one in inputs.values()} == {6}


def test_ranges_colours_layout_and_types_become_part_of_the_graph(tmp_path: Path) -> None:
    """BGR bytes, channels last, as image tools export them: the network swaps nothing but adds a tint of its own."""
    nodes = [
        node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "tint"], ["g"]),
        node("Cast", ["g"], ["result"], to=TensorProto.UINT8),
    ]
    tint = np.array([0.5, 0.25, 1.0], np.float32)  # blue, green, red
    shape = ["n", SIZE, SIZE, 3]
    ends = [value("image", shape, TensorProto.UINT8)], [value("result", shape, TensorProto.UINT8)]
    path = save(tmp_path / "bgr.onnx", nodes, *ends, {"tint": tint})
    options = WrapOptions(input_range=(0, 255), output_range=(0, 255), colour="bgr", name="tinter", licence="MIT")
    bundle = wrap(path, tmp_path / "bundle", options)
    assert (bundle.manifest.system, bundle.manifest.licence.name) == ("tinter", "MIT")
    for face, found in zip(faces(3), restored(bundle), strict=True):
        assert np.array_equal(found, (face * tint[::-1]).astype(np.uint8))  # their cast cuts off
    told, model = metadata(bundle), onnx.load(bundle.folder / "restorer.onnx", load_external_data=False)
    types = {attribute.i for one in model.graph.node for attribute in one.attribute if one.op_type == "Cast"}
    assert types == {TensorProto.FLOAT, TensorProto.INT32}  # TensorRT has no bytes inside a graph
    assert told == {entry.key: entry.value for entry in model.metadata_props}
    assert told["bfr.range"] == "degraded 0..1, estimate -1..1"  # of the graph itself
    assert (told["bfr.file.range"], told["bfr.file.colour"]) == ("0..255 to 0..255", "bgr")
    assert (told["bfr.system"], told["bfr.size"], told["bfr.batches"]) == ("tinter", str(SIZE), "any")
    assert (told["bfr.licence"], told["bfr.source"]) == ("MIT", "bgr.onnx")
    assert told["bfr.sha256"] == bundle.network("restorer").source.sha256
    assert "bfr.fixed" not in told


def test_bytes_that_the_file_lets_overflow_stay_bytes(tmp_path: Path) -> None:
    nodes = [node("Cast", ["x"], ["f"], to=1), node("Mul", ["f", "two"], ["g"]), node("Cast", ["g"], ["y"], to=2)]
    ends = [value("x", IMAGE, TensorProto.UINT8)], [value("y", IMAGE, TensorProto.UINT8)]
    bundle = wrap(save(tmp_path / "o.onnx", nodes, *ends, {"two": np.float32(2)}), tmp_path / "bundle")
    assert np.array_equal(restored(bundle), [face * 2 for face in faces(3)])


def test_a_weight_with_a_default_can_be_set(tmp_path: Path) -> None:
    """In ONNX an input may have a stored value, which a run replaces."""
    path = weighted(tmp_path / "w.onnx", "w")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.75), "w"))
    onnx.save(model, path)
    bundle = wrap(path, tmp_path / "bundle", WrapOptions(output="y"))
    assert bundle.manifest.weight == 0.75
    check_weighted(restored(bundle), 0.75)
    check_weighted(restored(bundle, weight=0.25), 0.25)
    with pytest.raises(InvalidOption, match="stores 'number'"):
        wrap(path, tmp_path / "other", WrapOptions(output="y", values={"number": 0.5}))
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array(np.nan), "w"))
    onnx.save(model, path)
    with pytest.raises(InvalidCheckpoint, match="NaN"):
        wrap(path, tmp_path / "other", WrapOptions(output="y"))


def test_further_inputs_become_constants(tmp_path: Path) -> None:
    path = weighted(tmp_path / "w.onnx", "gain")
    with pytest.raises(InvalidOption, match="--output"):
        wrap(path, tmp_path / "bundle", WrapOptions(output="z", values={"gain": 0.5}))
    with pytest.raises(InvalidOption, match="--set gain="):
        wrap(path, tmp_path / "bundle")
    with pytest.raises(InvalidOption, match="no further input 'v'"):
        wrap(path, tmp_path / "bundle", WrapOptions(values={"gain": 0.5, "v": 1}))
    assert not (tmp_path / "bundle").exists()
    bundle = wrap(path, tmp_path / "bundle", WrapOptions(output="y", values={"gain": 0.25}))
    assert metadata(bundle)["bfr.fixed"] == "gain=0.25"
    check_weighted(restored(bundle), 0.25)
    with pytest.raises(InvalidOption, match="no network with a weight"):
        Restorer.open(bundle.folder, backend="onnxruntime-cpu", weight=0.5)


def masked(path: Path) -> Path:
    """A network that reads a mask of the image's open size beside it, and a count."""
    image, mask = ["n", 3, "h", "w"], ["n", 1, "h", "w"]
    nodes = [
        node("Concat", ["x", "mask"], ["four"], axis=1),
        node("Slice", ["four", "one", "all", "one"], ["kept"]),
        node("Cast", ["count"], ["factor"], to=TensorProto.FLOAT),
        node("Mul", ["kept", "factor"], ["y"]),
    ]
    inputs = [value("x", image), value("mask", mask), value("count", [], TensorProto.UINT8)]
    constants = {"one": np.array([1]), "all": np.array([9])}
    return save(path, nodes, inputs, [value("y", image)], constants)


def test_further_inputs_have_the_images_size_where_they_name_its_axes(tmp_path: Path) -> None:
    """Channels 1 to 3 of the image and the mask: green, blue and what `--set` says."""
    path, values = masked(tmp_path / "m.onnx"), {"mask": 0.5, "count": 1.0}
    options = WrapOptions(size=15, values=values, input_range=(0, 1), output_range=(0, 1))  # a side that is odd
    bundle = wrap(path, tmp_path / "b", options, threads=1)
    assert bundle.manifest.batches == (1,)
    face = np.random.default_rng(0).integers(0, 256, (15, 15, 3), dtype=np.uint8)
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu", threads=1) as restorer:
        (found,) = restorer.restore([face])
    assert np.array_equal(found[..., :2], face[..., 1:])
    assert np.abs(found[..., 2] - 127.5).max() <= 0.5
    for count in (0.5, 300.0, -1.0):
        with pytest.raises(InvalidOption, match=f"count .uint8 number., which cannot hold {count:g}: give another"):
            wrap(path, tmp_path / "c", WrapOptions(size=15, values={"mask": 0.5, "count": count}))
    with pytest.raises(InvalidOption, match=r"mask .float nx1xhxw., which cannot hold 1e.40"):
        wrap(path, tmp_path / "c", WrapOptions(size=15, values={"mask": 1e40, "count": 1.0}))


def test_an_open_size_is_chosen(tmp_path: Path) -> None:
    path = darkening(tmp_path / "open.onnx", size="side")  # its graph holds a side of 16
    assert wrap(path, tmp_path / "assumed", threads=1).manifest.image_size == SIZE
    with pytest.raises(InvalidOption, match="--size"):
        wrap(path, tmp_path / "bundle", WrapOptions(size=2 * SIZE))
    assert wrap(path, tmp_path / "bundle", WrapOptions(size=SIZE)).manifest.image_size == SIZE
    with pytest.raises(InvalidOption, match="16x16"):
        wrap(darkening(tmp_path / "fixed.onnx"), tmp_path / "other", WrapOptions(size=32))


def test_a_result_in_another_range_than_declared_is_warned_of(tmp_path: Path) -> None:
    said: list[str] = []
    options = WrapOptions(input_range=(0, 255), output_range=(-1, 1))
    wrap(darkening(tmp_path / "dark.onnx"), tmp_path / "a", options, say=said.append)
    assert any("is --output-range right?" in text for text in said)
    said.clear()
    wrap(darkening(tmp_path / "dark.onnx"), tmp_path / "b", say=said.append)
    assert not any("right?" in text for text in said)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="does not exist"):
        wrap(tmp_path / "none.onnx", tmp_path / "bundle")
    whole = darkening(tmp_path / "dark.onnx").read_bytes()
    files = {
        b"": "is empty",
        b"<!DOCTYPE html>": "web page",
        b"version https://git-lfs.github.com/spec/v1": "git lfs pull",
        b"PK\x03\x04": "zip archive",
        b"\x80\x02": "weights without a graph",
        b"\x1f\x8b\x08": "gzip archive: unpack it",
        b"\x20\0\0\0TFL3": "TensorFlow Lite",
        b"Entry not found": "'Entry not found': choose the ONNX file",
        bytes(99): "zero bytes",
        whole[: len(whole) // 2]: "damaged",
    }
    for i, (data, message) in enumerate(files.items()):
        (tmp_path / f"{i}.onnx").write_bytes(data)
        with pytest.raises(InvalidCheckpoint, match=message):
            wrap(tmp_path / f"{i}.onnx", tmp_path / "bundle")


def changed(path: Path, change: Callable[[onnx.ModelProto], Any]) -> Path:
    """The network that darkens, changed."""
    model = onnx.load(darkening(path))
    change(model)
    onnx.save(model, path)
    return path


def behind(model: onnx.ModelProto, operator: str, *inputs: str, **attributes: Any) -> None:
    """Lets one more node make the result `y`, of what was the result and these inputs."""
    next(node for node in model.graph.node if "y" in node.output).output[0] = "z"
    model.graph.node.append(node(operator, ["z", *inputs], ["y"], **attributes))


def keep_outside(tensor: TensorProto, **entries: str) -> None:
    """Lets a tensor's bytes lie in another file: `location`, and where there."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)


def no_shape(model: onnx.ModelProto) -> None:
    for one in (*model.graph.input, *model.graph.output):
        one.type.tensor_type.ClearField("shape")


def open_shape(*sizes: int | str | None) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(value("x", [*sizes]))

    return change


def sequence(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("SequenceConstruct", ["y"], ["all"]))
    kind = helper.make_sequence_type_proto(model.graph.output[0].type)
    model.graph.output.insert(0, helper.make_value_info("all", kind))


def function(model: onnx.ModelProto) -> None:
    """A function of the file's own draws noise, of which little is added."""
    opset = [helper.make_opsetid("", 17)]
    nodes = [node("RandomNormalLike", ["a"], ["r"], scale=1e-6), node("Add", ["a", "r"], ["b"])]
    model.functions.append(helper.make_function("own", "Noisy", ["a"], ["b"], nodes, opset))
    model.opset_import.append(helper.make_opsetid("own", 1))
    behind(model, "Noisy", domain="own")


def default(model: onnx.ModelProto) -> None:
    """A function that the file calls without the attribute for which it has a default."""
    constant = node("Constant", [], ["k"])
    constant.attribute.add(name="value_float", ref_attr_name="k", type=onnx.AttributeProto.FLOAT)
    nodes, opset = [constant, node("Mul", ["a", "k"], ["b"])], [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Scale", ["a"], ["b"], nodes, opset))
    model.functions[0].attribute_proto.append(helper.make_attribute("k", 1.0))
    model.opset_import.append(helper.make_opsetid("own", 1))
    behind(model, "Scale", domain="own")


def node_of_bytes(model: onnx.ModelProto) -> None:
    """A node's name that is no UTF-8."""
    model.graph.node[0].name = "name"
    data = model.graph.node[0].SerializeToString().replace(b"name", b"\xb1\xdf\xb3\xa4")
    model.graph.node[0].CopyFrom(onnx.NodeProto.FromString(data))


def named(model: onnx.ModelProto) -> None:
    """A weight called as the entry of safetensors that is none, of the size that is stored beside the graph."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 3, SIZE, 32), np.float32), "__metadata__"))
    model.graph.node.append(node("ReduceMax", ["__metadata__"], ["one"], keepdims=0))
    behind(model, "Mul", "one")


def idle_dropout(model: onnx.ModelProto) -> None:
    """A Dropout that is told not to train."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    no = numpy_helper.from_array(np.array(False))
    model.graph.node.append(node("Constant", [], ["no"], value=no))
    behind(model, "Dropout", "half", "no")


def channels_last(model: onnx.ModelProto) -> None:
    """As tf2onnx writes it, with no size known."""
    open_shape(*[None] * 4)(model)
    first, last = (
        node("Transpose", [read], [made], perm=perm)
        for read, made, perm in (("x", "planes", [0, 3, 1, 2]), ("z", "y", [0, 2, 3, 1]))
    )
    model.graph.node[0].input[0], model.graph.node[1].output[0] = "planes", "z"
    model.graph.node.insert(0, first)
    model.graph.node.append(last)
    model.graph.output[0].type.tensor_type.ClearField("shape")


def single(model: onnx.ModelProto) -> None:
    """One image in and out, whose channels are last in what comes out."""
    open_shape(3, SIZE, SIZE)(model)
    model.graph.node[1].output[0] = "z"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node.append(node("Squeeze", ["z", "first"], ["planes"]))
    model.graph.node.append(node("Transpose", ["planes"], ["y"], perm=[1, 2, 0]))
    model.graph.output[0].CopyFrom(value("y", [SIZE, SIZE, 3]))


def packed(model: onnx.ModelProto) -> None:
    """Weights of four bits, two in a byte, of the size that is stored beside the graph."""
    ones = helper.make_tensor("four", TensorProto.INT4, [1, 3, SIZE, 32], [1] * 3 * SIZE * 32)
    model.graph.initializer.extend([ones, numpy_helper.from_array(np.array(1, np.float32), "step")])
    model.graph.node.insert(0, node("DequantizeLinear", ["four", "step"], ["floats"]))
    model.graph.node.insert(1, node("ReduceMax", ["floats"], ["one"], keepdims=0))
    behind(model, "Mul", "one")
    model.opset_import[0].version, model.ir_version = 21, 10


def unreadable(model: onnx.ModelProto) -> None:
    """A further output of a type that NumPy lacks."""
    model.graph.node.append(node("Cast", ["y"], ["short"], to=TensorProto.BFLOAT16))
    model.graph.output.insert(0, value("short", ["n", 3, SIZE, SIZE], TensorProto.BFLOAT16))


def untyped(model: onnx.ModelProto) -> None:
    """Outputs by name alone, as editors of graphs write them."""
    for output in model.graph.output:
        output.ClearField("type")


def unusual(model: onnx.ModelProto) -> None:
    """What the checker of ONNX refuses and ONNX Runtime runs: no name, an alias of its domain, a property twice."""
    model.graph.name, model.graph.node[0].domain = "", "ai.onnx"
    for text in ("a", "b"):
        model.metadata_props.add(key="names", value=text)


@pytest.mark.parametrize(
    "change",
    [
        *(channels_last, single, packed, unreadable, untyped, unusual, idle_dropout, no_shape),
        *(open_shape("batch", "c", "h", "w"), open_shape("batch", 3, SIZE, "w"), open_shape(-1, 3, -1, -1)),
        *(open_shape(3, SIZE, SIZE), sequence, function, default, node_of_bytes, named),
    ],
)
def test_shapes_and_types_that_a_file_leaves_open_are_found_by_running_it(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    path = changed(tmp_path / "m.onnx", change)
    bundle = wrap(path, tmp_path / "b", PLAIN.model_copy(update={"size": SIZE}), threads=1)
    check_darkened(restored(bundle))


def optional(model: onnx.ModelProto) -> None:
    kind = helper.make_optional_type_proto(model.graph.input[0].type)
    model.graph.input.append(helper.make_value_info("o", kind))


def dropout(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    behind(model, "Dropout", "half", "yes")


def training(model: onnx.ModelProto) -> None:
    stored = {name: np.ones(3, np.float32) for name in ("scale", "bias", "mean", "var")}
    model.graph.initializer.extend([numpy_helper.from_array(array, name) for name, array in stored.items()])
    behind(model, "BatchNormalization", *stored, training_mode=1)
    model.graph.node[-1].output.extend(["new_mean", "new_var"])


def older_function(model: onnx.ModelProto) -> None:
    """Noise in a function of another opset than the file's, which stays a function."""
    function(model)
    model.functions[0].opset_import[0].version = 13


def short_noise(model: onnx.ModelProto) -> None:
    """Noise of a type that NumPy lacks."""
    draw = node("RandomNormalLike", ["z"], ["drawn"], dtype=TensorProto.BFLOAT16)
    wide = node("Cast", ["drawn"], ["wide"], to=TensorProto.FLOAT)
    model.graph.node.extend([draw, wide])
    behind(model, "Add", "wide")


def short(model: onnx.ModelProto) -> None:
    unreadable(model)
    del model.graph.output[1]


def beyond_the_file(model: onnx.ModelProto) -> None:
    """A weight whose bytes in another file are fewer than it has."""
    tensor = numpy_helper.from_array(np.ones(2000, np.float32), "many")
    keep_outside(tensor, location="m.onnx", length="0")
    model.graph.initializer.append(tensor)
    model.graph.node.append(node("ReduceMax", ["many"], ["one"], keepdims=0))
    behind(model, "Mul", "one")
    model.doc_string = "a" * 8000  # the file is long enough


def unknown(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    model.graph.node[0].CopyFrom(node("Magic", ["x"], ["y0"], domain="com.acme"))


def not_utf8() -> Any:
    data = value("x", ["side", 3, SIZE, SIZE]).SerializeToString().replace(b"side", b"\xb1\xdf\xb3\xa4")
    return onnx.ValueInfoProto.FromString(data)


def infinite(model: onnx.ModelProto) -> None:
    behind(model, "Log")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (open_shape("n", 3, SIZE, 2 * SIZE), r"no input can be the image.*export it so.*x \(float nx3x16x32\)"),
        (open_shape("n", 1, SIZE, SIZE), "no input can be the image"),
        (optional, r"o \(optional\), which no number can fill: export it without"),
        (dropout, r"Dropout.*model.eval\(\)"),
        (training, r"BatchNormalization.*model.eval\(\)"),
        (older_function, r"RandomNormalLike.*model.eval\(\)"),
        (short_noise, "noise 'drawn' in bfloat16: export it in float32"),
        (short, r"none is an image, .*double or uint8: export it so. There are: short .bfloat16 nx3x16x16.$"),
        (beyond_the_file, "weights beside the model cannot be read.*Download them again"),
        (open_shape(5000, 3, SIZE, SIZE), "5,000 pictures at a time.*with a batch of 1"),
        (unknown, r"Magic.*Export it with operators of ONNX alone"),
        (lambda model: setattr(model.graph.node[0], "domain", "mmcv"), "mmcv.*Export it with operators of ONNX alone"),
        (open_shape("n", 3, "points"), r"no input can be the image.*x \(float nx3xpoints\)"),
        (infinite, "NaN or Inf for an ordinary picture: choose another --input-range"),
        (lambda model: model.graph.input[0].CopyFrom(not_utf8()), "with names in UTF-8"),
        (lambda model: model.graph.output.pop(), "has no output"),
        (lambda model: model.opset_import.pop(), "which opset"),
        (lambda model: setattr(model, "ir_version", 99), "IR version"),
        (lambda model: setattr(model.opset_import[0], "version", 6), "opset 7 or later"),
        (lambda model: setattr(model.opset_import[0], "version", 99), "with an older opset"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_remedy(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], sentence: str
) -> None:
    path = changed(tmp_path / "m.onnx", change)
    with pytest.raises((InvalidCheckpoint, InvalidOption), match=sentence) as refused:
        wrap(path, tmp_path / "b", threads=1)
    assert "\n" not in str(refused.value)
    assert "onnxruntime_src" not in str(refused.value)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"input_range": (1.0, 1.0)}, "black must be less"),
        ({"output_range": "0-255"}, "as -1..1 or 0..255"),
        ({"output_range": "0..1..2"}, "as -1..1 or 0..255"),
        ({"output_range": "0..nan"}, "output_range"),
        ({"output_range": "0..1e-40"}, "differ by 0.001"),
        ({"input_range": "-1e38..1e38"}, "within 1,000,000"),
        ({"colour": "grb"}, "rgb, bgr"),
        ({"size": 0}, "1 or more"),
        ({"licence": "\udcff"}, "unicode"),
        ({"values": ["w"]}, "as w=0.5"),
        ({"values": ["0.5"]}, "as w=0.5"),
        ({"precision": ("int8",)}, "int8"),
    ],
)
def test_options_that_mean_nothing_are_refused(wrong: Any, sentence: str) -> None:
    with pytest.raises(InvalidOption) as refused:
        WrapOptions(**wrong)
    assert sentence in str(refused.value)


def test_options_are_read_from_the_text_of_flags() -> None:
    options = WrapOptions(input_range="0..255", values=["w=0.5", "a=v=-1"], precision=["fp16"])  # type: ignore[arg-type]
    assert (options.input_range, options.values) == ((0.0, 255.0), {"w": 0.5, "a=v": -1.0})
    assert options.precision == ("fp32", "fp16")


def test_it_is_verified_like_any_other_and_has_no_sampler(tmp_path: Path) -> None:
    bundle = wrap(darkening(tmp_path / "dark.onnx"), tmp_path / "bundle")
    checks = verify(bundle, open_reference(bundle), "fp32", threads=1)
    with pytest.raises(InvalidOption, match="has no loop, so no preset"):
        verify(bundle, open_reference(bundle), "fp32", preset="fast", threads=1)
    assert [check.what for check in checks] == ["restorer, batch 1", "restorer, batch 3", "chain"]
    with pytest.raises(InvalidOption, match="steps"):
        Restorer.open(bundle.folder, backend="onnxruntime-cpu", steps=3)
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu") as restorer:
        assert str(restorer.sampler) == "no loop"
        assert restorer.warm_up() > 0


def test_a_run_over_files_counts_to_its_end(tmp_path: Path) -> None:
    bundle = wrap(darkening(tmp_path / "dark.onnx"), tmp_path / "bundle")
    for i, face in enumerate(faces(3)):
        write_image(tmp_path / "in" / f"{i}.png", face)
    seen: list[float] = []
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu", batch=2, threads=1) as restorer:
        items, options = find_images([tmp_path / "in"]), JobOptions(out=tmp_path / "out")
        report = run_job(restorer, items, options, progress=lambda done, _: seen.append(done))
    assert report.count("restored") == 3
    assert seen[-1] == 3
    assert report.settings["sampler"]["solver"] is None


@pytest.mark.parametrize("batch", [-1, 4])
def test_an_enlarger_is_a_background(tmp_path: Path, batch: int) -> None:
    """A network of scale 2 serves `bfr restore --background`, also one that takes four tiles at a time alone."""
    size, count = 48, "n" if batch == -1 else batch
    nodes = [
        node("Resize", ["x", "", "scales"], ["large"], mode="nearest"),
        node("Reshape", ["large", "shape"], ["y"]),
    ]
    ends = [value("x", [count, 3, size, size])], [value("y", [count, 3, 2 * size, 2 * size])]
    constants = {"scales": np.array([1, 1, 2, 2], np.float32), "shape": np.array([batch, 3, 2 * size, 2 * size])}
    path = save(tmp_path / "x2.onnx", nodes, *ends, constants)
    bundle = wrap(path, tmp_path / "bundle", PLAIN)
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    found = NetworkBackground(bundle.folder, CpuDevice(1)).enlarge(picture, 2)
    assert np.array_equal(found, picture.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(("batch", "shape"), [(1, []), (3, []), (1, [1]), (3, [1, 1]), (1, ["n", 1]), (1, None)])
def test_a_fidelity_weight_is_chosen_by_each_run(tmp_path: Path, batch: int, shape: Any) -> None:
    path = weighted(tmp_path / "w.onnx", "w", shape)
    bundle = wrap(path, tmp_path / "bundle")
    assert bundle.manifest.weight == 0.5
    for options, weight in (({}, 0.5), ({"weight": 0.9}, 0.9)):
        check_weighted(restored(bundle, batch, **options), weight)
    assert verify(bundle, open_reference(bundle), "fp32", threads=1)


def second(shape: list[Any], image: list[Any] = IMAGE) -> Any:
    """The input of a second picture, beside the one to restore."""
    return [value("face", image), value("other", shape)]


@pytest.mark.parametrize("shape", [IMAGE, ["n", 3, 8, 8], [1, 3, SIZE, SIZE], [1, 3, 8, 8], [3, SIZE, SIZE]])
def test_a_second_picture_is_a_reference_of_any_side_and_batch(tmp_path: Path, shape: list[Any]) -> None:
    """The network adds the second picture's means to the first; of one as large, the picture itself."""
    mean, axes = shape is not IMAGE, [2, 3] if len(shape) == 4 else [1, 2]
    nodes = [
        node("ReduceMean", ["other"], ["mean"], axes=axes) if mean else node("Identity", ["other"], ["mean"]),
        node("Add", ["face", "mean"], ["sum"]),
        node("Mul", ["sum", "half"], ["y"]),
    ]
    path = save(tmp_path / "two.onnx", nodes, second(shape), [value("y", IMAGE)], {"half": np.float32(0.5)})
    with pytest.raises(InvalidOption, match="--reference"):
        wrap(path, tmp_path / "bundle")
    with pytest.raises(InvalidOption, match="'face' is the picture to restore, and cannot be the second one"):
        wrap(path, tmp_path / "bundle", WrapOptions(input="face", reference="face", values={"other": 0.0}))
    options = PLAIN.model_copy(update={"input": "face", "reference": "other"})
    bundle = wrap(path, tmp_path / "bundle", options, threads=1)
    with Restorer.open(bundle.folder, backend="onnxruntime-cpu", threads=1) as restorer:
        (found,) = restorer.restore(faces(1), inputs={"reference": faces(2)[1:]})
    face, other = (one.astype(float) for one in faces(2))
    assert np.abs(found - (face + (other.mean((0, 1)) if mean else other)) / 2).max() <= 0.51


def test_pictures_in_batches_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    image, identity = [2, 3, SIZE, SIZE], node("Identity", ["face"], ["y"])
    path = save(tmp_path / "two.onnx", [identity], second([3, 3, SIZE, SIZE], image), [value("y", image)], {})
    with pytest.raises(InvalidCheckpoint, match="2 pictures as face and 3 as other: export it with a batch of 1"):
        wrap(path, tmp_path / "bundle", WrapOptions(input="face", reference="other"))


def test_a_batch_that_the_graph_declares_otherwise_is_not_run(tmp_path: Path) -> None:
    """ONNX Runtime runs it, and refuses to write the result into a buffer."""
    image = [1, 3, SIZE, SIZE]
    constants = {"nothing": np.zeros((1, 0, SIZE, SIZE), np.float32)}
    made = node("Concat", ["x", "nothing"], ["y"], axis=1)
    path = save(tmp_path / "m.onnx", [made], [value("x", image)], [value("y", image)], constants)
    bundle = wrap(path, tmp_path / "bundle", threads=1)
    assert bundle.manifest.batches == (1,)
    assert np.array_equal(restored(bundle, batch=3), faces(3))


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        (TensorProto.FLOAT, {}),
        (TensorProto.DOUBLE, {}),  # the type is that of what it is like
        (TensorProto.FLOAT16, {"dtype": TensorProto.FLOAT16}),  # which ONNX Runtime cannot draw on the CPU
        (TensorProto.FLOAT, {"shape": [1, 3, SIZE, SIZE]}),
    ],
)
def test_noise_that_a_graph_draws_is_drawn_once(tmp_path: Path, kind: int, attributes: dict[str, Any]) -> None:
    """As GFPGAN's, whose StyleGAN blocks add noise."""
    draw = ("RandomNormal", []) if "shape" in attributes else ("RandomNormalLike", ["x"])
    nodes = [
        node(*draw, ["drawn"], **attributes),
        node("Mul", ["drawn", "tenth"], ["little"]),
        node("Add", ["x", "little"], ["y"]),
    ]
    image = [1, 3, SIZE, SIZE]
    constants = {"tenth": np.array(0.1, helper.tensor_dtype_to_np_dtype(kind))}
    path = save(tmp_path / "noisy.onnx", nodes, [value("x", image, kind)], [value("y", image, kind)], constants)
    said: list[str] = []
    bundle = wrap(path, tmp_path / "bundle", say=said.append)
    assert any("draw random numbers" in line for line in said)
    alone, together = restored(bundle), restored(bundle, batch=3)
    assert np.array_equal(alone, together)
    for face, one in zip(faces(3), alone, strict=True):
        assert 2 < np.std(one.astype(float) - face) < 20  # a tenth of 127.5, less what is clipped


def test_of_several_images_the_first_of_the_inputs_side_is_taken(tmp_path: Path) -> None:
    """Exports of GFPGAN give the images of all scales beside the result."""
    image = [1, 3, SIZE, SIZE]
    nodes = [
        node("Resize", ["x", "", "scales"], ["small"], mode="nearest"),
        node("Identity", ["x"], ["result"]),
    ]
    outputs = [value("small", [1, 3, SIZE // 2, SIZE // 2]), value("result", image)]
    constants = {"scales": np.array([1, 1, 0.5, 0.5], np.float32)}
    path = save(tmp_path / "scales.onnx", nodes, [value("x", image)], outputs, constants)
    said: list[str] = []
    bundle = wrap(path, tmp_path / "bundle", say=said.append)
    assert np.array_equal(restored(bundle), faces(3))
    assert "further images are left out: --output chooses small instead" in said
    said.clear()
    small = wrap(path, tmp_path / "small", WrapOptions(output="small"), say=said.append)
    assert not [line for line in said if "left out" in line]
    assert small.manifest.networks["restorer"].outputs[0].shape[-1] == SIZE // 2


def test_half_is_read_and_made(tmp_path: Path) -> None:
    """A file in half whose casts stand behind the nodes that read them, and a variant in half of a float32 file."""
    factor = {"factor": COLOURS.reshape(1, 3, 1, 1).astype(np.float16)}
    product = node("Mul", ["x16", "factor"], ["y16"])
    casts = [
        node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16),
        node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [value("x", IMAGE)], [value("y", IMAGE)]
    unsorted = save(tmp_path / "unsorted.onnx", [product, *casts], *ends, factor)
    bundle = wrap(unsorted, tmp_path / "unsorted", PLAIN)
    assert {check.floor_db for check in bundle.manifest.verified} == {FLOORS_DB["fp16"][0]}
    assert verify(bundle, open_reference(bundle), "fp32", threads=1)
    halved = PLAIN.model_copy(update={"precision": ("fp32", "fp16")})
    made = wrap(darkening(tmp_path / "dark.onnx"), tmp_path / "made", halved)
    assert set(made.manifest.networks["restorer"].variants) == {"fp32", "fp16"}
    for one, precision in ((bundle, "fp32"), (made, "fp16")):
        check_darkened(restored(one, precision=precision), 1)


STORED = [
    node("Constant", [], ["stored"], value=numpy_helper.from_array(COLOURS.astype(np.float16))),
    node("Cast", ["stored"], ["three"], to=TensorProto.FLOAT),
]


@pytest.mark.parametrize("constant", [STORED, [node("Constant", [], ["three"], value_floats=COLOURS.tolist())]])
def test_weights_in_nodes_compute_in_float32_and_in_half(tmp_path: Path, constant: list[Any]) -> None:
    """Stored in half alone; and as numbers that are no tensors, as the libraries of torch.onnx write them."""
    nodes = [
        *constant,
        node("Reshape", ["three", "shape"], ["factor"]),
        node("Mul", ["x", "factor"], ["y0"]),
        node("Constant", [], ["one"], value_float=1.0),
        node("Mul", ["y0", "one"], ["y"]),
    ]
    constants = {"shape": np.array([1, 3, 1, 1])}
    path = save(tmp_path / "m.onnx", nodes, [value("x", IMAGE)], [value("y", IMAGE)], constants)
    bundle = wrap(path, tmp_path / "b", PLAIN.model_copy(update={"precision": ("fp32", "fp16")}), threads=1)
    network = bundle.manifest.networks["restorer"]
    assert (network.parameter_count, set(network.variants)) == (4, {"fp32", "fp16"})
    assert {check.floor_db for check in bundle.manifest.verified if check.precision == "fp32"} == {90.0}
    check_darkened(restored(bundle, precision="fp16"), 1)


@pytest.mark.parametrize("opset", [8, 10])
def test_old_files_keep_their_operators(tmp_path: Path, opset: int) -> None:
    """A Resize of opset 10 means something else in 11; IR 3 names its weights among the inputs."""
    image, weights = [1, 3, SIZE, SIZE], {"factor": np.ones((1, 3, 1, 1), np.float32)}
    enlarged = node("Upsample", ["f"], ["y"], mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])
    if opset == 10:
        weights["sizes"] = np.array([1, 1, 2, 2], np.float32)
        enlarged = node("Resize", ["f", "sizes"], ["y"], mode="nearest")
    inputs = [value("x", image), *(value(name, list(array.shape)) for name, array in weights.items())]
    nodes, outputs = [node("Mul", ["x", "factor"], ["f"]), enlarged], [value("y", [1, 3, 2 * SIZE, 2 * SIZE])]
    path = save(tmp_path / "old.onnx", nodes, inputs, outputs, weights, opset=opset, ir=3)
    network = wrap(path, tmp_path / "bundle").manifest.networks["restorer"]
    assert (network.parameters["input_range"], network.outputs[0].shape[-1]) == ([0.0, 1.0], 2 * SIZE)  # an enlarger


def test_what_is_quantized_stays_so_in_half(tmp_path: Path) -> None:
    """QuantizeLinear and operators such as Max have no half: casts stand around them."""
    nodes = [
        node("Max", ["x", "black"], ["a"]),
        node("QuantizeLinear", ["a", "step", "zero"], ["q"]),
        node("QLinearConv", ["q", "step", "zero", "w", "unit", "none", "step", "zero"], ["c"]),
        node("DequantizeLinear", ["c", "step", "zero"], ["y"]),
    ]
    constants = {"black": np.float32(0), "step": np.float32(1 / 255), "unit": np.float32(1), "zero": np.uint8(0)}
    constants |= {"w": np.eye(3, dtype=np.int8).reshape(3, 3, 1, 1), "none": np.int8(0)}
    path = save(tmp_path / "q.onnx", nodes, [value("x", IMAGE)], [value("y", IMAGE)], constants)
    options = WrapOptions(input_range=(0, 1), output_range=(0, 1), precision=("fp16",))
    bundle = wrap(path, tmp_path / "bundle", options, threads=1)
    assert np.array_equal(restored(bundle, precision="fp16"), faces(3))


def test_a_variant_that_does_not_run_is_said_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapping, "call_network", lambda *_: (_ for _ in ()).throw(RuntimeError("no kernel")))
    path = darkening(tmp_path / "m.onnx")
    with pytest.raises(InvalidCheckpoint, match=r"wrapped in fp32, m.onnx does not run: no kernel. Export it again"):
        wrap(path, tmp_path / "b", threads=1)
    assert not (tmp_path / "b").exists()


def test_names_of_the_file_may_be_ours(tmp_path: Path) -> None:
    """Also inside the branches of an If, which read tensors from around them."""
    branches = {
        f"{name}_branch": helper.make_graph([node], name, [], [value(f"{name}_y", IMAGE)])
        for name, node in (
            ("then", node("Mul", ["estimate", "weight"], ["then_y"])),
            ("else", node("Identity", ["estimate"], ["else_y"])),
        )
    }
    nodes = [
        node("Identity", ["degraded"], ["estimate"]),
        node("If", ["yes"], ["bfr/degraded/0"], **branches),
    ]
    constants = {"weight": COLOURS.reshape(1, 3, 1, 1), "yes": np.array(True)}
    path = save(tmp_path / "if.onnx", nodes, [value("degraded", IMAGE)], [value("bfr/degraded/0", IMAGE)], constants)
    bundle = wrap(path, tmp_path / "bundle", PLAIN)
    check_darkened(restored(bundle))


def test_a_wrapped_graph_is_wrapped_again(tmp_path: Path) -> None:
    """Its tensors and nodes have our names, and those that the first wrapping gave to the file's."""
    nodes = [node("Mul", ["degraded", "file/degraded"], ["y"])]
    constants = {"file/degraded": COLOURS.reshape(1, 3, 1, 1)}
    path = save(tmp_path / "m.onnx", nodes, [value("degraded", IMAGE)], [value("y", IMAGE)], constants)
    options = PLAIN
    for i in range(3):
        bundle = wrap(path, tmp_path / f"{i}", options, threads=1)
        path, options = bundle.folder / "restorer.onnx", WrapOptions(input_range=(0, 1))
    check_darkened(restored(bundle))


def test_a_graph_that_onnxruntime_cannot_run_is_refused(tmp_path: Path) -> None:
    made = node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    ends = [value("x", IMAGE, TensorProto.DOUBLE)], [value("y", IMAGE, TensorProto.DOUBLE)]
    path = save(tmp_path / "double.onnx", [made], *ends, {"w": np.ones((3, 3, 3, 3))})
    with pytest.raises(InvalidCheckpoint, match="cannot run double"):
        wrap(path, tmp_path / "bundle")


def test_a_file_that_names_others_than_its_weights_is_refused(tmp_path: Path) -> None:
    """Security 6: nothing outside the model's folder is read, whatever the graph names."""
    path = darkening(tmp_path / "in" / "m.onnx")
    model = onnx.load(path)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(12))
    for name in ("../secret.bin", str(secret), "link.bin", "hard.bin", "gone.bin"):
        keep_outside(model.graph.initializer[0], location=name)
        path.write_bytes(model.SerializeToString())
        if name == "link.bin":
            (tmp_path / "in" / name).symlink_to(secret)
        if name == "hard.bin":  # onnx refuses it too, and says not what to do
            (tmp_path / "in" / name).hardlink_to(secret)
        with pytest.raises(InvalidCheckpoint, match="names the file"):
            wrap(path, tmp_path / "b")
    (tmp_path / "in" / "gone.bin").write_bytes(np.full(3, 0.5, np.float32).tobytes())
    assert wrap(path, tmp_path / "b", PLAIN, threads=1)


def test_weights_beside_the_file_need_not_name_their_length(tmp_path: Path) -> None:
    path = darkening(tmp_path / "m.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    (tmp_path / "all.bin").write_bytes(bytes(8) + tensor.raw_data + bytes(8))
    keep_outside(tensor, location="all.bin", offset="8")
    path.write_bytes(model.SerializeToString())
    bundle = wrap(path, tmp_path / "b", PLAIN, threads=1)
    check_darkened(restored(bundle))


def test_a_network_that_resizes_by_itself_is_no_enlarger(tmp_path: Path) -> None:
    """It takes any picture, and makes one of its own side, by which it is called."""
    made = node("Resize", ["x", "", "", "sizes"], ["y"])
    ends = [value("x", [1, 3, "h", "w"])], [value("y", [1, 3, 256, 256])]
    path = save(tmp_path / "m.onnx", [made], *ends, {"sizes": np.array([1, 3, 256, 256])})
    manifest = wrap(path, tmp_path / "b", threads=1).manifest
    assert (manifest.image_size, manifest.networks["restorer"].parameters["input_range"]) == (256, [-1.0, 1.0])


@pytest.mark.parametrize(("shape", "size"), [([1 << 30, 3, SIZE, SIZE], None), (["n", 3, "h", "h"], 1 << 20)])
def test_sizes_that_no_machine_has_are_refused(tmp_path: Path, shape: list[Any], size: int | None) -> None:
    negative = [node("Neg", ["x"], ["y"])]
    path = save(tmp_path / "m.onnx", negative, [value("x", shape)], [value("y", shape)], {})
    with pytest.raises(InvalidCheckpoint, match=r"numbers|pictures at a time"):
        wrap(path, tmp_path / "b", WrapOptions(size=size))
    inputs = [value("x", IMAGE), value("w", [1 << 20, 1 << 20])]
    path = save(tmp_path / "w.onnx", negative, inputs, [value("y", IMAGE)], {})
    with pytest.raises(InvalidCheckpoint, match="w has the shape"):
        wrap(path, tmp_path / "b", WrapOptions(values={"w": 1.0}))


def test_a_system_has_a_name_that_a_shell_takes_for_a_word(tmp_path: Path) -> None:
    path = darkening(tmp_path / "my model $(id).onnx")
    assert wrap(path, tmp_path / "b", PLAIN, threads=1).manifest.system == "my-model-id-"
    with pytest.raises(InvalidOption, match="letters"):
        wrap(path, tmp_path / "c", WrapOptions(name="a b"))
