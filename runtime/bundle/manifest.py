"""The manifest of a deployment bundle: what `manifest.json` may say, checked when it is read."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bfr.runtime.diffusion.solvers import Solver

FORMAT = 1
MANIFEST = "manifest.json"

Precision = Literal["fp32", "fp16", "bf16", "int8"]


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise ValueError("a file of a bundle is named by a relative path inside it")
    return path


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleFile(_Model):
    """A file of the bundle: its path inside it, its sha256 (hexadecimal) and its size in bytes."""

    path: Annotated[str, AfterValidator(_inside)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Tensor(_Model):
    """An input or output: name, shape ("batch" or a size), dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32"] = "float32"


class Variant(_Model):
    """A network in one precision: its graph, and the weights that the graph refers to."""

    graph: BundleFile
    weights: tuple[BundleFile, ...] = ()
    opset: int


class Source(_Model):
    """The checkpoint that a network was exported from."""

    file: str
    sha256: str


class Network(_Model):
    """A network: its role in the graph's inputs and outputs, its architecture, and its variants by precision.

    kind: of the stage around it, `step...` for a denoiser's; see `bfr.models.stages.kinds`. options: of that stage.
    gflop: billions of floating point operations (2 per multiply-add) of one call on one image.
    source: its checkpoint. more_sources: further ones, by the part of the network that they hold.
    """

    kind: str
    architecture: str
    parameters: dict[str, Any]
    options: dict[str, Any] = {}
    parameter_count: int
    gflop: float | None = None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    source: Source
    more_sources: dict[str, Source] = {}
    variants: dict[Precision, Variant]


class NoiseSchedule(_Model):
    """The schedule that the denoiser was trained with: betas even in themselves, or in their square roots."""

    timesteps: Annotated[int, Field(ge=2)] = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    betas: Literal["linear", "scaled-linear"] = "linear"


class ImageInput(_Model):
    """What a system reads beside the degraded image: (batch, channels, S, S) in [0, 1], all 0 where it is not given.

    `mask` is 1 where the picture is to be made up; `reference` is another picture of the same person.
    """

    name: Literal["mask", "reference"]
    channels: Annotated[int, Field(ge=1)]


class Estimate(_Model):
    """A network called once: an estimator, an encoder, a decoder, a resize.

    inputs, outputs: the network's name of a tensor -> the name of the value that it reads or makes; a tensor that is
    not named stands for the value of its own name. The first values are the system's inputs, `degraded` first.
    """

    kind: Literal["estimate"] = "estimate"
    name: str = "estimate"
    network: str
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}


class Diffuse(_Model):
    """Noise added to the value `source`, up to the start of the sampler of the denoise stage that follows."""

    kind: Literal["diffuse"] = "diffuse"
    name: str = "diffuse"
    source: str = "estimate"


class Guidance(_Model):
    """A gradient network that is called between steps, see `bfr.models.stages.guide`.

    x0 moves against the gradient, by `strength`; the next state moves with it. start, stop: the first and the last
    timestep at which it is called. inputs: as of Estimate, of what it reads beside the step's results.
    """

    network: str
    strength: float
    start: float = 1000.0
    stop: float = 0.0
    inputs: dict[str, str] = {}


class Denoise(_Model):
    """A sampler loop; `prediction` is what the network predicts.

    name: by which a preset names a sampler for this stage alone. source: the value that the loop starts from as it is;
    None where a diffuse stage stands before it. result: the name of the value that it makes.
    conditioner: the network that makes of timesteps what `network` takes in their place, once for all steps.
    conditions: the network's name of an input -> the value that every step reads there.
    strength: of the guidance towards known pixels, for a network that has it folded in (kind `step-known`).
    """

    kind: Literal["denoise"] = "denoise"
    name: str = "denoise"
    network: str
    source: str | None = None
    result: str = "state"
    conditioner: str | None = None
    prediction: Literal["eps", "v", "x0"] = "eps"
    conditions: dict[str, str] = {}
    strength: float | None = None
    guidance: Guidance | None = None


Stage = Annotated[Estimate | Diffuse | Denoise, Field(discriminator="kind")]


def _named_once(stages: tuple[Estimate | Diffuse | Denoise, ...]) -> tuple[Estimate | Diffuse | Denoise, ...]:
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise ValueError("two stages have the same name: each stage of a system has one of its own")
    return stages


class Adapt(_Model):
    """How the start of a grid depends on the image, see `bfr.runtime.restore.adapt`.

    typical: the movement of the estimate from its input, RMS in grey levels of 255, that the preset's start belongs to.
    power: of the movement, that the start goes with. least, most: timesteps that the start stays between.
    """

    typical: Annotated[float, Field(gt=0)]
    power: Annotated[float, Field(gt=0)] = 1.0
    least: Annotated[float, Field(gt=0)]
    most: Annotated[float, Field(gt=0)]


class Sampler(_Model):
    """What solves, where the denoiser is called, and how far the truncation goes.

    spacing: `ddim250` or `250` respaces the schedule as published; `start` is then the index N, whole, which is also
    the number of calls. `time`, `log-snr` and `quadratic` are grids; `start` is then the timestep that the estimate is
    diffused to, any real number of the training schedule's, and `steps` the number of calls.
    solver: None for a system without a loop.
    matched: of a respacing, whether the start is diffused to the timestep of the first call or one index beyond it, as
    published; a grid always is. adapt: of a grid, lets the start depend on the image.
    See `bfr.runtime.diffusion.solvers.step_table`.
    """

    solver: Solver | None = "ddim"
    spacing: str = "ddim250"
    start: float = 100
    steps: Annotated[int, Field(ge=1)] | None = None
    eta: float = 0.0
    matched: bool = False
    adapt: Adapt | None = None

    @property
    def calls(self) -> int:
        """How often the denoiser is called for one image."""
        if self.solver is None:
            return 0
        return int(self.start) if self.steps is None else self.steps

    def __str__(self) -> str:
        """In words: `ddim, 100 of ddim250, eta 0.5` or `dpmpp-2m, 10 steps from t = 396, spaced in log-snr`."""
        if self.solver is None:
            return "no loop"
        if self.steps is None:
            where = f"{self.calls} of {self.spacing}{' matched' * self.matched}"
        else:
            where = f"{self.steps} step{'s' * (self.steps > 1)} from t = {self.start:g}, spaced in {self.spacing}"
        adapted = f", adapted between {self.adapt.least:g} and {self.adapt.most:g}" if self.adapt else ""
        return f"{self.solver}, {where}{adapted}{f', eta {self.eta:g}' * (self.eta > 0)}"

    def shortened(self, calls: int) -> Self:
        """The same sampler with `calls` calls: of a respacing, a lower start."""
        return self.model_copy(update={"start": calls} if self.steps is None else {"steps": calls})


class Preset(Sampler):
    """The samplers of a system: its own, and those of single denoise stages, by their names.

    guidance: the strength of guidance in the place of the stages' own; 0 leaves it out.
    """

    stages: dict[str, Sampler] = {}
    guidance: Annotated[float, Field(ge=0)] | None = None

    def __str__(self) -> str:
        guided = "" if self.guidance is None else f", guidance {self.guidance:g}"
        return "; ".join([super().__str__() + guided, *(f"{name}: {one}" for name, one in self.stages.items())])

    def sampler(self, stage: str) -> Sampler:
        """The sampler of a denoise stage."""
        return self.stages.get(stage, self)


class Licence(_Model):
    """Under what the weights are given away."""

    name: str
    url: str
    notice: str


class Check(_Model):
    """One comparison with float32 on the same inputs and the same noise.

    what: a network or `loop`. psnr_db: peak 2, since images are in [-1, 1]. max_abs: largest absolute difference.
    relative: L2 norm of the difference over that of the reference. floor_db: what psnr_db had to reach.
    reference: what it was compared with. gpu: where it ran, None on a CPU.
    seconds_a_step, eager_seconds_a_step: of a loop, one denoising step, on the machine that verified.
    """

    what: str
    backend: str
    precision: Precision
    batch: int
    psnr_db: float
    max_abs: float
    relative: float
    floor_db: float
    reference: str = "eager float32"
    gpu: str | None = None
    seconds_a_step: float | None = None
    eager_seconds_a_step: float | None = None


class EngineKey(_Model):
    """What an engine depends on. An engine is used only where every field is what it was when it was built.

    graph_sha256, weights_sha256: of the network's files in the bundle. buckets: the batch sizes, one optimization
    profile each, ascending. library: `tensorrt` or `tensorrt-rtx`, and its version. cuda: of the CUDA runtime that
    the library was used with, driver: the CUDA version that the driver supports, both as `13.0`. gpu: its name.
    options: the builder's, by name.
    """

    graph_sha256: str
    weights_sha256: tuple[str, ...]
    precision: Precision
    buckets: tuple[Annotated[int, Field(ge=1)], ...]
    library: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    cuda: str
    driver: str
    gpu: str
    compute_capability: str
    options: dict[str, str | int | bool | None]


class Engine(_Model):
    """An engine that was built, proven and published on this machine.

    half_share: of the tensors that the engine's inspector lists with a floating type, how many are half (0 .. 1).
    runtime_cache: what TensorRT-RTX compiled at its first run. build_seconds: of the build alone. checks: the gate.
    """

    network: str
    file: BundleFile
    key: EngineKey
    half_share: float
    build_seconds: float
    checks: tuple[Check, ...] = ()
    runtime_cache: BundleFile | None = None


class Manifest(_Model):
    """All that the runtime knows of a system. `engines` belong to one machine; all else travels with the bundle.

    inputs: what it reads beside the degraded image. result: the value that is the restored image, (batch, 3, S, S) in
    [-1, 1]. default_preset: of `presets`, the one that is used where none is named; a system without a denoise stage
    has no presets. batches: the only batch sizes that its graphs take, ascending; None where every size will do.
    """

    format: Literal[1]
    system: str
    title: str
    image_size: int
    schedule: NoiseSchedule
    inputs: tuple[ImageInput, ...] = ()
    stages: Annotated[tuple[Stage, ...], AfterValidator(_named_once)]
    result: str = "state"
    batches: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    presets: dict[str, Preset]
    default_preset: str = "reference"
    networks: dict[str, Network]
    licence: Licence
    verified: tuple[Check, ...] = ()
    made_with: dict[str, str]
    engines: tuple[Engine, ...] = ()
