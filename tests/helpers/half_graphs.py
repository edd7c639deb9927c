"""A graph of convolutions in float32 or half, for what compares the two layer by layer."""

from pathlib import Path
from typing import Any

import numpy as np

CHANNELS = 4
SHAPE: list[str | int | None] = ["batch", CHANNELS, 8, 8]


def convolutions(
    folder: Path, half: bool, scales: dict[int, float], *, layers: int, quirk: bool = False, size: bool = False
) -> Path:
    """Each convolution with a Relu behind it; weights of layer i times scales[i].

    quirk: numbers the tensors otherwise, as exporters do.
    size: a second output, made of a Shape: no floats.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes, weights, value = list[Any](), list[Any](), helper.make_tensor_value_info
    outputs = [value("y", TensorProto.FLOAT, SHAPE)]
    last = "half" if half else "x"
    if half:
        nodes.append(helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16))
    if size:
        nodes.append(helper.make_node("Shape", ["x"], ["shape"]))
        nodes.append(helper.make_node("Identity", ["shape"], ["size"]))
        outputs.append(value("size", TensorProto.INT64, [4]))
    for i in range(layers):
        weight = rng.normal(0, 0.3, (CHANNELS, CHANNELS, 3, 3)).clip(-0.5, 0.5) * scales.get(i, 1.0)
        weights.append(numpy_helper.from_array(weight.astype(np.float16 if half else np.float32), f"body.{i}.weight"))
        made = f"val[{100 - i if quirk else i}]"  # as patterns of names would have it
        nodes.append(helper.make_node("Conv", [last, weights[-1].name], [made], pads=[1, 1, 1, 1]))
        last = f"relu_{layers - i if quirk else i}"
        nodes.append(helper.make_node("Relu", [made], [last]))
    nodes.append(helper.make_node("Cast", [last], ["y"], to=TensorProto.FLOAT))
    whole = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, SHAPE)], outputs, weights)
    path = folder / f"{'half' if half else 'full'}.onnx"
    save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
