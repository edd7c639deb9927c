"""What an ONNX file reads and makes: its images, and its further inputs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from bfr.export.onnx.wrap_load import FLOATS, WEIGHT_NAMES
from bfr.export.options import WrapOptions
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.plan import DEGRADED, WEIGHT

REFERENCE: Final = "reference"
Range = tuple[float, float]
IMAGE_TYPES: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
    TensorProto.UINT8: np.uint8,
}
NUMBER_TYPES = (*FLOATS, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8, TensorProto.BOOL)


@dataclass(frozen=True, slots=True)
class ImageTensor:
    """An image tensor of the file.

    Attributes:
        channels_last: (batch, H, W, 3).
        side: H and W, None where the file leaves it open.
        batch: Its fixed batch size, None where the file leaves it open.
    """

    name: str
    type: int
    channels_last: bool
    side: int | None
    batch: int | None


@dataclass(frozen=True, slots=True)
class Interface:
    """How a file is read and written.

    Attributes:
        reference: A second image.
        side: S of `source`, in pixels.
        out_side: T of `target`, in pixels.
        weight: The name of an input that every run may set.
        values: Values of the inputs that become constants, and the default of the weight.
    """

    source: ImageTensor
    target: ImageTensor
    reference: ImageTensor | None
    side: int
    out_side: int
    input_range: Range
    output_range: Range
    colour: str
    weight: str | None
    values: Mapping[str, float]

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what the bundle's network reads, by name, without the batch."""
        picture = (3, self.side, self.side)
        found = {DEGRADED: picture} | ({REFERENCE: picture} if self.reference else {})
        return found | ({WEIGHT: (1,)} if self.weight else {})

    @property
    def constants(self) -> dict[str, float]:
        """The values of the inputs that no run sets."""
        return {name: value for name, value in self.values.items() if name != self.weight}


def find_inputs(model: onnx.ModelProto, options: WrapOptions) -> tuple[ImageTensor, ImageTensor | None]:
    """The image to restore, and the second image where one is named."""
    values = list(model.graph.input)
    images = {one.name: one for one in (as_image(value, sizes(value)) for value in values) if one}
    there = "; ".join(map(_described, values))
    for flag, wanted in (("--input", options.input), ("--reference", options.reference)):
        if wanted is not None and wanted not in images:
            raise InvalidOption(f"no image input is called {wanted!r}: choose another with {flag}. There are: {there}")
    others = [name for name in images if name != options.reference]
    if options.input is None and len(others) != 1:
        several = "choose it with --input, and a second picture that the network reads with --reference"
        none = "no input can be the image, (batch, 3, S, S) or (batch, S, S, 3) of floats or bytes: export it so"
        problem = f"{len(others)} inputs could be the image: {several}" if others else none
        raise InvalidOption(f"{problem}. There are: {there or 'none'}")
    return images[options.input or others[0]], images[options.reference] if options.reference else None


def as_image(value: onnx.ValueInfoProto, shape: Sequence[int | None]) -> ImageTensor | None:
    """Return a tensor that can hold square RGB images, (B, 3, S, S) or (B, S, S, 3); None for any other.

    Args:
        value: The tensor.
        shape: Its shape. Sizes that are open, None, count as the ones that fit; where all are, channels come first.
    """
    kind = value.type.tensor_type.elem_type
    if len(shape) != 4 or kind not in IMAGE_TYPES:
        return None
    last = shape[3] == 3 and shape[1] != 3
    channels, *sides = (shape[3], shape[1], shape[2]) if last else shape[1:]
    known = {side for side in sides if side}
    if channels not in (3, None) or len(known) > 1:
        return None
    return ImageTensor(value.name, kind, last, min(known, default=None), shape[0])


def sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    """The sizes of a tensor, None for those that are open."""
    return [max(dim.dim_value, 0) or None for dim in value.type.tensor_type.shape.dim]


def find_output(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], side: int, wanted: str | None
) -> tuple[ImageTensor, int]:
    """Find the image that the file makes.

    Of several, it is the first of the input's side, else the first: programs that run such files take that one.

    Args:
        model: The file.
        shapes: Shapes of all outputs, as a run gave them.
        side: Side of the input image, in pixels.
        wanted: Name of the output to take, None to choose.

    Returns:
        The output, and its side in pixels.

    Raises:
        InvalidOption: No output is an image, or none has that name.
    """
    made = [as_image(value, shapes.get(value.name, ())) for value in model.graph.output]
    images = {image.name: image for image in made if image}
    there = "; ".join(f"{name} ({'x'.join(map(str, shape)) or 'number'})" for name, shape in shapes.items())
    if not images or (wanted is not None and wanted not in images):
        problem = f"no image is called {wanted!r}" if wanted else "none is an image, (batch, 3, T, T)"
        raise InvalidOption(f"of the outputs {problem}: choose one with --output. There are: {there or 'none'}")
    found = images[wanted] if wanted else next((i for i in images.values() if i.side == side), None)
    found = found or next(iter(images.values()))
    return found, found.side or 0


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return f"{value.name} ({(value.type.WhichOneof('value') or 'unknown').removesuffix('_type')})"
    shape = "x".join(str(dim.dim_value or dim.dim_param or "?") for dim in tensor.shape.dim)
    kind = TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} ({kind} {shape or 'number'})"


def find_values(
    model: onnx.ModelProto, images: Iterable[ImageTensor], given: Mapping[str, float]
) -> tuple[str | None, dict[str, float]]:
    """The name of the weight that runs may set, where there is one, and the values of all further inputs."""
    names = {image.name for image in images}
    further = {value.name: value for value in model.graph.input if value.name not in names}
    if unknown := given.keys() - further.keys():
        raise InvalidOption(f"the model has no further input {min(unknown)!r}: leave it out")
    for value in further.values():
        if value.type.tensor_type.elem_type not in NUMBER_TYPES:
            raise InvalidOption(f"the model reads {_described(value)}, which no number fills: export it without")
    weights = [name for name in WEIGHT_NAMES if name in further and _is_number(further[name])]
    weight = weights[0] if len(weights) == 1 else None
    values = {weight: 0.5} | dict(given) if weight else dict(given)
    if missing := further.keys() - values.keys():
        name = min(missing)
        raise InvalidOption(
            f"the model reads {_described(further[name])} as well: give its value with --set {name}=NUMBER"
        )
    return weight, values


def _is_number(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in FLOATS and all(size in (None, 1) for size in sizes(value))


def constant_of(value: onnx.ValueInfoProto, number: float) -> np.ndarray[Any, Any]:
    """An input filled with one number; sizes that it leaves open are 1."""
    tensor = value.type.tensor_type
    return np.full([size or 1 for size in sizes(value)], number, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
