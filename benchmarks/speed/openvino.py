"""OpenVINO on the CPU, to be measured beside the runtime's backends; see `bfr.benchmarks.speed.contender`."""

from collections.abc import Mapping

import openvino

from bfr.runtime.backends.device import BoundCall, Float32
from bfr.runtime.backends.host import HostDevice
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision


class OpenVinoNetwork:
    """A compiled graph, and the calls bound to it."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.compiled = compiled

    def bind(self, inputs: Mapping[str, Float32], outputs: Mapping[str, Float32]) -> BoundCall:
        """Return a call that reads and writes the arrays in place."""
        request = self.compiled.create_infer_request()
        for name, array in {**inputs, **outputs}.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        call: BoundCall = request.infer
        return call


class OpenVinoDevice(HostDevice):
    """The CPU through OpenVINO."""

    name = "openvino-cpu"

    def __init__(self, threads: int | None) -> None:
        # float32 stays float32: where a CPU has bfloat16, OpenVINO would take that.
        self.config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            self.config["INFERENCE_NUM_THREADS"] = str(threads)

    @property
    def versions(self) -> dict[str, str]:
        """OpenVINO's."""
        return {"openvino": openvino.__version__}

    def load(self, bundle: Bundle, name: str, precision: Precision) -> OpenVinoNetwork:
        """Compile a network's graph, whose files are checked first."""
        return OpenVinoNetwork(openvino.compile_model(bundle.graph(name, precision), "CPU", self.config))
