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
from bfr.export.onnx.wrap_load import FLOATS, load_model, model_opset, system_name
from bfr.export.onnx.wrap_original import Original, Say, silent
from bfr.export.onnx.wrap_read import sizes
from bfr.export.options import WrapOptions
from bfr.export.verify.compare import BATCHES, FLOORS_DB, compare
from bfr.export.verify.walk import call_network, synthetic
from bfr.runtime.backends.device import Float32
from bfr.runtime.backends.onnxruntime import CpuDevice
from bfr.runtime.bundle import manifest as m
from bfr.runtime.bundle.bundle import Bundle, describe_file, write_manifest
from bfr.runtime.diffusion.schedule import scaled_linear_schedule
from bfr.runtime.diffusion.solvers import Column, step_table
from bfr.runtime.errors import InputNotFound, InvalidCheckpoint, InvalidOption
from bfr.runtime.files import atomic_folder, sha256_file
from bfr.runtime.restore.plan import DEGRADED

SCHEDULE = "scheduler.json"
TIMESTEP = 399
STABLE_DIFFUSION = m.NoiseSchedule(timesteps=1000, beta_start=0.00085, beta_end=0.012, betas="scaled-linear")
PRESET = m.Preset(solver="ddim", spacing="time", start=TIMESTEP, steps=1)
STAGES = (
    m.Estimate(name="encode", network="encoder"),
    m.Estimate(name="prompt", network="embedder"),
    m.Denoise(network="denoiser", source="latent"),
    m.Estimate(name="decode", network="decoder", inputs={"latent_state": "state"}),
)


FILES = (
    File("vae_encoder.onnx", "encoder", ("lq_neg1_1",), "latent"),
    File("prompt_encoder.onnx", "embedder", ("lq_0_1",), "prompt_embeds"),
    File("unet.onnx", "denoiser", ("latent", "timestep", "prompt_embeds"), "noise_pred"),
    File("vae_decoder.onnx", "decoder", ("x0_latent",), "image_0_1"),
)


def wrap_osdface(
    folder: Path, out: Path, options: WrapOptions, *, threads: int | None = None, say: Say = lambda _: None
) -> Bundle:
    """Make a bundle of a folder of OSDFace's ONNX files.

    Args:
        folder: Holds the four graphs, the weights beside them, and the schedule.
        out: The new bundle's folder.
        options: Its name, licence and whether a bundle is replaced; the rest describes single files.
        threads: Of the CPU, while the bundle is verified; None takes one a core.
        say: Called with each line of what is found and done.

    Raises:
        InputNotFound: A file is not there.
        InvalidCheckpoint: A file is not what its name says.
        InvalidOption: An option is for single files.
        VerificationFailed: The bundle computes something else than the files. Nothing is published then.
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
    side, latent, batches = shapes["degraded"][-1], shapes["latent"], (1,) if fixed else None
    with atomic_folder(out, replace=options.replace) as partial:
        entries = {}
        for one in FILES:
            say(f"{one.name} becomes the network {one.network}")
            model, file = models.pop(one.network), folder / one.name
            parameters = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in FLOATS)
            onnx.load_external_data_for_model(model, str(folder))
            inputs, outputs = enclose(one, model, shapes, 1 if fixed else "batch")
            path = partial / f"{one.network}.onnx"
            source = m.Source(file=file.name, sha256=sha256_file(file))
            told = describe_graph(
                system=name,
                network=one.network,
                kind="wrapped",
                size=side,
                tensors=(*inputs, *outputs),
                licence=options.licence,
                sources={"": source},
                batches=batches,
            )
            save_graph(model, path, metadata=told)
            files = [describe_file(partial, path), describe_file(partial, path.with_suffix(".safetensors"))]
            entries[one.network] = m.Network(
                kind="wrapped",
                architecture="onnx",
                parameters={},
                parameter_count=parameters,
                inputs=tuple(m.Tensor(name=key, shape=("batch", *shape)) for key, shape in inputs.items()),
                outputs=tuple(m.Tensor(name=key, shape=("batch", *shape)) for key, shape in outputs.items()),
                source=source,
                variants={"fp32": m.Variant(graph=files[0], weights=(files[1],), opset=model_opset(model))},
            )
            del model
        manifest = m.Manifest(
            format=1,
            system=name,
            title=f"OSDFace, wrapped from the ONNX files of VisoMaster-Fusion, {side}x{side} (arXiv 2411.17163)",
            image_size=side,
            schedule=STABLE_DIFFUSION,
            stages=STAGES,
            result="restored",
            batches=batches,
            presets={"reference": PRESET},
            networks=entries,
            licence=m.Licence(
                name=options.licence,
                url="",
                notice="OSDFace states no licence for its code or weights; SD 2.1 has one.",
            ),
            made_with=module_versions("onnx", "onnxruntime"),
        )
        write_manifest(partial, manifest)
        checks = _verify(Bundle.open(partial), originals, latent, threads, say)
        write_manifest(partial, manifest.model_copy(update={"verified": tuple(checks)}))
    return Bundle.open(out)


def _check(folder: Path, options: WrapOptions) -> None:
    """Raise where files are missing, or an option describes a single file."""
    needed = [*(one.name for one in FILES), SCHEDULE]
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise InputNotFound(
            f"{folder} lacks {', '.join(missing)}: of folders `bfr wrap` takes OSDFace's, with {', '.join(needed)} and "
            "unet.onnx.data; of others name the ONNX file"
        )
    changed = options.model_dump(exclude={"name", "licence", "replace"}, exclude_defaults=True)
    if changed:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise InvalidOption(f"{flags}: this is for single files, and known for OSDFace's folder. Leave it out")


def check_schedule(file: Path) -> None:
    """Raise InvalidCheckpoint unless the file's `alphas_cumprod` are those of Stable Diffusion."""
    try:
        found = np.array(json.loads(file.read_bytes())["alphas_cumprod"], np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidCheckpoint(f"{file} has no list alphas_cumprod: take the whole release") from error
    spec = STABLE_DIFFUSION
    expected = scaled_linear_schedule(spec.timesteps, spec.beta_start, spec.beta_end).alpha_bar
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-3, atol=1e-6):
        raise InvalidCheckpoint(f"{file}: its schedule is not Stable Diffusion's: take the file of OSDFace's release")


def _check_interface(one: File, model: onnx.ModelProto) -> None:
    inputs, outputs = ({value.name for value in values} for values in (model.graph.input, model.graph.output))
    if inputs != set(one.inputs) or one.output not in outputs:
        raise InvalidCheckpoint(
            f"{one.name} reads {', '.join(sorted(inputs))} and makes {', '.join(sorted(outputs))}; OSDFace's reads "
            f"{', '.join(one.inputs)} and makes {one.output}: take the files of one release"
        )
    types = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    if not types <= {TensorProto.FLOAT, TensorProto.INT64}:
        raise InvalidCheckpoint(f"{one.name} has inputs or outputs that are not float32: take the release's own file")


def _shapes(
    models: Mapping[str, onnx.ModelProto], originals: Mapping[str, Original], folder: Path
) -> dict[str, tuple[int, ...]]:
    """Of one image's values: what the files say, and what a run on a grey picture makes."""
    image = next(v for model in (models["encoder"], models["embedder"]) for v in model.graph.input)
    side = sizes(image)[-1] or 512
    grey = np.full((1, 3, side, side), 0.5, np.float32)
    try:
        latent = run(originals, FILES[0], grey)
        context = run(originals, FILES[1], grey)
        made = run(originals, FILES[2], latent, np.array([TIMESTEP], np.int64), context)
        restored = run(originals, FILES[3], made)
    except Exception as error:  # ONNX Runtime's own types
        raise InvalidCheckpoint(f"{folder}: its files do not run one after the other: {error}") from error
    shapes = {"degraded": grey.shape, "latent": latent.shape, "context": context.shape, "restored": restored.shape}
    if made.shape != latent.shape or restored.shape != grey.shape:
        raise InvalidCheckpoint(f"{folder}: its files do not fit each other: {shapes}: take the files of one release")
    return {name: shape[1:] for name, shape in shapes.items()}


def run(originals: Mapping[str, Original], one: File, *values: NDArray[Any]) -> NDArray[np.float32]:
    """What a file as it came makes of its inputs, in the order of `File.inputs`."""
    feed = dict(zip(one.inputs, values, strict=True))
    return np.asarray(originals[one.network].session.run([one.output], feed, silent())[0])


def _verify(
    bundle: Bundle, originals: Mapping[str, Original], latent: tuple[int, ...], threads: int | None, say: Say
) -> list[m.Check]:
    """Each network of the bundle, and all in a row, against the files, with NumPy's arithmetic between them."""
    device, found = CpuDevice(threads), list[m.Check]()
    spec = STABLE_DIFFUSION
    table = step_table(
        scaled_linear_schedule(spec.timesteps, spec.beta_start, spec.beta_end),
        solver="ddim",
        spacing="time",
        start=TIMESTEP,
        steps=1,
    )
    a, b = (float(table.rows[0, column]) for column in (Column.A, Column.B))
    networks = {name: device.load(bundle, name, "fp32") for name in bundle.manifest.networks}
    shapes = {
        name: {t.name: tuple(int(s) for s in t.shape[1:]) for t in entry.outputs}
        for name, entry in bundle.manifest.networks.items()
    }
    for batch in bundle.manifest.batches or BATCHES:
        face = synthetic(DEGRADED, (3, bundle.manifest.image_size, bundle.manifest.image_size), batch)

        def alone(one: File, *values: Float32, count: int = batch) -> Float32:
            """A file on each image by itself."""
            times = [np.array([TIMESTEP], np.int64)] if one.network == "denoiser" else []
            parts = [[v[i : i + 1] for v in values] for i in range(count)]
            return np.concatenate([run(originals, one, part[0], *times, *part[1:]) for part in parts])

        def ours(name: str, inputs: dict[str, Float32]) -> dict[str, Float32]:
            return call_network(device, networks[name], inputs, shapes[name])

        expected: dict[str, Float32] = {
            "encoder": alone(FILES[0], 2.0 * face - 1.0),
            "embedder": alone(FILES[1], face),
        }
        eps = alone(FILES[2], expected["encoder"], expected["embedder"])
        expected["denoiser"] = (a * expected["encoder"].astype(np.float64) - b * eps).astype(np.float32)
        expected["decoder"] = np.clip(2.0 * alone(FILES[3], expected["denoiser"]) - 1.0, -1.0, 1.0)
        state = {name: np.zeros((batch, *latent), np.float32) for name in ("h1", "h2", "noise")}
        state |= {"t": np.full(batch, TIMESTEP, np.float32), "row": np.repeat(table.rows[:1], batch, axis=0)}
        made = {"encoder": ours("encoder", {DEGRADED: face})["latent"]}
        made["embedder"] = ours("embedder", {DEGRADED: face})["context"]
        made["denoiser"] = ours("denoiser", {"x": made["encoder"], "context": made["embedder"], **state})["x_next"]
        made["decoder"] = ours("decoder", {"latent_state": made["denoiser"]})["restored"]
        for one in FILES:
            what = f"{one.network}, batch {batch}"
            say(f"{what} against {one.name} as it came")
            found.append(
                compare(
                    what,
                    expected[one.network],
                    made[one.network],
                    device=device.name,
                    precision="fp32",
                    batch=batch,
                    floor=FLOORS_DB["fp32"][0],
                    reference=f"{one.name} as it came",
                )
            )
    return found
