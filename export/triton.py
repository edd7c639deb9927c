"""A bundle as a model repository of NVIDIA's Triton Inference Server.

Each network becomes a model of Triton's ONNX Runtime backend; the loop becomes a model of its Python backend, which
needs `bfr`'s runtime in the server's Python, see `bfr.runtime.serve.triton`.
"""

import logging
import shutil
from pathlib import Path

from bfr.export.options import TritonOptions
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import MANIFEST, Network, Tensor
from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import atomic_folder
from bfr.runtime.serve.triton import BATCH, IMAGE, PRESET, RESTORED, SEED, model_name

_log = logging.getLogger("bfr")
MARK = f"*/1/{MANIFEST}"  # what a repository has
MODEL = '''"""The restoration loop of `{system}`: written by `bfr export-triton`."""

from bfr.runtime.serve.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
LOOP = """name: "{name}"
backend: "python"
max_batch_size: 0
input [
  {{ name: "{image}" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }},
  {{ name: "{seed}" data_type: TYPE_INT64 dims: [ 1 ] optional: true }},
  {{ name: "{preset}" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "{restored}" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }}
]
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
parameters {{ key: "FORCE_CPU_ONLY_INPUT_TENSORS" value {{ string_value: "yes" }} }}
parameters {{ key: "{key}" value {{ string_value: "{batch}" }} }}
"""
NETWORK = """name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {batch}
input [
{inputs}
]
output [
{outputs}
]
instance_group [ {{ count: 1 kind: KIND_{kind} }} ]
{queue}{provider}"""
# ONNX Runtime's default rounds float32 to TF32.
FLOAT32 = """optimization {
  execution_accelerators {
    gpu_execution_accelerator [ { name: "cuda" parameters { key: "use_tf32" value: "0" } } ]
  }
}
"""


def export_triton(
    bundle: Bundle,
    repository: Path | str,
    options: TritonOptions = TritonOptions(),  # noqa: B008  (frozen)
) -> list[str]:
    """Write a model repository, a new folder; return the names of its models, the loop's first. Files are checked.

    Raises:
        InvalidOption: The system reads a second picture, which the loop's model does not take; or none of its networks
            has this precision.
        BundleCorrupt: A file is not what the manifest says.
    """
    manifest = bundle.manifest
    bundle.precision(options.precision)
    if manifest.inputs:
        names = ", ".join(one.name for one in manifest.inputs)
        raise InvalidOption(
            f"{manifest.system} reads {names} beside the image, which the loop's model cannot take: choose another "
            "system"
        )
    with atomic_folder(Path(repository), replace=options.replace, mark=MARK) as partial:
        loop = partial / manifest.system / "1"
        loop.mkdir(parents=True)
        shutil.copyfile(bundle.folder / MANIFEST, loop / MANIFEST)
        (loop / "model.py").write_text(MODEL.format(system=manifest.system))
        (loop.parent / "config.pbtxt").write_text(
            LOOP.format(
                name=manifest.system,
                image=IMAGE,
                seed=SEED,
                preset=PRESET,
                restored=RESTORED,
                instances=options.instances,
                key=BATCH,
                batch=max(manifest.batches or (options.batch,)),
            )
        )
        for name, network in manifest.networks.items():
            kind = options.precision if options.precision in network.variants else "fp32"
            _log.info("writing %s in %s", name, kind)
            model = partial / model_name(manifest.system, name)
            (model / "1").mkdir(parents=True)
            graph = bundle.graph(name, kind)
            shutil.copyfile(graph, model / "1" / "model.onnx")
            for file in network.variants[kind].weights:  # the graph names them by their file names
                shutil.copyfile(bundle.folder / file.path, model / "1" / Path(file.path).name)
            (model / "config.pbtxt").write_text(_config(model.name, network, manifest.batches, options))
    return [manifest.system, *(model_name(manifest.system, name) for name in manifest.networks)]


def _config(name: str, network: Network, fixed: tuple[int, ...] | None, options: TritonOptions) -> str:
    """Return the config.pbtxt of a network.

    fixed: the only batch sizes that the graph takes. Triton then sees the batch as a dimension like the others.
    """
    return NETWORK.format(
        name=name,
        batch=0 if fixed else options.batch,
        kind=options.processor.upper(),
        inputs=",\n".join(_tensor(tensor, fixed) for tensor in network.inputs),
        outputs=",\n".join(_tensor(tensor, fixed) for tensor in network.outputs),
        queue="" if fixed else "dynamic_batching { max_queue_delay_microseconds: 1000 }\n",
        provider=FLOAT32 if options.processor == "gpu" else "",
    )


def _tensor(tensor: Tensor, fixed: tuple[int, ...] | None) -> str:
    """Describe a tensor. Triton requires at least one dimension, so a number per image is reshaped."""
    first = () if not fixed else (fixed[0],) if len(fixed) == 1 else (-1,)
    dims = (*first, *tensor.shape[1:])
    shape = f"dims: [ {', '.join(map(str, dims))} ]" if dims else "dims: [ 1 ] reshape: { shape: [ ] }"
    return f'  {{ name: "{tensor.name}" data_type: TYPE_FP32 {shape} }}'
