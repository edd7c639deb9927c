"""Describe an ONNX file of a bundle in its own `metadata_props`, for use of the file without its bundle."""

from collections.abc import Iterable, Mapping

from bfr.runtime.bundle.manifest import Source

# Values of known meaning, whatever network reads or makes them: RGB images, (batch, 3, S, S), and a mask.
RANGES = {
    **dict.fromkeys(("degraded", "reference", "mask"), "0..1"),
    **dict.fromkeys(("estimate", "restored", "signed", "known"), "-1..1"),
}


def describe_graph(
    *,
    system: str,
    network: str,
    kind: str,
    size: int,
    tensors: Iterable[str],
    licence: str,
    sources: Mapping[str, Source] | None = None,
    batches: tuple[int, ...] | None = None,
    fixed: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """The entries of a graph.

    Args:
        system: The system's name.
        network: The network's name in its bundle.
        kind: Kind of the stage, see `bfr.models.stages.kinds`.
        size: S of the system's images, pixels a side.
        tensors: The names of its inputs and outputs.
        licence: Licence of the weights.
        sources: The checkpoints that the weights came from.
        batches: The only batch sizes that it takes, None for all.
        fixed: Values of the file's further inputs that became constants, by name.

    Returns:
        Name -> text; all names begin with `bfr.`.
    """
    found = {
        "system": system,
        "network": network,
        "kind": kind,
        "size": str(size),
        "range": ", ".join(f"{name} {RANGES[name]}" for name in tensors if name in RANGES),
        "colour": "rgb",
        "batches": "any" if batches is None else ",".join(map(str, batches)),
        "fixed": ", ".join(f"{name}={value}" for name, value in (fixed or {}).items()),
        "source": ", ".join(source.file for source in (sources or {}).values()),
        "sha256": ", ".join(source.sha256 for source in (sources or {}).values()),
        "licence": licence,
    }
    return {f"bfr.{name}": value for name, value in found.items() if value}
