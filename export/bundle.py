"""`bfr export`: from a system's checkpoints to a verified deployment bundle, whole or not at all."""

import copy
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bfr.export.onnx import DEFAULT_OPSET, export_graph
from bfr.export.step import EstimatorStage, LearnedVarianceStep, LinearStep, cut_variance
from bfr.export.verify import verify
from bfr.models.catalog import NetworkSpec, SystemSpec
from bfr.models.checkpoint import load_into
from bfr.models.unet import UNet
from bfr.runtime import manifest as m
from bfr.runtime.bundle import Bundle, describe_file, write_manifest
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.files import atomic_folder, sha256_file
from bfr.runtime.manifest import Precision

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
Progress = Callable[[str], None]


def export_system(
    system: SystemSpec,
    weights: Path,
    folder: Path,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    opset: int = DEFAULT_OPSET,
    learned_variance: bool = False,
    replace: bool = False,
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> Bundle:
    """Export a system and verify it; the bundle appears under `folder` only when it is whole and verified.

    weights: the folder of the checkpoints, under their published names or as .safetensors; weights that are exact in
    half are stored in half and widened in the graph. precisions: fp32, and fp16 for the networks that bear it.
    learned_variance: the step graph of DDPM's learned variance instead of the linear one.
    threads: of the CPU backend, where it verifies.
    Raises InputNotFound, InvalidCheckpoint, InvalidOption, VerificationFailed, WriteFailed.
    """
    if "fp32" not in precisions:
        raise InvalidOption("fp32 is always exported: half precision falls back on it. Add --precision fp32")
    modules, sources = {}, {}
    for name, spec in system.networks.items():
        path = find_weights(weights, spec.weights.file, system.name)
        progress(f"loading {path.name}")
        module = spec.build()
        load_into(module, path)
        modules[name], sources[name] = module, m.Source(file=path.name, sha256=sha256_file(path))
    if learned_variance:
        presets = {"reference": m.Preset(solver="ddpm-learned", spacing="250", start=100)}
    else:
        presets = system.presets
    with atomic_folder(folder, replace=replace) as partial:
        entries, stages = {}, {}
        for name, spec in system.networks.items():
            stages[name] = as_stage(modules[name], spec, learned_variance=learned_variance)
            variants = {}
            for precision in precisions:
                if precision in ("fp32", spec.half):
                    progress(f"exporting {name} in {precision}, opset {opset}")
                    stage = (
                        stages[name]
                        if precision == "fp32"
                        else in_half(modules[name], spec, precision, learned_variance)
                    )
                    variants[precision] = _export_variant(stage, name, system, precision, partial, opset)
            entries[name] = _network_entry(spec, stages[name], system, sources[name], variants)
        manifest = m.Manifest(
            format=1,
            system=system.name,
            title=system.title,
            image_size=system.image_size,
            schedule=system.schedule,
            stages=system.stages,
            presets=presets,
            networks=entries,
            licence=system.licence,
            made_with={package: version(package) for package in ("torch", "onnx", "onnxscript", "onnxruntime")},
        )
        write_manifest(partial, manifest)
        checks: list[m.Check] = []
        for precision in Bundle.open(partial).precisions:
            checks += verify(Bundle.open(partial), stages, precision, threads=threads, progress=progress)
        write_manifest(partial, manifest.model_copy(update={"verified": tuple(checks)}))
    return Bundle.open(folder)


def find_weights(folder: Path, file: str, system: str) -> Path:
    """The checkpoint `file` in `folder`, or its .safetensors copy. Raises InputNotFound with the remedy."""
    for path in ((folder / file).with_suffix(".safetensors"), folder / file):
        if path.is_file():
            return path
    raise InputNotFound(
        f"{folder / file} does not exist: `bfr fetch {system}` downloads it, or name its folder with --weights"
    )


def as_stage(module: nn.Module, spec: NetworkSpec, *, learned_variance: bool = False) -> nn.Module:
    """The stage module of `bfr.export.step` around a network; changes the network where channels are cut."""
    if spec.kind == "estimator":
        return EstimatorStage(module).eval()
    if learned_variance:
        if not spec.learned_variance:
            raise InvalidOption("this denoiser has no learned variance: export it without --learned-variance")
        return LearnedVarianceStep(module).eval()
    if spec.learned_variance and isinstance(module, UNet):
        cut_variance(module)
    return LinearStep(module).eval()


def in_half(module: nn.Module, spec: NetworkSpec, precision: Precision, learned_variance: bool) -> nn.Module:
    """A copy of a network with its torso in half, as a stage."""
    half: Any = copy.deepcopy(module)
    half.cast_torso(DTYPES[precision])
    if spec.kind == "estimator":
        return EstimatorStage(half).eval()
    return (LearnedVarianceStep if learned_variance else LinearStep)(half).eval()


def stage_examples(stage: nn.Module, size: int, batch: int = 2) -> dict[str, Tensor]:
    """Example inputs of a stage, by name, in the order of its `forward`."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 3, size, size, generator=generator)
    if isinstance(stage, EstimatorStage):
        return {"degraded": image}
    return {
        "x": image,
        "h1": image.clone(),
        "h2": image.clone(),
        "t": torch.full((batch,), 100.0),
        "row": torch.rand(batch, 8, generator=generator),
        "noise": image.clone(),
    }


def _output_names(stage: nn.Module) -> tuple[str, ...]:
    return ("estimate",) if isinstance(stage, EstimatorStage) else ("x_next", "x0")


def _export_variant(
    stage: nn.Module, name: str, system: SystemSpec, precision: Precision, folder: Path, opset: int
) -> m.Variant:
    store_half = precision == "fp32" and fits_half(stage)
    file = f"{name}.onnx" if precision == "fp32" else f"{name}.{precision}.onnx"
    examples = stage_examples(stage, system.image_size)
    paths = export_graph(stage, examples, _output_names(stage), folder / file, opset=opset, store_half=store_half)
    graph, weights = (describe_file(folder, path) for path in paths)
    return m.Variant(graph=graph, weights=(weights,), opset=opset)


def fits_half(module: nn.Module) -> bool:
    """Whether all weights are exact in half: they came so, and are kept so."""
    return all(torch.equal(parameter, parameter.half().float()) for parameter in module.parameters())


def _network_entry(
    spec: NetworkSpec, stage: nn.Module, system: SystemSpec, source: m.Source, variants: dict[Precision, m.Variant]
) -> m.Network:
    examples = stage_examples(stage, system.image_size)
    image = ("batch", 3, system.image_size, system.image_size)
    kind = {EstimatorStage: "estimator", LinearStep: "step", LearnedVarianceStep: "step-learned"}[type(stage)]
    return m.Network(
        kind=kind,  # type: ignore[arg-type]
        architecture=spec.architecture,
        parameters=spec.parameters,
        parameter_count=sum(parameter.numel() for parameter in stage.parameters()),
        gflop=round(gflop(stage, system.image_size), 1),
        inputs=tuple(m.Tensor(name=key, shape=("batch", *value.shape[1:])) for key, value in examples.items()),
        outputs=tuple(m.Tensor(name=key, shape=image) for key in _output_names(stage)),
        source=source,
        variants=variants,
    )


def gflop(stage: nn.Module, size: int) -> float:
    """Billions of floating point operations of one call on one image, 2 per multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        meta = copy.deepcopy(stage).to("meta")
        meta(**{name: value.to("meta") for name, value in stage_examples(stage, size, batch=1).items()})
    return float(counter.get_total_flops()) / 1e9
