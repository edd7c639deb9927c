"""The TensorRT device over fakes of cuda-python and TensorRT: order, addresses, lifetimes, captures."""

import gc
import json
import logging
import mmap
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import SYSTEMS, shared

from bfr.export.tensorrt.engine import open_library
from bfr.runtime.backends import tensorrt_key as trt
from bfr.runtime.backends.cuda import bindings as cuda
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.backends.registry import BACKENDS
from bfr.runtime.backends.tensorrt_key import LIBRARIES
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.machine import EngineKey, MachineFiles
from bfr.runtime.errors import (
    BackendUnavailable,
    BundleCorrupt,
    DeviceLost,
    DeviceOutOfMemory,
    EngineMismatch,
    EngineMissing,
    InvalidOption,
    RestorationFailed,
)
from bfr.runtime.restore.restorer import Restorer

pytestmark = pytest.mark.engines
both = pytest.mark.parametrize("tensorrt", trt.LIBRARIES, indirect=True)
FACES = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(9)]


@pytest.fixture(scope="session")
def expected(tiny_bundle: Bundle) -> list[np.ndarray]:
    with Restorer(tiny_bundle, CpuDevice(), tiny_bundle.preset("reference"), batch=4) as cpu:
        return cpu.restore(FACES)


def opened(bundle: Bundle, tensorrt: Any, **options: Any) -> Restorer:
    return Restorer.open(bundle.folder, backend=tensorrt.name, **options)


@both
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_the_chain_gives_what_the_cpu_gives(built: Bundle, tensorrt: Any, expected: Any, batch: int) -> None:
    """At every batch size, before and after the chain became a graph, with padding (5 faces) and without."""
    with opened(built, tensorrt, batch=batch) as restorer:
        for _ in range(3):
            found = restorer.restore(FACES[:5])
            assert all(np.array_equal(a, b) for a, b in zip(found, expected[:5], strict=True))


@both
@pytest.mark.parametrize("batch", [1, 4])
def test_a_start_for_each_image_ends_a_graph_where_the_host_decides(
    built: Bundle, tensorrt: Any, gpus: Any, batch: int
) -> None:
    sampler: dict[str, Any] = {"solver": "unipc-2", "spacing": "log-snr", "start": 90.0, "steps": 4}
    adapt = {"typical": 60.0, "power": 2.0, "least": 5.0, "most": 400.0}
    preset = built.preset("reference", **sampler, adapt=adapt)
    with Restorer(built, CpuDevice(), preset, batch=batch) as cpu:
        wanted = cpu.restore(FACES[:5])
    with opened(built, tensorrt, batch=batch, **sampler, adapt=adapt) as restorer:
        for _ in range(3):
            found = restorer.restore(FACES[:5])
            assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
        gpus[0].log.clear()
        restorer.restore(FACES[:1])
        assert [name for name, _ in gpus[0].log].count("graph") == 2


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_of_the_family_is_one_graph_a_batch(
    name: str, building: Callable[[Bundle], Bundle], tensorrt: Any, gpus: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Several loops, their noise, inputs beside the image, guidance and latents: the same bytes as on the CPU."""
    bundle = shared(name, tmp_path_factory)
    pictures = [np.random.default_rng(i).integers(1, 256, (32, 32, 3), dtype=np.uint8) for i in range(3)]
    inputs: dict[str, Any] = {}
    if name == "inpainting":
        inputs["mask"] = [np.tri(32, k=-i, dtype=bool) for i in range(3)]
    if name == "identity":
        inputs["reference"] = [None, pictures[0], pictures[2]]
    with Restorer(bundle, CpuDevice(1), bundle.preset(), batch=2) as cpu:
        wanted = cpu.restore(pictures, inputs=inputs)
    with opened(building(bundle), tensorrt, batch=2) as restorer:
        for _ in range(3):  # call by call, recorded, and as the graphs
            found = restorer.restore(pictures, inputs=inputs)
            assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
        gpus[0].log.clear()
        restorer.restore(pictures[:2], inputs={key: values[:2] for key, values in inputs.items()})
        assert [what for what, _ in gpus[0].log].count("graph") == 1


@both
def test_half_precision_runs_the_half_engines(built: Bundle, tensorrt: Any) -> None:
    with Restorer(built, CpuDevice(), built.preset("reference"), precision="fp16", batch=4) as cpu:
        wanted = cpu.restore(FACES[:5])
    with opened(built, tensorrt, batch=4, precision="fp16") as restorer:
        found = restorer.restore(FACES[:5])
    assert [engine.session.get_inputs()[0].name for engine in tensorrt.engines] == ["degraded", "x"]
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@both
def test_a_batch_is_one_launch(built: Bundle, tensorrt: Any, gpus: Any) -> None:
    with opened(built, tensorrt, batch=2) as restorer:
        restorer.warm_up()
        gpus[0].log.clear()
        restorer.restore(FACES[:2])
        silent = ("wait", "wait event", "event", "stamp")
        launched = [(name, details) for name, details in gpus[0].log if name not in silent]
    # Up to the device, the keys of the noise, into place, the graph, the result aside and back, and the times.
    assert [name for name, _ in launched] == ["copy", "copy", "copy", "graph", "copy", "copy", "copy"]
    steps = [["fill_normal", "engine denoiser"]] * 5 + [["engine denoiser"]]
    work = [name for name in launched[3][1] if name != "stamp"]
    assert work == ["engine estimator", "zero", "zero", "fill_normal", "diffuse", *(n for step in steps for n in step)]


def test_nothing_is_allocated_after_the_warm_up(built: Bundle, tensorrt: Any, gpus: Any) -> None:
    """P21, the part that needs no GPU."""
    with opened(built, tensorrt, batch=2) as restorer:
        restorer.warm_up()
        restorer.restore(FACES[:1])
        restorer.restore(FACES[:1])
        gpus[0].log.clear()
        alive, used = len(gpus[0].alive), gpus[0].used
        for _ in range(3):
            restorer.restore(FACES[:5])
        assert not {"cudaMalloc", "cudaMallocHost"} & set(gpus[0].names())
        assert (len(gpus[0].alive), gpus[0].used) == (alive, used)


def test_everything_is_taken_at_the_start(built: Bundle, tensorrt: Any, gpus: Any) -> None:
    """What is left for the first call are page-locked blocks for results."""
    with opened(built, tensorrt, batch=4) as restorer:
        used = gpus[0].used
        restorer.restore(FACES[:4])
        assert gpus[0].used == used


def test_the_next_batch_is_uploaded_beside_the_present_one(built: Bundle, tensorrt: Any, gpus: Any) -> None:
    with opened(built, tensorrt, batch=2) as restorer:
        restorer.warm_up()
        gpus[0].log.clear()
        restorer.restore(FACES[:4])
        main, beside = int(restorer.device.stream), int(restorer.device.copy_stream)  # type: ignore[attr-defined]
        log = gpus[0].log
    first = next(i for i, (name, _) in enumerate(log) if name == "graph")
    done = next(i for i, entry in enumerate(log) if i > first and entry == ("wait", main))
    assert any(name == "copy" and details[3] == beside for name, details in log[first:done])


def test_the_device_never_waits_for_the_host_between_two_batches(built: Bundle, tensorrt: Any, gpus: Any) -> None:
    """A batch is launched before the host waits for anything of the previous one, which it fetches meanwhile."""
    with opened(built, tensorrt, batch=2) as restorer:
        restorer.warm_up()
        gpus[0].log.clear()
        restorer.restore(FACES[:8])
        device: Any = restorer.device
        main, back, log, events = int(device.stream), int(device.back_stream), [*gpus[0].log], device_events(restorer)
    graphs = [i for i, (name, _) in enumerate(log) if name == "graph"]
    fetched = [i for i, (name, details) in enumerate(log) if name == "copy" and details[3] == back]
    assert len(graphs) == len(fetched) == 4
    assert ("wait", main) not in log[graphs[0] :]
    # An upload waits for its stream, a launch for the keys of the batch before the previous one: long done, both.
    waits = [i for i, (name, what) in enumerate(log) if name == "wait" and what in events]
    assert [sum(i < graph for i in waits) for graph in graphs] == [0, 0, 2, 4]  # a result and its times


def device_events(restorer: Restorer) -> set[Any]:
    """The events that results and times wait for."""
    buffers: Any = restorer.chains.buffers
    clocks: list[Any] = [chain.clock for chain in restorer.chains.made.values()]
    return {event for owner in (buffers.output, *clocks) for _, event in owner._slots}


@both
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_under_way_is_not_overwritten_before_it_is_read(
    built: Bundle, tensorrt: Any, gpus: Any, expected: Any, batch: int, eager: bool
) -> None:
    """By a GPU that does everything as late as it may, and by one that does it at once."""
    with opened(built, tensorrt, batch=batch) as restorer:
        gpus[0].eager = eager
        for _ in range(3):
            results = restorer.run(FACES[:5])
            assert all(np.array_equal(a.pixels, b) for a, b in zip(results, expected[:5], strict=True))
            assert all(result.seconds["denoise"] > result.seconds["estimate"] > 0 for result in results)


@both
def test_all_contexts_share_one_block_of_activations(built: Bundle, tensorrt: Any) -> None:
    with opened(built, tensorrt, batch=4) as restorer:
        restorer.restore(FACES[:4])
        restorer.restore(FACES[:1])
        contexts = [context for engine in tensorrt.engines for context in engine.contexts]
        assert len(contexts) == 4  # two engines, batches of 4 and 1
        assert {context.memory for context in contexts} == {(contexts[0].memory[0], 8000)}


def test_a_callback_sees_every_step_and_the_result_stays(built: Bundle, tensorrt: Any, expected: Any) -> None:
    seen: list[list[float]] = []
    with opened(built, tensorrt, batch=4) as restorer:
        for _ in range(2):
            states: list[float] = []
            found = restorer.run(
                FACES[:4], on_step=lambda _, x, s=states: s.append(float(restorer.device.read(x).std()))
            )
            seen.append(states)
    assert len(seen[0]) == 7
    assert seen[0] == seen[1]
    assert all(np.array_equal(r.pixels, w) for r, w in zip(found, expected, strict=False))


def test_seconds_of_the_stages_come_from_the_device(built: Bundle, tensorrt: Any) -> None:
    with opened(built, tensorrt, batch=1) as restorer:
        restorer.warm_up()
        seconds = restorer.run(FACES[:1])[0].seconds
    assert set(seconds) == {"upload", "estimate", "diffuse", "denoise", "download", "network"}
    assert seconds["denoise"] > seconds["estimate"] > 0
    assert seconds["network"] == pytest.approx(seconds["estimate"] + seconds["denoise"])


def test_a_refused_call_raises_and_leaves_no_stale_graph(built: Bundle, tensorrt: Any, expected: Any) -> None:
    with opened(built, tensorrt, batch=1) as restorer:
        restorer.restore(FACES[:1])
        context = tensorrt.engines[1].contexts[0]
        context.refuse = True
        with pytest.raises(RuntimeError, match=r"refused$"):
            restorer.restore(FACES[1:2])  # while the chain is captured
        context.refuse = False
        assert np.array_equal(restorer.restore(FACES[1:2])[0], expected[1])


def test_a_batch_that_no_engine_was_built_for(built: Bundle, tensorrt: Any) -> None:
    with pytest.raises(InvalidOption, match=r"1, 2, 4.*--batches"):
        opened(built, tensorrt, batch=5)


def test_two_gpus_in_one_process(
    built: Bundle, tensorrt: Any, expected: Any, gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = trt.this_machine
    monkeypatch.setattr(  # the engines were built on GPU 0: the same model
        "bfr.runtime.backends.tensorrt.this_machine", lambda name, _: machine(name, cuda.Cuda(0))
    )
    with opened(built, tensorrt, batch=2) as one, opened(built, tensorrt, batch=2, device=1) as two:
        for _ in range(3):
            for restorer in (one, two):
                assert np.array_equal(restorer.restore(FACES[:2])[1], expected[1])
    assert gpus[1].names().count("graph") == gpus[0].names().count("graph") > 0


def test_a_gpu_that_is_not_there(built: Bundle, tensorrt: Any) -> None:
    with pytest.raises(BackendUnavailable, match="GPU 2 "):
        opened(built, tensorrt, device=2)


# Memory and errors (P20)


def test_too_little_memory_at_the_start(built: Bundle, tensorrt: Any, gpus: Any) -> None:
    """The error names needed and free bytes and the largest batch that fits, and nothing was taken."""
    with opened(built, tensorrt, batch=2):
        for_two = gpus[0].used
    gpus[0].total = for_two + 1000
    with pytest.raises(DeviceOutOfMemory, match=r"[\d,]+ bytes .* [\d,]+ .* 2\b"):
        opened(built, tensorrt, batch=4)
    with opened(built, tensorrt, batch=2) as restorer:
        restorer.restore(FACES[:2])
    gpus[0].total = 1000
    with pytest.raises(DeviceOutOfMemory, match="batch of 1"):
        opened(built, tensorrt, batch=1)


def test_memory_that_runs_out_later_halves_the_batch(
    built: Bundle, tensorrt: Any, expected: Any, gpus: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(built, tensorrt, batch=4) as restorer:
        restorer.restore(FACES[:4])
        gpus[0].fail["cudaGraphLaunch"] = "cudaErrorMemoryAllocation"
        found = restorer.restore(FACES)
        assert restorer.batch == 2
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert "ran out at a batch of 4, continuing with 2" in caplog.text


def test_an_image_that_does_not_fit_alone_fails_alone(
    built: Bundle, tensorrt: Any, gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(built, tensorrt, batch=1) as restorer:
        wanted = restorer.restore(FACES[:3])
        launch, count = type(cuda.bindings()[0]).cudaGraphLaunch, [0]

        def second_fails(self: Any, graph: Any, stream: Any) -> Any:
            count[0] += 1
            if count[0] == 2:
                return (self.cudaError_t.cudaErrorMemoryAllocation,)
            return launch(self, graph, stream)

        monkeypatch.setattr(type(cuda.bindings()[0]), "cudaGraphLaunch", second_fails)
        found = restorer.run(FACES[:3])
    assert [result.pixels is None for result in found] == [False, True, False]
    assert "bytes are free" in (found[1].error or "")
    assert np.array_equal(found[2].pixels, wanted[2])


@pytest.mark.parametrize("error", ["cudaErrorIllegalAddress", "cudaErrorECCUncorrectable", "cudaErrorLaunchFailure"])
def test_a_lost_device_says_so_and_closes_quietly(built: Bundle, tensorrt: Any, gpus: Any, error: str) -> None:
    with opened(built, tensorrt, batch=1) as restorer:
        restorer.restore(FACES[:1])
        gpus[0].fail["everything"] = error
        with pytest.raises(DeviceLost, match=rf"{error}.*dmesg"):
            restorer.restore(FACES[:1])


def test_a_device_that_the_library_finds_lost(built: Bundle, tensorrt: Any, gpus: Any) -> None:
    """TensorRT refuses the call; its message speaks of memory, of which there is enough."""
    with opened(built, tensorrt, batch=1) as restorer:
        refused = type(tensorrt.engines[1].contexts[0]).execute_async_v3

        def lost(context: Any, stream: int) -> bool:
            gpus[0].fail["everything"] = "cudaErrorIllegalAddress"
            context.refuse = True
            return bool(refused(context, stream))

        tensorrt.engines[1].contexts[0].execute_async_v3 = partial(lost, tensorrt.engines[1].contexts[0])
        with pytest.raises(DeviceLost, match=r"tensorrt: .* refused.*cudaErrorIllegalAddress"):
            restorer.restore(FACES[:1])


class NanSession:
    """A network that gives NaN."""

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.full_like(feeds["x"], np.nan) for _ in names]


def test_a_bad_image_in_half_is_made_again_in_float32(built: Bundle, tensorrt: Any, expected: Any) -> None:
    """P6: NaN of the half engine alone."""
    with opened(built, tensorrt, batch=2, precision="fp16") as restorer:
        tensorrt.engines[1].session = NanSession()
        found = restorer.run(FACES[:2])
    assert [result.precision for result in found] == ["fp32", "fp32"]
    assert all(np.array_equal(r.pixels, w) for r, w in zip(found, expected, strict=False))


def test_without_float32_engines_the_image_fails_with_the_reason(built: Bundle, tensorrt: Any) -> None:
    files = MachineFiles(built.hash)
    files.write_engines([e for e in files.read().engines if e.network == "estimator" or e.key.precision == "fp16"])
    with opened(built, tensorrt, precision="fp16") as restorer:
        tensorrt.engines[1].session = NanSession()
        with pytest.raises(RestorationFailed, match="denoiser in fp32"):
            restorer.restore(FACES[:1])


# Engines that are not the ones (P1-P3)


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    place = {"head": 0, "middle": len(data) // 2, "tail": len(data) - 1}.get(how)
    if place is None:
        path.write_bytes(b"" if how == "empty" else bytes(data[:-10]))
    else:
        data[place] ^= 1
        path.write_bytes(bytes(data))


@both
@pytest.mark.parametrize("version", ["10.3.0", "10.14.1"])
def test_an_engine_is_read_without_a_copy(
    built: Bundle, tensorrt: Any, expected: Any, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """In pieces, by a library that reads streams in pieces; else from the mapped file. The result is the same."""
    streams = version == "10.14.1" or tensorrt.name == "tensorrt-rtx"
    monkeypatch.setattr("bfr.runtime.backends.tensorrt_stream.PIECE", 5)
    machine = trt.this_machine(tensorrt.name, cuda.Cuda(0))
    monkeypatch.setattr("bfr.runtime.backends.tensorrt.this_machine", lambda _, __: machine)
    tensorrt.__version__ = version
    with opened(built, tensorrt, batch=1) as restorer:
        assert np.array_equal(restorer.restore(FACES[:1])[0], expected[0])
    kinds = {type(source) for source in tensorrt.sources}
    assert len(tensorrt.sources) == 2
    assert all(issubclass(kind, tensorrt.IStreamReaderV2 if streams else mmap.mmap) for kind in kinds)


@pytest.mark.parametrize("how", ["head", "middle", "tail", "empty", "cut"])
def test_a_damaged_engine_is_never_deserialized(built: Bundle, tensorrt: Any, how: str) -> None:
    path = MachineFiles(built.hash).folder / "denoiser.fp32.engine"
    damaged(path, how)
    with pytest.raises(BundleCorrupt, match=r"denoiser\.fp32\.engine.*bfr build .*--force"):
        opened(built, tensorrt)
    assert [engine.name for engine in tensorrt.engines] == ["estimator"]


@both
def test_an_engine_that_is_not_recorded_is_refused(built: Bundle, tensorrt: Any) -> None:
    MachineFiles(built.hash).write_engines(())
    with pytest.raises(EngineMissing, match=r"estimator in fp32.*bfr build"):
        opened(built, tensorrt)
    assert not tensorrt.engines


OTHER = {
    "graph_sha256": "0" * 64,
    "weights_sha256": ("0" * 64,),
    "version": "10.4.0",
    "cuda": "12.6",
    "driver": "12.4",
    "gpu": "NVIDIA Other",
    "compute_capability": "8.6",
    "power": "15W",
}


@pytest.mark.parametrize("field", OTHER)
def test_an_engine_of_another_machine_is_refused(built: Bundle, tensorrt: Any, field: str) -> None:
    engines = [
        engine.model_copy(update={"key": engine.key.model_copy(update={field: OTHER[field]})})
        for engine in MachineFiles(built.hash).read().engines
    ]
    MachineFiles(built.hash).write_engines(engines)
    with pytest.raises(EngineMismatch) as caught:
        opened(built, tensorrt)
    assert str(OTHER[field]) in str(caught.value)
    assert f"  {field}: the engine has" in str(caught.value)
    assert str(caught.value).count("the engine has") == 1
    assert "bfr build" in str(caught.value)
    assert not tensorrt.engines


@pytest.mark.parametrize(("field", "value"), [("buckets", (1, 2)), ("options", {"level": 5})])
def test_an_engine_built_otherwise_does_not_fit(built: Bundle, tensorrt: Any, field: str, value: Any) -> None:
    machine = trt.this_machine(tensorrt.name, cuda.Cuda(0))
    with pytest.raises(EngineMismatch, match=f"{field}: "):
        trt.find_engine(built, "denoiser", "fp32", machine, **{field: value})


def test_every_field_of_a_key_is_tested() -> None:
    """`precision` and `library` choose among engines: another one is missing, and does not mismatch."""
    assert set(EngineKey.model_fields) == {*OTHER, "buckets", "options", "precision", "library"}


def test_the_other_precision_and_library_are_named(built: Bundle, tensorrt: Any) -> None:
    halves = [engine for engine in MachineFiles(built.hash).read().engines if engine.key.precision == "fp16"]
    MachineFiles(built.hash).write_engines(halves)
    with pytest.raises(EngineMissing, match=rf"only fp16 with {tensorrt.name}" if halves else "no"):
        trt.find_engine(Bundle.open(built.folder), "denoiser", "fp32", trt.this_machine(tensorrt.name, cuda.Cuda(0)))


def test_a_library_that_does_not_start(built: Bundle, tensorrt: Any) -> None:
    tensorrt.starts = False
    with pytest.raises(BackendUnavailable, match=r"tensorrt 10\.3\.0 does not start here.*error: 35"):
        opened(built, tensorrt)


def test_an_engine_that_the_library_refuses(built: Bundle, tensorrt: Any) -> None:
    tensorrt.refuse = True
    with pytest.raises(BackendUnavailable, match="serialized for another version"):
        opened(built, tensorrt)


def test_an_engine_of_other_types_is_refused(built: Bundle, tensorrt: Any) -> None:
    tensorrt.types["x"] = "half"
    with pytest.raises(BackendUnavailable, match=r"x .*float32"):
        opened(built, tensorrt)


def test_what_an_engine_may_be_bound_to(built: Bundle, tensorrt: Any) -> None:
    device = BACKENDS[tensorrt.name].load()(index=0)
    network = device.load(built, "estimator", "fp32")
    a, b, wide = device.array((1, 3, 32, 32)), device.array((1, 3, 32, 32)), device.array((1, 3, 64, 32))
    with pytest.raises(ValueError, match="also an input"):
        network.bind({"degraded": a}, {"estimate": a})
    with pytest.raises(ValueError, match="degraded, estimate; degraded, other"):
        network.bind({"degraded": a}, {"other": b})
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\).*\(1, 3, 64, 32\)"):
        network.bind({"degraded": wide}, {"estimate": b})
    with pytest.raises(ValueError, match=r"estimate is \(1, 3, 32, 32\), not \(1, 3, 64, 32\)"):
        network.bind({"degraded": a}, {"estimate": wide})
    device.release([a, b, wide])
    device.close()


@both
def test_inspection_and_compiled_kernels(built: Bundle, tensorrt: Any) -> None:
    device = BACKENDS[tensorrt.name].load()(index=0)
    network = device.load_engine(MachineFiles(built.hash).folder / "denoiser.fp32.engine", b"from before")
    assert json.loads(device.inspect(network)) == {"Layers": ["denoiser"]}
    found = device.runtime_cache(network)
    assert found == (b"compiled from before" if tensorrt.name == "tensorrt-rtx" else None)
    device.close()


@both
def test_contexts_end_with_the_device(built: Bundle, tensorrt: Any) -> None:
    """Before their memory and their stream do, and not when Python finds the garbage."""
    restorer = opened(built, tensorrt, batch=2)
    for _ in range(3):
        restorer.restore(FACES[:2])
    contexts = [weakref.ref(context) for engine in tensorrt.engines for context in engine.contexts]
    engines = [weakref.ref(engine) for engine in tensorrt.engines]
    while tensorrt.engines:
        tensorrt.engines.pop().contexts.clear()
    gc.disable()
    try:
        restorer.close()
        assert len(contexts) == len(engines) == 2
        assert not any(one() for one in (*contexts, *engines))
        assert not tensorrt.late
    finally:
        gc.enable()


@both
def test_an_engine_that_cannot_be_recorded_runs_call_by_call(
    built: Bundle, tensorrt: Any, gpus: Any, expected: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT-RTX says so of engines that allocate during a call."""
    tensorrt.capturable = tensorrt.name == "tensorrt"
    with opened(built, tensorrt, batch=2) as restorer:
        for _ in range(3):
            assert np.array_equal(restorer.restore(FACES[:2])[1], expected[1])
    assert ("graph" in gpus[0].names()) == tensorrt.capturable
    assert caplog.text.count("cannot be recorded") == (not tensorrt.capturable)


def test_the_library_speaks_through_logging(built: Bundle, tensorrt: Any, caplog: pytest.LogCaptureFixture) -> None:
    logger = trt.make_logger(tensorrt)
    with caplog.at_level(logging.DEBUG):
        logger.log(tensorrt.ILogger.Severity.INFO, "chatter")
        logger.log(tensorrt.ILogger.Severity.WARNING, "watch out")
        logger.log(tensorrt.ILogger.Severity.ERROR, "broken")
    assert [record.message for record in caplog.records] == ["watch out", "broken"]
    assert logger.errors == ["broken"]


def test_a_chain_that_does_not_fit_gives_back_what_it_got(built: Bundle, tensorrt: Any, gpus: Any) -> None:
    """Wherever memory ends, on the device or for page-locked blocks."""
    with opened(built, tensorrt, batch=1) as restorer:
        restorer.chains.clear()
        before = gpus[0].used, len(gpus[0].pinned), dict(gpus[0].alive)
        for spare in range(0, 130_000, 10_000):
            gpus[0].total = gpus[0].used + spare
            with pytest.raises(DeviceOutOfMemory):
                restorer.chain(4)
            assert (gpus[0].used, len(gpus[0].pinned)) == before[:2]
            assert gpus[0].alive == before[2]
        gpus[0].total = 1 << 30
        gpus[0].fail["cudaMallocHost"] = "cudaErrorMemoryAllocation"
        with pytest.raises(DeviceOutOfMemory):
            restorer.chain(4)
        assert (gpus[0].used, len(gpus[0].pinned)) == before[:2]
        assert restorer.restore(FACES[:1])


@pytest.mark.parametrize("tensorrt", LIBRARIES, indirect=True)
def test_tensorrt_rtx_refuses_a_gpu_that_it_does_not_support(tensorrt: Any, gpus: Any) -> None:
    """As TensorRT-RTX 1.7 an H100; `bfr build` opens its device by the same call."""
    gpus[0].capability = (9, 0)
    if tensorrt.name == "tensorrt":
        open_library(tensorrt.name, 0).close()
        return
    with pytest.raises(BackendUnavailable, match=r"tensorrt-rtx does not support Fake 0 \(compute capability 9\.0\)"):
        open_library(tensorrt.name, 0)
    with pytest.raises(BackendUnavailable, match=r"compute capability 9\.0"):
        BACKENDS[tensorrt.name].load().check(Bundle.open(default_bundle()), "fp32", 0)
