import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from once import once
from safetensors.numpy import load_file
from systems import unet as small_unet
from torch import Tensor, nn

from bfr.export.onnx.graph import DEFAULT_OPSET, export_graph, module_versions
from bfr.models.networks.blocks import AttentionBlock, GroupNorm32
from bfr.models.networks.unet import UNet
from bfr.models.stages.kinds import make_stage
from bfr.models.stages.stage import Stage
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.errors import InvalidOption

pytestmark = pytest.mark.export


class Small(nn.Module):
    """The layers that the real networks are made of, with weights on both sides of the size that is moved out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.norm = GroupNorm32(64)
        self.attention = AttentionBlock(64, 2, use_new_attention_order=False)
        self.last = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(self.norm(self.first(x))))  # type: ignore[no-any-return]


class Wrapping(Stage):
    kind, outputs, wraps = "wrapping", ("y",), "denoiser"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.denoiser = network

    def forward(self, x: Tensor) -> Tensor:
        return self.denoiser(x)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    module = Small()
    seed_weights(module)
    return module.eval()


def export(module: nn.Module, folder: Path, **options: object) -> tuple[Path, Path]:
    return export_graph(module, {"x": torch.zeros(2, 3, 16, 16)}, ["y"], folder / "small.onnx", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """`network` at an opset, exported once for all processes of the run; its weights lie beside it."""

    def graph(opset: int) -> Path:
        return (
            once(tmp_path_factory, f"opset{opset}", lambda to: export(Wrapping(network), to, opset=opset))
            / "small.onnx"
        )

    return graph


def run(graph: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_every_opset_agrees_with_eager_at_every_batch(
    network: nn.Module, exported: Callable[[int], Path], opset: int
) -> None:
    graph = exported(opset)
    model = onnx.load(graph, load_external_data=False)
    assert model.opset_import[0].version == opset
    kinds = {node.op_type for node in model.graph.node}
    assert ("GroupNormalization" in kinds) == (opset >= 21)
    for batch in (1, 3):
        x = np.random.default_rng(batch).random((batch, 3, 16, 16), dtype=np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(x)).numpy()
        assert np.abs(run(graph, x) - expected).max() < 1e-5


def test_the_weights_lie_beside_the_graph_under_the_checkpoints_names(
    network: nn.Module, exported: Callable[[int], Path]
) -> None:
    graph = exported(DEFAULT_OPSET)
    weights = graph.with_suffix(".safetensors")
    state = load_file(weights)
    for name, value in network.state_dict().items():
        assert np.array_equal(state[name], value.numpy())
    model = onnx.load(graph, load_external_data=False)
    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert {"denoiser.first.weight", "denoiser.last.weight"} <= {tensor.name for tensor in outside}
    assert all(entry.value == weights.name for t in outside for entry in t.external_data if entry.key == "location")
    assert graph.stat().st_size < 40_000


def test_half_storage_computes_in_float32(network: nn.Module, tmp_path: Path) -> None:
    half = Small()
    half.load_state_dict({name: value.half().float() for name, value in network.state_dict().items()})
    graph, weights = export(half, tmp_path, store_half=True)
    assert load_file(weights)["first.weight"].dtype == np.float16
    x = np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)
    with torch.inference_mode():
        expected = half.eval()(torch.from_numpy(x)).numpy()
    assert np.abs(run(graph, x) - expected).max() < 1e-5


def test_the_graph_names_no_file_of_the_machine_that_made_it(exported: Callable[[int], Path]) -> None:
    graph = exported(DEFAULT_OPSET)
    data = graph.read_bytes()
    for trace in (b".py", b"site-packages", str(graph.parent).encode(), str(Path.cwd()).encode()):
        assert trace not in data


def test_an_opset_that_is_not_offered_is_refused(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="18, 20, 21, 23"):
        export(network, tmp_path, opset=17)


class Transposing(nn.Module):
    """Linear layers on vectors of several positions, which the exporter writes as products with folded transposes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.tied = nn.Linear(48, 40), nn.Linear(40, 48), nn.Linear(48, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.two(self.one(x).sigmoid()).sigmoid()) + x @ self.tied.weight


def test_a_transposed_weight_is_stored_once(tmp_path: Path) -> None:
    module = Transposing().eval()
    graph, weights = export_graph(module, {"x": torch.rand(2, 5, 48)}, ["y"], tmp_path / "t.onnx", opset=21)
    stored = load_file(weights)
    assert {name: value.shape for name, value in stored.items() if value.ndim == 2} == {
        name: tuple(value.shape) for name, value in module.state_dict().items() if value.ndim == 2
    }
    assert sum(node.op_type == "Transpose" for node in onnx.load(graph).graph.node) == 3
    x = torch.rand(3, 5, 48)
    found = ort.InferenceSession(graph).run(None, {"x": x.numpy()})[0]
    with torch.no_grad():
        assert np.abs(found - module(x).numpy()).max() < 1e-5


class Normalized(nn.Module):
    """A batch normalization behind a convolution, which the exporter folds into it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(8, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x))  # type: ignore[no-any-return]


def test_folded_weights_do_not_replace_the_checkpoints(tmp_path: Path) -> None:
    module = Normalized()
    seed_weights(module)
    graph, weights = export_graph(module.eval(), {"x": torch.rand(2, 8, 9, 9)}, ["y"], tmp_path / "n.onnx")
    stored = load_file(weights)
    for name, value in module.state_dict().items():
        assert np.array_equal(stored[name], value.numpy()), name
        assert stored[name].shape == value.shape  # of the counter too, which is a scalar
    x = torch.rand(3, 8, 9, 9)
    with torch.no_grad():
        expected = module(x).numpy()
    assert np.abs(ort.InferenceSession(graph).run(None, {"x": x.numpy()})[0] - expected).max() < 1e-5


def test_versions_are_found_whatever_distribution_brought_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def missing(name: str) -> str:
        if name == "onnxruntime":  # where onnxruntime-gpu is installed
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", missing)
    found = module_versions("torch", "onnx", "onnxscript", "onnxruntime")
    assert found == {**found, "onnxruntime": ort.__version__, "torch": version("torch")}


def without_cuda_kernel(model: onnx.ModelProto) -> int:
    """How many nodes ONNX Runtime's CUDA provider has no kernel for, by what cuda_kernels.json was seen to have."""
    seen = json.loads(Path(__file__).with_name("cuda_kernels.json").read_text())
    known = seen["operators"] if model.opset_import[0].version in seen["opsets"] else ()
    return sum(node.op_type not in known for node in model.graph.node)


def export_half(folder: Path, network: dict[str, Any], **options: Any) -> onnx.ModelProto:
    """The step graph of a UNet of two levels of real blocks in half, with attention in the middle."""
    unet = UNet(**small_unet(channel_mult=[1, 2], num_head_channels=32, **network))
    seed_weights(unet)
    unet.cast_torso(torch.float16)
    stage = make_stage("step", unet, {})
    graph, _ = export_graph(stage, stage.examples(32), stage.outputs, folder / "unet.onnx", **options)
    assert not unet.middle_block[1].explicit
    return onnx.load(graph, load_external_data=False)


def test_the_default_opset_runs_wholly_on_onnxruntimes_cuda_provider(tmp_path: Path) -> None:
    """In half it has the casts too."""
    model = export_half(tmp_path, {"num_res_blocks": 0})
    assert model.opset_import[0].version == DEFAULT_OPSET
    assert without_cuda_kernel(model) == 0


@pytest.mark.slow
def test_normalization_of_half_has_no_casts_where_the_operator_widens_by_itself(tmp_path: Path) -> None:
    """TensorRT takes it so. The last one is not of the torso: it is float32, and so is what it reads."""
    model = export_half(tmp_path, {"attention_resolutions": [16]}, opset=23)
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    *torso, _ = [node for node in model.graph.node if node.op_type == "GroupNormalization"]
    assert len(torso) == 20
    for node in torso:
        assert {a.name: a.i for a in node.attribute}["stash_type"] == 1
        assert makers[node.input[0]].op_type != "Cast"
        assert "Cast" not in readers[node.output[0]]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Attention") == 4
    assert kinds.count("Cast") <= 10  # of the conditioning, and around the torso; 58 where each is widened by a Cast


def test_group_normalization_of_opset_21_has_no_cuda_kernel(exported: Callable[[int], Path]) -> None:
    assert without_cuda_kernel(onnx.load(exported(21), load_external_data=False)) > 0
