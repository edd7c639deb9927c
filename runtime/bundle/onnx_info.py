"""What an ONNX file says of itself: its metadata, its inputs and its outputs, read without a library.

Source: onnx.proto of ONNX 1.21.
"""

from collections.abc import Iterator

from bfr.runtime.bundle.protobuf import fields
from bfr.runtime.errors import BundleInvalid

_GRAPH, _METADATA = 7, 14  # of ModelProto
_FLOAT = 1  # of TensorProto.DataType


def read_metadata(data: bytes, where: object) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX file: name -> text.

    Args:
        data: Bytes of the file.
        where: The file, for messages.

    Raises:
        BundleInvalid: It is no ONNX file, or a damaged one.
    """
    found: dict[str, str] = {}
    try:
        seen = set()
        for number, value in fields(memoryview(data)):
            seen.add(number)
            if number == _METADATA and isinstance(value, memoryview):
                entry = {key: str(text, "utf-8") for key, text in fields(value) if isinstance(text, memoryview)}
                found[entry.get(1, "")] = entry.get(2, "")
        if _GRAPH not in seen:
            raise IndexError
    except (IndexError, OverflowError, UnicodeDecodeError) as error:
        raise BundleInvalid(
            f"{where} is neither a bundle's folder nor an ONNX file, or is damaged: name one of both, and unpack an "
            "archive first"
        ) from error
    return found


def read_ends(data: bytes, where: object) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Return the inputs and the outputs of a graph.

    Args:
        data: Bytes of the ONNX file.
        where: The file, for messages.

    Returns:
        Name -> sizes of each float32 tensor, 0 for an open size; tensors of other types have the size -1.

    Raises:
        BundleInvalid: They are damaged, which `check_graph` does not see.
    """

    def sizes(value: memoryview) -> list[int]:
        kinds = [dict(fields(tensor)).get(1) for tensor in _inside(value, 2, 1)]
        dims = [dict(fields(dim)).get(1, 0) for dim in _inside(value, 2, 1, 2, 1)]
        return [dim if isinstance(dim, int) else -1 for dim in dims] if kinds == [_FLOAT] else [-1]

    try:
        inputs, outputs = (
            {
                str(name, "utf-8"): sizes(value)
                for value in _inside(memoryview(data), _GRAPH, end)
                for name in _inside(value, 1)
            }
            for end in (11, 12)
        )
    except (IndexError, OverflowError, UnicodeDecodeError) as error:
        raise BundleInvalid(f"{where} is damaged: download it again, or export it again") from error
    return inputs, outputs


def _inside(data: memoryview, *numbers: int) -> Iterator[memoryview]:
    """Yield what lies in a message under field numbers, from the outermost to the innermost."""
    for number, value in fields(data):
        if number == numbers[0] and isinstance(value, memoryview):
            yield from _inside(value, *numbers[1:]) if numbers[1:] else (value,)
