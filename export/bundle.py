"""`bfr export`: from a system's checkpoints to a verified deployment bundle, whole or not at all."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bfr.export.describe import CONDITIONER, describe_network, planned_manifest, spec_of
from bfr.export.onnx.graph import export_graph, module_versions
from bfr.export.onnx.metadata import describe_graph
from bfr.export.options import ExportOptions
from bfr.export.verify.compare import eager_reference, verify
from bfr.models.catalog import NetworkSpec, SystemSpec
from bfr.models.networks.unet import UNet
from bfr.models.stages.kinds import make_stage
from bfr.models.stages.stage import HALVES, Stage
from bfr.models.stages.step import ConditionerStage, cut_variance, has_variance
from bfr.models.weights.checkpoint import load_into
from bfr.models.weights.locate import find_weights
from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle import manifest as m
from bfr.runtime.bundle.bundle import Bundle, describe_file, write_manifest
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import atomic_folder, sha256_file

Progress = Callable[[str], None]


def export_system(
    system: SystemSpec,
    weights: Path | str,
    folder: Path | str,
    options: ExportOptions = ExportOptions(),  # noqa: B008  (frozen)
    *,
    threads: int | None = None,
    verified: bool = True,
    progress: Progress = lambda _: None,
) -> Bundle:
    """Export a system and verify it; the bundle appears under `folder` only when it is complete and verified.

    Weights that are exact in half are stored in half; the graph casts them to float32.

    Args:
        system: The system to export.
        weights: The folder of the checkpoints, or one above it, as `bfr.models.weights.locate` finds them.
        folder: The bundle's folder.
        options: Precisions, opset and so on. fp16 and int8 apply to the networks that keep their accuracy in them.
        threads: Threads of the CPU backend that verifies.
        verified: False skips the verification; the manifest then holds no checks.
        progress: Called with a line at each phase.

    Returns:
        The bundle.

    Raises:
        InputNotFound: A checkpoint is missing.
        InvalidCheckpoint: A checkpoint is damaged or of another network.
        InvalidImage: A calibration image cannot be read.
        InvalidOption: The system has no such variant, or what it consists of does not fit.
        VerificationFailed: The graphs disagree with eager float32; nothing is published.
        WriteFailed: The bundle cannot be written.
    """
    weights, folder = Path(weights), Path(folder)
    time_table = _check_variants(system, options)
    faces = _int8_faces(system, options.calibration) if "int8" in options.precision else []
    modules, sources = {}, dict[str, dict[str, m.Source]]()
    for name, spec in system.networks.items():
        modules[name], sources[name] = load_weights(spec, weights, system, progress)
        if spec.half in options.precision and not hasattr(modules[name], "cast_torso"):
            raise InvalidOption(
                f"{name} of {system.name} has no method cast_torso, which casts what bears half: write it in "
                f"{type(modules[name]).__name__}, or set half=None in its NetworkSpec"
            )
    learned = {"reference": m.Preset(solver="ddpm-learned", spacing="250", start=100)}
    chosen = {"learned_variance": options.learned_variance, "time_table": time_table}
    chain = system.stages
    stages = {name: as_stage(modules[name], spec, **chosen) for name, spec in system.networks.items()}
    if time_table:
        name = system.denoise.network
        stages[CONDITIONER] = ConditionerStage(cast(UNet, modules[name])).eval()
        sources[CONDITIONER] = sources[name]
        conditioned = system.denoise.model_copy(update={"conditioner": CONDITIONER})
        chain = tuple(conditioned if stage == system.denoise else stage for stage in system.stages)
    manifest = planned_manifest(
        system,
        folder,
        title=system.title,
        image_size=system.image_size,
        schedule=system.schedule,
        inputs=system.inputs,
        stages=chain,
        result=system.result,
        presets=learned if options.learned_variance else system.presets,
        default_preset="reference" if options.learned_variance else system.default_preset,
        networks={name: describe_network(system, name, stage, sources[name]) for name, stage in stages.items()},
        licence=system.licence,
        made_with=module_versions("torch", "onnx", "onnxscript", "onnxruntime"),
    )
    with atomic_folder(folder, replace=options.replace, mark=m.MANIFEST) as draft:
        entries: dict[str, m.Network] = {}
        for name, stage in stages.items():
            forms: dict[Precision, Stage] = {"fp32": stage}
            if name in modules and (kind := system.networks[name].half) and kind in options.precision:
                half: Any = copy.deepcopy(modules[name])
                half.cast_torso(HALVES[kind])
                forms[kind] = as_stage(half, system.networks[name], **chosen)
            variants = _export_network(system, draft, options.opset, progress, name, forms, sources[name])
            entries[name] = manifest.networks[name].model_copy(update={"variants": variants})
        manifest = manifest.model_copy(update={"networks": entries})
        write_manifest(draft, manifest)
        if faces:
            manifest = _add_int8(Bundle.open(draft), system, faces, threads, progress)
            write_manifest(draft, manifest)
        checks, reference = list[m.Check](), eager_reference(stages)
        for precision in Bundle.open(draft).precisions if verified else ():
            checks += verify(
                Bundle.open(draft), reference, precision, extent=options.verify, threads=threads, progress=progress
            )
        write_manifest(draft, manifest.model_copy(update={"verified": tuple(checks)}))
    return Bundle.open(folder)


def _check_variants(system: SystemSpec, options: ExportOptions) -> bool:
    """Whether there will be a time table. Raises InvalidOption if a system has no such step graph."""
    offered = {"fp32", "int8", *(spec.half for spec in system.networks.values() if spec.half)}
    if unknown := set(options.precision) - offered:
        raise InvalidOption(
            f"{system.name} has no {min(unknown)} variant: choose {', '.join(sorted(offered - {'int8'}))}"
        )
    networks = [system.networks[stage.network] for stage in system.stages if isinstance(stage, m.Denoise)]
    single = len(networks) == 1 and networks[0].architecture == "unet"
    if options.time_table and not single:
        raise InvalidOption(f"{system.name} has no time table: its denoisers are not one UNet alone. Leave it out")
    if options.learned_variance and not (single and networks[0].kind == "step" and networks[0].learned_variance):
        raise InvalidOption(f"{system.name} has no learned variance: export it without --learned-variance")
    return single if options.time_table is None else options.time_table


def _int8_faces(system: SystemSpec, calibration: Path | None) -> list[Float32]:
    """The faces to calibrate on. Raises InvalidOption if a system has no int8 variant, or no folder was named."""
    if not any(spec.int8 for spec in system.networks.values()):
        raise InvalidOption(
            f"{system.name} has no int8 variant, because its accuracy in 8 bits was not measured. "
            "Leave --precision int8 out; for GPUs there is fp16"
        )
    if calibration is None:
        raise InvalidOption(
            "int8 is calibrated on real faces: name a folder of aligned ones, as `bfr restore --aligned` takes them, "
            "with --calibration FOLDER"
        )
    from bfr.export.onnx.quantize import calibration_faces  # needs ONNX Runtime, as verifying does

    return calibration_faces(calibration, system.image_size)


def _add_int8(
    bundle: Bundle, system: SystemSpec, faces: Sequence[Float32], threads: int | None, progress: Progress
) -> m.Manifest:
    """Write the int8 variants of the networks that keep their accuracy in int8; return the manifest with them."""
    from bfr.export.onnx.quantize import quantize_network

    networks = dict(bundle.manifest.networks)
    for name, spec in system.networks.items():
        if spec.int8:
            progress(f"exporting {name} in int8, calibrated on {len(faces)} faces")
            variants = {**networks[name].variants, "int8": quantize_network(bundle, name, faces, threads=threads)}
            networks[name] = networks[name].model_copy(update={"variants": variants})
    return bundle.manifest.model_copy(update={"networks": networks})


def load_weights(
    spec: NetworkSpec, folder: Path, system: SystemSpec, progress: Progress = lambda _: None
) -> tuple[nn.Module, dict[str, m.Source]]:
    """A network with its weights, and where they came from, by the part of the network that they fill.

    Raises InputNotFound, InvalidCheckpoint.
    """
    module, sources = spec.build(), {}
    for part, download in spec.files.items():
        path = find_weights(folder, download, system)
        progress(f"loading {path.relative_to(folder)}")
        load_into(module.get_submodule(part), path)
        sources[part] = m.Source(file=path.name, sha256=sha256_file(path))
    return module, sources


def as_stage(
    module: nn.Module, spec: NetworkSpec, *, learned_variance: bool = False, time_table: bool = False
) -> Stage:
    """Return the stage of `bfr.models.stages.kinds` around a network; changes the network where channels are cut.

    Args:
        module: The network, with its weights.
        spec: Its entry in the system.
        learned_variance: Keep the variance channels of the output.
        time_table: Let the stage read what ConditionerStage computes, instead of timesteps.
    """
    kind, options = "step-learned" if learned_variance and spec.kind == "step" else spec.kind, dict(spec.options)
    if kind.startswith("step") and isinstance(module, UNet):
        if time_table:
            options["features"] = ConditionerStage(module).features
        unused = spec.learned_variance and not kind.startswith("step-learned")
        if unused and has_variance(module, options.get("channels")):
            cut_variance(module)
    return make_stage(kind, module, options)


def _export_network(
    system: SystemSpec,
    folder: Path,
    opset: int,
    progress: Progress,
    name: str,
    forms: Mapping[Precision, Stage],
    sources: dict[str, m.Source],
) -> dict[Precision, m.Variant]:
    """Export the graphs of one network: `forms` is its stage in each precision, fp32 among them.

    sources: the checkpoints of its weights, by the part of the network that they fill.
    """
    stage, size = forms["fp32"], spec_of(system, name).size or system.image_size
    metadata = describe_graph(
        system=system.name,
        network=name,
        kind=stage.kind,
        size=system.image_size,
        tensors=(*stage.examples(size), *stage.outputs),
        licence=system.licence.name,
        sources=sources,
    )
    variants: dict[Precision, m.Variant] = {}
    for precision, form in forms.items():
        progress(f"exporting {name} in {precision}, opset {opset}")
        variants[precision] = _export_variant(form, name, size, precision, folder, opset, metadata)
    return variants


def _export_variant(
    stage: Stage, name: str, size: int, precision: Precision, folder: Path, opset: int, metadata: Mapping[str, str]
) -> m.Variant:
    store_half = precision == "fp32" and fits_half(stage)
    file = f"{name}.onnx" if precision == "fp32" else f"{name}.{precision}.onnx"
    paths = export_graph(
        stage,
        stage.examples(size),
        stage.outputs,
        folder / file,
        opset=opset,
        store_half=store_half,
        metadata=metadata,
    )
    graph, weights = (describe_file(folder, path) for path in paths)
    return m.Variant(graph=graph, weights=(weights,), opset=opset)


def fits_half(module: nn.Module) -> bool:
    """Whether all weights are exact in half precision."""
    weights = list(module.parameters())
    return bool(weights) and all(torch.equal(weight, weight.half().float()) for weight in weights)
