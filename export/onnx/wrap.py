"""`bfr wrap`: any restorer that is one ONNX file becomes a bundle, so that it runs and is measured beside the others.

What the file expects (value range, colour order, layout, further inputs) becomes part of the graph: a wrapped network
reads `degraded`, (batch, 3, S, S) RGB in [0, 1], and makes `estimate`, (batch, 3, T, T) RGB in [-1, 1], as an estimator
does. The wrapped graph is compared with the file as it came before the bundle is published.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bfr.export.onnx.graph import module_versions, save_graph
from bfr.export.onnx.wrap_graph import (
    IMAGE_TYPES,
    ImageTensor,
    WrapOptions,
    choose_side,
    find_image,
    load_model,
    model_opset,
    wrap_graph,
)
from bfr.export.verify.compare import BATCHES, FLOORS_DB, compare
from bfr.export.verify.walk import call_network, synthetic
from bfr.runtime.backends.device import Float32
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle import manifest as m
from bfr.runtime.bundle.bundle import Bundle, describe_file, write_manifest
from bfr.runtime.errors import InvalidOption, VerificationFailed
from bfr.runtime.files import atomic_folder, sha256_file
from bfr.runtime.restore.plan import DEGRADED, ESTIMATE

NETWORK = "restorer"
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
STRAY = 0.25  # of the declared range: results further outside it were made for another one
Say = Callable[[str], None]


def wrap(
    file: Path,
    folder: Path,
    options: WrapOptions,
    *,
    name: str | None = None,
    licence: str = "unknown: ask whoever gave you the file",
    replace: bool = False,
    threads: int | None = None,
    say: Say = lambda _: None,
) -> Bundle:
    """Make a bundle of an ONNX file. name: the system's, None for the file's.

    A file that fixes its batch to 1 is freed from that where it still gives each image the same result; else the bundle
    says that it runs one image at a time. Raises InputNotFound, InvalidCheckpoint, InvalidOption, VerificationFailed.
    """
    model = load_model(file)
    source, target = find_image(model, options.input, "input"), find_image(model, options.output, "output")
    side = choose_side(file, source, options.size)
    wrapped = wrap_graph(model, source, target, options, side)
    with atomic_folder(folder, replace=replace) as partial:
        path = partial / f"{NETWORK}.onnx"
        free = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 3, side, side])
        bound = source.batch is not None
        if bound:
            wrapped.graph.input[0].type.CopyFrom(free)
        out_side, batches = _probe(wrapped, path, side, source.batch, bound, threads, say)
        variant = m.Variant(
            graph=describe_file(partial, path),
            weights=(describe_file(partial, path.with_suffix(".safetensors")),),
            opset=model_opset(model),
        )
        network = m.Network(
            kind="wrapped",
            architecture="onnx",
            parameters={
                "input_range": list(options.input_range),
                "output_range": list(options.output_range),
                "colour": options.colour,
                "values": dict(options.values),
            },
            parameter_count=sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in FLOATS),
            inputs=(m.Tensor(name=DEGRADED, shape=("batch", 3, side, side)),),
            outputs=(m.Tensor(name=ESTIMATE, shape=("batch", 3, out_side, out_side)),),
            source=m.Source(file=file.name, sha256=sha256_file(file)),
            variants={"fp32": variant},
        )
        manifest = m.Manifest(
            format=1,
            system=name or file.stem,
            title=f"{name or file.stem}: one network, wrapped from {file.name}",
            image_size=side,
            schedule=m.NoiseSchedule(),
            stages=(m.Estimate(network=NETWORK),),
            result=ESTIMATE,
            batches=batches,
            presets={},
            networks={NETWORK: network},
            licence=m.Licence(name=licence, url="", notice=f"{file.name} was given by the user."),
            made_with=module_versions("onnx", "onnxruntime"),
        )
        write_manifest(partial, manifest)
        checks = _compare(file, Bundle.open(partial), source, target, options, threads, say)
        write_manifest(partial, manifest.model_copy(update={"verified": checks}))
    return Bundle.open(folder)


def _probe(
    wrapped: onnx.ModelProto, path: Path, side: int, fixed: int | None, bound: bool, threads: int | None, say: Say
) -> tuple[int, tuple[int, ...] | None]:
    """Write the graph, and find out what comes out of it: its side, and the batch sizes that it takes, None for all."""
    device, faces = CpuDevice(threads), synthetic(DEGRADED, (3, side, side), max(BATCHES))
    save_graph(_copy(wrapped), path)
    problem = None
    try:
        session = device.load_graph(path).session
        alone = session.run(None, {DEGRADED: faces[-1:]})[0]
        together = session.run(None, {DEGRADED: faces})[0]
        if together.shape != (len(faces), *alone.shape[1:]) or np.abs(together[-1:] - alone).max() > 1e-3:
            problem = "an image comes out otherwise in a batch than alone"
    except Exception as error:  # ONNX Runtime's own types
        problem = str(error).splitlines()[0]
    batches = None
    if problem:
        only = fixed or 1
        say(f"batches of {only} only: {problem[:200]}")
        batches = (only,)
        shape = ["batch" if only == 1 and not bound else only, 3, side, side]
        wrapped.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
        save_graph(_copy(wrapped), path)
        try:
            alone = device.load_graph(path).session.run(None, {DEGRADED: faces[:only]})[0]
        except Exception as error:
            raise VerificationFailed(f"the model does not run in ONNX Runtime: {error}") from error
    if alone.ndim != 4 or alone.shape[1] != 3 or alone.shape[2] != alone.shape[3]:
        raise InvalidOption(
            f"the output has the shape {alone.shape}, not (batch, 3, T, T): choose another with --output"
        )
    return int(alone.shape[2]), batches


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _compare(
    file: Path,
    bundle: Bundle,
    source: ImageTensor,
    target: ImageTensor,
    options: WrapOptions,
    threads: int | None,
    say: Say,
) -> tuple[m.Check, ...]:
    """The bundle's network against the file itself, with its values mapped by NumPy."""
    device, manifest = CpuDevice(threads), bundle.manifest
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    network = device.load(bundle, NETWORK, "fp32")
    side, out = manifest.image_size, int(manifest.networks[NETWORK].outputs[0].shape[-1])
    checks = []
    for batch in manifest.batches or BATCHES:
        faces = synthetic(DEGRADED, (3, side, side), batch)
        found = call_network(device, network, {DEGRADED: faces}, {ESTIMATE: (3, out, out)})[ESTIMATE]
        step = source.batch or batch
        parts = [_original(session, faces[i : i + step], source, target, options, say) for i in range(0, batch, step)]
        expected, what = np.concatenate(parts), f"{NETWORK}, batch {batch}"
        say(f"{what} against {file.name} as it came")
        checks.append(
            compare(
                what,
                expected,
                found,
                device=device.name,
                precision="fp32",
                batch=batch,
                floor=FLOORS_DB["fp32"][0],
                reference=f"{file.name} as it came",
            )
        )
    return tuple(checks)


def _original(
    session: ort.InferenceSession,
    faces: Float32,
    source: ImageTensor,
    target: ImageTensor,
    options: WrapOptions,
    say: Say,
) -> NDArray[np.float32]:
    order = [2, 1, 0] if options.colour == "bgr" else [0, 1, 2]
    black, white = options.input_range
    x = faces[:, order].astype(np.float64) * (white - black) + black
    x = x.transpose(0, 2, 3, 1) if source.channels_last else x
    kind = IMAGE_TYPES[source.type]
    feed = {source.name: np.clip(np.rint(x), 0, 255).astype(kind) if kind is np.uint8 else x.astype(kind)}
    for value in session.get_inputs():
        if value.name != source.name:
            shape = [size if isinstance(size, int) else 1 for size in value.shape]
            feed[value.name] = np.full(shape, options.values[value.name], _numpy_type(value.type))
    y = session.run([target.name], feed)[0].astype(np.float64)
    y = y.transpose(0, 3, 1, 2) if target.channels_last else y
    black, white = options.output_range
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
    return np.asarray(np.clip((y[:, order] - black) / (white - black) * 2.0 - 1.0, -1.0, 1.0), np.float32)


def _numpy_type(name: str) -> np.dtype[np.generic]:
    """Of ONNX Runtime's `tensor(double)` and the like."""
    return np.dtype({"float": "float32", "double": "float64"}.get(kind := name[7:-1], kind))
