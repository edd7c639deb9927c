"""`bfr build --dry-run`: which of a bundle's graphs the installed library reads. Builds nothing and needs no GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bfr.export.tensorrt.builder import parse_graph
from bfr.runtime.backends.tensorrt_key import Library, load_library
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import EngineBuildFailed


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a library reads one graph.

    Attributes:
        layers: Layers of the parsed network.
        problem: Why it cannot be read, with the nodes and the remedy; None if it can.
    """

    network: str
    precision: Precision
    opset: int
    library: str
    layers: int
    problem: str | None = None

    def __str__(self) -> str:
        head = f"{self.network} in {self.precision}, opset {self.opset}, {self.library}"
        return f"{head}: {self.problem}" if self.problem else f"{head}: can be built, {self.layers} layers"


def check_support(
    bundle: Bundle, library: Library, precisions: Sequence[Precision] = ("fp32",), *, trt: Any = None
) -> list[Support]:
    """Parse every graph that engines of these precisions would be built from; return one report a graph.

    Raises MissingDependency without the library, BundleCorrupt for a file that the manifest does not describe.
    """
    trt = trt or load_library(library)
    version = f"{library} {trt.__version__}"
    asked = {
        (name, precision if precision in entry.variants else "fp32"): None
        for precision in precisions
        for name, entry in bundle.manifest.networks.items()
    }
    found = []
    for name, precision in asked:
        graph, opset = bundle.graph(name, precision), bundle.network(name).variants[precision].opset
        try:
            layers, problem = int(parse_graph(graph, trt).network.num_layers), None
        except EngineBuildFailed as error:
            layers, problem = 0, str(error)
        found.append(Support(name, precision, opset, version, layers, problem))
    return found
