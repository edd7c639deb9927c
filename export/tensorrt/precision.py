"""The share of an engine that computes in half precision, from TensorRT's engine inspector."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import EngineBuildFailed

# Of the floating tensors that layers write. In the exported graphs convolutions, matrix products and all between them
# are half; softmax, the row arithmetic and, below opset 21, normalization are not. TensorRT-RTX's parser counts 39 and
# 44 % half in the two networks of `mini` in fp16, and 6 and 7 % in fp32 (weights that are stored in half and widened).
# An engine fuses many of these tensors away. One that was built in float32 shows none in half.
HALF_SHARE = 0.25
_HALF = re.compile(r"half|fp16|float16|bf16|bfloat16", re.IGNORECASE)
_FLOAT = re.compile(r"float|fp32|half|fp16|bf16", re.IGNORECASE)
_TYPE_KEYS = ("format/datatype", "datatype", "data type")  # TensorRT 10 has one key for both, 11 has two


def half_share(text: str) -> float:
    """Of the floating tensors that layers write, the share in half (fp16 or bf16), 0 to 1; each tensor counts once.

    Args:
        text: The inspector's JSON of an engine built with detailed profiling verbosity.

    Raises:
        EngineBuildFailed: The inspector shows no floating-point tensor.
    """
    types = dict(_written(text))
    floating = [kind for kind in types.values() if _FLOAT.search(kind)]
    if not floating:
        raise EngineBuildFailed(
            "the engine inspector shows no tensor types, so half precision cannot be verified: its format is "
            "unknown, or the engine was built without detailed profiling verbosity. Report this with the version"
        )
    return sum(bool(_HALF.search(kind)) for kind in floating) / len(floating)


def prove_precision(text: str, network: str, precision: Precision, typed: Callable[[], float] | None = None) -> float:
    """Return the share in half of an engine, and refuse one that lacks it; nothing is required of fp32.

    Args:
        text: The inspector's JSON of the engine.
        network: Name of the network, for messages.
        precision: The requested precision.
        typed: Returns the share of the network that the engine was built from, for a library that computes in the
            graph's types only. It replaces the inspector's share if the inspector shows no types.

    Raises:
        EngineBuildFailed: Half precision was requested and the share is below HALF_SHARE.
    """
    try:
        share = half_share(text)
    except EngineBuildFailed:
        if precision != "fp32" and typed is None:
            raise
        share = typed() if typed and precision != "fp32" else 0.0
    if precision == "fp32":
        return share
    if share < HALF_SHARE:
        raise EngineBuildFailed(
            f"{network} was requested in {precision}, but the engine is float32: {share:.0%} of the tensors that its "
            f"layers write are half, {HALF_SHARE:.0%} are needed. Export the bundle again with --precision {precision}"
        )
    return share


def _written(text: str) -> Iterator[tuple[str, str]]:
    """Name and type of each tensor that a layer writes."""
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return
    for number, layer in enumerate(layers if isinstance(layers, list) else []):
        outputs = layer.get("Outputs") if isinstance(layer, Mapping) else None  # else only a name
        for place, tensor in enumerate(outputs if isinstance(outputs, list) else []):
            if isinstance(tensor, Mapping) and (kind := _type_of(tensor)):
                yield str(tensor.get("Name", f"{number}.{place}")), kind


def _type_of(tensor: Mapping[str, Any]) -> str:
    found = {key.lower(): value for key, value in tensor.items()}
    return next((str(found[key]) for key in _TYPE_KEYS if key in found), "")
