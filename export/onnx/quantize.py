"""int8 variants for CPUs: ONNX Runtime's static quantization, calibrated on the inputs of restorations.

The chosen convolutions read and write 8 bits, with one scale for each of their weights' output channels; all else stays
in float32. The graph is in the QDQ format: standard operators, which ONNX Runtime fuses when it loads it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bfr.export.onnx.graph import EXTERNAL_FROM, save_graph
from bfr.models.systems.mini.field import pair
from bfr.runtime.backends.device import BoundCall, Buffer, Device, Float32, Network
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle import manifest as m
from bfr.runtime.bundle.bundle import Bundle, describe_file
from bfr.runtime.errors import InputNotFound
from bfr.runtime.images.decode import read_image
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.restore.chains import load_networks
from bfr.runtime.restore.inputs import to_input, to_output
from bfr.runtime.restore.restorer import Restorer

FACES = 32  # of the folder, evenly spread over it
SEED = 12345  # of the degradations and of the loop's noise
# Parts of the names of weights whose convolutions stay in float32: the first and the last layer, and the shortcuts past
# the blocks. With the one before the last they cause most of the error and take little of the time, see
# docs/decisions/export.md.
FLOAT_LAYERS = ("input_blocks.0.0.", "skip_connection.", "out.2.")
MARK = ("onnx.quant.pre_process", "onnxruntime.quant")  # without it quantize_static gives advice that does not apply
UNTYPED = ("GroupNormalization", "Attention")  # whose results' type ONNX does not infer, and all that follows from them

Inputs = dict[str, Float32]


def quantize_network(bundle: Bundle, name: str, faces: Sequence[Float32], *, threads: int | None = None) -> m.Variant:
    """Write the int8 graph of a bundle's network beside the float32 one; the caller updates the manifest.

    Args:
        bundle: The bundle, with float32 graphs.
        name: The network's name.
        faces: Calibration images, (3, S, S) float32 in [0, 1] each, as `calibration_faces` gives them.
        threads: Threads of the CPU.

    Returns:
        The manifest's entry of the variant.
    """
    entry = bundle.network(name)
    estimates = entry.kind == "estimator"
    inputs = ({"degraded": face[None]} for face in faces) if estimates else loop_inputs(bundle, faces, threads)
    paths = quantize_graph(bundle.graph(name, "fp32"), bundle.folder / f"{name}.int8.onnx", inputs)
    graph, weights = (describe_file(bundle.folder, path) for path in paths)
    return m.Variant(graph=graph, weights=(weights,), opset=entry.variants["fp32"].opset)


def calibration_faces(folder: Path, size: int) -> list[Float32]:
    """Up to FACES pictures of a folder, degraded as in training: (3, size, size) float32 in [0, 1] each.

    Each picture is an aligned face, nothing else; it is resized whole before it is degraded.
    Raises InputNotFound, InvalidImage.
    """
    items = find_images([folder])
    if not items:
        raise InputNotFound(
            f"{folder} holds no pictures: int8 is calibrated on aligned faces, PNG, JPEG, WebP, BMP or TIFF. "
            f"Name a folder of some {FACES} with --calibration"
        )
    chosen = [items[i] for i in np.linspace(0, len(items) - 1, min(FACES, len(items))).round().astype(int)]
    faces = []
    for number, item in enumerate(chosen):
        rng = np.random.default_rng([SEED, number])
        clean = np.clip(to_input(read_image(item.source).pixels, size), 0.0, 1.0)
        _, degraded = pair(to_output(clean, np.empty((size, size, 3), np.uint8)), rng)
        faces.append(to_input(degraded, size))
    return faces


def loop_inputs(bundle: Bundle, faces: Sequence[Float32], threads: int | None = None) -> Iterator[Inputs]:
    """Yield what the denoiser reads at every step of the default preset's loop, in float32 on the CPU.

    Args:
        bundle: The bundle, with float32 graphs.
        faces: Degraded images, (3, S, S) float32 in [0, 1] each.
        threads: Threads of the CPU.
    """
    device = CpuDevice(threads)
    networks = load_networks(bundle, device, "fp32")
    recorder = networks[bundle.denoise.network] = _Recorder(networks[bundle.denoise.network], device)
    with Restorer(bundle, device, bundle.preset(), networks=networks) as restorer:
        for number, face in enumerate(faces):
            restorer.chain(1).run(face[None], seed=SEED, images=(number,))
            yield from recorder.take()


def quantize_graph(graph: Path, path: Path, inputs: Iterable[Inputs]) -> tuple[Path, Path]:
    """Quantize the convolutions of a float32 graph.

    Args:
        graph: The float32 graph.
        path: The .onnx file to write.
        inputs: Inputs of one call each. The range of an activation goes from the mean of the calls' smallest values to
            the mean of their largest.

    Returns:
        The paths of the new graph and of its weights.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = widened(onnx.load(graph))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    model.metadata_props.add(key=MARK[0], value=MARK[1])
    for node in model.graph.node:
        if node.op_type in UNTYPED:
            model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    calls = iter(inputs)
    with TemporaryDirectory() as scratch:
        quantized = Path(scratch) / path.name
        quantize_static(
            model,
            quantized,
            SimpleNamespace(get_next=lambda: next(calls, None)),  # a CalibrationDataReader: None at the end
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=convolutions(model),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": True},  # over calls that come in one go: their mean
        )
        result = onnx.load(quantized)
    return save_graph(result, path, store_half=_exact_in_half(result), metadata=metadata)


def convolutions(model: onnx.ModelProto) -> list[str]:
    """The nodes that are quantized: convolutions whose weights are constants, but FLOAT_LAYERS and the last of them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.input[1] in constants
        and not any(layer in node.input[1] for layer in FLOAT_LAYERS)
    ]
    return found[:-1]


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph whose weights are float32 constants, where `export_graph` stored them in half. Changes and returns it."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in stored]:
        tensor = stored[node.input[0]]
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, name=node.output[0]))
            model.graph.node.remove(node)
    return model


def _exact_in_half(model: onnx.ModelProto) -> bool:
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    arrays = [array for array in map(numpy_helper.to_array, tensors) if array.size >= EXTERNAL_FROM]
    return all(np.array_equal(array, array.astype(np.float16)) for array in arrays)


class _Recorder:
    """A network that records the inputs of its calls."""

    def __init__(self, network: Network, device: Device) -> None:
        self.network, self.device = network, device
        self._seen: list[Inputs] = []

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        call = self.network.bind(inputs, outputs)

        def recorded() -> None:
            self._seen.append({name: self.device.read(buffer) for name, buffer in inputs.items()})
            call()

        return recorded

    def take(self) -> list[Inputs]:
        """Return the inputs recorded since the last `take`."""
        seen, self._seen = self._seen, []
        return seen
