"""A GPU that is ONNX Runtime on the CPU, and a builder that writes down which graph it was asked for."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bfr.export.verify.walk import Reference
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.backends.tensorrt_key import Library, Machine
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.restore.chains import load_networks

MACHINE = Machine("tensorrt-rtx", "1.7.1", "13.0", "13.1", "NVIDIA Fake", "8.9")


def inspected(half: int, full: int) -> str:
    """What an inspector shows of so many tensors in half and in float."""
    kinds = ["Half"] * half + ["Float"] * full
    layers = [{"Name": f"l{i}", "Outputs": [{"Name": f"t{i}", "Format/Datatype": k}]} for i, k in enumerate(kinds)]
    return json.dumps({"Layers": layers, "Bindings": ["x"]})


class FakeDevice(CpuDevice):
    """Loads "engines" that hold the name of the graph that they were built of, see `fake_build`."""

    def __init__(
        self, bundle: Path, machine: Machine = MACHINE, inspector: str = inspected(3, 1), spoil: Any = None
    ) -> None:
        super().__init__(1)
        self.name = machine.library
        self.machine, self.inspector, self.spoil = machine, inspector, spoil
        self.loaded: list[str] = []
        self.closed = False
        self.current = set[int]()  # the threads whose GPU it was made
        self.cuda = SimpleNamespace(use=lambda: self.current.add(threading.get_ident()))
        self._bundle = bundle

    @property
    def buckets(self) -> tuple[int, ...] | None:  # type: ignore[override]
        return (1, 2)

    def load_engine(self, path: Path, cache: bytes | None = None) -> Any:
        graph = path.read_bytes().split(b"|")[0].decode()
        bundle = Bundle.open(self._bundle)
        self.loaded.append(path.name)
        for name, entry in bundle.manifest.networks.items():
            for precision, variant in entry.variants.items():
                if variant.graph.path == graph:
                    network = super().load(bundle, name, precision)
                    return self.spoil(network) if self.spoil else network
        raise AssertionError(f"{path} is none of the engines of {self._bundle}")

    def load(self, bundle: Bundle, name: str, precision: Precision) -> Any:
        self.loaded.append(f"{name}.{precision}")
        return super().load(bundle, name, precision)

    def inspect(self, network: Any) -> str:
        return self.inspector

    def runtime_cache(self, network: Any) -> bytes | None:
        return b"kernels" if self.machine.library == "tensorrt-rtx" else None

    def close(self) -> None:
        self.closed = True


class FakeBuild:
    """Builds nothing, and counts. Every build gives other bytes, as TensorRT's do."""

    def __init__(self, seconds: float = 0.0, log: Path | None = None, deaf: bool = False) -> None:
        self.seconds, self.log, self.deaf = seconds, log, deaf
        self.asked: list[tuple[str, Library]] = []

    def __call__(self, graph: Path, options: Any, library: Library, *, meter: Any, **_: Any) -> bytes:
        self.asked.append((graph.name, library))
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{graph.name}\n")
        meter.start("timing", None, 10)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end and (self.deaf or not meter.cancelled.is_set()):
            time.sleep(0.02)
        meter.finish("timing")
        return f"{graph.name}|{time.time_ns()}|{threading.get_ident()}".encode()


def fake_reference(bundle: Bundle, index: int = 0) -> Reference:
    """ONNX Runtime in float32."""
    device = CpuDevice(1)
    return Reference("a reference", device, load_networks(bundle, device, "fp32"))


def opener(bundle: Path, **options: Any) -> Callable[[Library, int], FakeDevice]:
    """What opens a FakeDevice."""
    return lambda _library, _index: FakeDevice(bundle, **options)
