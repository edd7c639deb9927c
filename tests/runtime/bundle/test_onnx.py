"""Graphs of strangers: what they name and declare is known before a library opens them."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bundles import edited
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import python
from onnx import TensorProto, helper, numpy_helper

from bfr.runtime.backends.onnxruntime import SAFE, CpuDevice
from bfr.runtime.bundle.bundle import Bundle, default_bundle, describe_file
from bfr.runtime.bundle.onnx import LARGEST_ELEMENTS, MOST_NODES, check_graph
from bfr.runtime.bundle.onnx_info import read_ends
from bfr.runtime.errors import BundleInvalid

GRAPHS = [(default_bundle() / "estimator.onnx").read_bytes(), (default_bundle() / "denoiser.onnx").read_bytes()]
WEIGHTS = {"estimator.safetensors": 1 << 30, "denoiser.safetensors": 1 << 30}


def model(nodes: list[Any], *initializers: Any, functions: tuple[Any, ...] = ()) -> bytes:
    """An ONNX file with these nodes; the last one's output is the graph's."""
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [], [out], list(initializers))
    return bytes(helper.make_model(graph, functions=functions).SerializeToString())


def node(operator: str, *inputs: str, **attributes: Any) -> Any:
    return helper.make_node(operator, list(inputs), ["y"], **attributes)


def numbers(name: str, *values: int, kind: Any = np.int64) -> Any:
    return numpy_helper.from_array(np.array(values, kind), name)


def outside(location: str, name: str = "w") -> Any:
    """A tensor whose data is said to be in a file."""
    tensor = TensorProto(name=name, data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_the_limits_are_those_of_the_page() -> None:
    page = " ".join((Path(__file__).parents[3] / "SECURITY.md").read_text().split())
    assert f"more than {LARGEST_ELEMENTS >> 20} M numbers" in page
    assert f"more than {MOST_NODES:,} nodes" in page
    assert f"to {int(SAFE['optimization.constant_folding_max_output_size_in_bytes']) >> 20} MiB per node" in page


def test_our_own_graphs_pass() -> None:
    for data in GRAPHS:
        check_graph(data, WEIGHTS, "g.onnx")
        with pytest.raises(BundleInvalid, match="names the file"):
            check_graph(data, {}, "g.onnx")


PLACES: dict[str, Callable[[Any], bytes]] = {
    "initializer": lambda tensor: model([node("Identity", "w")], tensor),
    "constant": lambda tensor: model([node("Constant", value=tensor)]),
    "tensors": lambda tensor: model([node("Other", domain="x", many=[tensor])]),
    "branch": lambda tensor: model([node("If", "c", then_branch=branch(tensor), else_branch=branch(numbers("w", 1)))]),
    "function": lambda tensor: model([node("Identity", "w")], numbers("w", 1), functions=(function(tensor),)),
}


def branch(tensor: Any) -> Any:
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph([node("Identity", "w")], "branch", [], [out], [tensor])


def function(tensor: Any) -> Any:
    return helper.make_function("d", "F", [], ["y"], [node("Constant", value=tensor)], [helper.make_opsetid("", 20)])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["other.bin", "../w.bin", "/etc/passwd", "./w.bin", "W.bin", "", "*/_ORT_MEM_ADDR_/*"])
def test_a_file_that_the_manifest_does_not_hold_is_refused(place: str, name: str) -> None:
    check_graph(PLACES[place](outside("w.bin")), {"w.bin": 16}, "g.onnx")
    with pytest.raises(BundleInvalid, match=r"g\.onnx names the file"):
        check_graph(PLACES[place](outside(name)), {"w.bin": 16}, "g.onnx")


def test_one_of_two_locations_does_not_hide_the_other() -> None:
    for first, second in (("w.bin", "/etc/passwd"), ("/etc/passwd", "w.bin")):
        tensor = outside(first)
        tensor.external_data.add(key="location", value=second)
        with pytest.raises(BundleInvalid, match="passwd"):
            check_graph(model([node("Identity", "w")], tensor), {"w.bin": 16}, "g.onnx")


def test_what_lies_beyond_the_end_of_a_file_is_refused() -> None:
    """As of a file of weights whose download was cut off."""
    tensor = outside("w.bin")
    tensor.external_data.add(key="offset", value="16")
    check_graph(model([node("Identity", "w")], tensor), {"w.bin": 32}, "g.onnx")
    with pytest.raises(BundleInvalid, match=r"up to byte 32 of 'w.bin', which ends at 31.*that file again"):
        check_graph(model([node("Identity", "w")], tensor), {"w.bin": 31}, "g.onnx")


def declared(kind: int, *dims: int) -> Any:
    return TensorProto(name="w", data_type=kind, dims=dims, raw_data=b"12345678")


def sparse() -> Any:
    values = helper.make_tensor("v", 1, [1], [1.0])
    return helper.make_sparse_tensor(values, numbers("i", 0), [1 << 40])


BOMBS: dict[str, Callable[[], bytes]] = {
    "ConstantOfShape": lambda: model([node("ConstantOfShape", "n")], numbers("n", 1 << 15, 1 << 15)),
    "a Constant's shape": lambda: model([constant("n", numbers("v", 1 << 40)), node("ConstantOfShape", "n")]),
    "ints of a Constant": lambda: model([constant("n", ints=[1 << 20, 1 << 20]), node("ConstantOfShape", "n")]),
    "Expand": lambda: model([node("Expand", "x", "n")], numbers("x", 1), numbers("n", 1 << 31)),
    "Tile": lambda: model([node("Tile", "x", "n")], numbers("x", *range(1000)), numbers("n", 1 << 20)),
    "Range": lambda: model([node("Range", "a", "b", "c")], numbers("a", -(1 << 40)), numbers("b", 0), numbers("c", 1)),
    "Pad": lambda: model([node("Pad", "x", "n")], numbers("x", 1), numbers("n", 0, 1 << 40)),
    "Resize": lambda: model([node("Resize", "x", "", "", "n")], numbers("x", 1), numbers("n", 1, 1, 1 << 20, 1 << 20)),
    "RandomNormal": lambda: model([node("RandomNormal", dtype=1, shape=[1 << 20, 1 << 20])]),
    "HannWindow": lambda: model([node("HannWindow", "n")], numbers("n", 1 << 40)),
    "int32": lambda: model([node("ConstantOfShape", "n")], numbers("n", 1 << 30, 4, kind=np.int32)),
    "two by one name": lambda: model(
        [node("ConstantOfShape", "n"), constant("n", numbers("v", 1))], numbers("n", 1 << 40)
    ),
    "declared, not held": lambda: model([node("Identity", "w")], declared(1, 1 << 20, 1 << 20)),
    "negative": lambda: model([node("Identity", "w")], declared(1, -1)),
    "sparse": lambda: model([node("Constant", sparse_value=sparse())]),
    "EPContext": lambda: model([node("EPContext", domain="com.microsoft", embed_mode=0, ep_cache_context="/x")]),
}


def constant(name: str, value: Any = None, *, ints: list[int] | None = None) -> Any:
    given = {"value": value} if value is not None else {"value_ints": ints}
    return helper.make_node("Constant", [], [name], **given)


@pytest.mark.parametrize("bomb", BOMBS)
def test_few_bytes_do_not_become_many(bomb: str) -> None:
    data = BOMBS[bomb]()
    assert len(data) < 10_000
    with pytest.raises(BundleInvalid, match=r"g\.onnx (has a|declares|holds) .*refused"):
        check_graph(data, {}, "g.onnx")


def calling(*names: str) -> list[Any]:
    ends = ["a", *map(str, range(len(names) - 1)), "b"]
    return [helper.make_node(name, [ends[i]], [ends[i + 1]], domain="own") for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ({f"f{i}": [f"f{i + 1}"] * 2 for i in range(40)}, "nodes"),
        ({"f0": ["f1"], "f1": ["f0"]}, "functions"),
        ({f"f{i}": [f"f{i + 1}"] for i in range(70)}, "functions"),
    ],
)
def test_functions_that_become_many_nodes_are_refused(calls: dict[str, list[str]], why: str) -> None:
    """ONNX and ONNX Runtime put a function's nodes in the place of its calls, and took all memory."""
    whole = onnx.ModelProto.FromString(model(calling("f0")))
    opset = [helper.make_opsetid("own", 1)]
    bodies = {name: calling(*inner) for name, inner in calls.items()}
    whole.functions.extend(
        helper.make_function("own", name, ["a"], ["b"], body, opset) for name, body in bodies.items()
    )
    with pytest.raises(BundleInvalid, match=rf"g\.onnx has .*{why}.* more than .*refused"):
        check_graph(whole.SerializeToString(), {}, "g.onnx")
    del whole.functions[3:], whole.functions[0].node[1:]
    whole.functions[0].node[0].op_type = "Identity"
    check_graph(whole.SerializeToString(), {}, "g.onnx")


def test_values_that_libraries_would_merge_are_refused() -> None:
    whole = onnx.ModelProto.FromString(model([node("Constant", value=numbers("w", 1))]))
    twice = whole.SerializeToString() + field(7, whole.graph.SerializeToString())
    tensor = field(5, numbers("v", 1).SerializeToString())
    attribute = whole.graph.node[0].attribute[0].SerializeToString() + tensor
    for data in (twice, field(7, field(1, field(5, attribute)))):
        with pytest.raises(BundleInvalid, match=r"g\.onnx (holds|has) two"):
            check_graph(data, {}, "g.onnx")


def test_shapes_of_usual_size_pass() -> None:
    check_graph(model([node("Pad", "x", "n")], numbers("x", 1), numbers("n", *[512] * 8)), {}, "g.onnx")
    check_graph(model([node("ConstantOfShape", "n")], numbers("n", 1, 64, 512, 512)), {}, "g.onnx")
    check_graph(model([node("Identity", "w")], declared(1, 2), numbers("e"), declared(22, 16)), {}, "g.onnx")


def test_sparse_initializers_training_graphs_and_deep_ones_are_refused() -> None:
    whole = onnx.ModelProto.FromString(model([node("Identity", "w")], numbers("w", 1)))
    whole.graph.sparse_initializer.append(sparse())
    training = onnx.ModelProto.FromString(model([node("Identity", "w")], numbers("w", 1)))
    training.training_info.add().algorithm.name = "t"
    graph = b""
    for _ in range(1000):  # an attribute's graph, of a node, of a graph
        for number in (6, 5, 1):
            graph = field(number, graph)
    for data in (whole.SerializeToString(), training.SerializeToString(), field(7, graph)):
        with pytest.raises(BundleInvalid, match=r"sparse|training|nested graphs"):
            check_graph(data, {}, "g.onnx")


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_what_is_no_graph_is_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(BundleInvalid):
        check_graph(data, {}, "g.onnx")


def field(number: int, data: bytes) -> bytes:
    """A field of bytes in a protobuf message."""
    length, rest = b"", len(data)
    while rest > 127:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return bytes([number << 3 | 2]) + length + bytes([rest]) + data


@pytest.mark.parametrize("value", [field(1, b"\xff"), field(1, b"x") + field(2, b"\xff\xff")], ids=["a name", "a type"])
@pytest.mark.parametrize("end", [11, 12], ids=["input", "output"])
def test_a_damaged_input_or_output_is_an_error_of_ours(end: int, value: bytes) -> None:
    with pytest.raises(BundleInvalid, match=r"g\.onnx is damaged"):
        read_ends(field(7, field(end, value)), "g.onnx")


# Through the bundle and the backend


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.folder, tmp_path / "copy"))


def restored(bundle: Bundle) -> np.ndarray:
    network = CpuDevice(1).load(bundle, "estimator", "fp32")
    face, out = np.full((1, 3, 32, 32), 0.25, np.float32), np.zeros((1, 3, 32, 32), np.float32)
    network.bind({network.session.get_inputs()[0].name: face}, {network.session.get_outputs()[0].name: out})()
    return out


@pytest.mark.skipif(
    not hasattr(ort.SessionOptions, "add_external_initializers_from_files_in_memory"),
    reason="the ONNX Runtime of Python 3.10 reads the files again",
)
def test_the_bytes_that_were_checked_are_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are replaced after the check, graph or weights, reach nothing."""
    bundle = Bundle.open(copy)
    expected = restored(bundle)
    real = ort.InferenceSession

    def replaced(source: Any, *arguments: Any, **options: Any) -> Any:
        for name in ("estimator.onnx", "estimator.safetensors"):
            (copy / "new").write_bytes(b"\0" * (copy / name).stat().st_size)
            (copy / "new").replace(copy / name)
        return real(source, *arguments, **options)

    monkeypatch.setattr(ort, "InferenceSession", replaced)
    assert np.array_equal(restored(bundle), expected)


def test_a_graph_that_names_an_unknown_file_reaches_no_library(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = model([node("Identity", "w")], outside("estimator.safetensors"), outside("secret.bin", "v"))
    (copy / "secret.bin").write_bytes(bytes(16))
    (copy / "estimator.onnx").write_bytes(data)
    with edited(copy) as manifest:
        variant = manifest["networks"]["estimator"]["variants"]["fp32"]
        variant["graph"] = describe_file(copy, copy / "estimator.onnx").model_dump()
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: pytest.fail("was opened"))
    bundle = Bundle.open(copy)
    for load in (bundle.graph, bundle.open_graph, lambda *asked: CpuDevice().load(bundle, *asked)):
        with pytest.raises(BundleInvalid, match=r"secret\.bin"):
            load("estimator", "fp32")


CHILD = """
import resource, sys
from pathlib import Path
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle.onnx import OnnxFile
path = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
CpuDevice(1).load_graph(OnnxFile(path, path.read_bytes(), {}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB there alone")
def test_what_is_folded_while_loading_is_limited(tmp_path: Path) -> None:
    """1 kB whose tensors double from node to node up to 1 GiB: without the limit 2.5 GiB are taken, with it 0.7."""
    if tuple(map(int, ort.__version__.split(".")[:2])) < (1, 27):
        pytest.skip("this ONNX Runtime has no limit")

    nodes = [helper.make_node("Concat", [f"a{i}", f"a{i}"], [f"a{i + 1}"], axis=0) for i in range(24)]
    nodes.append(helper.make_node("Add", ["a24", "x"], ["y"]))
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s)] for n, s in (("x", [1]), ("y", None))]
    graph = helper.make_graph(nodes, "g", *ends, [numbers("a0", *range(16), kind=np.float32)])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "g.onnx").write_bytes(made.SerializeToString())
    assert int(python(CHILD, tmp_path / "g.onnx").stdout) < 1 << 20


def test_weights_are_not_copied(copy: Path) -> None:
    opened = Bundle.open(copy).open_graph("estimator", "fp32")
    assert {*opened.weights} == {"estimator.safetensors"}
    assert all(type(weights).__name__ == "mmap" for weights in opened.weights.values())
    opened.settle()
    assert bytes(opened.weights["estimator.safetensors"][:]) == (copy / "estimator.safetensors").read_bytes()
