"""PyTorch as a GPU device. Where no GPU is, one made of NumPy stands for it, and a fake for PyTorch's CUDA."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import FakeGpu, install
from systems import pgdiff

from bfr.export.pytorch import compiled as c
from bfr.export.pytorch.eager import EagerDevice
from bfr.export.pytorch.reference import load_stage
from bfr.models.stages.kinds import make_stage
from bfr.runtime.backends.cuda.device import GpuBuffer
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import BackendUnavailable, DeviceLost, DeviceOutOfMemory, InvalidOption, MissingDependency
from bfr.runtime.restore.restorer import Restorer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class FakeTorchCuda:
    """What the device asks of `torch.cuda`. A graph replays what was done while it was captured.

    gpus: Those of CUDA, which do at once what is enqueued, as PyTorch does here.
    """

    def __init__(self, gpus: list[FakeGpu]) -> None:
        self.gpus = gpus
        self.log: list[Any] = []
        self.current: Any = "default"
        self.captures = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        class CUDAGraph:
            def replay(self) -> None:
                fake.log.append(("replay", fake.current))
                self.work()

            def reset(self) -> None:
                fake.log.append("reset")

            def pool(self) -> str:
                return "pool of the first"

        @contextmanager
        def graph(graph: Any, **options: Any) -> Iterator[None]:
            fake.log.append(("capture", options))
            fake.captures += 1
            graph.work = lambda: None
            try:
                yield
            except BaseException:  # as PyTorch, whose end of the capture fails then
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904

        @contextmanager
        def stream(which: Any) -> Iterator[None]:
            before, fake.current = fake.current, which
            try:
                yield
            finally:
                fake.current = before

        for name, value in {
            "is_available": lambda: True,
            "set_device": lambda index: fake.log.append(("device", index)),
            "ExternalStream": lambda handle, device: f"stream {handle} of {device}",
            "CUDAGraph": CUDAGraph,
            "graph": graph,
            "stream": stream,
            "empty_cache": lambda: fake.log.append("empty"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are too small for several threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTorchCuda:
    gpus = install(monkeypatch)
    for one in gpus:
        one.eager = True
    fake = FakeTorchCuda(gpus)
    fake.install(monkeypatch)
    monkeypatch.setenv(c.INDUCTOR_CACHE, "/nowhere")
    monkeypatch.setattr(c, "find_spec", lambda _: object())
    monkeypatch.setattr(c, "tensor_view", lambda b, index: torch.from_numpy(gpus[index].floats(b.address, b.shape)))
    move = torch.nn.Module.to
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda m, *a, **k: m if isinstance(a[:1] and a[0], torch.device) else move(m, *a, **k)
    )
    return fake


def faces(count: int, size: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(0).random((count, size, size, 3), np.float32))


def test_a_view_is_described_as_the_interface_wants_it() -> None:
    found = c.array_interface(GpuBuffer(4096, (2, 3, 8, 8)))
    assert found == {
        "shape": (2, 3, 8, 8),
        "typestr": "<f4",
        "data": (4096, False),
        "strides": None,
        "stream": None,
        "version": 3,
    }


@pytest.mark.parametrize(("precision", "torso"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_a_stage_is_prepared(tiny_bundle: Bundle, precision: Any, torso: torch.dtype) -> None:
    stage: Any = c.prepare_stage(load_stage(tiny_bundle, "denoiser"), precision, channels_last=True)
    first = stage.denoiser.input_blocks[0][0].weight
    assert first.dtype == torso
    assert stage.denoiser.out[2].weight.dtype == torch.float32
    assert stage.denoiser.out[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(parameter.requires_grad for parameter in stage.parameters())
    contiguous: Any = c.prepare_stage(load_stage(tiny_bundle, "denoiser"), precision)
    assert contiguous.denoiser.out[2].weight.is_contiguous()


def test_a_guided_step_runs_its_denoiser_in_half() -> None:
    spec = pgdiff().networks["denoiser"]
    stage: Any = c.prepare_stage(make_stage(spec.kind, spec.build(), spec.options), "fp16")
    assert stage.network.denoiser.torso_dtype == torch.float16
    assert next(stage.network.restorer.parameters()).dtype == torch.float32


def test_a_precision_that_a_stage_does_not_have_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(InvalidOption, match=r"Linear.*fp16"):
        c.prepare_stage(torch.nn.Linear(1, 1), "fp16")


def test_compiled_gives_what_eager_gives_at_every_batch(tiny_bundle: Bundle) -> None:
    stage = c.prepare_stage(load_stage(tiny_bundle, "denoiser"), "fp16", channels_last=True)
    run, plain = c.stage_call(stage, {"backend": "eager"}), c.stage_call(stage)
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 2):
        shape = (batch, 3, 32, 32)
        inputs = {name: torch.rand(shape, generator=generator) for name in ("x", "h1", "h2", "noise")}
        inputs |= {"t": torch.full((batch,), 100.0), "row": torch.rand(batch, 8, generator=generator)}
        outputs = [tuple(torch.zeros(shape) for _ in range(2)) for _ in range(2)]
        with torch.no_grad():
            run(inputs, outputs[0])
            plain(inputs, outputs[1])
            expected = stage(**inputs)
        for found, eager, wanted in zip(*outputs, expected, strict=True):
            assert torch.equal(eager, wanted)
            assert torch.equal(found, wanted)
            assert wanted.abs().max() > 0


def test_the_limit_of_compilations_holds_all_networks_and_batches(tiny_bundle: Bundle) -> None:
    c.stage_call(load_stage(tiny_bundle, "estimator"), {"backend": "eager"})
    config: Any = torch._dynamo.config
    assert config.recompile_limit >= 2 * 2 * 5  # networks, precisions, buckets; torch's own limit is 8


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_whole_chain_is_eager_pytorchs(tiny_bundle: Bundle, gpu: FakeTorchCuda, precision: Any) -> None:
    device = c.CompiledDevice(compiled=False, graphs=False)
    sampler = tiny_bundle.preset("reference" if precision == "fp32" else "short")  # a CPU is slow in half
    with Restorer(tiny_bundle, device, sampler, precision=precision, batch=2) as restorer:
        found = restorer.restore(faces(3))
    with Restorer(tiny_bundle, EagerDevice(), sampler, batch=2) as restorer:
        expected = restorer.restore(faces(3))
    floor = 1e-4 if precision == "fp32" else 0.1
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() < floor
    assert gpu.captures == 0
    assert gpu.current == "default"
    device.close()
    assert gpu.gpus[0].used == 0


def test_the_second_call_is_captured_and_the_next_ones_replay(
    gpu: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, calls, launched = c.CompiledDevice(1), [], []

    def work() -> None:
        device.launch("fill_normal", (1, 0), [])
        watch.mark("denoise")
        calls.append(gpu.current)

    monkeypatch.setattr(device.cuda, "launch", lambda kernel, *_: launched.append(kernel))
    owned = ExitStack()
    watch, program = device.stopwatch(owned), device.record(owned, work)
    for _ in range(4):
        with device.computing():
            pass
        program()
    assert gpu.log[0] == ("device", 1)
    assert len(calls) == 2
    assert launched == [device.kernels["fill_normal"], device.kernels["stamp"]] * 2  # a graph holds its marks
    captures = [entry for entry in gpu.log if entry[0] == "capture"]
    stream = f"stream {device.stream} of 1"
    assert captures == [("capture", {"pool": None, "stream": stream, "capture_error_mode": "thread_local"})]
    assert gpu.log.count(("replay", stream)) == 3
    second = device.record(ExitStack(), lambda: None)
    second()
    second()
    assert gpu.log[-2][1]["pool"] == "pool of the first"
    owned.close()
    assert gpu.log.count("reset") == 1
    device.close()
    assert gpu.log.count("reset") == 2


def test_a_capture_that_fails_leaves_the_device_usable(gpu: FakeTorchCuda) -> None:
    device = c.CompiledDevice()
    fail = [False, True, False]

    def work() -> None:
        if fail.pop(0):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    program = device.record(ExitStack(), work)
    program()
    with pytest.raises(DeviceOutOfMemory, match=r"2 GiB.*,[0-9]{3} of 1,073,741,824"):
        program()
    assert gpu.current == "default"
    program()
    assert not fail
    assert gpu.log[-1][0] == "replay"


def test_a_device_that_records_nothing_repeats_the_work(gpu: FakeTorchCuda) -> None:
    calls: list[int] = []
    program = c.CompiledDevice(graphs=False).record(ExitStack(), lambda: calls.append(1))
    for _ in range(3):
        program()
    assert len(calls) == 3
    assert gpu.captures == 0


def test_what_pytorch_keeps_is_given_back_before_memory_is_said_to_be_out(gpu: FakeTorchCuda) -> None:
    device = c.CompiledDevice()
    gpu.gpus[0].fail["cudaMalloc"] = "cudaErrorMemoryAllocation"
    gpu.log.clear()
    assert device.array((2, 2)).shape == (2, 2)
    assert gpu.log == ["empty"]
    gpu.gpus[0].total = gpu.gpus[0].used
    with pytest.raises(DeviceOutOfMemory):
        device.array((2, 2))


def test_a_network_refuses_an_output_that_it_reads(gpu: FakeTorchCuda) -> None:
    device = c.CompiledDevice()
    buffer = device.array((1, 3))
    with pytest.raises(ValueError, match="also an input"):
        c.CompiledNetwork(device, lambda *_: None).bind({"x": buffer}, {"y": buffer})


@pytest.mark.parametrize(
    ("half", "wanted"),
    [(False, {"benchmark": True, "allow_tf32": False}), (True, {"benchmark": False, "allow_tf32": True})],
)
def test_cudnn_computes_as_it_was_asked_to(
    gpu: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch, half: bool, wanted: dict[str, bool]
) -> None:
    seen: list[dict[str, bool]] = []

    @contextmanager
    def flags(**options: bool) -> Iterator[None]:
        seen.append(options)
        yield

    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(flags=flags))
    with c.CompiledDevice(compiled=not half, tf32=half).computing():
        assert not torch.is_grad_enabled()
    assert seen == [{"enabled": True, "benchmark_limit": 0, **wanted}]  # 0: all of its algorithms


@pytest.mark.parametrize("chosen", [None, (), ("coordinate_descent_tuning",)])
def test_the_compilers_options_are_the_ones_that_were_chosen(
    tiny_bundle: Bundle, gpu: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch, chosen: tuple[str, ...] | None
) -> None:
    """By the command line's option, to `torch.compile`; without a choice kernels are timed, and not tuned further."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda run, **options: seen.append(options) or run)
    options = {} if chosen is None else {"compiler": chosen}
    with Restorer.open(tiny_bundle.folder, backend="torch-cuda", preset="short", precision="fp32", **options):
        pass
    names = ("max_autotune", "conv_1x1_as_mm") if chosen is None else chosen
    every = ("max_autotune", "coordinate_descent_tuning", "conv_1x1_as_mm")
    wanted = {"fullgraph": True, "dynamic": False, "options": {name: name in names for name in every}}
    assert seen == [wanted] * 2
    assert {*every} <= {*torch._inductor.list_options()}
    c.CompiledDevice(compiled=False).load(tiny_bundle, "denoiser", "fp32")
    assert len(seen) == 2


def test_versions_name_what_computes(gpu: FakeTorchCuda) -> None:
    assert {"torch", "torch's CUDA", "triton", "CUDA"} <= set(c.CompiledDevice().versions)
    assert "triton" not in c.CompiledDevice(compiled=False).versions


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [("torch", BackendUnavailable, "cannot use CUDA here"), ("triton", MissingDependency, "needs Triton")],
)
def test_what_is_missing_is_named(
    gpu: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch, broken: str, error: type[Exception], message: str
) -> None:
    if broken == "torch":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    else:
        monkeypatch.setattr(c, "find_spec", lambda _: None)
    with pytest.raises(error, match=message):
        c.CompiledDevice()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises((BackendUnavailable, MissingDependency)):
        c.CompiledDevice()


@needs_gpu
def test_a_view_is_the_buffers_own_memory() -> None:
    device = c.CompiledDevice(compiled=False)
    buffer = device.array((2, 3))
    view = device.tensor(buffer)
    device.write(buffer, np.arange(6, dtype=np.float32).reshape(2, 3))
    with device.computing():
        view.mul_(2)
    assert device.read(buffer).tolist() == [[0, 2, 4], [6, 8, 10]]
    device.release([buffer])
    device.close()


@needs_gpu
@pytest.mark.parametrize(
    ("compiled", "graphs", "precision", "floor"),
    [(False, False, "fp32", 1e-3), (False, True, "fp32", 1e-3), (True, True, "fp32", 1e-3), (True, True, "fp16", 0.1)],
)
def test_on_a_gpu_a_chain_is_the_cpus(
    tiny_bundle: Bundle, compiled: bool, graphs: bool, precision: Any, floor: float
) -> None:
    sampler = tiny_bundle.preset("reference")
    with Restorer(tiny_bundle, EagerDevice(), sampler, batch=2) as restorer:
        expected = restorer.restore(faces(2))
    device = c.CompiledDevice(compiled=compiled, graphs=graphs)
    with Restorer(tiny_bundle, device, sampler, precision=precision, batch=2) as restorer:
        repeated = [restorer.restore(faces(2)) for _ in range(4)]  # as it is, recorded, replayed twice
        single = restorer.restore(faces(1))
        again = restorer.restore(faces(2))  # the first graph, after another one took memory from its pool
    device.close()
    for restored in (*repeated, again):
        for found, wanted in zip(restored, expected, strict=True):
            assert np.abs(found - wanted).max() < floor
    assert np.abs(single[0] - expected[0]).max() < floor
    assert all(np.array_equal(a, b) for a, b in zip(repeated[1], repeated[3], strict=True))


@pytest.mark.parametrize("lost", [True, False])
def test_a_cuda_error_of_pytorch_is_a_lost_device_where_cuda_says_so(
    gpu: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    device = c.CompiledDevice(0)

    def synchronize(_: Any) -> None:
        raise DeviceLost("cudaErrorIllegalAddress") if lost else RuntimeError("a capture goes on")

    monkeypatch.setattr(device.cuda, "synchronize", synchronize, raising=False)
    with (
        pytest.raises(DeviceLost if lost else RuntimeError, match="illegal memory access") as raised,
        device.computing(),
    ):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert isinstance(raised.value, DeviceLost) == lost


def test_a_library_that_gets_no_memory_is_out_of_memory(gpu: FakeTorchCuda) -> None:
    with pytest.raises(DeviceOutOfMemory, match=r"CUBLAS.* of 1,073,741,824"), c.CompiledDevice(0).computing():
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def test_a_lost_device_closes_without_another_error(gpu: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    device = c.CompiledDevice(0)

    def lost(*_: Any) -> None:
        raise DeviceLost("cudaErrorIllegalAddress")

    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device.cuda, "synchronize", lost, raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", fails)
    with pytest.raises(DeviceLost):
        device.memory()
    device.close()


def test_compiled_code_is_kept_where_no_other_user_writes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(c.INDUCTOR_CACHE, "/chosen")
    c.keep_compiled_code()
    assert os.environ[c.INDUCTOR_CACHE] == "/chosen"
    assert not home.exists()
    monkeypatch.setenv(c.INDUCTOR_CACHE, "")
    c.keep_compiled_code()
    assert os.environ[c.INDUCTOR_CACHE] == str(home / "inductor")
    (home / "inductor").chmod(0o777)
    monkeypatch.setenv(c.INDUCTOR_CACHE, "")
    with pytest.raises(BackendUnavailable, match="another user"):
        c.keep_compiled_code()
