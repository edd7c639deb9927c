"""P4: what the engine inspector shows of half precision, in the formats of TensorRT 10 and 11."""

import json
from typing import Any

import pytest

from bfr.export.tensorrt.precision import half_share, prove_precision
from bfr.runtime.errors import EngineBuildFailed


def layers(*outputs: Any, **more: Any) -> str:
    return json.dumps({"Layers": [{"Name": f"l{i}", "Outputs": [o]} for i, o in enumerate(outputs)], **more})


def test_tensorrt_10() -> None:
    kinds = ["Half", "Row major linear FP16 format", "Channel major FP16 format where channel % 8 == 0", "Float"]
    text = layers(*({"Name": f"t{i}", "Format/Datatype": k} for i, k in enumerate(kinds)), Bindings=["x"])
    assert half_share(text) == 0.75
    assert half_share(layers({"Format/Datatype": "BFloat16"}, {"Format/Datatype": "Row major linear FP32"})) == 0.5


def test_tensorrt_11_splits_format_and_type() -> None:
    half = {"Name": "a", "Format": "Row major linear", "DataType": "Half"}
    full = {"Name": "b", "Format": "Row major linear", "DataType": "Float"}
    text = layers(
        half, full, {"Name": "c", "DataType": "Int64"}, **{"I/O Tensors": [{"Name": "x", "DataType": "Float"}]}
    )
    assert half_share(text) == 0.5  # integers do not count, nor do the engine's own inputs


def test_inputs_do_not_count_and_a_tensor_counts_once() -> None:
    full = {"Name": "b", "Format/Datatype": "Float"}
    half = {"Name": "a", "Format/Datatype": "Half"}
    text = json.dumps({"Layers": [{"Inputs": [half], "Outputs": [full]}, {"Inputs": [half, half], "Outputs": [full]}]})
    assert half_share(text) == 0.0


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", "{}", '{"Layers": null}', '{"Layers": ["conv1", "conv2"]}', '{"Layers": [{"Outputs": []}]}',
     '{"Layers": [{"Outputs": [{"Name": "a", "Kind": "Half"}]}]}', '{"Layers": [{"Outputs": ["a"]}]}',
     '{"Layers": [{"Outputs": [{"Name": "a", "DataType": "Int32"}]}]}'],
)  # fmt: skip
def test_what_shows_no_types_proves_nothing(text: str) -> None:
    with pytest.raises(EngineBuildFailed, match="types"):
        half_share(text)
    assert prove_precision(text, "n", "fp32") == 0.0
    with pytest.raises(EngineBuildFailed, match="types"):
        prove_precision(text, "n", "fp16")


def test_an_engine_in_float32_is_found_out() -> None:
    full = layers(*({"Name": f"t{i}", "Format/Datatype": "Float"} for i in range(9)))
    with pytest.raises(EngineBuildFailed, match=r"denoiser.*bf16.*float32.* 0%"):
        prove_precision(full, "denoiser", "bf16")
    assert prove_precision(full, "denoiser", "fp32") == 0.0
