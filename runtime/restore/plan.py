"""The plan of a chain: a bundle's stages and a preset's samplers, resolved before a device is opened.

A chain is a list of calls over named values. The first values are the system's inputs, `degraded` among them; every
stage reads some and makes others, and one of them is the restored image.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from bfr.runtime.bundle import manifest as m
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.diffusion.solvers import StepTable
from bfr.runtime.errors import BundleInvalid, InvalidOption
from bfr.runtime.restore.adapt import Truncate, truncation
from bfr.runtime.restore.tables import sampler_table

Shape = tuple[int, ...]
"""The shape of one image's share of a value, without the batch."""

DEGRADED = "degraded"
ESTIMATE = "estimate"
WEIGHT = "weight"
STEP_INPUTS = ("x", "h1", "h2", "t", "row", "noise")
GUIDE_INPUTS = ("x_next", "x0", "row", "strength")
STEP_OUTPUTS, GUIDE_OUTPUTS = ("x_next", "x0"), ("x_next_guided", "x0_guided")


@dataclass(frozen=True, slots=True)
class Call:
    """A network that is called once.

    Attributes:
        inputs: The network's name of a tensor -> name of the value.
        outputs: As `inputs`.
    """

    name: str
    network: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Guide:
    """A gradient network called after some steps.

    Attributes:
        inputs: As in Call, beyond GUIDE_INPUTS.
        steps: Numbers of the steps after which it is called.
    """

    network: str
    inputs: Mapping[str, str]
    strength: float
    steps: frozenset[int]


@dataclass(frozen=True, slots=True)
class Loop:
    """A denoise stage, and the diffuse stage before it.

    Attributes:
        shape: Shape of the state.
        diffuse: The name of that stage; None if the loop starts from the value `source` without noise.
        strength: Strength of the guidance in the network's own graph; None without such guidance.
        features: Number of features that the conditioner returns; 0 without one.
        wide: The shape of the noise that a step reads, if it differs from the state's: a step may add noise twice.
    """

    name: str
    network: str
    table: StepTable
    shape: Shape
    source: str
    result: str
    diffuse: str | None = "diffuse"
    conditions: Mapping[str, str] = field(default_factory=dict)
    strength: float | None = None
    conditioner: str | None = None
    features: int = 0
    guide: Guide | None = None
    wide: Shape | None = None

    @property
    def noise(self) -> Shape:
        """The shape of the noise that a step reads."""
        return self.wide or self.shape

    def draws(self) -> dict[Shape, int]:
        """Count its draws of noise, by shape: one to diffuse, one a step but for the last, which adds none."""
        found = {} if self.diffuse is None else {self.shape: 1}
        return found | {self.noise: found.get(self.noise, 0) + len(self.table) - 1}


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls of a system under a preset.

    Attributes:
        inputs: Shapes of what the host uploads.
        values: Shapes of all values, inputs included.
        result: Name of the restored image.
        truncate: Chooses a table for each image from its estimate.
    """

    inputs: Mapping[str, Shape]
    values: Mapping[str, Shape]
    stages: tuple[Call | Loop, ...]
    result: str
    truncate: Truncate | None = None

    @property
    def loops(self) -> Iterator[Loop]:
        """The denoise stages."""
        return (stage for stage in self.stages if isinstance(stage, Loop))

    @property
    def steps(self) -> int:
        """The steps of all denoise stages together; 0 if there is none."""
        return sum(len(loop.table) for loop in self.loops)

    def calls(self) -> dict[str, int]:
        """Network -> how often it is called for a batch; conditioners, which are called ahead, are not counted."""
        found: dict[str, int] = {}
        for stage in self.stages:
            count = len(stage.table) if isinstance(stage, Loop) else 1
            found[stage.network] = found.get(stage.network, 0) + count
            if isinstance(stage, Loop) and stage.guide:
                found[stage.guide.network] = found.get(stage.guide.network, 0) + len(stage.guide.steps)
        return found


def make_plan(bundle: Bundle, preset: m.Preset) -> Plan:
    """Return the chain of a bundle under a preset.

    Raises InvalidOption if the preset does not fit, BundleInvalid where stages and networks do not fit each other.
    """
    manifest = bundle.manifest
    side = manifest.image_size
    inputs: dict[str, Shape] = {DEGRADED: (3, side, side)}
    inputs |= {one.name: (one.channels, side, side) for one in manifest.inputs}
    inputs |= {} if manifest.weight is None else {WEIGHT: (1,)}
    values, stages, diffuse = dict(inputs), list[Call | Loop](), None
    _check_names(bundle, preset)
    for stage in manifest.stages:
        made: dict[str, Shape] = {}
        if isinstance(stage, m.Diffuse):
            _need(bundle, stage.name, values, [(stage.source, None)])
            diffuse = stage
            continue
        network = _network(bundle, stage.network)
        if isinstance(stage, m.Estimate):
            call = Call(
                stage.name, stage.network, _names(network.inputs, stage.inputs), _names(network.outputs, stage.outputs)
            )
            _need(bundle, stage.name, values, _read(network, call.inputs))
            stages.append(call)
            made = {call.outputs[t.name]: _shape(t) for t in network.outputs}
        else:
            loop = _loop(bundle, preset, stage, diffuse)
            read = [(loop.source, loop.shape), *_read(network, loop.conditions)]
            read += _read(bundle.network(loop.guide.network), loop.guide.inputs) if loop.guide else []
            _need(bundle, stage.name, values, read)
            stages.append(loop)
            made, diffuse = {loop.result: loop.shape}, None
        if taken := made.keys() & values.keys():
            raise BundleInvalid(
                f"{bundle.folder}: stage {stage.name} makes {min(taken)}, which an earlier stage makes: export it again"
            )
        values |= made
    _need(bundle, "result", values, [(manifest.result, None)])
    if not stages:
        raise BundleInvalid(f"{bundle.folder} calls no network: export the bundle again")
    plan = Plan(inputs, values, tuple(stages), manifest.result)
    return replace(plan, truncate=_truncation(bundle, preset, plan)) if preset.adapt else plan


def _loop(bundle: Bundle, preset: m.Preset, stage: m.Denoise, diffuse: m.Diffuse | None) -> Loop:
    if (diffuse is None) == (stage.source is None):
        raise BundleInvalid(
            f"{bundle.folder}: stage {stage.name} needs either a diffuse stage before it or a source: export it again"
        )
    network, table = _network(bundle, stage.network), sampler_table(bundle, preset, stage)
    shapes = {tensor.name: _shape(tensor) for tensor in network.inputs}
    own: dict[str, Shape | None] = dict.fromkeys(STEP_INPUTS, shapes.get("x"))
    own |= {"t": (), "row": table.rows.shape[1:], "noise": None}
    own |= {} if stage.strength is None else {"strength": ()}
    features = 0
    if stage.conditioner is not None:
        made = _network(bundle, stage.conditioner).outputs
        features = prod(size for tensor in made if tensor.name == "conditioning" for size in _shape(tensor))
        _check_ends(bundle, stage.conditioner, {"t": ()}, {"conditioning": (features,)})
        own["t"] = (features,)
    _check_ends(bundle, stage.network, own, dict.fromkeys(STEP_OUTPUTS, shapes.get("x")))
    for shape in (shapes["x"], shapes["noise"]):
        if prod(shape) % 4:
            raise BundleInvalid(
                f"{bundle.folder}: stage {stage.name} adds noise of {shape}, and noise comes in fours: export it with "
                "sides of an even number of pixels"
            )
    extra = tuple(tensor for tensor in network.inputs if tensor.name not in own)
    guidance = preset.guidance
    strength = guidance if guidance is not None and stage.strength is not None else stage.strength
    return Loop(
        name=stage.name,
        network=stage.network,
        table=table,
        shape=shapes["x"],
        source=stage.source or (diffuse.source if diffuse else ""),
        result=stage.result,
        diffuse=diffuse.name if diffuse else None,
        conditions=_names(extra, stage.conditions),
        strength=strength,
        conditioner=stage.conditioner,
        features=features,
        guide=_guide(bundle, guidance, stage.guidance, table, shapes["x"]) if stage.guidance else None,
        wide=shapes["noise"],
    )


def _guide(bundle: Bundle, override: float | None, spec: m.Guidance, table: StepTable, state: Shape) -> Guide | None:
    strength = spec.strength if override is None else override
    steps = frozenset(k for k, t in enumerate(table.timesteps) if spec.stop <= t <= spec.start)
    if strength == 0.0 or not steps:
        return None
    reads = dict.fromkeys(GUIDE_INPUTS, state) | {"row": table.rows.shape[1:], "strength": ()}
    _check_ends(bundle, spec.network, reads, dict.fromkeys(GUIDE_OUTPUTS, state))
    extra = tuple(tensor for tensor in _network(bundle, spec.network).inputs if tensor.name not in GUIDE_INPUTS)
    return Guide(spec.network, _names(extra, spec.inputs), strength, steps)


def _truncation(bundle: Bundle, preset: m.Preset, plan: Plan) -> Truncate | None:
    if [loop.source for loop in plan.loops] != [ESTIMATE] or plan.values[ESTIMATE] != plan.values[DEGRADED]:
        raise InvalidOption(
            f"adapt compares the image with the estimate that is diffused, and {bundle.manifest.system} has no single "
            "loop of that kind: leave adapt out"
        )
    return truncation(preset, lambda other: sampler_table(bundle, other))


def _check_names(bundle: Bundle, preset: m.Preset) -> None:
    known = {stage.name for stage in bundle.denoisers}
    if unknown := preset.stages.keys() - known:
        raise InvalidOption(
            f"the preset names a sampler of {min(unknown)}: {bundle.manifest.system} has the denoise stages "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    guided = any(stage.guidance or stage.strength is not None for stage in bundle.denoisers)
    if preset.guidance is not None and not guided:
        raise InvalidOption(f"guidance {preset.guidance:g}: {bundle.manifest.system} has no guided stage; leave it out")
    if any(sampler.adapt for sampler in preset.stages.values()):
        raise InvalidOption("adapt belongs to a preset's own sampler, not to that of a single stage")


def _read(network: m.Network, names: Mapping[str, str]) -> list[tuple[str, Shape]]:
    """The values that a network reads by `names` (its own -> the value's), and their shapes."""
    return [(names[tensor.name], _shape(tensor)) for tensor in network.inputs if tensor.name in names]


def _need(bundle: Bundle, name: str, values: Mapping[str, Shape], read: Iterable[tuple[str, Shape | None]]) -> None:
    """Raise BundleInvalid unless the values that a stage reads are there, in the shapes that it reads."""
    for value, shape in read:
        if value not in values:
            raise BundleInvalid(
                f"{bundle.folder}: stage {name} reads {value}, which no stage before it makes: export the bundle again"
            )
        if shape not in (None, values[value]):
            raise BundleInvalid(
                f"{bundle.folder}: stage {name} reads {value} as {shape}, and it is {values[value]}: export the bundle "
                "again"
            )


def _check_ends(
    bundle: Bundle, name: str, reads: Mapping[str, Shape | None], makes: Mapping[str, Shape | None]
) -> None:
    """Raise BundleInvalid unless a network has the inputs and outputs that its stage binds; a shape of None is any."""
    network = _network(bundle, name)
    for wanted, tensors in ((reads, network.inputs), (makes, network.outputs)):
        there = {tensor.name: _shape(tensor) for tensor in tensors}
        for end, shape in wanted.items():
            if end not in there:
                problem = f"no {end}, which its stage needs"
            elif shape not in (None, there[end]):
                problem = f"{end} as {there[end]}, and its stage as {shape}"
            else:
                continue
            raise BundleInvalid(f"{bundle.folder}: the network {name} has {problem}: export the bundle again")


def _network(bundle: Bundle, name: str) -> m.Network:
    if name not in bundle.manifest.networks:
        raise BundleInvalid(
            f"{bundle.folder}: a stage calls the network {name}, which the bundle lacks: export it again"
        )
    return bundle.network(name)


def _names(tensors: tuple[m.Tensor, ...], renamed: Mapping[str, str]) -> dict[str, str]:
    return {tensor.name: renamed.get(tensor.name, tensor.name) for tensor in tensors}


def _shape(tensor: m.Tensor) -> Shape:
    sizes = tensor.shape[1:]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise BundleInvalid(f"{tensor.name} has the shape {tensor.shape}, whose sizes are not fixed: export it again")
    return tuple(map(int, sizes))
