"""`bfr wrap`: any restorer that is one ONNX file becomes a bundle, so that it runs and is measured beside the others.

What the file expects (value range, colour order, layout, further inputs) becomes part of the graph: a wrapped network
reads `degraded`, (batch, 3, S, S) RGB in [0, 1], and makes `estimate`, (batch, 3, T, T) RGB in [-1, 1], as an estimator
does. The wrapped graph is compared with the file as it came before the bundle is published.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bfr.export.onnx.graph import module_versions, save_graph
from bfr.export.onnx.wrap_graph import (
    FLOATS,
    IMAGE_TYPES,
    REFERENCE,
    ImageTensor,
    Interface,
    WrapOptions,
    drawing_nodes,
    find_inputs,
    find_output,
    find_values,
    first_line,
    freeze_draws,
    load_model,
    model_opset,
    sort_nodes,
    wrap_graph,
)
from bfr.export.verify.compare import BATCHES, FLOORS_DB, compare
from bfr.export.verify.walk import call_network, synthetic
from bfr.runtime.backends.device import Float32
from bfr.runtime.backends.onnxruntime import SAFE, CpuDevice
from bfr.runtime.bundle import manifest as m
from bfr.runtime.bundle.bundle import Bundle, describe_file, write_manifest
from bfr.runtime.bundle.manifest import NAME_PATTERN
from bfr.runtime.bundle.onnx import LARGEST_ELEMENTS
from bfr.runtime.errors import BackendUnavailable, InvalidCheckpoint, InvalidOption, VerificationFailed
from bfr.runtime.files import atomic_folder, sha256_file
from bfr.runtime.restore.plan import DEGRADED, ESTIMATE, WEIGHT

NETWORK = "restorer"
STRAY = 0.25  # of the declared range: results further outside it were made for another one
OPEN_FACE, TILE = 512, 128  # sides of files that leave them open: of face restorers, and of enlargers
SIGNED, UNIT, BYTES = (-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)
Say = Callable[[str], None]


def wrap(
    file: Path,
    folder: Path,
    options: WrapOptions,
    *,
    name: str | None = None,
    licence: str = "unknown: ask whoever gave you the file",
    precisions: tuple[m.Precision, ...] = ("fp32",),
    replace: bool = False,
    threads: int | None = None,
    say: Say = lambda _: None,
) -> Bundle:
    """Make a bundle of an ONNX file.

    A file that fixes its batch to 1 is freed from that where it still gives each image the same result; else the bundle
    says that it runs one image at a time. Nodes that draw random numbers become constants.

    Args:
        file: The ONNX file; its weights may lie in files beside it.
        folder: The new bundle's.
        options: What the file expects, as far as it is known.
        name: The system's, None for the file's.
        licence: Of the weights, for the manifest.
        precisions: `fp32` is the file as it came; `fp16` adds its weights and arithmetic in half.
        replace: Replace a bundle that is there.
        threads: Of the CPU, while the file is tried and verified; None takes one a core.
        say: Called with each line of what is assumed, found and done.

    Raises:
        InputNotFound, InvalidCheckpoint, InvalidOption, VerificationFailed: Nothing is published then.
    """
    system = _system_name(name, file)
    model = load_model(file)
    with TemporaryDirectory(prefix="bfr-wrap-") as scratch, atomic_folder(folder, replace=replace) as partial:
        original = _Original(file, threads)
        if drawing_nodes(model):
            original = _frozen(file, Path(scratch) / "frozen.onnx", options, threads, say)
            model = onnx.load(original.file, load_external_data=False)
        face = find_interface(model, original, options)
        for line in _assumed(face, options, file.name):
            say(line)
        _check_ranges(original, face, say)
        half = _is_half(model)
        parameters = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in FLOATS)
        onnx.load_external_data_for_model(model, str(original.file.parent))
        wrapped, path = wrap_graph(model, face), partial / f"{NETWORK}.onnx"
        save_graph(wrapped, path)
        batches = _probe(wrapped, path, face, threads, say)
        variants: dict[m.Precision, m.Variant] = {"fp32": _variant(partial, path, wrapped)}
        if "fp16" in precisions and not half:
            halved = partial / f"{NETWORK}.fp16.onnx"
            variants["fp16"] = _variant(partial, halved, _save_half(path, halved))
        side, image = face.side, ("batch", 3, face.side, face.side)
        inputs = [m.Tensor(name=DEGRADED, shape=image)]
        inputs += [m.Tensor(name=REFERENCE, shape=image)] if face.reference else []
        inputs += [m.Tensor(name=WEIGHT, shape=("batch", 1))] if face.weight else []
        network = m.Network(
            kind="wrapped",
            architecture="onnx",
            parameters={
                "input_range": list(face.input_range),
                "output_range": list(face.output_range),
                "colour": face.colour,
                "values": {key: value for key, value in face.values.items() if key != face.weight},
                "half": half,
            },
            parameter_count=parameters,
            inputs=tuple(inputs),
            outputs=(m.Tensor(name=ESTIMATE, shape=("batch", 3, face.out_side, face.out_side)),),
            source=m.Source(file=file.name, sha256=sha256_file(file)),
            variants=variants,
        )
        manifest = m.Manifest(
            format=1,
            system=system,
            title=f"{name or file.stem}: one network, wrapped from {file.name}",
            image_size=side,
            schedule=m.NoiseSchedule(),
            inputs=(m.ImageInput(name="reference", channels=3),) if face.reference else (),
            weight=face.values[face.weight] if face.weight else None,
            stages=(m.Estimate(network=NETWORK),),
            result=ESTIMATE,
            batches=batches,
            presets={},
            networks={NETWORK: network},
            licence=m.Licence(name=licence, url="", notice=f"{file.name} was given by the user."),
            made_with=module_versions("onnx", "onnxruntime"),
        )
        write_manifest(partial, manifest)
        checks = [
            check
            for precision in variants
            for check in _compare(Bundle.open(partial), precision, original, face, file.name, threads, say)
        ]
        write_manifest(partial, manifest.model_copy(update={"verified": tuple(checks)}))
    return Bundle.open(folder)


class _Original:
    """The file as it came, in ONNX Runtime on the CPU. Raises InvalidCheckpoint where that cannot load it."""

    def __init__(self, file: Path, threads: int | None) -> None:
        self.file = file
        options = ort.SessionOptions()
        options.log_severity_level = 4  # a shape that does not fit is an answer here, no news
        for entry, value in SAFE.items():
            options.add_session_config_entry(entry, value)
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own types
            raise InvalidCheckpoint(
                f"ONNX Runtime cannot run {file.name}: {first_line(error)}. Export it anew, in float32"
            ) from error

    def shapes(
        self, images: Mapping[ImageTensor, NDArray[np.float32]], values: Mapping[str, float]
    ) -> dict[str, tuple[int, ...]]:
        """The shapes of all outputs."""
        found = self.run([output.name for output in self.session.get_outputs()], images, values)
        return {output.name: y.shape for output, y in zip(self.session.get_outputs(), found, strict=True)}

    def run(
        self, outputs: list[str], images: Mapping[ImageTensor, NDArray[np.float32]], values: Mapping[str, float]
    ) -> list[NDArray[np.generic]]:
        """images: (B, 3, H, W) in the file's own range and order of channels."""
        feed: dict[str, NDArray[np.generic]] = {}
        for image, planes in images.items():
            kind = IMAGE_TYPES[image.type]
            x = planes.transpose(0, 2, 3, 1) if image.channels_last else planes
            feed[image.name] = np.clip(np.rint(x), 0, 255).astype(kind) if kind is np.uint8 else x.astype(kind)
        for value in self.session.get_inputs():
            if value.name in values:
                shape = [size if isinstance(size, int) else 1 for size in value.shape]
                _check_size(f"input {value.name}", shape)
                feed[value.name] = np.full(shape, values[value.name], _numpy_type(value.type))
        return list(self.session.run(outputs, feed, _silent()))


def find_interface(model: onnx.ModelProto, original: _Original, options: WrapOptions) -> Interface:
    """How the file is read and written: what the options say, else what its shapes, names and one run tell.

    Raises InvalidOption where that leaves a choice, InvalidCheckpoint where the file does not run.
    """
    source, reference = find_inputs(model, options)
    weight, values = find_values(model, (source, reference), options.values)
    if source.side is not None and options.size not in (None, source.side):
        raise InvalidOption(f"the model takes {source.side}x{source.side} and no other size: leave --size out")

    for image in (source, reference):
        if image:
            size = image.side or options.size or OPEN_FACE
            _check_size(f"input {image.name}", (image.batch or 1, 3, size, size))

    def shapes(side: int) -> dict[str, tuple[int, ...]]:
        images = {one: _grey(one, side) for one in (source, reference) if one}
        return original.shapes(images, values)

    side = source.side or options.size
    if side is None:
        try:
            _, made = find_output(model, shapes(TILE), TILE, options.output)
            side = TILE if made > TILE else OPEN_FACE
        except Exception as error:  # a face restorer may need its own side; the run below says what is wrong
            _, side = error, OPEN_FACE
    try:
        found = shapes(side)
    except Exception as error:  # ONNX Runtime's own types
        raise InvalidCheckpoint(
            f"the model does not run on {side}x{side}: {first_line(error)}. Choose another --size, or other values "
            "of --set"
        ) from error
    target, out_side = find_output(model, found, side, options.output)
    if found[target.name][0] != (source.batch or 1):
        raise InvalidOption(
            f"of one picture of {side}x{side} the model makes {found[target.name][0]}: choose another --size"
        )
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
    )


def _system_name(name: str | None, file: Path) -> str:
    """The name that was given, else the file's. Raises InvalidOption for one that a manifest does not take."""
    found = re.sub(r"[^A-Za-z0-9_.+-]+", "-", file.stem).lstrip("-.+")[:100] or "wrapped" if name is None else name
    if not re.fullmatch(NAME_PATTERN, found):
        raise InvalidOption(f"name {found!r}: letters, digits and _ . + - are taken, 100 at most, a letter first")
    return found


def _check_size(what: str, shape: Sequence[int]) -> None:
    """Raise InvalidCheckpoint for a tensor that a file declares and no machine has."""
    if min(shape, default=1) < 1 or prod(shape) > 2 * LARGEST_ELEMENTS:
        raise InvalidCheckpoint(
            f"the model's {what} has the shape {' x '.join(map(str, shape))}, more than {2 * LARGEST_ELEMENTS:,} "
            "numbers: export it for a usual size"
        )


def _grey(image: ImageTensor, side: int) -> NDArray[np.float32]:
    return np.full((image.batch or 1, 3, image.side or side, image.side or side), 0.5, np.float32)


def _assumed(face: Interface, options: WrapOptions, file: str) -> list[str]:
    """What nobody said, in lines that name the flag which overrules it."""
    ranges = " to ".join(f"{black:g}..{white:g}" for black, white in (face.input_range, face.output_range))
    lines = [
        f"{file}: {face.source.name} {face.side}x{face.side} to {face.target.name} {face.out_side}x{face.out_side}, "
        f"{face.colour.upper()} in {ranges}"
    ]
    if options.input_range is None or options.output_range is None:
        lines.append("the value range is assumed: --input-range and --output-range overrule it")
    if face.source.side is None and options.size is None:
        lines.append(f"the size is assumed: --size chooses another than {face.side}")
    if face.weight:
        lines.append(
            f"{face.weight} is taken for a fidelity weight, {face.values[face.weight]:g} where a run does not say "
            "otherwise: `bfr restore --weight`"
        )
    return lines


def _check_ranges(original: _Original, face: Interface, say: Say) -> None:
    """Warn where another range makes the result much more like the picture than the declared one does."""
    declared, candidates = (face.input_range, face.output_range), (SIGNED, UNIT, BYTES)
    if TensorProto.UINT8 in (face.source.type, face.target.type) or face.reference:
        return
    picture = synthetic(DEGRADED, (3, face.side, face.side), face.source.batch or 1)
    likeness = {}
    for pair in {declared, *((one, one) for one in candidates)}:
        tried = replace(face, input_range=pair[0], output_range=pair[1])
        likeness[pair] = _likeness(_scaled(_raw(original, tried, picture), tried), 2.0 * picture - 1.0)
    best = max(likeness, key=lambda pair: likeness[pair])
    if likeness[declared] < 15.0 and likeness[best] > 25.0:
        black, white = best[0]
        say(
            f"warning: with {black:g}..{white:g} as the range of values the result is {likeness[best]:.0f} dB from the "
            f"picture, with {declared[0][0]:g}..{declared[0][1]:g} {likeness[declared]:.0f} dB: is --input-range right?"
        )


def _likeness(found: NDArray[np.float32], picture: NDArray[np.float32]) -> float:
    """PSNR of coarse means, in dB with peak 2: a restorer changes detail, and keeps what is large."""
    cells = 8

    def coarse(image: NDArray[np.float32]) -> NDArray[np.float64]:
        side = image.shape[-1] // cells * cells
        blocks = image[..., :side, :side].reshape(*image.shape[:2], cells, side // cells, cells, side // cells)
        return np.asarray(blocks.mean(axis=(3, 5), dtype=np.float64))

    if picture.shape[-1] < cells or not np.isfinite(found).all():
        return 0.0
    return float(-10.0 * np.log10(np.mean((coarse(found) - coarse(picture)) ** 2) / 4.0 + 1e-12))


def _scaled(y: NDArray[np.float64], face: Interface) -> NDArray[np.float32]:
    """A result of the file as an estimator would give it."""
    black, white = face.output_range
    return np.asarray(np.clip((y - black) / (white - black) * 2.0 - 1.0, -1.0, 1.0), np.float32)


def _raw(original: _Original, face: Interface, faces: Float32, others: Float32 | None = None) -> NDArray[np.float64]:
    """What the file makes of (B, 3, S, S) RGB in [0, 1], RGB in its own range; NumPy maps the values."""
    count, order = len(faces), [2, 1, 0] if face.colour == "bgr" else [0, 1, 2]
    if missing := (face.source.batch or count) - count:  # of a file that fixes its batch
        faces = np.concatenate([faces, *[faces[-1:]] * missing])
        others = None if others is None else np.concatenate([others, *[others[-1:]] * missing])
    black, white = face.input_range
    images = {face.source: (faces[:, order].astype(np.float64) * (white - black) + black).astype(np.float32)}
    if face.reference and others is not None:
        images[face.reference] = (others[:, order].astype(np.float64) * (white - black) + black).astype(np.float32)
    y = original.run([face.target.name], images, face.values)[0].astype(np.float64)
    return (y.transpose(0, 3, 1, 2) if face.target.channels_last else y)[:count, order]


def _frozen(file: Path, path: Path, options: WrapOptions, threads: int | None, say: Say) -> _Original:
    """The file with constants where it draws random numbers: two runs of it agree."""
    model = load_model(file)
    onnx.load_external_data_for_model(model, str(file.parent))
    draws = drawing_nodes(model)
    looked = path.with_name("looked.onnx")
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in draws)
    for value, node in zip(list(model.graph.output)[-len(draws) :], draws, strict=True):
        kind = next((int(a.i) for a in node.attribute if a.name == "dtype"), TensorProto.FLOAT)
        value.type.tensor_type.elem_type = kind
    onnx.save(model, looked, save_as_external_data=True, location="looked.data")
    onnx.load_external_data_for_model(model, str(path.parent))
    source, reference = find_inputs(model, options)
    _, values = find_values(model, (source, reference), options.values)
    side = source.side or options.size or OPEN_FACE
    images = {one: _grey(one, side) for one in (source, reference) if one}
    shapes = _Original(looked, threads).shapes(images, values)
    del model.graph.output[-len(draws) :]
    freeze_draws(model, shapes)
    onnx.save(model, path, save_as_external_data=True, location="frozen.data")
    say(f"{len(draws)} nodes of {file.name} draw random numbers: they became constants, drawn once")
    return _Original(path, threads)


def _probe(
    wrapped: onnx.ModelProto, path: Path, face: Interface, threads: int | None, say: Say
) -> tuple[int, ...] | None:
    """The batch sizes that the graph takes, None for all. Writes it once more with those."""
    fixed = face.source.batch
    if fixed is not None:
        _set_batch(wrapped, path, "batch")
    faces = {t.name: _example(t.name, face, max(BATCHES)) for t in wrapped.graph.input}
    try:
        session = CpuDevice(threads).load_graph(path).session
        alone = session.run(None, {key: x[-1:] for key, x in faces.items()}, _silent())[0]
        together = session.run(None, faces, _silent())[0]
        problem = "an image comes out otherwise in a batch than alone"
        if together.shape == (max(BATCHES), *alone.shape[1:]) and np.abs(together[-1:] - alone).max() <= 1e-3:
            return None
    except Exception as error:  # ONNX Runtime's own types
        problem = first_line(error)
    only = fixed or 1
    say(f"batches of {only} only: {problem[:200]}")
    _set_batch(wrapped, path, only if fixed else "batch")
    return (only,)


def _set_batch(wrapped: onnx.ModelProto, path: Path, batch: int | str) -> None:
    for value in wrapped.graph.input:
        shape = [batch, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])]
        value.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
    onnx.save(wrapped, path)


def _example(name: str, face: Interface, batch: int) -> Float32:
    if name == WEIGHT and face.weight:
        return np.full((batch, 1), face.values[face.weight], np.float32)
    return synthetic(name, (3, face.side, face.side), batch)


def _variant(folder: Path, path: Path, model: onnx.ModelProto) -> m.Variant:
    return m.Variant(
        graph=describe_file(folder, path),
        weights=(describe_file(folder, path.with_suffix(".safetensors")),),
        opset=model_opset(model),
    )


def _save_half(path: Path, halved: Path) -> onnx.ModelProto:
    """Write the graph with weights and arithmetic in half; inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(path), keep_io_types=True, disable_shape_infer=True)
    sort_nodes(model.graph)
    save_graph(model, halved)
    return load_model(halved)


def _is_half(model: onnx.ModelProto) -> bool:
    """Whether the file computes in half, as far as its weights and images tell."""
    images = (*model.graph.input, *model.graph.output)
    types = {tensor.data_type for tensor in model.graph.initializer if int(np.prod(tensor.dims)) > 1}
    return TensorProto.FLOAT16 in types | {value.type.tensor_type.elem_type for value in images}


def _compare(
    bundle: Bundle,
    precision: m.Precision,
    original: _Original,
    face: Interface,
    file: str,
    threads: int | None,
    say: Say,
) -> list[m.Check]:
    """The bundle's network against the file itself, with its values mapped by NumPy."""
    device, manifest = CpuDevice(threads), bundle.manifest
    try:
        network = device.load(bundle, NETWORK, precision)
    except BackendUnavailable as error:
        raise VerificationFailed(f"the model does not load in ONNX Runtime in {precision}: {error}") from error
    half = precision == "fp16" or manifest.networks[NETWORK].parameters["half"]
    checks: list[m.Check] = []
    for batch in manifest.batches or BATCHES:
        given = {t.name: _example(t.name, face, batch) for t in manifest.networks[NETWORK].inputs}
        found = call_network(device, network, given, {ESTIMATE: (3, face.out_side, face.out_side)})[ESTIMATE]
        step, what = face.source.batch or batch, f"{NETWORK}, batch {batch}"
        faces, others = given[DEGRADED], given.get(REFERENCE)
        raw = [
            _raw(original, face, faces[i : i + step], None if others is None else others[i : i + step])
            for i in range(0, batch, step)
        ]
        if not checks and precision == "fp32":
            _warn_of_range(raw[0], face, say)
        say(f"{what} in {precision} against {file} as it came")
        checks.append(
            compare(
                what,
                _scaled(np.concatenate(raw), face),
                found,
                device=device.name,
                precision=precision,
                batch=batch,
                floor=FLOORS_DB["fp16" if half else precision][0],
                reference=f"{file} as it came",
            )
        )
    return checks


def _warn_of_range(y: NDArray[np.float64], face: Interface, say: Say) -> None:
    black, white = face.output_range
    reach = STRAY * (white - black)
    if (share := float(np.mean((y < black - reach) | (y > white + reach)))) > 0.05:
        say(
            f"warning: {share:.0%} of the result lie far outside {black:g}..{white:g}, "
            f"in {y.min():.3g}..{y.max():.3g}: is --output-range right?"
        )
    elif float(y.max() - y.min()) < 0.05 * (white - black):
        say(
            f"warning: the result lies in {y.min():.3g}..{y.max():.3g}, a small part of {black:g}..{white:g}: "
            "is --output-range right?"
        )


def _silent() -> ort.RunOptions:
    options = ort.RunOptions()
    options.log_severity_level = 4
    return options


def _numpy_type(name: str) -> np.dtype[np.generic]:
    """Of ONNX Runtime's `tensor(double)` and the like."""
    return np.dtype({"float": "float32", "double": "float64"}.get(kind := name[7:-1], kind))
