"""What an ONNX file names and declares, read before a library opens it; and its checked bytes.

Libraries open the files that a graph names, and allocate the sizes that it declares. This module reads the few fields
of the protobuf message that say both, and no others.
Source: onnx.proto of ONNX 1.21, whose field numbers never change.
"""

import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from bfr.runtime.bundle.protobuf import fields, packed, signed
from bfr.runtime.errors import BundleInvalid

LARGEST_ELEMENTS = 1 << 26  # of a tensor that a graph declares but does not contain: 256 MiB of float32
DEEPEST = 64  # nested graphs; protobuf itself allows 33
MOST_NODES = 200_000  # with functions in the place of their calls; networks have some ten thousand
_GRAPH, _FUNCTION, _TRAINING = 7, 25, 20  # of ModelProto
_LESS_THAN_A_BYTE = 4  # elements at most in one byte
# Operators whose output has the size that an input gives: the number of that input.
_SHAPED_BY = {
    "AffineGrid": 1, "BlackmanWindow": 0, "CenterCropPad": 1, "ConstantOfShape": 0, "Expand": 1, "HammingWindow": 0,
    "HannWindow": 0, "MaxUnpool": 2, "OneHot": 1, "Pad": 1, "Resize": 3, "Tile": 1, "Upsample": 1,
}  # fmt: skip
_SHAPED_BY_ATTRIBUTES = ("ConvTranspose", "RandomNormal", "RandomUniform")


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An ONNX file whose bytes were checked.

    Attributes:
        path: Their file, for messages.
        model: The graph.
        weights: By their names in the graph, mapped into memory and not copied. Keep them as long as a session uses
            them.
    """

    path: Path
    model: bytes = field(repr=False)
    weights: Mapping[str, mmap.mmap | bytes] = field(repr=False)

    def settle(self) -> None:
        """Release the memory of the weights' pages; a later access reads the file again."""
        for mapped in self.weights.values():
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                with suppress(OSError):
                    mapped.madvise(mmap.MADV_DONTNEED)


class FilesBeside(Mapping[str, int]):
    """The files in a folder and below it, by relative path, and their bytes; links, hard ones too, are none of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> int:
        path = self.folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not name or "\0" in name:
            raise KeyError(name)
        if path.resolve() != self.folder.resolve() / name or not path.is_file() or path.stat().st_nlink > 1:
            raise KeyError(name)
        return path.stat().st_size

    def __iter__(self) -> Iterator[str]:
        return (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def check_graph(data: bytes, weights: Mapping[str, int], where: object) -> None:
    """Refuse a graph that names a file or declares a size that it should not.

    Args:
        data: Bytes of the ONNX file.
        weights: The files that it may name, and their bytes.
        where: The file, for messages.

    Raises:
        BundleInvalid: It is no ONNX file; names another file; holds a sparse tensor or a compiled part; a tensor is
            declared larger than its data; or an operator makes more than LARGEST_ELEMENTS of a constant shape.
    """
    try:
        _Walk(weights, where).model(memoryview(data))
    except (IndexError, OverflowError, UnicodeDecodeError) as error:
        raise BundleInvalid(f"{where} is no ONNX file, or damaged: download it again, or export it again") from error


class _Walk:
    def __init__(self, weights: Mapping[str, int], where: object) -> None:
        self.weights, self.where = weights, where
        self.depth = 0
        self.constants: dict[str, list[list[int]]] = {}  # name -> its possible integers, one list for each scope
        self.elements: dict[str, int] = {}  # of initializers, name -> how many they have at most
        self.called: list[tuple[str, ...]] = []  # operators of the nodes in hand: domain, name, overload
        self.functions: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        self.counts: dict[tuple[str, ...], int] = {}  # how many nodes a call of a function becomes

    def model(self, data: memoryview) -> None:
        seen = False
        for number, value in fields(data):
            if not isinstance(value, memoryview):
                continue
            if number == _GRAPH:
                if seen:
                    self.refuse("holds two graphs, which libraries merge into one")
                seen = True
                self.graph(value)
            elif number == _FUNCTION:
                self.function(value)
            elif number == _TRAINING:
                self.refuse("holds a training graph")
        if not seen:
            raise IndexError
        self.count(self.called, 0)

    def function(self, data: memoryview) -> None:
        """FunctionProto."""
        outside, self.called = self.called, []
        self.nodes(data, 7)
        texts = {n: str(text, "utf-8") for n, text in fields(data) if n in (10, 1, 13) and isinstance(text, memoryview)}
        self.functions[tuple(texts.get(number, "") for number in (10, 1, 13))] = self.called
        self.called = outside

    def count(self, called: list[tuple[str, ...]], depth: int) -> int:
        """How many nodes there are with functions in the place of their calls. Refuses too many."""
        if depth > DEEPEST:
            self.refuse(f"has functions that call each other, more than {DEEPEST} deep")
        found = len(called)
        for name in called:
            if name in self.functions:
                if name not in self.counts:
                    self.counts[name] = self.count(self.functions[name], depth + 1)
                found += self.counts[name]
        if found > MOST_NODES:
            self.refuse(f"has {found:,} nodes, functions in the place of their calls, more than {MOST_NODES:,}")
        return found

    def graph(self, data: memoryview) -> None:
        """GraphProto: initializers first, since nodes may come before them."""
        for number, value in fields(data):
            if number == 5 and isinstance(value, memoryview):
                self.tensor(value)
            elif number == 15:
                self.refuse("holds a sparse tensor")
        self.nodes(data, 1)

    def nodes(self, data: memoryview, field_number: int) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            self.refuse(f"has more than {DEEPEST} nested graphs")
        for number, value in fields(data):
            if number == field_number and isinstance(value, memoryview):
                self.node(value)
        self.depth -= 1

    def node(self, data: memoryview) -> None:
        inputs, outputs, operator, attributes = list[str](), list[str](), "", list[list[int]]()
        domain = overload = ""
        for number, value in fields(data):
            if not isinstance(value, memoryview):
                continue
            if number == 1:
                inputs.append(str(value, "utf-8"))
            elif number == 2:
                outputs.append(str(value, "utf-8"))
            elif number == 4:
                operator = str(value, "utf-8")
            elif number == 5:
                attributes.append(self.attribute(value))
            elif number == 7:
                domain = str(value, "utf-8")
            elif number == 8:
                overload = str(value, "utf-8")
        self.called.append((domain, operator, overload))
        if operator == "EPContext":  # machine code, or the name of a file that holds it
            self.refuse("holds a part that was compiled for an execution provider")
        if operator == "Constant" and outputs:
            self.constants.setdefault(outputs[0], []).extend(attributes)
        for values in attributes if operator in _SHAPED_BY_ATTRIBUTES else ():
            self.size(operator, values)
        place = _SHAPED_BY.get(operator)
        if place is not None and place < len(inputs):
            copies = self.elements.get(inputs[0], 1) if operator == "Tile" else 1
            for shape in self.constants.get(inputs[place], ()):
                self.size(operator, [sum(map(abs, shape))] if operator == "Pad" else [copies, *shape])
        if operator == "Range" and len(inputs) == 3:
            starts, ends, steps = ([max(map(abs, v), default=0) for v in self.constants.get(n, ())] for n in inputs)
            self.size(operator, [(max(starts, default=0) + max(ends, default=0)) // max(1, min(steps, default=1))])

    def attribute(self, data: memoryview) -> list[int]:
        """AttributeProto. The integers that a Constant holds, where there are few."""
        found: list[int] = []
        if len([number for number, _ in fields(data) if number in (5, 6)]) > 1:
            self.refuse("has two values in an attribute, which libraries merge into one")
        for number, value in fields(data):
            if isinstance(value, int):
                if number in (3, 8):
                    found.append(signed(value))
            elif number in (5, 10):
                found = self.tensor(value)
            elif number in (6, 11):
                self.graph(value)
            elif number == 8:
                found += [signed(number) for number in packed(value)]
            elif number in (22, 23):
                self.refuse("holds a sparse tensor")
        return found

    def tensor(self, data: memoryview) -> list[int]:
        """TensorProto: its integers, where there are few."""
        dims: list[int] = []
        name, kind, held, values, raw = "", 0, 0, list[int](), memoryview(b"")
        entries: list[dict[int, list[str]]] = []
        for number, value in fields(data):
            if isinstance(value, int):
                if number == 1:
                    dims.append(signed(value))
                elif number == 2:
                    kind = value
                elif number in (5, 7, 11):
                    values.append(signed(value))
                held += 1 if number in (4, 5, 7, 10, 11) else 0
            elif number == 1:
                dims += [signed(size) for size in packed(value)]
            elif number == 8:
                name = str(value, "utf-8")
            elif number == 13:
                entries.append({1: [], 2: []})
                for key, text in fields(value):
                    if key in (1, 2) and isinstance(text, memoryview):
                        entries[-1][key].append(str(text, "utf-8"))
            elif number in (4, 5, 6, 7, 9, 10, 11):
                held += max(1, len(value))
                if number == 9:
                    raw = value
                elif number in (5, 7, 11) and len(value) <= 640:
                    values += [signed(one) for one in packed(value)]
        held += self.external(name, entries)
        if len(dims) > DEEPEST or min(dims, default=0) < 0 or prod(dims) > _LESS_THAN_A_BYTE * held:
            self.refuse(f"declares a tensor {name[:100]!r} of {' x '.join(map(str, dims[:8]))}, which it does not hold")
        width = {6: 4, 7: 8}.get(kind)  # INT32, INT64
        if width and 0 < len(raw) <= 512:
            values = [int.from_bytes(raw[i : i + width], "little", signed=True) for i in range(0, len(raw), width)]
        self.constants.setdefault(name, []).append(values)
        self.elements[name] = max(self.elements.get(name, 0), prod(dims))
        return values

    def external(self, tensor: str, entries: list[dict[int, list[str]]]) -> int:
        """StringStringEntryProtos of external data: the bytes of the file that they name, 0 without one."""
        names = [name for entry in entries if "location" in entry[1] for name in entry[2]]
        if others := [name for name in names if name not in self.weights]:
            self.refuse(
                f"names the file {others[0][:200]!r}, which is none of its weights",
                "Put the files of its weights beside it, under their own names and not as links",
            )
        if not names:
            return 0
        end = 0
        for part in ("offset", "length"):
            texts = [text for entry in entries if part in entry[1] for text in entry[2]]
            end += max((int(text) for text in texts if text.isdecimal() and len(text) < 20), default=0)
        if end > (held := min(self.weights[name] for name in names)):
            self.refuse(
                f"reads {tensor[:100]!r} up to byte {end:,} of {names[0][:200]!r}, which ends at {held:,}",
                "Download or copy that file again",
            )
        return held

    def size(self, operator: str, shape: list[int]) -> None:
        elements = prod(max(1, abs(size)) for size in shape)
        if elements > LARGEST_ELEMENTS:
            self.refuse(f"has a {operator} of {elements:,} elements, more than {LARGEST_ELEMENTS:,}")

    def refuse(self, why: str, remedy: str = "Export it again, or ask who made it") -> None:
        raise BundleInvalid(f"{self.where} {why}: it is refused. {remedy}")
