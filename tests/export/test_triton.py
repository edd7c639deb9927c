"""A bundle as a repository of Triton: its words against Triton's own protobuf, its loop on a stand-in of the server."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import json_format, text_format

from bfr.export.options import TritonOptions
from bfr.export.triton import export_triton
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import BundleCorrupt, InvalidOption
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.triton import TritonPythonModel

SIZE = 32


def faces(count: int) -> list[Any]:
    return [np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8) for i in range(count)]


def config_of(model: Path) -> Any:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.label, self.array = name, array

    def as_numpy(self) -> Any:
        return self.array


class Server:
    """The part of `triton_python_backend_utils` that the loop calls, over ONNX Runtime and the repository."""

    Tensor, TRITONSERVER_MEMORY_CPU = Tensor, 0

    def __init__(self, repository: Path) -> None:
        self.repository, self.batches = repository, list[int]()
        self.sessions: dict[str, ort.InferenceSession] = {}

    def PreferredMemory(self, *where: int) -> tuple[int, ...]:  # noqa: N802
        return where

    def TritonError(self, message: str) -> Any:  # noqa: N802
        return SimpleNamespace(message=lambda: message)

    def InferenceResponse(self, output_tensors: list[Tensor], error: Any = None) -> Any:  # noqa: N802
        return SimpleNamespace(outputs=output_tensors, has_error=lambda: error is not None, error=lambda: error)

    def InferenceRequest(  # noqa: N802
        self, model_name: str, inputs: list[Tensor], requested_output_names: list[str], preferred_memory: Any
    ) -> Any:
        assert preferred_memory == (0, 0)
        return SimpleNamespace(exec=lambda: self._run(model_name, inputs, requested_output_names))

    def _run(self, model: str, inputs: list[Tensor], outputs: list[str]) -> Any:
        config = config_of(self.repository / model)
        shapes = {one.name: [*one.dims] for one in config.input}
        for tensor in inputs:
            assert tensor.array.dtype == np.float32
            shape = [*tensor.array.shape]
            if config.max_batch_size:
                assert shape[0] <= config.max_batch_size
                shape = shape[1:] or [1]
            assert shape == shapes[tensor.label]
        self.batches.append(len(inputs[0].array))
        if model not in self.sessions:
            self.sessions[model] = ort.InferenceSession(self.repository / model / "1" / "model.onnx")
        found = self.sessions[model].run(outputs, {tensor.label: tensor.array for tensor in inputs})
        return self.InferenceResponse([Tensor(*one) for one in zip(outputs, found, strict=True)])

    @staticmethod
    def get_output_tensor_by_name(response: Any, name: str) -> Any:
        return next(one for one in response.outputs if one.label == name)

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Any], name: str) -> Any:
        return Tensor(name, request[name]) if name in request else None


@pytest.fixture
def repository(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    export_triton(tiny_bundle, tmp_path / "models", TritonOptions(batch=2))
    return tmp_path / "models"


@pytest.fixture
def server(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server(repository)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", made)  # type: ignore[arg-type]
    return made


@pytest.fixture
def model(server: Server, tiny_bundle: Bundle) -> Iterator[TritonPythonModel]:
    """As the server starts it: `model.py` gives the class, the configuration comes as JSON."""
    folder = server.repository / tiny_bundle.manifest.system
    names: dict[str, Any] = {}
    exec((folder / "1" / "model.py").read_text(), names)  # noqa: S102
    made = names["TritonPythonModel"]()
    config = json_format.MessageToDict(config_of(folder), preserving_proto_field_name=True)
    place = {"model_repository": str(folder), "model_version": "1", "model_name": folder.name}
    made.initialize({"model_config": json.dumps(config), **place})
    yield made
    made.finalize()


def restored(response: Any) -> Any:
    assert not response.has_error()
    return response.outputs[0].as_numpy()


def test_the_repository_is_what_the_server_reads(repository: Path, tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    configs = {folder.name: config_of(folder) for folder in repository.iterdir()}
    assert configs.keys() == {manifest.system, *(f"{manifest.system}_{name}" for name in manifest.networks)}
    assert all(config.name == name for name, config in configs.items())
    loop = configs[manifest.system]
    assert (loop.backend, loop.max_batch_size) == ("python", 0)
    assert [one.optional for one in loop.input] == [False, True, True]
    for name, network in manifest.networks.items():
        config = configs[f"{manifest.system}_{name}"]
        assert config.max_batch_size == 2
        assert {one.name for one in config.input} == {tensor.name for tensor in network.inputs}
        assert {one.name for one in config.output} == {tensor.name for tensor in network.outputs}
        (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})  # as bfr's own backend computes


def test_the_loop_gives_what_a_restorer_gives(model: TritonPythonModel, server: Server, tiny_bundle: Bundle) -> None:
    """Bit for bit, for requests of several presets and seeds at once, in the order in which they came."""
    images = faces(5)
    orders: list[tuple[str, int]] = [("reference", 0), ("reference", 7), ("reference", 0), ("reference", 0)]
    requests = [
        {"image": image, "seed": np.array([seed]), "preset": np.array([preset.encode()], object)}
        for image, (preset, seed) in zip(images, orders, strict=False)
    ]
    found = [restored(one) for one in model.execute([*requests, {"image": images[4]}])]
    with Restorer.open(tiny_bundle.folder, backend="onnxruntime-cpu", preset="reference", batch=2) as restorer:
        for image, (_, seed), result in zip(images, orders, found, strict=False):
            assert np.array_equal(result, restorer.restore([image], seed=seed)[0])
    with Restorer.open(tiny_bundle.folder, backend="onnxruntime-cpu") as restorer:
        assert np.array_equal(found[4], restorer.restore(images[4:])[0])
    assert max(server.batches) == 2


def test_a_bad_request_spoils_no_other(model: TritonPythonModel) -> None:
    good, bad = {"image": faces(1)[0]}, {"image": np.zeros((SIZE, SIZE, 4), np.uint8)}
    first, second, third = model.execute([good, bad, good])
    assert np.array_equal(restored(first), restored(third))
    assert second.has_error()
    for name, shown in ((b"none", "'none'"), (b"\xff", "xff")):
        other, response = model.execute([good, {**good, "preset": np.array([name], object)}])
        assert np.array_equal(restored(other), restored(first))
        assert shown in response.error().message()


def test_what_cannot_be_served_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="1 or more"):
        TritonOptions(batch=0)
    with pytest.raises(InvalidOption, match="no network in int8"):
        export_triton(tiny_bundle, tmp_path / "models", TritonOptions(precision="int8"))
    manifest = tiny_bundle.manifest.model_dump(mode="json")
    manifest["inputs"] = [{"name": "mask", "channels": 1}]
    masked = Bundle(tiny_bundle.folder, type(tiny_bundle.manifest).model_validate(manifest), tiny_bundle.hash)
    with pytest.raises(InvalidOption, match="mask"):
        export_triton(masked, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_damaged_bundle_is_not_published(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "copy"))
    weights = next(copy.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleCorrupt):
        export_triton(Bundle.open(copy), tmp_path / "models")
    assert not (tmp_path / "models").exists()
