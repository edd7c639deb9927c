"""The builder with a library that is a fake, and with TensorRT-RTX on this CPU."""

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundles import SYSTEMS, shared
from interpreter import python

from bfr.export.options import BuildOptions
from bfr.export.tensorrt.builder import build_engine_bytes, parse_graph, timing_cache_path, typed_share
from bfr.export.tensorrt.precision import HALF_SHARE
from bfr.export.tensorrt.progress import Meter, Tick, watched
from bfr.export.tensorrt.support import check_support
from bfr.runtime.backends.tensorrt_key import Machine
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import BackendUnavailable, EngineBuildFailed, InvalidOption

GRAPH = Path("denoiser.onnx")
SEVERITIES = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}


class FakeError:
    def __init__(self, operator: str, node: str, text: str) -> None:
        self.operator, self.node, self.text = operator, node, text

    def node_operator(self) -> str:
        return self.operator

    def node_name(self) -> str:
        return self.node

    def desc(self) -> str:
        return self.text


class FakeTensorRt:
    """The part of TensorRT 10.3 to 11 that the builder uses. What a test asks for, it does."""

    __name__, __version__ = "tensorrt", "11.4.0"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.errors: list[FakeError] = []
        self.serialized: bytes | None = b"engine"
        self.says: str | None = None
        self.cache_fits = True
        self.starts = True  # False: its constructors return a null pointer, as without a driver that fits
        self.steps = 3
        self.shapes: dict[str, tuple[int, ...]] = {"x": (-1, 3, 8, 8), "t": (-1,)}
        self.ILogger = type("ILogger", (), {"Severity": SimpleNamespace(**SEVERITIES)})
        self.IProgressMonitor = type("IProgressMonitor", (), {})
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.BuilderFlag = SimpleNamespace(TF32="TF32")
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED")

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        self.calls.append(("plugins", logger, namespace))
        return True

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        self.logger = logger
        if not self.starts:
            logger.log(1, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(flags: int) -> Any:
            self.calls.append(("create_network", flags))
            inputs = [SimpleNamespace(name=name, shape=shape) for name, shape in self.shapes.items()]
            return SimpleNamespace(num_inputs=len(inputs), get_input=inputs.__getitem__, num_layers=7)

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=self.config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *a: self.calls.append(("shape", *a))),
            build_serialized_network=self.build,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        assert self.calls[0] == ("plugins", logger, ""), "the parser looks nodes up among them"
        return SimpleNamespace(
            parse_from_file=lambda _: not self.errors, num_errors=len(self.errors), get_error=self.errors.__getitem__
        )

    def config(self) -> Any:
        trt = self

        class Config:
            def clear_flag(self, flag: str) -> None:
                trt.calls.append(("clear_flag", flag))

            def set_flag(self, flag: str) -> None:
                trt.calls.append(("set_flag", flag))

            def set_memory_pool_limit(self, pool: str, size: int) -> None:
                trt.calls.append(("pool", pool, size))

            def add_optimization_profile(self, profile: Any) -> int:
                return 0

            def create_timing_cache(self, data: bytes) -> Any:
                trt.calls.append(("cache", data))
                return None if data == b"damaged" else SimpleNamespace(data=data, serialize=lambda: b"new")

            def set_timing_cache(self, cache: Any, ignore: bool) -> bool:
                assert ignore is False
                self.cache = cache
                return trt.cache_fits or not cache.data

            def get_timing_cache(self) -> Any:
                return self.cache

        self.made = Config()
        return self.made

    def build(self, network: Any, config: Any) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, self.steps)
        for step in range(self.steps):
            if self.steps > 3:
                time.sleep(0.02)
            if not monitor.step_complete("Building engine", step):
                self.logger.log(1, "Build canceled by user")
                return None
        monitor.phase_finish("Building engine")
        if self.says:
            self.logger.log(1, self.says)
        return self.serialized


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """TensorRT beside a GPU."""
    monkeypatch.setattr("bfr.export.tensorrt.builder.device_count", lambda: 1)
    return FakeTensorRt()


def test_tensorrt_reads_nothing_without_a_gpu(trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its builder is a null pointer there, or aborts the process; TensorRT-RTX's works."""
    trt.starts = False
    with pytest.raises(BackendUnavailable, match=r"tensorrt 11\.4\.0 does not start.*error: 35.*driver"):
        parse_graph(GRAPH, trt)
    monkeypatch.setattr("bfr.export.tensorrt.builder.device_count", lambda: 0)
    monkeypatch.setattr(trt, "Builder", None)
    with pytest.raises(BackendUnavailable, match=r"NVIDIA GPU.*--library tensorrt-rtx"):
        parse_graph(GRAPH, trt)


def test_the_network_is_strongly_typed_and_every_batch_has_a_profile(trt: FakeTensorRt) -> None:
    options = BuildOptions(batches=(1, 4), workspace=2, level=5, aux_streams=0)
    assert build_engine_bytes(GRAPH, options, "tensorrt", trt=trt) == b"engine"
    assert ("create_network", 1 << 1) in trt.calls
    assert ("clear_flag", "TF32") in trt.calls
    assert "set_flag" not in {call[0] for call in trt.calls}
    assert ("pool", "WORKSPACE", 2 << 20) in trt.calls
    assert trt.made.builder_optimization_level == 5
    assert trt.made.profiling_verbosity == "DETAILED"
    assert trt.made.max_aux_streams == 0
    shapes = [call[1:] for call in trt.calls if call[0] == "shape"]
    one, four = (1, 3, 8, 8), (4, 3, 8, 8)
    assert shapes == [("x", one, one, one), ("t", (1,), (1,), (1,)), ("x", four, four, four), ("t", (4,), (4,), (4,))]


def test_engines_allocate_nothing_while_they_run(trt: FakeTensorRt) -> None:
    """TensorRT-RTX's do, unless its builder is told: a whole chain is captured, which an allocation ends."""
    trt.BuilderFlag.REQUIRE_USER_ALLOCATION = "ours"
    build_engine_bytes(GRAPH, BuildOptions(), "tensorrt-rtx", trt=trt)
    assert ("set_flag", "ours") in trt.calls
    library = pytest.importorskip("tensorrt_rtx")
    assert hasattr(library.BuilderFlag, "REQUIRE_USER_ALLOCATION")


def test_options_out_of_range_are_refused() -> None:
    for wrong in ({"batches": (0, 1)}, {"batches": "1,x"}, {"workspace": 0}, {"level": 6}, {"aux_streams": -1}):
        with pytest.raises(InvalidOption):
            BuildOptions(**wrong)  # type: ignore[arg-type]


def test_every_node_that_is_not_supported_is_named_with_a_remedy(trt: FakeTensorRt) -> None:
    trt.errors = [FakeError("GroupNormalization", "node_a", "no importer"), FakeError("Foo", "node_b", "what is Foo")]
    with pytest.raises(EngineBuildFailed) as caught:
        build_engine_bytes(GRAPH, BuildOptions(), "tensorrt", trt=trt)
    for part in (
        "GroupNormalization node_a: no importer",
        "Foo node_b: what is Foo",
        "10.9",
        "--opset 20",
        "another opset",
    ):
        assert part in str(caught.value)


def test_a_fixed_batch_is_built_for_that_batch_alone(trt: FakeTensorRt) -> None:
    """As that of a wrapped file whose Reshape fixes it."""
    trt.shapes["x"] = (2, 3, 8, 8)
    with pytest.raises(EngineBuildFailed, match=r"x .*\(2, 3, 8, 8\).* 1"):
        build_engine_bytes(GRAPH, BuildOptions(), "tensorrt", trt=trt)
    build_engine_bytes(GRAPH, BuildOptions(batches=(2,)), "tensorrt", trt=trt)
    assert ("shape", "x", *[(2, 3, 8, 8)] * 3) in trt.calls


def test_a_logger_is_made_once_and_never_freed(trt: FakeTensorRt) -> None:
    """TensorRT keeps a pointer to the first one, and warns of every other."""
    loggers = []
    for _ in range(2):
        parse_graph(GRAPH, trt)
        loggers.append(trt.logger)
    assert loggers[0] is loggers[1]


def test_no_engine_is_an_error_with_what_the_library_said(trt: FakeTensorRt) -> None:
    trt.serialized, trt.says = None, "could not find any implementation for node 7"
    with pytest.raises(EngineBuildFailed, match=r"node 7.*--workspace"):
        build_engine_bytes(GRAPH, BuildOptions(), "tensorrt", trt=trt)


def test_a_cancelled_build_ends_soon(trt: FakeTensorRt) -> None:
    trt.steps = 100_000
    meter = Meter("x")
    threading.Timer(0.3, meter.cancelled.set).start()
    with pytest.raises(EngineBuildFailed, match="cancelled"):
        build_engine_bytes(GRAPH, BuildOptions(), "tensorrt", trt=trt, meter=meter)


def test_the_timing_cache_is_kept_and_used_again(trt: FakeTensorRt, tmp_path: Path) -> None:
    path = tmp_path / "made" / "10.3-8.7.cache"
    said: list[str] = []
    build_engine_bytes(GRAPH, BuildOptions(), "tensorrt", trt=trt, timing=path, say=said.append)
    assert path.read_bytes() == b"new"
    build_engine_bytes(GRAPH, BuildOptions(), "tensorrt", trt=trt, timing=path, say=said.append)
    assert [call for call in trt.calls if call[0] == "cache"] == [("cache", b""), ("cache", b"new")]
    assert said == []
    path.unlink()
    build_engine_bytes(GRAPH, BuildOptions(), "tensorrt-rtx", trt=trt, timing=path, say=said.append)
    assert not path.exists()  # TensorRT-RTX has none


@pytest.mark.parametrize("how", ["damaged", "foreign", "unreadable"])
def test_a_timing_cache_that_cannot_be_used_is_said(trt: FakeTensorRt, tmp_path: Path, how: str) -> None:
    """P18."""
    path = tmp_path / "timing.cache"
    path.write_bytes(b"damaged" if how == "damaged" else b"of another GPU")
    trt.cache_fits = how != "foreign"
    said: list[str] = []
    if how == "unreadable":
        path.unlink()
        path.mkdir()  # and cannot be written either
    assert build_engine_bytes(GRAPH, BuildOptions(), "tensorrt", trt=trt, timing=path, say=said.append) == b"engine"
    assert len(said) == 1
    assert str(path.parent) in said[0]
    if how != "unreadable":
        assert path.read_bytes() == b"new"


def test_no_place_for_a_timing_cache_breaks_nothing(
    trt: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P18."""
    said: list[str] = []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BFR_HOME", str(tmp_path / "file" / "bfr"))
    machine = Machine("tensorrt", "11.4.0", "13.0", "13.1", "NVIDIA H200", "9.0")
    assert timing_cache_path(machine, said.append) is None
    monkeypatch.setenv("BFR_HOME", str(tmp_path / "bfr"))
    path = timing_cache_path(machine, said.append)
    assert path is not None
    others = replace(machine, gpu="NVIDIA H100"), replace(machine, power="15W")  # other times, and TensorRT cannot tell
    assert len({path, *(timing_cache_path(one, said.append) for one in others)}) == 3
    shutil.rmtree(tmp_path / "bfr")
    (tmp_path / "bfr").write_text("")  # afterwards something stands in the way
    assert build_engine_bytes(GRAPH, BuildOptions(), "tensorrt", trt=trt, timing=path, say=said.append) == b"engine"
    assert "no timing cache" in said[0]
    assert "not kept" in said[-1]


def graph_of(folder: Path, nodes: list[Any]) -> Path:
    """An ONNX file of (operator, domain) after another, on images of 8 x 8."""
    import onnx
    from onnx import TensorProto, helper

    shape = ["batch", 3, 8, 8]
    names = ["x", *(f"y{i}" for i in range(len(nodes)))]
    made = [
        helper.make_node(op, [a], [b], name=f"the_{op}", domain=domain)
        for (op, domain), a, b in zip(nodes, names, names[1:], strict=False)
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        made, "g", [value("x", TensorProto.FLOAT, shape)], [value(names[-1], TensorProto.FLOAT, shape)]
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "graph.onnx")
    return folder / "graph.onnx"


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx")


def test_rtx_names_the_nodes_that_it_does_not_support(rtx: Any, tmp_path: Path) -> None:
    graph = graph_of(tmp_path, [("Relu", ""), ("Foo", "nowhere"), ("Bar", "nowhere")])
    with pytest.raises(EngineBuildFailed) as caught:
        parse_graph(graph, rtx)
    for part in ("tensorrt-rtx 1.", "Foo the_Foo", "another opset"):
        assert part in str(caught.value)
    shown = str(caught.value).splitlines()
    capability, reduce = (line.split() for line in shown if " polygraphy " in line)
    assert capability == ["POLYGRAPHY_USE_TENSORRT_RTX=1", "polygraphy", "inspect", "capability", str(graph)]
    assert "'x:[1,3,8,8]'" in reduce


@pytest.mark.slow
def test_the_printed_command_narrows_a_graph_to_the_node_at_fault(rtx: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("polygraphy")
    pytest.importorskip("onnx_graphsurgeon")
    graph = graph_of(tmp_path, [*[("Relu", "")] * 5, ("Det", ""), ("Relu", "")])
    with pytest.raises(EngineBuildFailed) as caught:
        parse_graph(graph, rtx)
    command = next(line for line in str(caught.value).splitlines() if "debug reduce" in line)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env={**os.environ, "PATH": path})  # noqa: S602
    assert [node.op_type for node in onnx.load(tmp_path / "reduced.onnx").graph.node] == ["Det"]


def test_rtx_reads_half_where_the_graph_has_it(rtx: Any, tiny_bundle: Bundle) -> None:
    full, half = (typed_share(tiny_bundle.graph("denoiser", p), "tensorrt-rtx") for p in ("fp32", "fp16"))
    assert full < HALF_SHARE / 2
    assert half > HALF_SHARE


def test_polygraphy_reads_the_graphs(rtx: Any, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """As docs/tensorrt.md says: they are plain ONNX files with external weights."""
    pytest.importorskip("polygraphy")
    main = "import sys; from polygraphy.tools import main; sys.exit(main())"
    graph, environment = tiny_bundle.graph("denoiser", "fp16"), {"POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    assert "fully supported" in python(main, "inspect", "capability", graph, env=environment, cwd=tmp_path).stdout


@pytest.mark.engines
def test_rtx_builds_and_says_how_far_it_is(rtx: Any, tiny_bundle: Bundle) -> None:
    """Both precisions."""
    ticks: list[Tick] = []
    options = BuildOptions(batches=(1, 2), workspace=512)
    for precision in ("fp32", "fp16"):
        graph = tiny_bundle.graph("denoiser", precision)  # type: ignore[arg-type]
        meter = Meter(precision)
        data = watched(
            lambda graph=graph, meter=meter: build_engine_bytes(graph, options, "tensorrt-rtx", meter=meter),
            meter,
            ticks.append,
            interval=0.05,
        )
        assert len(data) > 1000
    assert len({tick.phase for tick in ticks}) > 2  # the thread that reports runs beside the builder


@pytest.mark.engines
def test_rtx_can_be_cancelled(rtx: Any) -> None:
    meter = Meter("x")
    threading.Timer(0.5, meter.cancelled.set).start()
    with pytest.raises(EngineBuildFailed, match="cancelled"):
        build_engine_bytes(default_bundle() / "denoiser.onnx", BuildOptions(), "tensorrt-rtx", meter=meter)


@pytest.mark.engines
@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize(("opset", "half"), [(20, 0.4), (23, 0.7)])
def test_rtx_reads_normalization_in_half(rtx: Any, tmp_path: Path, opset: int, half: float) -> None:
    """Where the operator sums in float32 by itself, its input and its result stay in half."""
    import torch
    from systems import unet

    from bfr.export.onnx.graph import export_graph
    from bfr.models.networks.unet import UNet
    from bfr.models.stages.kinds import make_stage

    network = UNet(**unet(attention_resolutions=[16], channel_mult=[1, 2], num_head_channels=32))
    stage = make_stage("step", network.cast_torso(torch.float16), {})
    graph, _ = export_graph(stage, stage.examples(32), stage.outputs, tmp_path / "step.onnx", opset=opset)
    assert half < typed_share(graph, "tensorrt-rtx") < half + 0.2


@pytest.mark.engines
def test_rtx_builds_all_of_mini(rtx: Any) -> None:
    bundle = Bundle.open(default_bundle())
    for name in bundle.manifest.networks:
        data = build_engine_bytes(bundle.graph(name, "fp32"), BuildOptions(batches=(1,)), "tensorrt-rtx")
        assert len(data) > 1e6


# Identity has the gradient, of all the one that TensorRT needs most help with; each other takes half a minute to two.
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS if name != "identity"]


@pytest.mark.engines
@pytest.mark.parametrize("name", ["identity", *OTHERS])
def test_rtx_builds_every_system_of_the_family(rtx: Any, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Gradients, Fourier transforms, codebooks and resizing included."""
    bundle = shared(name, tmp_path_factory)
    for network in bundle.manifest.networks:
        data = build_engine_bytes(bundle.graph(network, "fp32"), BuildOptions(batches=(1, 2)), "tensorrt-rtx")
        assert len(data) > 1e5


def test_support_is_reported_for_every_graph(rtx: Any, tiny_bundle: Bundle, trt: FakeTensorRt) -> None:
    found = check_support(tiny_bundle, "tensorrt-rtx", ("fp16", "fp32"))
    assert [(s.network, s.precision) for s in found] == [
        ("estimator", "fp32"),
        ("denoiser", "fp16"),
        ("denoiser", "fp32"),
    ]
    assert all(support.problem is None and support.layers > 100 for support in found)
    assert "can be built" in str(found[0])
    trt.errors = [FakeError("GroupNormalization", "n", "no")]
    found = check_support(tiny_bundle, "tensorrt", trt=trt)
    assert all("10.9" in str(support) for support in found)


@pytest.mark.engines
@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoiser", "estimator"])
def test_rtx_builds_difface(rtx: Any, tmp_path: Path, name: str) -> None:
    """The 512 UNet and SwinIR in their published shapes, with name-seeded weights: minutes, and 3 GB."""
    from bfr.export.bundle import as_stage
    from bfr.export.onnx.graph import export_graph
    from bfr.models.catalog import get_system
    from bfr.models.weights.seeded import seed_weights

    spec = get_system("difface").networks[name]
    module = spec.build()
    seed_weights(module)
    stage = as_stage(module, spec)
    outputs = ("estimate",) if name == "estimator" else ("x_next", "x0")
    graph, weights = export_graph(stage, stage.examples(512), outputs, tmp_path / f"{name}.onnx")
    data = build_engine_bytes(graph, BuildOptions(batches=(1,)), "tensorrt-rtx")
    assert len(data) > 0.4 * weights.stat().st_size
