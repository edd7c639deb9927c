"""Run the original file in ONNX Runtime: to find its interface, and to compare its bundle with it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bfr.export.onnx.wrap_load import check_size, draw_once, drawing_nodes, load_weights, reason, stand_in
from bfr.export.onnx.wrap_read import (
    IMAGE_TYPES,
    ImageTensor,
    Interface,
    as_image,
    filled,
    find_inputs,
    find_output,
    find_values,
    open_sizes,
)
from bfr.export.options import WrapOptions
from bfr.runtime.backends.device import Float32
from bfr.runtime.backends.onnxruntime import SAFE
from bfr.runtime.bundle.manifest import LARGEST_BATCH
from bfr.runtime.errors import InvalidCheckpoint, InvalidOption

OPEN_FACE, TILE = 512, 128  # sides of files that leave them open: of face restorers, and of enlargers
SIGNED, UNIT, BYTES = (-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)
REMEDIES = {  # by what ONNX Runtime says
    "NOT_IMPLEMENTED": "Export it again, in float32",
    "not a registered function": "Export it with operators of ONNX alone",
    "No opset import for domain": "Export it with operators of ONNX alone",
    "incompatible constructor arguments": "Give it and its folders names of UTF-8",
    "codec can't decode": "Export it again, with names in UTF-8",
    "Unsupported model IR version": "Upgrade onnxruntime, or export it with an older onnx",
    "is under development": "Export it with an older opset, or upgrade onnxruntime",
}
IMAGE_TYPES_OF_ORT = ("tensor(float)", "tensor(float16)", "tensor(double)", "tensor(uint8)")  # NumPy lacks some others
Say = Callable[[str], None]


class Original:
    """The original file, in ONNX Runtime on the CPU. Raises InvalidCheckpoint if ONNX Runtime cannot load it."""

    def __init__(self, file: Path, threads: int | None) -> None:
        self.file = file
        options = ort.SessionOptions()
        options.log_severity_level = 4  # trials with shapes that do not fit are expected to fail
        for entry, value in SAFE.items():
            options.add_session_config_entry(entry, value)
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = ort.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            _ = [(value.name, value.shape) for value in (*self.session.get_inputs(), *self.session.get_outputs())]
        except Exception as error:  # ONNX Runtime's own types
            remedy = next((then for what, then in REMEDIES.items() if what in str(error)), "Export it again")
            raise InvalidCheckpoint(f"ONNX Runtime cannot run {file.name}: {reason(error)}. {remedy}") from error

    def run(
        self, images: Mapping[ImageTensor, NDArray[np.float32]], values: Mapping[str, float], *outputs: str
    ) -> dict[str, NDArray[np.generic]]:
        """Run the original file.

        Args:
            images: The pictures, (B, 3, H, W) in the file's own range and order of channels.
            values: Values of further inputs, by name.
            outputs: The outputs to compute; if none is named, all of the types that images have.

        Returns:
            The outputs, by name.

        Raises:
            InvalidCheckpoint: It does not run.
        """
        feed: dict[str, NDArray[np.generic]] = {}
        there = (*self.session.get_inputs(), *self.session.get_overridable_initializers())
        inputs, sizes = {value.name: value for value in there}, dict[str, int]()
        for image, planes in images.items():
            kind = IMAGE_TYPES[image.type]
            x = planes.transpose(0, 2, 3, 1) if image.channels_last else planes
            x = x[0] if image.single else x
            feed[image.name] = np.clip(np.rint(x), 0, 255).astype(kind) if kind is np.uint8 else x.astype(kind)
            sizes |= open_sizes(inputs[image.name].shape, (1, *x.shape[-3:])[-x.ndim :])
        for name, number in values.items():
            feed[name] = filled(name, inputs[name].shape, number, _numpy_type(inputs[name].type), sizes)
        images_made = [output.name for output in self.session.get_outputs() if output.type in IMAGE_TYPES_OF_ORT]
        if not (names := outputs or images_made):
            return {}
        try:
            found = self.session.run(names, feed, silent())
        except Exception as error:  # ONNX Runtime's own types
            image, planes = next(iter(images.items()))
            remedies = ["another --size"] * (image.side is None) + ["other values of --set"] * bool(values)
            remedy = f"Choose {', or '.join(remedies)}" if remedies else "Export it again"
            size = "x".join(map(str, planes.shape[2:]))
            raise InvalidCheckpoint(f"the model does not run on {size}: {reason(error)}. {remedy}") from error
        return dict(zip(names, found, strict=True))


def find_interface(model: onnx.ModelProto, original: Original, options: WrapOptions) -> Interface:
    """Find how the file is read and written, from the options, else from its shapes, its names and one run.

    Raises InvalidOption if that leaves a choice, InvalidCheckpoint if the file does not run.
    """
    kinds = {value.name: value.type for value in original.session.get_outputs()}
    for value in model.graph.output:  # editors of graphs leave types out
        if not value.type.WhichOneof("value") and kinds[value.name] in IMAGE_TYPES_OF_ORT:
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(_numpy_type(kinds[value.name]))
    source, reference = find_inputs(model, options)
    if reference and reference.batch != source.batch:
        if reference.batch and source.batch:
            raise InvalidCheckpoint(
                f"the model reads {source.batch} pictures as {source.name} and {reference.batch} as {reference.name}: "
                "export it with a batch of 1"
            )
        batch = source.batch or reference.batch
        source, reference = replace(source, batch=batch), replace(reference, batch=batch)
    images = [one for one in (source, reference) if one]
    if (source.batch or 1) > LARGEST_BATCH:
        raise InvalidCheckpoint(
            f"the model takes {source.batch:,} pictures at a time, {LARGEST_BATCH:,} at most are run: export it with a "
            "batch of 1"
        )
    weight, values = find_values(model, images, options.values)
    if source.side is not None and options.size not in (None, source.side):
        raise InvalidOption(f"the model takes only {source.side}x{source.side}: leave --size out")

    def shapes(side: int) -> dict[str, tuple[int, ...]]:
        found = original.run(_greys(images, side), values)
        return {name: y.shape for name, y in found.items()}

    if source.open_layout:
        try:
            shapes(options.size or TILE)
        except InvalidCheckpoint:
            source = images[0] = replace(source, channels_last=True)
    side = source.side or options.size
    if side is None:
        side = OPEN_FACE
        # A face restorer may run at its own side alone; the run below says what is wrong.
        with suppress(InvalidCheckpoint, InvalidOption):
            _, made = find_output(model, shapes(TILE), TILE, options.output)
            side = TILE if made > TILE else OPEN_FACE
            _, less = find_output(model, shapes(TILE // 2), TILE // 2, options.output)
            side = made if less == made else side  # it resizes what it reads to its own side
    found = shapes(side)
    target, out_side = find_output(model, found, side, options.output)
    if target.batch != (source.batch or 1):
        raise InvalidOption(
            f"the model made {target.batch} pictures of {source.batch or 1} of {side}x{side}: choose another "
            "--size, or another --output"
        )
    others = [value.name for value in model.graph.output if as_image(value, found.get(value.name, ()))]
    enlarges = out_side >= 2 * side and side <= 256
    usual = UNIT if enlarges else SIGNED
    return Interface(
        source=source,
        target=target,
        reference=reference,
        side=side,
        out_side=out_side,
        input_range=options.input_range or (BYTES if source.type == TensorProto.UINT8 else usual),
        output_range=options.output_range or (BYTES if target.type == TensorProto.UINT8 else usual),
        colour=options.colour,
        weight=weight,
        values=values,
        others=tuple(name for name in others if name != target.name),
    )


def _greys(images: Sequence[ImageTensor], side: int) -> dict[ImageTensor, NDArray[np.float32]]:
    """Grey pictures for the inputs; side: of those whose side is open. Raises InvalidCheckpoint for one too large."""
    shapes = {image: (image.batch or 1, 3, image.side or side, image.side or side) for image in images}
    for image, shape in shapes.items():
        check_size(f"input {image.name}", shape)
    return {image: np.full(shape, 0.5, np.float32) for image, shape in shapes.items()}


def raw_result(
    original: Original, face: Interface, faces: Float32, others: Float32 | None = None
) -> NDArray[np.float64]:
    """Restore faces with the original file; NumPy maps their values.

    Args:
        original: The file; if it fixes its batch, it gets that many faces at a time, the last one repeated.
        face: How it is read.
        faces: (B, 3, S, S) RGB in [0, 1].
        others: The second pictures, if the file reads them.

    Returns:
        (B, 3, T, T) RGB in the file's own range.
    """
    order, (black, white) = [2, 1, 0] if face.colour == "bgr" else [0, 1, 2], face.input_range
    step, made = face.source.batch or len(faces), []
    for i in range(0, len(faces), step):
        rows = np.minimum(np.arange(i, i + step), len(faces) - 1)
        images = {
            image: (_resized(given[rows], image.side)[:, order] * (white - black) + black).astype(np.float32)
            for image, given in ((face.source, faces), (face.reference, others))
            if image and given is not None
        }
        made.append(original.run(images, face.values, face.target.name)[face.target.name].astype(np.float64))
    y = (np.stack if face.target.single else np.concatenate)(made)[: len(faces)]
    return (y.transpose(0, 3, 1, 2) if face.target.channels_last else y)[:, order]


def _resized(pictures: Float32, side: int | None) -> NDArray[np.float64]:
    """(B, 3, S, S) pictures, bilinear at another side as the wrapped graph makes a second picture."""
    if side in (None, pictures.shape[-1]):
        return pictures.astype(np.float64)
    planes = pictures.reshape(-1, *pictures.shape[-2:])
    made = np.stack([cv2.resize(plane, (side, side), interpolation=cv2.INTER_LINEAR) for plane in planes])
    return made.reshape(*pictures.shape[:2], *made.shape[-2:]).astype(np.float64)


def scaled(y: NDArray[np.float64], face: Interface) -> NDArray[np.float32]:
    """Map a result of the file to an estimator's range."""
    black, white = face.output_range
    return np.asarray(np.clip((y - black) / (white - black) * 2.0 - 1.0, -1.0, 1.0), np.float32)


def frozen(
    file: Path, model: onnx.ModelProto, scratch: Path, options: WrapOptions, threads: int | None, say: Say
) -> Original:
    """Return the file with constants in place of random numbers, so that two runs agree.

    Args:
        file: The file.
        model: Its graph; it is changed to that of the result.
        scratch: A folder to write into, which must stay as long as the result is used.
        options: What the file expects.
        threads: As of `Original`.
        say: Called with what was done.
    """
    load_weights(model, file.parent)
    nodes, declared = drawing_nodes(model), len(model.graph.output)
    draws = deepcopy(nodes)
    for node in nodes:
        node.CopyFrom(stand_in(node))
        model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    onnx.save(model, scratch / "looked.onnx", save_as_external_data=True, location="looked.data")
    onnx.load_external_data_for_model(model, str(scratch))  # saving moved the weights out of it
    source, reference = find_inputs(model, options)
    images = _greys([one for one in (source, reference) if one], source.side or options.size or OPEN_FACE)
    _, values = find_values(model, images, options.values)
    found = Original(scratch / "looked.onnx", threads).run(images, values)
    del model.graph.output[declared:]
    for number, (node, draw) in enumerate(zip(nodes, draws, strict=True)):
        if draw.output[0] not in found:  # a type of which NumPy has no arrays
            raise InvalidCheckpoint(f"the model draws noise {draw.output[0]!r} in bfloat16: export it in float32")
        model.graph.initializer.append(draw_once(draw, number, found[draw.output[0]]))
        model.graph.node.remove(node)
    onnx.save(model, scratch / "frozen.onnx", save_as_external_data=True, location="frozen.data")
    say(f"{len(draws)} nodes of {file.name} draw random numbers: they became constants, drawn once")
    return Original(scratch / "frozen.onnx", threads)


def silent() -> ort.RunOptions:
    """Return options of a run whose errors ONNX Runtime does not print."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    return options


def _numpy_type(name: str) -> np.dtype[np.generic]:
    """Of ONNX Runtime's `tensor(double)` and the like."""
    return np.dtype({"float": "float32", "double": "float64"}.get(kind := name[7:-1], kind))
