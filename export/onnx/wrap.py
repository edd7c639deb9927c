"""`bfr wrap`: make a bundle of any restorer that is one ONNX file.

What the file expects (value range, colour order, layout, further inputs) becomes part of the graph: a wrapped network
reads `degraded`, (batch, 3, S, S) RGB in [0, 1], and makes `estimate`, (batch, 3, T, T) RGB in [-1, 1], as an estimator
does. `bfr wrap` compares the wrapped graph with the original file before it publishes the bundle.
"""

import re
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from bfr.export.onnx.graph import module_versions, save_graph
from bfr.export.onnx.metadata import describe_graph
from bfr.export.onnx.wrap_graph import fix_batch, wrap_graph
from bfr.export.onnx.wrap_load import (
    describe_variant,
    drawing_nodes,
    load_model,
    load_weights,
    parameter_count,
    read_by,
    reason,
    sort_nodes,
    stored_tensors,
    system_name,
    tensors,
)
from bfr.export.onnx.wrap_original import (
    Original,
    Say,
    find_interface,
    frozen,
    raw_result,
    scaled,
    silent,
)
from bfr.export.onnx.wrap_osdface import wrap_osdface
from bfr.export.onnx.wrap_ranges import check_ranges, tell_assumed, warn_of_range
from bfr.export.onnx.wrap_read import REFERENCE, Interface
from bfr.export.options import WrapOptions
from bfr.export.verify.compare import BATCHES, FLOORS_DB, compare
from bfr.export.verify.walk import call_network, synthetic
from bfr.runtime.backends.device import Float32
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle import manifest as m
from bfr.runtime.bundle.bundle import Bundle, write_manifest
from bfr.runtime.errors import InvalidCheckpoint, InvalidOption
from bfr.runtime.files import atomic_folder, sha256_file
from bfr.runtime.restore.plan import DEGRADED, ESTIMATE, WEIGHT

NETWORK = "restorer"
QUANTIZED = r"^Q[A-Z]|[Qq]uantize|Integer|NBits"  # in the names of operators that read floats beside whole numbers
WITHOUT_HALF = "Leave --precision fp16 out"


def wrap(
    file: Path | str,
    folder: Path | str,
    options: WrapOptions = WrapOptions(),  # noqa: B008  (frozen)
    *,
    threads: int | None = None,
    say: Say = lambda _: None,
) -> Bundle:
    """Make a bundle of an ONNX file, or of the folder of OSDFace's, see `bfr.export.onnx.wrap_osdface`.

    If a file fixes its batch, the batch becomes dynamic, provided that each image keeps its result; else the bundle
    keeps the file's batch. Nodes that draw random numbers become constants.

    Args:
        file: The ONNX file, with its weights in it or in files beside it; or the folder.
        folder: The folder of the new bundle.
        options: What the file expects, as far as the user knows it.
        threads: CPU threads of trial runs and verification; None is one per core.
        say: Called with each line of what is assumed, found and done.

    Raises:
        InputNotFound, InvalidCheckpoint, InvalidOption, VerificationFailed: Nothing is published then.
    """
    file, folder = Path(file), Path(folder)
    if file.is_dir():
        return wrap_osdface(file, folder, options, threads=threads, say=say)
    system = system_name(options.name, file)
    model = load_model(file)
    with (
        TemporaryDirectory(prefix="bfr-wrap-") as scratch,
        atomic_folder(folder, replace=options.replace, mark=m.MANIFEST) as partial,
    ):
        draws = bool(drawing_nodes(model))
        original = frozen(file, model, Path(scratch), options, threads, say) if draws else Original(file, threads)
        face = find_interface(model, original, options)
        tell_assumed(face, options, file.name, say)
        check_ranges(original, face, say)
        half, parameters = _is_half(model), parameter_count(model)
        load_weights(model, original.file.parent)
        path = partial / f"{NETWORK}.onnx"
        wrap_graph(model, face)
        save_graph(model, path)
        source = m.Source(file=file.name, sha256=sha256_file(file))
        device = CpuDevice(threads)
        batches = _probe(path, face, device, say)
        if batches and face.source.batch:
            fix_batch(model.graph, *batches)
        metadata = _metadata(system, face, batches, options, source)
        helper.set_model_props(model, metadata)
        onnx.save(model, path)
        variants: dict[m.Precision, m.Variant] = {"fp32": describe_variant(partial, path, model)}
        if "fp16" in options.precision and half:
            say(f"{file.name} computes in half already: no variant in fp16 is added")
        elif "fp16" in options.precision:
            halved = partial / f"{NETWORK}.fp16.onnx"
            _save_half(path, halved, metadata)
            variants["fp16"] = describe_variant(partial, halved, model)
        network = m.Network(
            kind="wrapped",
            architecture="onnx",
            parameters={
                "input_range": list(face.input_range),
                "output_range": list(face.output_range),
                "colour": face.colour,
                "values": face.constants,
                "half": half,
            },
            parameter_count=parameters,
            inputs=tensors(face.inputs),
            outputs=tensors({ESTIMATE: (3, face.out_side, face.out_side)}),
            source=source,
            variants=variants,
        )
        manifest = m.Manifest(
            format=1,
            system=system,
            title=f"{options.name or file.stem}: one network, wrapped from {file.name}",
            image_size=face.side,
            schedule=m.NoiseSchedule(),
            inputs=(m.ImageInput(name=REFERENCE, channels=3),) if face.reference else (),
            weight=face.values[face.weight] if face.weight else None,
            stages=(m.Estimate(network=NETWORK),),
            result=ESTIMATE,
            batches=batches,
            presets={},
            networks={NETWORK: network},
            licence=m.Licence(name=options.licence, url="", notice=f"{file.name} was given by the user."),
            made_with=module_versions("onnx", "onnxruntime"),
        )
        write_manifest(partial, manifest)
        checks = list[m.Check]()
        for precision in variants:
            checks += _compare(Bundle.open(partial), precision, original, face, file.name, device, say)
        write_manifest(partial, manifest.model_copy(update={"verified": tuple(checks)}))
    return Bundle.open(folder)


def _metadata(
    system: str, face: Interface, batches: tuple[int, ...] | None, options: WrapOptions, source: m.Source
) -> dict[str, str]:
    """Describe the graph and its original file."""
    ranges = ["..".join(f"{end:g}" for end in extent) for extent in (face.input_range, face.output_range)]
    metadata = describe_graph(
        system=system,
        network=NETWORK,
        kind="wrapped",
        size=face.side,
        tensors=(*face.inputs, ESTIMATE),
        licence=options.licence,
        sources={"": source},
        batches=batches,
        fixed={name: f"{value:g}" for name, value in face.constants.items()},
    )
    return metadata | {"bfr.file.range": f"{ranges[0]} to {ranges[1]}", "bfr.file.colour": face.colour}


def _probe(path: Path, face: Interface, device: CpuDevice, say: Say) -> tuple[int, ...] | None:
    """The batch sizes that the graph takes, None for all."""
    problem = "an image has another result in a batch than alone"
    try:
        session = device.load_graph(path).session
        faces = _examples(face, max(BATCHES))
        alone, together = (
            _bound_result(session, given, face.out_side) for given in ({key: x[-1:] for key, x in faces.items()}, faces)
        )
        if np.abs(together[-1:] - alone).max() <= 1e-3:
            return None
    except Exception as error:  # ONNX Runtime's own types
        single = face.source.single or face.target.single
        problem = "the file has no axis for more" if single else reason(error)
    only = face.source.batch or 1
    say(f"batches of {only} only: {problem}")
    return (only,)


def _bound_result(session: ort.InferenceSession, inputs: dict[str, Float32], side: int) -> Float32:
    """What a wrapped graph writes into a buffer of its own size, as it runs later; silently."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_cpu_input(name, value)
    result = np.zeros((len(inputs[DEGRADED]), 3, side, side), np.float32)
    binding.bind_ortvalue_output(ESTIMATE, ort.OrtValue.ortvalue_from_numpy(result))
    session.run_with_iobinding(binding, silent())
    return np.asarray(binding.copy_outputs_to_cpu()[0])


def _examples(face: Interface, batch: int) -> dict[str, Float32]:
    """Values for the inputs of the bundle's network."""
    given = {name: synthetic(name, shape, batch) for name, shape in face.inputs.items()}
    return given | ({WEIGHT: np.full((batch, 1), face.values[face.weight], np.float32)} if face.weight else {})


def _save_half(path: Path, halved: Path, metadata: dict[str, str]) -> None:
    """Write the graph with weights and arithmetic in half; inputs and outputs stay float32, and what is quantized."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    graph = onnx.load(path, load_external_data=False).graph
    quantized = {node.op_type for node in graph.node if re.search(QUANTIZED, node.op_type)}
    try:
        model = convert_float_to_float16(
            str(path), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *quantized]
        )
    except Exception as error:  # of nearly any type
        raise InvalidOption(f"the model cannot be cast to half: {reason(error)}. {WITHOUT_HALF}") from error
    sort_nodes(model.graph)
    save_graph(model, halved, metadata=metadata)


def _is_half(model: onnx.ModelProto) -> bool:
    """Whether the file computes in half, judged by its images and by weights that it does not widen first."""
    tensors = stored_tensors(model.graph).items()
    half = {name for name, one in tensors if one.data_type == TensorProto.FLOAT16 and prod(one.dims) > 1}
    reads = any(not half.isdisjoint(read_by(node)) for node in model.graph.node if node.op_type != "Cast")
    ends = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    return reads or TensorProto.FLOAT16 in ends


def _compare(
    bundle: Bundle, precision: m.Precision, original: Original, face: Interface, file: str, device: CpuDevice, say: Say
) -> list[m.Check]:
    """The bundle's network against the file itself, with its values mapped by NumPy."""
    manifest, made = bundle.manifest, {ESTIMATE: (3, face.out_side, face.out_side)}
    remedy = WITHOUT_HALF if precision == "fp16" else "Export it again, with another opset"
    examples = {batch: _examples(face, batch) for batch in manifest.batches or BATCHES}
    try:
        network = device.load(bundle, NETWORK, precision)
        results = {batch: call_network(device, network, given, made)[ESTIMATE] for batch, given in examples.items()}
    except Exception as error:  # ONNX Runtime's own types
        raise InvalidCheckpoint(f"wrapped in {precision}, {file} does not run: {reason(error)}. {remedy}") from error
    half = precision == "fp16" or manifest.networks[NETWORK].parameters["half"]
    checks: list[m.Check] = []
    for batch, given in examples.items():
        what = f"{NETWORK}, batch {batch}"
        raw = raw_result(original, face, given[DEGRADED], given.get(REFERENCE))
        if not np.isfinite(raw).all():
            raise InvalidCheckpoint(
                f"{file} returns NaN or Inf for an ordinary picture: choose another --input-range, or export trained "
                "weights"
            )
        if not checks and precision == "fp32":
            warn_of_range(raw, face, say)
        say(f"{what} in {precision} against {file} as it came")
        checks.append(
            compare(
                what,
                scaled(raw, face),
                results[batch],
                device=device.name,
                precision=precision,
                batch=batch,
                floor=FLOORS_DB["fp16" if half else precision][0],
                reference=f"{file} as it came",
                remedy=remedy,
            )
        )
    return checks
