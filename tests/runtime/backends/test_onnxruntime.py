"""The ONNX Runtime devices; CUDA's through its own code over CPU memory, and on a GPU where there is one."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from bfr.runtime.backends import onnxruntime as backend
from bfr.runtime.backends.cuda import bindings as cuda
from bfr.runtime.backends.onnxruntime import CpuDevice, CudaDevice
from bfr.runtime.backends.registry import open_device
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import BackendUnavailable, DeviceLost
from bfr.runtime.restore.restorer import Restorer

FACES = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(3)]
needs_gpu = pytest.mark.skipif(not backend.cuda_works(), reason="no GPU that ONNX Runtime can use")


def test_onnxruntime_is_told_to_report_nothing_before_it_is_loaded() -> None:
    """P32: its version 1.32 looks its maker's telemetry host up otherwise. A user's own setting stays."""
    name = "ORT_DISABLE_TELEMETRY"
    code = f"import bfr.runtime, os, sys; print(os.environ['{name}'], 'onnxruntime' in sys.modules)"
    others = {key: value for key, value in os.environ.items() if key != name}
    for environment, expected in (({}, "1 False"), ({name: "0"}, "0 False")):
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, env={**others, **environment}, capture_output=True, text=True, check=True)  # noqa: S603
        assert run.stdout.strip() == expected


def test_a_network_sees_the_memory_of_the_buffers(tiny_bundle: Bundle) -> None:
    device = CpuDevice()
    degraded, estimate = device.array((2, 3, 32, 32)), device.array((2, 3, 32, 32))
    call = device.load_graph(tiny_bundle.graph("estimator", "fp32")).bind(
        {"degraded": device.view(degraded, 1)}, {"estimate": device.view(estimate, 1)}
    )
    call()
    before = device.read(estimate)
    device.write(degraded, np.ones(degraded.shape, np.float32))
    call()
    assert not np.array_equal(device.read(estimate)[0], before[0])
    assert not device.read(estimate)[1].any()


def test_the_first_call_of_each_batch_size_gives_its_memory_back(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ONNX Runtime looks for how its tensors fit one block, which the next calls take."""
    device, options = CpuDevice(1), []
    network = device.load_graph(tiny_bundle.graph("estimator", "fp32"))
    run = network.session.run_with_iobinding
    monkeypatch.setattr(
        network.session, "run_with_iobinding", lambda binding, given: options.append(given) or run(binding, given)
    )
    for batch in (1, 1, 2, 2, 1):
        network.bind({"degraded": device.array((batch, 3, 32, 32))}, {"estimate": device.array((batch, 3, 32, 32))})()
    shrunk = ["" if one is None else one.get_run_config_entry(backend.SHRINK) for one in options]
    assert shrunk == ["cpu:0", "", "cpu:0", "", ""]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_what_loading_leaves_in_the_heap_goes_back(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    for libc in (SimpleNamespace(malloc_trim=trimmed.append), SimpleNamespace()):  # glibc, and musl
        monkeypatch.setattr("ctypes.CDLL", lambda _, libc=libc: libc)
        CpuDevice(1).load(tiny_bundle, "estimator", "fp32")
    assert trimmed == [0]


@pytest.mark.parametrize("spinning", [True, False])
def test_threads_of_one_network_leave_the_cores_to_the_next(tiny_bundle: Bundle, *, spinning: bool) -> None:
    session = CpuDevice(2, spinning=spinning).load(tiny_bundle, "estimator", "fp32").session
    entry = session.get_session_options().get_session_config_entry
    assert entry("session.intra_op.allow_spinning") == str(int(spinning))
    assert entry("session.force_spinning_stop") == "1"


def test_an_output_may_not_be_an_input(tiny_bundle: Bundle) -> None:
    device = CpuDevice()
    network = device.load_graph(tiny_bundle.graph("estimator", "fp32"))
    buffer = device.array((1, 3, 32, 32))
    with pytest.raises(ValueError, match="also an input"):
        network.bind({"degraded": buffer}, {"estimate": buffer})


def test_a_requested_provider_that_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cuda_works", lambda _: False)
    with pytest.raises(BackendUnavailable, match="onnxruntime-gpu"):
        open_device("onnxruntime-cuda")
    assert open_device("auto").name == "onnxruntime-cpu"


def operators(*kinds: str) -> list[Any]:
    return [SimpleNamespace(op_type=kind) for kind in kinds]


class FakeSession:
    """A session of the CUDA provider: what it enqueues runs on the fake GPU's stream, computed by a real one."""

    on_the_cpu = operators("Concat")

    def __init__(self, path: str | bytes, options: Any, providers: list[Any]) -> None:
        ((name, self.settings),) = providers
        assert name == "CUDAExecutionProvider"
        assert self.settings["use_tf32"] == "0"
        assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
        self.inner = REAL_SESSION(path, options, providers=["CPUExecutionProvider"])
        self.gpu = cuda.bindings()[0].gpus[int(self.settings["device_id"])]
        self.error: str | None = None

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=f"{where}ExecutionProvider", get_nodes=lambda kinds=kinds: kinds)
            for where, kinds in (("CUDA", operators("Conv", "DFT")), ("CPU", self.on_the_cpu))
        ]

    def io_binding(self) -> Any:
        bound: dict[str, dict[str, Any]] = {"input": {}, "output": {}}

        def bind(kind: str, name: str, device: str, index: int, dtype: Any, shape: Any, address: int) -> None:
            assert (device, index, dtype) == ("cuda", int(self.settings["device_id"]), np.float32)
            bound[kind][name] = (address, tuple(shape))

        return SimpleNamespace(
            bound=bound,
            bind_input=lambda *arguments: bind("input", *arguments),
            bind_output=lambda *arguments: bind("output", *arguments),
        )

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if self.error:
            raise RuntimeError(self.error)

        def work() -> None:
            feeds = {n: self.gpu.floats(*where) for n, where in binding.bound["input"].items()}
            for where, value in zip(
                binding.bound["output"].values(), self.inner.run(list(binding.bound["output"]), feeds), strict=True
            ):
                self.gpu.floats(*where)[...] = value

        self.gpu.enqueue(int(self.settings["user_compute_stream"]), "session", work)


REAL_SESSION = ort.InferenceSession


@pytest.fixture
def cuda_provider(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """ONNX Runtime's CUDA provider on the fake GPUs."""
    monkeypatch.setattr(backend, "cuda_works", lambda _: True)

    def session(path: str | bytes, options: Any, providers: list[Any]) -> Any:
        kind = REAL_SESSION if providers == ["CPUExecutionProvider"] else FakeSession
        return kind(path, options, providers=providers)

    monkeypatch.setattr(ort, "InferenceSession", session)
    return gpus


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    tiny_bundle: Bundle, cuda_provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime loads the CPU provider silently where CUDA's cannot be."""
    monkeypatch.setattr(FakeSession, "get_providers", lambda _: ["CPUExecutionProvider"])
    device = CudaDevice()
    with pytest.raises(BackendUnavailable, match="CPUExecutionProvider"):
        device.load(tiny_bundle, "estimator", "fp32")
    device.close()


def test_only_arithmetic_of_shapes_may_be_left_to_the_cpu(
    tiny_bundle: Bundle, cuda_provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime 1.31 leaves Concat to it where a shape is made, as in PGDiff's denoiser."""
    device = CudaDevice()
    monkeypatch.setattr(FakeSession, "on_the_cpu", operators("Concat", "Div", "GridSample"))
    with pytest.raises(BackendUnavailable, match=r"estimator\.onnx .* no kernel for GridSample\. .*another --backend"):
        device.load(tiny_bundle, "estimator", "fp32")
    device.close()


def test_the_names_of_what_the_cpu_computes_are_onnx_runtimes(tiny_bundle: Bundle) -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    graph = str(tiny_bundle.graph("estimator", "fp32"))
    session = REAL_SESSION(graph, options, providers=["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailable, match=r"Conv"):
        backend._refuse_host_work(session, "a graph")


def test_a_graph_that_does_not_load_is_explained(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendUnavailable, match=r"bad\.onnx"):
        CpuDevice().load_graph(tmp_path / "bad.onnx")


def test_the_cuda_device_runs_the_same_chain(tiny_bundle: Bundle, cuda_provider: Any) -> None:
    with Restorer(tiny_bundle, CpuDevice(), tiny_bundle.preset("reference")) as cpu:
        expected = cpu.restore(FACES)
    device = CudaDevice()
    with Restorer(tiny_bundle, device, tiny_bundle.preset("reference"), batch=4) as restorer:
        for _ in range(5):
            found = restorer.restore(FACES)
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        assert list(restorer.chains.made) == [4]  # three images, the bucket of four
    device.close()
    assert "graph" not in cuda_provider[0].names()  # ONNX Runtime frees what the graph would read


def test_a_session_ends_with_its_device(tiny_bundle: Bundle, cuda_provider: Any) -> None:
    """And gives its memory back, whenever Python would find the garbage."""
    restorer = Restorer.open(tiny_bundle.folder, backend="onnxruntime-cuda")
    restorer.restore(FACES)
    sessions = [weakref.ref(network.session) for network in restorer.chains.networks.values()]  # type: ignore[attr-defined]
    gc.disable()
    try:
        restorer.close()
        assert len(sessions) == 2
        assert not any(session() for session in sessions)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "said",
    [
        "BFCArena: Failed to allocate memory for requested buffer",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&cublas_handle_)",
    ],
)
def test_memory_that_runs_out_in_a_session(tiny_bundle: Bundle, cuda_provider: Any, said: str) -> None:
    with Restorer.open(tiny_bundle.folder, backend="onnxruntime-cuda", batch=4) as restorer:
        session: Any = restorer.chains.networks["denoiser"].session  # type: ignore[attr-defined]
        restore = type(session).run_with_iobinding

        def too_large(binding: Any, options: Any) -> None:
            if binding.bound["input"]["x"][1][0] > 1:
                raise RuntimeError(said)
            restore(session, binding, options)

        session.run_with_iobinding = too_large
        assert len(restorer.restore(FACES)) == 3
        assert restorer.batch == 1


@pytest.mark.parametrize("error", ["no kernel image", "CUDA error 700: an illegal memory access was encountered"])
def test_other_errors_of_a_session_are_bugs(tiny_bundle: Bundle, cuda_provider: Any, error: str) -> None:
    with Restorer.open(tiny_bundle.folder, backend="onnxruntime-cuda") as restorer:
        restorer.chains.networks["denoiser"].session.error = error  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match=error):
            restorer.restore(FACES)


def test_a_device_that_a_session_finds_lost(tiny_bundle: Bundle, cuda_provider: Any) -> None:
    with Restorer.open(tiny_bundle.folder, backend="onnxruntime-cuda") as restorer:
        session: Any = restorer.chains.networks["denoiser"].session  # type: ignore[attr-defined]

        def lost(binding: Any, options: Any) -> None:
            cuda_provider[0].fail["everything"] = "cudaErrorIllegalAddress"
            raise RuntimeError("CUDA error 700: an illegal memory access was encountered")

        session.run_with_iobinding = lost
        with pytest.raises(DeviceLost, match=r"ONNX Runtime: CUDA error 700.*cudaErrorIllegalAddress"):
            restorer.restore(FACES)


def test_a_provider_without_a_gpu_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(backend, "device_count", lambda: 0)
    assert not backend.cuda_works()
    monkeypatch.setattr(backend, "device_count", lambda: 1)
    assert not backend.cuda_works()  # this ONNX Runtime has no memory on any GPU


@needs_gpu
def test_a_gpu_agrees_with_the_cpu(tiny_bundle: Bundle) -> None:
    with Restorer(tiny_bundle, CpuDevice(), tiny_bundle.preset("reference")) as cpu:
        expected = cpu.restore(FACES)
    with Restorer.open(tiny_bundle.folder, backend="onnxruntime-cuda", batch=4) as restorer:
        found = restorer.restore(FACES)
        again = restorer.restore(FACES[::-1])[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))  # identical within a bucket
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(found, expected, strict=True)) <= 1
