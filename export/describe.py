"""The manifest of a system before its graphs are exported: what does not fit is told before minutes of work."""

import copy
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bfr.models.catalog import NetworkSpec, SystemSpec
from bfr.models.stages.stage import Stage, as_tuple
from bfr.runtime.bundle import manifest as m
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import BfrError, InvalidOption
from bfr.runtime.restore.plan import make_plan

CONDITIONER = "conditioner"


def spec_of(system: SystemSpec, name: str) -> NetworkSpec:
    """The entry of a network in its system; that of the denoiser for its conditioner."""
    return system.networks[system.denoise.network if name == CONDITIONER else name]


def planned_manifest(system: SystemSpec, folder: Path, **content: Any) -> m.Manifest:
    """The manifest of a system before its graphs, and a plan of each preset: what does not fit is told at once.

    Raises InvalidOption.
    """
    name: str | None = None
    try:
        manifest = m.Manifest(format=1, system=system.name, **content)
        bundle = Bundle(folder, manifest, "")
        for name in (None, *manifest.presets) if bundle.denoisers else (None,):
            make_plan(bundle, bundle.preset(name))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise InvalidOption(f"system {system.name!r}: {problems}") from error
    except BfrError as error:
        where = f" with preset {name!r}" if name else ""
        raise InvalidOption(f"system {system.name!r} cannot run{where}: {error}") from error
    return manifest


def describe_network(system: SystemSpec, name: str, stage: Stage, sources: dict[str, m.Source]) -> m.Network:
    """The manifest's entry of a network, before its graphs.

    Args:
        system: The system.
        name: The network's name in the bundle.
        stage: Its stage in float32.
        sources: The checkpoints of its weights, by the part of the network that they fill.

    Raises:
        InvalidOption: The network does not run on what its stage gives it.
    """
    spec = spec_of(system, name)
    size = spec.size or system.image_size
    try:
        inputs, outputs, operations = stage.examples(size), output_examples(stage, size), gflop(stage, size)
    except (RuntimeError, TypeError, ValueError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidOption(
            f"system {system.name!r}: {name} ({spec.architecture}) does not run as {stage.kind} at {size}x{size}: "
            f"{problem}"
        ) from error
    first, *more = sources or [""]
    return m.Network(
        kind=stage.kind,
        architecture=spec.architecture,
        parameters=spec.parameters,
        options=spec.options,
        parameter_count=sum(parameter.numel() for parameter in stage.parameters()),
        gflop=round(operations, 1),
        inputs=_tensors(inputs),
        outputs=_tensors(outputs),
        source=sources.get(first, m.Source(file="", sha256="")),
        more_sources={part: sources[part] for part in more},
        variants={},
    )


def _tensors(examples: dict[str, Tensor]) -> tuple[m.Tensor, ...]:
    return tuple(m.Tensor(name=name, shape=("batch", *value.shape[1:])) for name, value in examples.items())


def output_examples(stage: Stage, size: int) -> dict[str, Tensor]:
    """Return a stage's outputs for its examples, by name, as tensors without values."""
    with torch.device("meta"), torch.no_grad():
        meta = copy.deepcopy(stage).to("meta")
        made = meta(**{name: value.to("meta") for name, value in stage.examples(size, 1).items()})
    return dict(zip(stage.outputs, as_tuple(made), strict=True))


def gflop(stage: Stage, size: int) -> float:
    """Billions of floating point operations of one call on one image, 2 per multiply-add."""
    counter = _Operations()
    with counter:
        output_examples(stage, size)
    return counter.total / 1e9


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Adds up floating point operations, those of gradients too, which torch's own FlopCounterMode refuses."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result
