"""The manifest of a deployment bundle: what `manifest.json` may say, checked when it is read."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from typing_extensions import Self

from bfr.runtime.diffusion.solvers import Solver
from bfr.runtime.files import LONGEST_NAME

FORMAT = 1
LARGEST_BATCH = 4096
LARGEST_GRAPH = (1 << 31) - 1  # bytes, of a message of protobuf
MANIFEST = "manifest.json"

Precision = Literal["fp32", "fp16", "bf16", "int8"]


# A name has no character that a shell, a terminal or a file system interprets.
NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def _inside(path: str) -> str:
    """Refuse what is not below the bundle's folder on every system: drives, streams (`a:b`) and devices (`NUL`) too."""
    parts = path.split("/")
    if (
        any(part in ("", "..") or part != part.rstrip(". ") or len(part.encode()) > LONGEST_NAME for part in parts)
        or re.search(r'[\x00-\x1f\x7f\\:<>"|?*]', path)
        or any(re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(\..*)?", p, re.IGNORECASE) for p in parts)
    ):
        raise ValueError("the path of a file must be relative, inside the bundle, and valid on every system")
    return path


def _onnx(file: "BundleFile") -> "BundleFile":
    if not file.path.endswith(".onnx"):  # .ort would choose another loader
        raise ValueError("a graph is a file named .onnx")
    if file.bytes > LARGEST_GRAPH:
        raise ValueError(f"a graph has at most {LARGEST_GRAPH:,} bytes, and its weights are in other files")
    return file


class Model(BaseModel):
    """An immutable model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BundleFile(Model):
    """A file of the bundle: its path inside it, its sha256 (hexadecimal) and its size in bytes."""

    path: Annotated[str, AfterValidator(_inside)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Tensor(Model):
    """An input or output: name, shape ("batch" or a size), dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32"] = "float32"


class Variant(Model):
    """A network in one precision: its graph, and the weights that the graph refers to."""

    graph: Annotated[BundleFile, AfterValidator(_onnx)]
    weights: tuple[BundleFile, ...] = ()
    opset: int


class Source(Model):
    """The checkpoint that a network was exported from."""

    file: str
    sha256: str


class Network(Model):
    """A network: its role in the graph's inputs and outputs, its architecture, and its variants by precision.

    Attributes:
        kind: Kind of the stage around it, `step...` for a denoiser's; see `bfr.models.stages.kinds`.
        options: Options of that stage.
        gflop: Billions of floating point operations (2 per multiply-add) of one call on one image.
        source: Its checkpoint.
        more_sources: Further ones, by the part of the network that they hold.
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


class NoiseSchedule(Model):
    """The schedule that the denoiser was trained with: betas even in themselves, or in their square roots."""

    timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    betas: Literal["linear", "scaled-linear"] = "linear"


class ImageInput(Model):
    """What a system reads beside the degraded image: (batch, channels, S, S) in [0, 1], all 0 if it is not given.

    `mask` is 1 in the area to inpaint; `reference` is another picture of the same person.
    """

    name: Literal["mask", "reference"]
    channels: Annotated[int, Field(ge=1, le=64)]


class Estimate(Model):
    """A network called once: an estimator, an encoder, a decoder, a resize.

    inputs, outputs: the network's name of a tensor -> the name of the value that it reads or makes; a tensor that is
        not listed maps to the value of the same name. The first values are the system's inputs, `degraded` first.
    """

    kind: Literal["estimate"] = "estimate"
    name: str = "estimate"
    network: str
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}


class Diffuse(Model):
    """Noise added to the value `source`, up to the start of the sampler of the denoise stage that follows."""

    kind: Literal["diffuse"] = "diffuse"
    name: str = "diffuse"
    source: str = "estimate"


class Guidance(Model):
    """A gradient network that is called between steps, see `bfr.models.stages.guide`.

    x0 moves against the gradient, by `strength`; the next state moves with it. start, stop: the first and the last
    timestep at which it is called. inputs: as of Estimate, of what it reads beside the step's results.
    """

    network: str
    strength: float
    start: float = 1000.0
    stop: float = 0.0
    inputs: dict[str, str] = {}


class Denoise(Model):
    """A sampler loop; `prediction` is what the network predicts.

    Attributes:
        name: The stage's name, by which a preset can name a sampler for this stage alone.
        source: The value that the loop starts from without noise; None after a diffuse stage.
        result: The name of the value that it makes.
        conditioner: The network that computes, once for all steps, what `network` reads instead of timesteps.
        conditions: The network's name of an input -> the value that every step reads there.
        strength: Strength of the guidance in the network's own graph (kinds `step-known`, `step-learned-smooth` and
            `step-learned-reference`).
        guidance: Guidance by a separate network between the steps.
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
        raise ValueError("two stages have the same name: give each stage its own")
    return stages


class Adapt(Model):
    """How the start of a grid depends on the image, see `bfr.runtime.restore.adapt`.

    Attributes:
        typical: The movement of the estimate from its input for which the preset's start is right, RMS in grey levels
            of 255.
        power: The start is proportional to this power of the movement.
        least: Lowest start, a timestep.
        most: Highest start, a timestep.
    """

    typical: Annotated[float, Field(gt=0)]
    power: Annotated[float, Field(gt=0)] = 1.0
    least: Annotated[float, Field(gt=0)]
    most: Annotated[float, Field(gt=0)]


class Pixels(Model):
    """How images become what the networks read, and results become images; the defaults are `bfr`'s own.

    Attributes:
        resize: Resize of images of another size, antialiased bicubic, or bilinear between the corners' centres.
        rounding: Rounding of results to levels.
        size: Size of results, that of the image or of the networks.
    """

    resize: Literal["bicubic", "corners"] = "bicubic"
    rounding: Literal["nearest", "down"] = "nearest"
    size: Literal["image", "network"] = "image"


class Sampler(Model):
    """A sampler: the solver, the timesteps of the calls, and the start.

    Attributes:
        solver: None for a system without a loop.
        spacing: `ddim250` or `250` respaces the schedule as published; `start` is then the index N, whole, which is
            also the number of calls. `time`, `log-snr` and `quadratic` are grids; `start` is then the timestep that the
            estimate is diffused to, any real number of the training schedule's, and `steps` the number of calls.
        stop: For a respacing, the index of the last call, whose x0 is the result.
        matched: For a respacing: diffuse the start to the timestep of the first call, else one index beyond it, as
            published. A grid always does.
        adapt: For a grid, lets the start depend on the image. See `bfr.runtime.diffusion.solvers.step_table`.
    """

    solver: Solver | None = "ddim"
    spacing: str = "ddim250"
    start: float = 100
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    eta: float = 0.0
    stop: Annotated[int, Field(ge=0)] = 0
    matched: bool = False
    adapt: Adapt | None = None

    @property
    def calls(self) -> int:
        """How often the denoiser is called for one image."""
        if self.solver is None:
            return 0
        return int(self.start) - self.stop if self.steps is None else self.steps

    def __str__(self) -> str:
        """In words: `ddim, 100 of ddim250, eta 0.5` or `dpmpp-2m, 10 steps from t = 396, spaced in log-snr`."""
        if self.solver is None:
            return "no loop"
        if self.steps is None:
            stop = f" down to {self.stop}" if self.stop else ""
            where = f"{self.calls} of {self.spacing}{stop}{' matched' * self.matched}"
        else:
            where = f"{self.steps} step{'s' * (self.steps > 1)} from t = {self.start:g}, spaced in {self.spacing}"
        adapted = f", adapted between {self.adapt.least:g} and {self.adapt.most:g}" if self.adapt else ""
        return f"{self.solver}, {where}{adapted}{f', eta {self.eta:g}' * (self.eta > 0)}"

    def shortened(self, calls: int) -> Self:
        """Return the same sampler with `calls` calls: of a respacing, a lower start."""
        return self.model_copy(update={"start": calls + self.stop} if self.steps is None else {"steps": calls})


class Preset(Sampler):
    """The samplers of a system: its own, and those of single denoise stages, by their names.

    Attributes:
        guidance: The strength of guidance instead of the stages' own; 0 disables it.
        weight: The fidelity weight instead of the manifest's.
        pixels: How images are resized and rounded, if the system's authors differ from bfr's default.
    """

    stages: dict[str, Sampler] = {}
    guidance: Annotated[float, Field(ge=0)] | None = None
    weight: float | None = None
    pixels: Pixels = Pixels()

    def __str__(self) -> str:
        own = "".join(
            f", {name} {value:g}"
            for name, value in (("guidance", self.guidance), ("weight", self.weight))
            if value is not None
        )
        own += "".join(f", {name} {value}" for name, value in self.pixels.model_dump(exclude_defaults=True).items())
        return "; ".join([super().__str__() + own, *(f"{name}: {one}" for name, one in self.stages.items())])

    def sampler(self, stage: str) -> Sampler:
        """Return the sampler of a denoise stage."""
        return self.stages.get(stage, self)


class Licence(Model):
    """The licence of the weights."""

    name: str
    url: str
    notice: str


Extent = Literal["quick", "full"]
"""How much of a loop a verification runs."""


class Check(Model):
    """One comparison with float32 on the same inputs and the same noise.

    Attributes:
        what: A network or `loop`.
        psnr_db: Peak 2, since images are in [-1, 1].
        max_abs: Largest absolute difference.
        relative: L2 norm of the difference over that of the reference.
        floor_db: What psnr_db had to reach.
        reference: What it was compared with.
        gpu: The GPU it ran on; None on a CPU.
        extent: `quick` if loops ran a few steps, over the whole range of time; `full` if they ran all steps.
        seconds_a_step: Seconds of one denoising step of a loop, on the machine that verified.
        eager_seconds_a_step: The same of eager PyTorch, on the machine that verified.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # equal to the last bit: an infinite ratio

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
    extent: Extent = "full"
    seconds_a_step: float | None = None
    eager_seconds_a_step: float | None = None


class Manifest(Model):
    """A system: its networks, stages, presets and origin.

    Attributes:
        inputs: What it reads beside the degraded image.
        result: The value that is the restored image, (batch, 3, S, S) in [-1, 1].
        batches: The only batch sizes that its graphs take, ascending; None for any size.
        weight: The default fidelity weight of its network; None if the network reads none.
        default_preset: Name of the preset to use by default; a system without a denoise stage has no presets.
    """

    format: Literal[1]
    system: Name
    title: str
    image_size: Annotated[int, Field(ge=1, le=8192)]
    schedule: NoiseSchedule
    inputs: tuple[ImageInput, ...] = ()
    stages: Annotated[tuple[Stage, ...], AfterValidator(_named_once)]
    result: str = "state"
    batches: tuple[Annotated[int, Field(ge=1, le=LARGEST_BATCH)], ...] | None = None
    weight: float | None = None
    presets: dict[str, Preset]
    default_preset: str = "reference"
    networks: dict[Name, Network]
    licence: Licence
    verified: tuple[Check, ...] = ()
    made_with: dict[str, str]
