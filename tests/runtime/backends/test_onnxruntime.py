"""The ONNX Runtime devices; CUDA's through its own code over CPU memory, and on a GPU where there is one."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from bfr.runtime.backends import onnxruntime as backend
from bfr.runtime.backends.choose import open_device
from bfr.runtime.backends.onnxruntime import CpuDevice, CudaDevice
from bfr.runtime.bundle import Bundle
from bfr.runtime.errors import BackendUnavailable
from bfr.runtime.restorer import Restorer

FACES = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(3)]
needs_gpu = pytest.mark.skipif(not backend.cuda_works(), reason="no GPU that ONNX Runtime can use")


def test_a_buffer_and_its_array_are_one_memory() -> None:
    device = CpuDevice()
    buffer = device.array((2, 3))
    assert not buffer.array.any()
    device.write(buffer, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert np.array_equal(buffer.value.numpy(), buffer.array)
    copy = device.read(buffer)
    buffer.array[...] = 7
    assert copy[0, 1] == 1


def test_an_output_may_not_be_an_input(tiny_bundle: Bundle) -> None:
    device = CpuDevice()
    network = device.load_graph(tiny_bundle.graph("estimator", "fp32"))
    buffer = device.array((1, 3, 32, 32))
    with pytest.raises(ValueError, match="also an input"):
        network.bind({"degraded": buffer}, {"estimate": buffer})


def test_a_requested_provider_that_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cuda_works", lambda: False)
    with pytest.raises(BackendUnavailable, match="onnxruntime-gpu"):
        open_device("onnxruntime-cuda")
    assert open_device("auto").name == "onnxruntime-cpu"


def test_a_session_that_fell_back_to_the_cpu_is_refused(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime loads the CPU provider silently where CUDA's cannot be."""

    class Fallen:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(backend, "cuda_works", lambda: True)
    monkeypatch.setattr(ort, "InferenceSession", Fallen)
    with pytest.raises(BackendUnavailable, match="CPUExecutionProvider was loaded"):
        CudaDevice().load_graph(tiny_bundle.graph("estimator", "fp32"))


def test_a_graph_that_does_not_load_is_explained(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendUnavailable, match=r"bad.onnx does not load"):
        CpuDevice().load_graph(tmp_path / "bad.onnx")


@pytest.fixture
def cuda_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's device code, with the library's allocations and sessions on the CPU."""
    allocate, session = ort.OrtValue.ortvalue_from_shape_and_type, ort.InferenceSession

    def on_cpu(shape: Any, dtype: Any, device: str, index: int) -> Any:
        assert device == "cuda"
        assert index == 0
        return allocate(shape, dtype, "cpu", 0)

    def load(path: str, options: Any, providers: list[Any]) -> Any:
        if providers == ["CPUExecutionProvider"]:
            return session(path, options, providers=providers)
        ((name, settings),) = providers
        assert name == "CUDAExecutionProvider"
        assert settings["use_tf32"] == "0"
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        loaded = session(path, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(loaded, "get_providers", lambda: ["CUDAExecutionProvider"])
        return loaded

    monkeypatch.setattr(backend, "cuda_works", lambda: True)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", on_cpu)
    monkeypatch.setattr(ort, "InferenceSession", load)


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_the_cuda_device_runs_the_same_chain(tiny_bundle: Bundle) -> None:
    with Restorer(tiny_bundle, CpuDevice(), tiny_bundle.preset("reference")) as cpu:
        expected = cpu.restore(FACES)
    with Restorer(tiny_bundle, CudaDevice(), tiny_bundle.preset("reference"), batch=4) as restorer:
        found = restorer.restore(FACES)
        assert list(restorer._chains) == [4]  # three images, the bucket of four
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_gpu
def test_a_gpu_agrees_with_the_cpu(tiny_bundle: Bundle) -> None:
    with Restorer(tiny_bundle, CpuDevice(), tiny_bundle.preset("reference")) as cpu:
        expected = cpu.restore(FACES)
    with Restorer.open(tiny_bundle.folder, backend="onnxruntime-cuda", batch=4) as restorer:
        found = restorer.restore(FACES)
        again = restorer.restore(FACES[::-1])[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))  # identical within a bucket
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(found, expected, strict=True)) <= 1
