"""What `auto` takes."""

import sys
from importlib.util import find_spec
from typing import Any

import pytest
from interpreter import python

from bfr.runtime.backends import registry as module
from bfr.runtime.backends.host import HostDevice
from bfr.runtime.backends.registry import BACKENDS, HELP, Backend, choose, open_device
from bfr.runtime.backends.tensorrt_key import LIBRARIES
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.machine import MachineFiles
from bfr.runtime.bundle.manifest import Check
from bfr.runtime.errors import BackendUnavailable, EngineMismatch, InvalidOption, MissingDependency
from bfr.runtime.install import install_command
from bfr.runtime.restore.restorer import Restorer

MINI = Bundle.open(default_bundle())


def verified(*checks: tuple[str, float | None, str]) -> Bundle:
    """`mini`, its loop verified on this machine: backend, seconds a step, GPU."""
    found = tuple(
        Check(
            what="loop",
            backend=backend,
            precision="fp32",
            batch=1,
            psnr_db=99.0,
            max_abs=0.0,
            relative=0.0,
            floor_db=80.0,
            gpu=gpu,
            seconds_a_step=seconds,
        )
        for backend, seconds, gpu in checks
    )
    MachineFiles(MINI.hash).record_checks(found)
    return MINI


@pytest.fixture
def usable(gpus: Any, home: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception | None]:
    """What happens where a backend is tried: by default all work."""
    outcome: dict[str, Exception | None] = {}

    def tried(backend: Backend, *_: Any) -> None:
        if error := outcome.get(backend.name):
            raise error

    monkeypatch.setattr(Backend, "check", tried)
    return outcome


def test_without_a_gpu_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_count", lambda: 0)
    assert choose(MINI, "fp32") == "onnxruntime-cpu"
    assert open_device("auto", MINI).name == "onnxruntime-cpu"


def test_the_fastest_that_was_verified_on_this_gpu(usable: Any) -> None:
    bundle = verified(
        ("tensorrt", 0.002, "Fake 0"), ("torch-cuda", 0.001, "Fake 0"), ("onnxruntime-cuda", 0.0001, "another")
    )
    assert choose(bundle, "fp32") == "torch-cuda"
    usable["torch-cuda"] = MissingDependency("no torch")
    assert choose(bundle, "fp32") == "tensorrt"


def test_what_was_measured_in_another_precision_or_not_at_all_does_not_count(usable: Any) -> None:
    bundle = verified(("torch-cuda", 0.001, "Fake 0"), ("onnxruntime-cuda", None, "Fake 0"))
    assert choose(bundle, "fp16") == "tensorrt"
    assert choose(bundle, "fp32") == "torch-cuda"


def test_what_a_bundle_says_of_itself_does_not_count(usable: Any) -> None:
    """Its author writes the manifest: neither timings nor engines in it choose what runs."""
    claimed = MINI.manifest.verified[-1].model_copy(
        update={"gpu": "Fake 0", "backend": "torch-cuda", "seconds_a_step": 1e-6, "precision": "fp32"}
    )
    bundle = Bundle(MINI.folder, MINI.manifest.model_copy(update={"verified": (claimed,)}), MINI.hash)
    assert choose(bundle, "fp32") == "tensorrt"


def test_what_was_verified_and_fails_is_said(usable: Any, caplog: pytest.LogCaptureFixture) -> None:
    usable["tensorrt"] = EngineMismatch("driver: the engine has 12.4")
    usable["tensorrt-rtx"] = MissingDependency("not installed")
    assert choose(verified(("tensorrt", 0.002, "Fake 0")), "fp32") == "onnxruntime-cuda"
    assert "skipping backend tensorrt: driver: the engine has 12.4" in caplog.text
    assert "tensorrt-rtx" not in caplog.text


def test_where_nothing_works_it_is_the_cpu(usable: Any) -> None:
    usable.update(dict.fromkeys(BACKENDS, BackendUnavailable("no")))
    assert choose(MINI, "fp32") == "onnxruntime-cpu"
    assert choose(None, "fp32") == "onnxruntime-cpu"


@pytest.mark.parametrize("tensorrt", LIBRARIES, indirect=True)
def test_engines_are_looked_for_before_onnxruntime(built: Bundle, tensorrt: Any) -> None:
    """The real look: engines of the right machine in the record."""
    assert choose(built, "fp16") == tensorrt.name
    assert open_device("auto", built).close() is None
    assert choose(MINI, "fp32") == "onnxruntime-cpu"  # has none, and this ONNX Runtime has no CUDA


def test_engines_of_another_machine_are_passed_over_aloud(
    built: Bundle, tensorrt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    type(tensorrt).__version__, version = "10.9.0", type(tensorrt).__version__
    try:
        assert choose(built, "fp32") == "onnxruntime-cpu"
    finally:
        type(tensorrt).__version__ = version
    assert "version: the engine has 10.3.0, wanted is 10.9.0" in caplog.text


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidOption) as refused:
        open_device("cuda")
    assert all(name in str(refused.value) for name in ("auto", *BACKENDS))


def test_a_backend_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "bfr.export.pytorch.compiled", raising=False)
    with pytest.raises(MissingDependency) as missing:
        open_device("torch-cuda")
    assert install_command("export") in str(missing.value)


def test_every_row_names_a_class_and_a_package() -> None:
    for row in BACKENDS.values():
        assert row.name in HELP
        assert find_spec(row.module)
        if row.installed:
            assert row.load().__module__ == row.module


def test_a_row_is_all_that_a_backend_needs() -> None:
    """In a process of its own, where the row is there before the options are made."""
    script = """
import sys, types
from bfr.runtime.backends.host import HostDevice
from bfr.runtime.backends import registry

class Device(HostDevice):
    name = "mine"
    def __init__(self, threads=None, *, spinning=True):
        self.threads = threads

module = types.ModuleType("mine")
module.Device = Device
sys.modules["mine"] = module
row = registry.Backend("mine", "mine", "Device", "numpy", "cpu", "cpu", "a backend of mine")
registry.BACKENDS["mine"] = row
assert registry.open_device("mine", threads=3).threads == 3
"""
    python(script)


def test_a_backend_that_cannot_load_its_networks_is_passed_over_once_aloud(
    tiny_bundle: Bundle, usable: Any, gpus: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As ONNX Runtime on CUDA a graph that it has no kernels for: its package and its provider are there."""
    closed: list[str] = []

    class Device(HostDevice):
        name = "onnxruntime-cuda"

        def __init__(self, **_: Any) -> None: ...

        def load(self, bundle: Bundle, name: str, precision: str) -> Any:
            raise BackendUnavailable(f"{name}.onnx does not load with CUDAExecutionProvider: no kernel")

        def close(self) -> None:
            closed.append(self.name)

    usable.update(dict.fromkeys(LIBRARIES, MissingDependency("not installed")))
    load = Backend.load
    monkeypatch.setattr(Backend, "load", lambda row: Device if row.name == "onnxruntime-cuda" else load(row))
    with Restorer.open(tiny_bundle.folder, backend="auto", threads=1) as restorer:
        assert restorer.device.name == "onnxruntime-cpu"
    said = [record.message for record in caplog.records if "no kernel" in record.message]
    assert len(said) == 1
    assert "skipping backend onnxruntime-cuda" in said[0]
    assert closed == ["onnxruntime-cuda"]
    with pytest.raises(BackendUnavailable, match="no kernel"):
        Restorer.open(tiny_bundle.folder, backend="onnxruntime-cuda")
