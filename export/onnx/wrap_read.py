"""Find an ONNX file's images and further inputs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto, helper
from onnx.numpy_helper import to_array

from bfr.export.onnx.wrap_load import FLOATS, WEIGHT_NAMES, check_size
from bfr.export.options import WrapOptions
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.plan import DEGRADED, WEIGHT

REFERENCE: Final = "reference"
IMAGES: Final = "(batch, 3, S, S) or (batch, S, S, 3) in float, float16, double or uint8"
Range = tuple[float, float]
Axes = Sequence[int | str | None]
IMAGE_TYPES: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
    TensorProto.UINT8: np.uint8,
}
NUMBER_TYPES = {*range(TensorProto.FLOAT, TensorProto.COMPLEX64)} - {TensorProto.STRING}


@dataclass(frozen=True, slots=True)
class ImageTensor:
    """An image tensor of the file.

    Attributes:
        channels_last: (batch, H, W, 3).
        side: H and W, None if the file leaves it open.
        batch: Its fixed batch size, None if the file leaves it open.
        open_layout: The file says nothing of the channels' place.
        single: One image, without an axis for the batch.
    """

    name: str
    type: int
    channels_last: bool
    side: int | None
    batch: int | None
    open_layout: bool = False
    single: bool = False

    def shape(self, side: int) -> tuple[int, ...]:
        """Its shape with the file's fixed batch, else 1; `side` fills sides that the file leaves open."""
        sides = (self.side or side, self.side or side)
        picture = (*sides, 3) if self.channels_last else (3, *sides)
        return picture if self.single else (self.batch or 1, *picture)


@dataclass(frozen=True, slots=True)
class Interface:
    """How a file is read and written.

    Attributes:
        reference: A second image.
        side: S of `source`, in pixels.
        out_side: T of `target`, in pixels.
        weight: The name of an input that every run may set.
        values: Values of the inputs that become constants, and the default of the weight.
        others: Names of further images that the file makes.
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
    others: tuple[str, ...] = ()

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
    """The image to restore, and the second image if one is named."""
    values = list(model.graph.input)
    images = {one.name: one for one in (as_image(value, sizes(value)) for value in values) if one}
    there = "; ".join(map(_described, values))
    for flag, wanted in (("--input", options.input), ("--reference", options.reference)):
        if wanted is not None and wanted not in images:
            raise InvalidOption(f"no image input is called {wanted!r}: choose another with {flag}. There are: {there}")
    if options.reference is not None and (options.reference == options.input or len(images) == 1):
        raise InvalidOption(
            f"{options.reference!r} is the picture to restore, and cannot be the second one too: leave --reference "
            f"out, or choose another. There are: {there}"
        )
    others = [name for name in images if name != options.reference]
    if options.input is None and len(others) != 1:
        several = "choose it with --input, and a second picture that the network reads with --reference"
        none = f"no input can be the image, {IMAGES}: export it so"
        problem = f"{len(others)} inputs could be the image: {several}" if others else none
        raise InvalidOption(f"{problem}. There are: {there or 'none'}")
    return images[options.input or others[0]], images[options.reference] if options.reference else None


def as_image(value: onnx.ValueInfoProto, shape: Sequence[int | None]) -> ImageTensor | None:
    """Return a tensor that can hold square RGB images, (B, 3, S, S), (B, S, S, 3), or one; None for any other.

    Sizes that are open, None, count as the ones that fit; where all are, channels come first.
    """
    kind, single = value.type.tensor_type.elem_type, len(shape) == 3
    if len(shape) not in (3, 4) or kind not in IMAGE_TYPES:
        return None
    first, middle, end = shape[-3:]
    last = end == 3 and first != 3
    channels, *sides = (end, first, middle) if last else (first, middle, end)
    known = {side for side in sides if side}
    if channels not in (3, None) or len(known) > 1 or known == {1}:
        return None
    if single and (channels is None or (known and None in sides)):  # rows of tokens, or of points
        return None
    batch = 1 if single else shape[0]
    return ImageTensor(value.name, kind, last, min(known, default=None), batch, first is end is None, single)


def sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    """The sizes of a tensor, None for those that are open."""
    return [None if isinstance(one, str) else one for one in axes_of(value)]


def axes_of(value: onnx.ValueInfoProto) -> list[int | str | None]:
    """The declared shape of a tensor: sizes, names of open axes, None for those without a name."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_param or None if dim.dim_value <= 0 else dim.dim_value for dim in dims]


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
    if not images or (wanted is not None and wanted not in images):
        there = "; ".join(_described(value, shapes.get(value.name)) for value in model.graph.output)
        problem = f"none is an image, {IMAGES.replace('S', 'T')}: export it so"
        if images:
            problem = f"no image is called {wanted!r}: choose one with --output"
        raise InvalidOption(f"of the outputs {problem}. There are: {there or 'none'}")
    found = images[wanted] if wanted else next((i for i in images.values() if i.side == side), None)
    found = found or next(iter(images.values()))
    return found, found.side or 0


def _described(value: onnx.ValueInfoProto, found: Sequence[int] | None = None) -> str:
    """Its name, type and shape; found: the shape that a run gave it."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return f"{value.name} ({(value.type.WhichOneof('value') or 'unknown').removesuffix('_type')})"
    shape = "x".join(str(one or "?") for one in found or axes_of(value))
    kind = TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} ({kind} {shape or 'number'})"


def find_values(
    model: onnx.ModelProto, images: Iterable[ImageTensor], given: Mapping[str, float]
) -> tuple[str | None, dict[str, float]]:
    """The name of the weight that runs may set, if there is one, and the values of all further inputs."""
    names = {image.name for image in images}
    further = {value.name: value for value in model.graph.input if value.name not in names}
    if unknown := given.keys() - further.keys():
        held = "stores" if any(one.name in unknown for one in model.graph.initializer) else "has no further input"
        raise InvalidOption(f"the model {held} {min(unknown)!r}: leave it out")
    for name, value in further.items():
        kind = value.type.tensor_type.elem_type
        if kind not in NUMBER_TYPES:
            raise InvalidOption(f"the model reads {_described(value)}, which no number can fill: export it without")
        number = given.get(name, 0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            held = np.float64(number).astype(helper.tensor_dtype_to_np_dtype(kind))
        if not np.isfinite(held) or (kind not in FLOATS and held != number):
            raise InvalidOption(
                f"the model reads {_described(value)}, which cannot hold {number:g}: give another value"
            )
    weights = [name for name in WEIGHT_NAMES if name in further and _is_number(further[name])]
    weight = weights[0] if len(weights) == 1 else None
    stored = {one.name: to_array(one).item() for one in model.graph.initializer if one.name in further}
    values = ({weight: 0.5} if weight else {}) | stored | dict(given)
    if missing := further.keys() - values.keys():
        name = min(missing)
        raise InvalidOption(
            f"the model reads {_described(further[name])} as well: give its value with --set {name}=NUMBER"
        )
    return weight, values


def _is_number(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in FLOATS and all(size in (None, 1) for size in sizes(value))


def filled(name: str, axes: Axes, number: float, kind: DTypeLike, sizes: Mapping[str, int]) -> NDArray[Any]:
    """An input filled with one number.

    Args:
        name: The input's.
        axes: Its declared shape.
        number: The number.
        kind: The type.
        sizes: Sizes of open axes, by name; all others are 1.
    """
    shape = [sizes.get(one, 1) if isinstance(one, str) else max(one or 1, 1) for one in axes]
    check_size(f"input {name}", shape)
    return np.full(shape, number, kind)


def open_sizes(axes: Axes, shape: Sequence[int]) -> dict[str, int]:
    """The sizes of an input's open axes, by name, from the shape of an image."""
    return {one: size for one, size in zip(axes, shape, strict=False) if isinstance(one, str)}
