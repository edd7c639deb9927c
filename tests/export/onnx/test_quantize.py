"""int8 variants: which layers are in 8 bits, that the runtime runs them, and that verification knows them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from bundles import edited, unpacked
from once import once
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file

from bfr.export import bundle as exporting
from bfr.export.bundle import export_system
from bfr.export.onnx.quantize import SEED, calibration_faces, loop_inputs, quantize_graph, quantize_network
from bfr.export.options import BuildOptions, ExportOptions
from bfr.export.pytorch.reference import load_reference
from bfr.export.verify.compare import open_reference, verify
from bfr.export.verify.walk import smooth_image
from bfr.models.catalog import DIFFACE, MINI, SystemSpec
from bfr.models.stages.stage import Stage
from bfr.models.weights.seeded import LOOP_SCALE, seed_weights
from bfr.runtime.backends import registry as choosing
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle.bundle import Bundle, default_bundle, describe_file
from bfr.runtime.bundle.manifest import Variant
from bfr.runtime.diffusion.solvers import Column
from bfr.runtime.errors import InputNotFound, InvalidOption, VerificationFailed
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.restore.tables import sampler_table

pytestmark = pytest.mark.export

FACES = 3
NETWORKS = ("estimator", "denoiser")


@pytest.fixture(scope="module")
def system(tiny_system: SystemSpec) -> SystemSpec:
    """`tiny_system`, both of its networks offered in int8."""
    return replace(tiny_system, networks={n: replace(spec, int8=True) for n, spec in tiny_system.networks.items()})


@pytest.fixture(scope="module")
def tiny_weights(tiny_system: SystemSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole name-seeded weights with quiet last layers, in the layouts that published files have.

    The few large weights of the packed bundles are too coarse for 8 bits. The small tensors, which are part of the
    packed graphs, are as they are there.
    """
    folder = tmp_path_factory.mktemp("weights")
    for name, spec in tiny_system.networks.items():
        module = spec.build()
        seed_weights(module, LOOP_SCALE if name == "denoiser" else {"out.2.weight": 0.3})
        state = {f"module.{key}": value for key, value in module.state_dict().items()}
        (download,) = spec.files.values()
        torch.save({"state_dict": state} if name == "denoiser" else state, folder / download.file)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to calibrate on, larger than the networks' images."""
    folder = tmp_path_factory.mktemp("faces")
    for number in range(FACES):
        picture = (smooth_image((3, 48, 48), number).transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(system: SystemSpec, tiny_weights: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The system in fp32 and int8, verified. Exported once for all processes of the run; tests only read it.

    The float32 graphs are those of the packed bundle `timed`: tracing them anew takes most of an export's time.
    """

    def make(to: Path) -> None:
        graphs = unpacked("timed", to / "graphs")

        def exported(stage: Stage, name: str, *rest: Any) -> Variant:
            return packed(graphs, stage, name, rest[2])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporting, "_export_variant", exported)
            options = ExportOptions(precision=("int8",), calibration=folder)
            export_system(system, tiny_weights, to / "bundle", options, threads=1)

    return Bundle.open(once(tmp_path_factory, "int8", make) / "bundle")


def packed(graphs: Bundle, stage: Stage, name: str, folder: Path) -> Variant:
    """The float32 graph of a network in `graphs`, copied, with the weights of a stage beside it: its file's layout."""
    kept = graphs.network(name).variants["fp32"]
    graph, weights = (Path(shutil.copy(graphs.folder / file.path, folder)) for file in (kept.graph, *kept.weights))
    own = {key.removeprefix(f"{stage.wraps}."): value for key, value in stage.state_dict().items()}
    save_file({**load_file(weights), **own}, weights)
    return Variant(graph=describe_file(folder, graph), weights=(describe_file(folder, weights),), opset=kept.opset)


def graph(bundle: Bundle, name: str) -> onnx.ModelProto:
    return onnx.load(bundle.graph(name, "int8"))


def test_the_variant_is_described_and_verified(bundle: Bundle) -> None:
    bundle.check_all()
    assert bundle.precisions == ("fp32", "int8")
    found = [check for check in bundle.manifest.verified if check.precision == "int8"]
    checks = [check for check in found if not check.what.startswith("conditioner")]  # it stays in float32
    assert bundle.network("conditioner").variants.keys() == {"fp32"}
    assert [check.floor_db for check in checks] == [34.0, 50.0, 34.0, 50.0, 34.0]
    assert len(checks) == 5  # two networks at two batch sizes, and the loop
    assert all(check.floor_db <= check.psnr_db < 80 for check in checks)  # 8 bits, and not float32 by another name
    for name in NETWORKS:
        files = [bundle.network(name).variants[precision].weights[0] for precision in ("int8", "fp32")]
        assert files[0].path == f"{name}.int8.safetensors"
        assert files[0].bytes < 0.6 * files[1].bytes


@pytest.mark.parametrize("name", NETWORKS)
def test_convolutions_are_in_8_bits_and_nothing_else_is(bundle: Bundle, name: str) -> None:
    nodes = graph(bundle, name).graph.node
    makers = {output: node for node in nodes for output in node.output}
    constants = {tensor.name: tensor for tensor in graph(bundle, name).graph.initializer}
    quantized, floating = [], []
    for node in (node for node in nodes if node.op_type == "Conv"):
        source = makers.get(node.input[1])
        (quantized if source is not None and source.op_type == "DequantizeLinear" else floating).append(node)
    kept = ("input_blocks.0.0.weight", "skip_connection.weight", "out.2.weight")
    assert len(quantized) > 8
    (last,) = [n for n in floating if not any(n.input[1].removesuffix(".half").endswith(end) for end in kept)]
    order = list(nodes)
    assert all(order.index(node) < order.index(last) for node in quantized)
    for node in quantized:
        assert makers[node.input[0]].op_type == "DequantizeLinear"
        weight, scale = makers[node.input[1]].input[:2]
        assert constants[weight].data_type == onnx.TensorProto.INT8
        assert list(constants[scale].dims) == [constants[weight].dims[0]]  # one for each output channel
    # Between a QuantizeLinear and what reads it there is nothing but its DequantizeLinear, and a convolution is near.
    readers = {value: [node for node in nodes if value in node.input] for value in makers}
    for node in (node for node in nodes if node.op_type == "QuantizeLinear"):
        assert {reader.op_type for reader in readers[node.output[0]]} == {"DequantizeLinear"}
        around = [makers.get(node.input[0])] + [r for d in readers[node.output[0]] for r in readers[d.output[0]]]
        assert any(neighbour in quantized for neighbour in around)
    inputs, outputs = (
        {value.name for value in values}
        for values in (graph(bundle, name).graph.input, graph(bundle, name).graph.output)
    )
    ends = [node.op_type for node in nodes if inputs & {*node.input} or outputs & {*node.output}]
    assert not {"QuantizeLinear", "DequantizeLinear"} & {*ends}


def test_an_image_is_restored_alike_at_every_batch_size(bundle: Bundle) -> None:
    faces = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(FACES)]
    found = {}
    for precision, batch in (("int8", 1), ("int8", 3), ("fp32", 1)):
        options: Any = {"backend": "onnxruntime-cpu", "precision": precision, "batch": batch, "threads": 1}
        with Restorer.open(bundle.folder, **options) as restorer:
            assert restorer.precision == precision
            found[precision, batch] = np.stack(restorer.restore(faces)).astype(int)
    assert np.array_equal(found["int8", 1], found["int8", 3])
    difference = np.abs(found["int8", 1] - found["fp32", 1])
    assert difference.max() > 0
    assert difference.mean() < 3


def test_a_graph_is_the_same_each_time(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    again = Bundle.open(shutil.copytree(bundle.folder, tmp_path / "again"))
    for path in again.folder.glob("*.int8.*"):
        path.unlink()
    variant = quantize_network(again, "denoiser", calibration_faces(folder, 32), threads=1)
    assert variant == bundle.network("denoiser").variants["int8"]


def test_weights_that_are_stored_in_half_are_quantized_too(tmp_path: Path) -> None:
    # Of opset 20, whose normalization is other operators; copied, since ONNX reads no weights through a link.
    mini = Bundle.open(shutil.copytree(default_bundle(), tmp_path / "mini"))
    source = mini.graph("estimator", "fp32")
    inputs = [{"degraded": smooth_image((3, 256, 256), 0)[None]}]
    path, weights = quantize_graph(source, tmp_path / "estimator.int8.onnx", inputs)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    convolutions = operators.count("Conv")
    floating = 13  # the first, the last two and ten shortcuts, which are half again
    assert operators.count("DequantizeLinear") > 3 * (convolutions - floating)  # of input, weight and bias
    assert operators.count("Cast") == floating
    assert weights.stat().st_size < 0.6 * source.with_suffix(".safetensors").stat().st_size
    found, expected = (
        ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs[0])[0]
        for graph in (path, source)
    )
    assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.01


def test_a_range_ends_at_the_mean_of_the_extremes(tmp_path: Path) -> None:
    kernel = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "kernel")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, 8, 8]) for name in "xy")
    nodes = [onnx.helper.make_node("Conv", [a, "kernel"], [b], name=b) for a, b in ("xh", "hy")]  # the last is left out
    graph = onnx.helper.make_graph(nodes, "two", [x], [y], [kernel])
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "two.onnx")
    pictures = [np.linspace(low, high, 64, dtype=np.float32).reshape(1, 1, 8, 8) for low, high in ((-1, 1), (-2, 4))]
    path, _ = quantize_graph(tmp_path / "two.onnx", tmp_path / "int8.onnx", ({"x": one} for one in pictures))
    found = {one.name: numpy_helper.to_array(one).item() for one in onnx.load(path).graph.initializer if not one.dims}
    assert found["x_scale"] == pytest.approx((2.5 + 1.5) / 255)
    assert found["x_zero_point"] == round(1.5 / found["x_scale"])


def test_calibration_sees_the_loop_as_it_is(bundle: Bundle, folder: Path) -> None:
    faces = calibration_faces(folder, 32)
    assert [face.shape for face in faces] == [(3, 32, 32)] * FACES
    assert all(0 <= face.min() <= face.max() <= 1 for face in faces)
    again = calibration_faces(folder, 32)
    assert all(np.array_equal(a, b) for a, b in zip(faces, again, strict=True))
    seen = list(loop_inputs(bundle, faces[:2], threads=1))
    table = sampler_table(bundle, bundle.preset())
    with torch.no_grad():  # the timesteps, as the time table has them
        times = load_reference(bundle)["conditioner"](torch.tensor(table.timesteps, dtype=torch.float32)).numpy()
    found = np.concatenate([inputs["t"] for inputs in seen])
    assert np.linalg.norm(found - np.concatenate([times] * 2)) < 1e-5 * np.linalg.norm(found)
    assert np.array_equal([inputs["row"][0] for inputs in seen], np.concatenate([table.rows] * 2))
    restorer = Restorer(bundle, CpuDevice(1), bundle.preset("reference"))
    states: list[np.ndarray] = []
    restorer.chain(1).run(
        faces[0][None], seed=SEED, images=(0,), on_step=lambda _, x: states.append(restorer.device.read(x))
    )
    steps = len(table)
    assert all(np.array_equal(seen[k]["x"], states[k]) for k in range(steps))
    assert not any(inputs["noise"].std() < 0.5 for inputs in seen[: steps - 1] if inputs["row"][0, Column.S])


def test_a_scale_that_is_wrong_is_found_out(bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(bundle.folder, tmp_path / "copy"))
    path = copy.graph("estimator", "int8")
    model = onnx.load(path, load_external_data=False)
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / np.float32(8), name=scale.name))
    onnx.save(model, path)
    with edited(copy.folder) as manifest:
        variant = manifest["networks"]["estimator"]["variants"]["int8"]
        variant["graph"] = describe_file(copy.folder, path).model_dump()
    with pytest.raises(VerificationFailed, match=r"estimator, batch 1 .*int8"):
        verify(Bundle.open(copy.folder), open_reference(copy), "int8", threads=1)


def test_int8_needs_faces_and_a_system_that_bears_it(
    system: SystemSpec, tiny_system: SystemSpec, tiny_weights: Path, tmp_path: Path
) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InvalidOption, match="--calibration FOLDER"):
        export_system(system, tiny_weights, out, ExportOptions(precision=("int8",)))
    with pytest.raises(InputNotFound, match="empty"):
        export_system(system, tiny_weights, out, ExportOptions(precision=("int8",), calibration=empty))
    with pytest.raises(InputNotFound, match="does not exist"):
        export_system(system, tiny_weights, out, ExportOptions(precision=("int8",), calibration=tmp_path / "nowhere"))
    for refused in (tiny_system, DIFFACE):
        with pytest.raises(InvalidOption, match=f"{refused.name}.*int8"):
            export_system(refused, tiny_weights, out, ExportOptions(precision=("int8",), calibration=empty))
    packaged = Bundle.open(default_bundle()).manifest.networks
    assert {n for n, spec in MINI.networks.items() if spec.int8} == {
        n for n in packaged if "int8" in packaged[n].variants
    }
    assert not out.exists()


def test_a_network_that_does_not_bear_int8_stays_in_float32(
    system: SystemSpec,
    tiny_system: SystemSpec,
    tiny_weights: Path,
    bundle: Bundle,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporting, "_export_variant", lambda stage, name, *rest: packed(bundle, stage, name, rest[2]))
    mixed = replace(system, networks={**system.networks, "estimator": tiny_system.networks["estimator"]})
    options = ExportOptions(precision=("int8",), calibration=folder)
    found = export_system(mixed, tiny_weights, tmp_path / "out", options, verified=False, threads=1)
    assert found.network("estimator").variants.keys() == {"fp32"}
    assert found.network("denoiser").variants.keys() == {"fp32", "int8"}
    with Restorer.open(found.folder, precision="int8") as restorer:
        assert restorer.device.name == "onnxruntime-cpu"
        assert restorer.restore([np.zeros((32, 32, 3), np.uint8)])


def test_int8_is_for_the_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidOption, match="choose one of fp32, fp16, bf16"):
        BuildOptions(precision=("fp32", "int8"))  # type: ignore[arg-type]
    monkeypatch.setattr(choosing, "device_count", lambda: 1)
    assert choosing.choose(bundle, "int8") == "onnxruntime-cpu"
