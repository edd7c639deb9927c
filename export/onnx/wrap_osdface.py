"""`bfr wrap FOLDER`: the ONNX files of OSDFace that VisoMaster-Fusion runs become a bundle.

Four graphs and a schedule, known by their names, inputs and outputs (FILES, release v0.0.1 of Glat0s/OSDFace-onnx). The
arithmetic between them, which that program does itself, becomes part of the denoiser's graph, as in a bundle of the
system `osdface`: every command, solver and time of the step then work alike. The bundle is compared with the files as
they came before it is published.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from bfr.export.onnx.graph import module_versions, save_graph
from bfr.export.onnx.metadata import describe_graph
from bfr.export.onnx.osdface_graph import File, enclose
from bfr.export.onnx.wrap_graph import fix_batch
from bfr.export.onnx.wrap_load import (
    describe_variant,
    load_model,
    load_weights,
    parameter_count,
    system_name,
    tensors,
)
from bfr.export.onnx.wrap_original import Original, Say, silent
from bfr.export.onnx.wrap_read import sizes
from bfr.export.options import WrapOptions
from bfr.export.verify.compare import BATCHES, FLOORS_DB, compare
from bfr.export.verify.walk import call_network, output_shapes, synthetic
from bfr.models.systems.osdface import OSDFACE, TIMESTEP
from bfr.runtime.backends.device import Float32
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle import manifest as m
from bfr.runtime.bundle.bundle import Bundle, write_manifest
from bfr.runtime.diffusion.solvers import Column
from bfr.runtime.errors import InputNotFound, InvalidCheckpoint, InvalidOption
from bfr.runtime.files import atomic_folder, sha256_file
from bfr.runtime.restore.plan import DEGRADED
from bfr.runtime.restore.tables import noise_schedule, sampler_table

SCHEDULE = "scheduler.json"
NOTICE = "OSDFace states no licence for its code or weights; SD 2.1 has one."
PRESET = OSDFACE.presets["reference"]
FED_BY = {"x": "latent", "latent_state": "x_next"}  # a network's input -> another's output, where their names differ
UNET_READS = {"latent": "x", "timestep": "t", "prompt_embeds": "context"}
FILES = (
    File("vae_encoder.onnx", "encoder", {"lq_neg1_1": DEGRADED}, "latent", ("latent",)),
    File("prompt_encoder.onnx", "embedder", {"lq_0_1": DEGRADED}, "prompt_embeds", ("context",)),
    File("unet.onnx", "denoiser", UNET_READS, "noise_pred", ("x_next", "x0")),
    File("vae_decoder.onnx", "decoder", {"x0_latent": "latent_state"}, "image_0_1", ("restored",)),
)


def wrap_osdface(
    folder: Path, out: Path, options: WrapOptions, *, threads: int | None = None, say: Say = lambda _: None
) -> Bundle:
    """Make a bundle of a folder of OSDFace's ONNX files.

    Args:
        folder: Holds the four graphs, the weights beside them, and the schedule.
        out: The new bundle's folder.
        options: Its name, licence and whether a bundle is replaced; the rest describes single files.
        threads: CPU threads of the verification; None is one per core.
        say: Called with each line of what is found and done.

    Raises:
        InputNotFound: A file is not there.
        InvalidCheckpoint: A file is not what its name says.
        InvalidOption: An option is for single files.
        VerificationFailed: The bundle disagrees with the files. Nothing is published then.
    """
    _check(folder, options)
    name = system_name(options.name or "osdface-onnx", folder)
    check_schedule(folder / SCHEDULE)
    models = {one.network: load_model(folder / one.name) for one in FILES}
    originals = {one.network: Original(folder / one.name, threads) for one in FILES}
    for one in FILES:
        _check_interface(one, models[one.network])
    fixed = any((sizes(value) or [1])[0] for model in models.values() for value in model.graph.input)
    shapes = _shapes(models, originals, folder)
    side, batches = shapes["degraded"][-1], (1,) if fixed else None
    with atomic_folder(out, replace=options.replace, mark=m.MANIFEST) as partial:
        entries = {}
        for one in FILES:
            say(f"{one.name} becomes the network {one.network}")
            model, file = models.pop(one.network), folder / one.name
            parameters = parameter_count(model)
            load_weights(model, folder)
            inputs, outputs = enclose(one, model, shapes)
            if fixed:
                fix_batch(model.graph, 1)
            path = partial / f"{one.network}.onnx"
            source = m.Source(file=file.name, sha256=sha256_file(file))
            metadata = describe_graph(
                system=name,
                network=one.network,
                kind="wrapped",
                size=side,
                tensors=(*inputs, *outputs),
                licence=options.licence,
                sources={"": source},
                batches=batches,
            )
            save_graph(model, path, metadata=metadata)
            entries[one.network] = m.Network(
                kind="wrapped",
                architecture="onnx",
                parameters={},
                parameter_count=parameters,
                inputs=tensors(inputs),
                outputs=tensors(outputs),
                source=source,
                variants={"fp32": describe_variant(partial, path, model)},
            )
            del model
        manifest = m.Manifest(
            format=1,
            system=name,
            title=f"OSDFace, wrapped from the ONNX files of VisoMaster-Fusion, {side}x{side} (arXiv 2411.17163)",
            image_size=side,
            schedule=OSDFACE.schedule,
            stages=OSDFACE.stages,
            result=OSDFACE.result,
            batches=batches,
            presets={"reference": PRESET},
            networks=entries,
            licence=m.Licence(name=options.licence, url="", notice=NOTICE),
            made_with=module_versions("onnx", "onnxruntime"),
        )
        write_manifest(partial, manifest)
        checks = _verify(Bundle.open(partial), originals, threads, say)
        write_manifest(partial, manifest.model_copy(update={"verified": tuple(checks)}))
    return Bundle.open(out)


def _check(folder: Path, options: WrapOptions) -> None:
    """Raise where files are missing, or an option describes a single file."""
    needed = [*(one.name for one in FILES), SCHEDULE]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing == needed:
        found = next(iter(sorted(folder.glob("*.onnx"))), None)
        raise InputNotFound(
            f"{folder} is a folder and not OSDFace's: name the ONNX file{f', as {found}' * bool(found)}"
        )
    if missing:
        raise InputNotFound(
            f"{folder} lacks {', '.join(missing)}: of folders `bfr wrap` takes OSDFace's, with {', '.join(needed)} and "
            "unet.onnx.data; of others name the ONNX file"
        )
    if changed := options.model_dump(exclude={"name", "licence", "replace"}, exclude_defaults=True):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise InvalidOption(f"{flags}: this is for single files, and known for OSDFace's folder. Leave it out")


def check_schedule(file: Path) -> None:
    """Raise InvalidCheckpoint unless the file's `alphas_cumprod` are those of Stable Diffusion."""
    try:
        found = np.array(json.loads(file.read_bytes())["alphas_cumprod"], np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidCheckpoint(f"{file} has no list alphas_cumprod: take the whole release") from error
    expected = noise_schedule(OSDFACE.schedule).alpha_bar
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-3, atol=1e-6):
        raise InvalidCheckpoint(f"{file}: its schedule is not Stable Diffusion's: take the file of OSDFace's release")


def _check_interface(one: File, model: onnx.ModelProto) -> None:
    inputs, outputs = ({value.name for value in values} for values in (model.graph.input, model.graph.output))
    if inputs != set(one.reads) or one.output not in outputs:
        raise InvalidCheckpoint(
            f"{one.name} reads {', '.join(sorted(inputs))} and makes {', '.join(sorted(outputs))}; OSDFace's reads "
            f"{', '.join(one.reads)} and makes {one.output}: take the files of one release"
        )
    types = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    if not types <= {TensorProto.FLOAT, TensorProto.INT64}:
        raise InvalidCheckpoint(f"{one.name} has inputs or outputs that are not float32: take the release's own file")


def _shapes(
    models: Mapping[str, onnx.ModelProto], originals: Mapping[str, Original], folder: Path
) -> dict[str, tuple[int, ...]]:
    """The shapes of one image's values, from the files and from a run on a grey picture."""
    image = next(v for model in (models["encoder"], models["embedder"]) for v in model.graph.input)
    side = sizes(image)[-1] or 512
    grey = np.full((1, 3, side, side), 0.5, np.float32)
    try:
        made = _published(originals, grey, 1.0, 1.0)
    except Exception as error:  # ONNX Runtime's own types
        raise InvalidCheckpoint(
            f"{folder}: its files do not run one after the other ({error}): take the files of one release"
        ) from error
    values = {"degraded": grey, "latent": made["encoder"], "context": made["embedder"], "restored": made["decoder"]}
    shapes = {name: value.shape[1:] for name, value in values.items()}
    if shapes["restored"] != shapes["degraded"]:
        raise InvalidCheckpoint(f"{folder}: its files do not fit each other: {shapes}: take the files of one release")
    return shapes


def _published(originals: Mapping[str, Original], face: Float32, a: float, b: float) -> dict[str, Float32]:
    """Restore one face, (1, 3, S, S) in [0, 1], with the files, with NumPy's arithmetic between them.

    Return the expected output of each network of the bundle, by its name. a: factor of the latent in x0. b: factor of
    the denoiser's prediction.
    """

    def run(network: str, *values: NDArray[Any]) -> Float32:
        one = next(one for one in FILES if one.network == network)
        feed = dict(zip(one.reads, values, strict=True))
        return np.asarray(originals[network].session.run([one.output], feed, silent())[0])

    latent, context = run("encoder", 2.0 * face - 1.0), run("embedder", face)
    eps = run("denoiser", latent, np.array([TIMESTEP], np.int64), context)
    if eps.shape != latent.shape:
        raise ValueError(f"the denoiser makes {eps.shape} of a latent of {latent.shape}")
    x0 = (a * latent.astype(np.float64) - b * eps).astype(np.float32)
    restored = np.clip(2.0 * run("decoder", x0) - 1.0, -1.0, 1.0)
    return {"encoder": latent, "embedder": context, "denoiser": x0, "decoder": restored}


def _verify(bundle: Bundle, originals: Mapping[str, Original], threads: int | None, say: Say) -> list[m.Check]:
    """Each network of the bundle, and all in a row, against the files."""
    device, checks, entries = CpuDevice(threads), list[m.Check](), bundle.manifest.networks
    row = sampler_table(bundle, PRESET).rows[:1]
    networks = {name: device.load(bundle, name, "fp32") for name in entries}
    for batch in bundle.manifest.batches or BATCHES:
        face = synthetic(DEGRADED, (3, bundle.manifest.image_size, bundle.manifest.image_size), batch)
        alone = [_published(originals, face[i : i + 1], row[0, Column.A], row[0, Column.B]) for i in range(batch)]
        values = {DEGRADED: face, "t": np.full(batch, TIMESTEP, np.float32), "row": np.repeat(row, batch, axis=0)}
        values |= dict.fromkeys(("h1", "h2", "noise"), np.zeros_like(np.concatenate([one["encoder"] for one in alone])))
        for one in FILES:
            what, entry = f"{one.network}, batch {batch}", entries[one.network]
            say(f"{what} against {one.name} as it came")
            inputs = {tensor.name: values[FED_BY.get(tensor.name, tensor.name)] for tensor in entry.inputs}
            made = call_network(device, networks[one.network], inputs, output_shapes(entry))
            values |= made
            checks.append(
                compare(
                    what,
                    np.concatenate([expected[one.network] for expected in alone]),
                    next(iter(made.values())),
                    device=device.name,
                    precision="fp32",
                    batch=batch,
                    floor=FLOORS_DB["fp32"][0],
                    reference=f"{one.name} as it came",
                )
            )
    return checks
