"""The manifest of a deployment bundle: what `manifest.json` may say, checked when it is read."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bfr.runtime.solvers import Solver

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

    gflop: billions of floating point operations (2 per multiply-add) of one call on one image.
    """

    kind: Literal["estimator", "step", "step-learned", "conditioner"]
    architecture: str
    parameters: dict[str, Any]
    parameter_count: int
    gflop: float | None = None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    source: Source
    variants: dict[Precision, Variant]


class NoiseSchedule(_Model):
    """The linear schedule that the denoiser was trained with."""

    timesteps: Annotated[int, Field(ge=2)] = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02


class Estimate(_Model):
    """A network called once on the degraded image."""

    kind: Literal["estimate"] = "estimate"
    network: str


class Diffuse(_Model):
    """Noise added to the previous stage's result, up to the preset's start."""

    kind: Literal["diffuse"] = "diffuse"


class Denoise(_Model):
    """The preset's sampler loop; `prediction` is what the network predicts.

    conditioner: the network that makes of timesteps what `network` takes in their place, once for all steps.
    """

    kind: Literal["denoise"] = "denoise"
    network: str
    conditioner: str | None = None
    prediction: Literal["eps", "v", "x0"] = "eps"


class Adapt(_Model):
    """How the start of a grid depends on the image, see `bfr.runtime.truncation`.

    typical: the movement of the estimate from its input, RMS in grey levels of 255, that the preset's start belongs to.
    power: of the movement, that the start goes with. least, most: timesteps that the start stays between.
    """

    typical: Annotated[float, Field(gt=0)]
    power: Annotated[float, Field(gt=0)] = 1.0
    least: Annotated[float, Field(gt=0)]
    most: Annotated[float, Field(gt=0)]


class Preset(_Model):
    """A sampler: what solves, where the denoiser is called, and how far the truncation goes.

    spacing: `ddim250` or `250` respaces the schedule as published; `start` is then the index N, whole, which is also
    the number of calls. `time`, `log-snr` and `quadratic` are grids; `start` is then the timestep that the estimate is
    diffused to, any real number of the training schedule's, and `steps` the number of calls.
    matched: of a respacing, whether the start is diffused to the timestep of the first call or one index beyond it, as
    published; a grid always is. adapt: of a grid, lets the start depend on the image.
    See `bfr.runtime.solvers.step_table`.
    """

    solver: Solver = "ddim"
    spacing: str = "ddim250"
    start: float = 100
    steps: Annotated[int, Field(ge=1)] | None = None
    eta: float = 0.0
    matched: bool = False
    adapt: Adapt | None = None

    @property
    def calls(self) -> int:
        """How often the denoiser is called for one image."""
        return int(self.start) if self.steps is None else self.steps

    def __str__(self) -> str:
        """In words: `ddim, 100 of ddim250, eta 0.5` or `dpmpp-2m, 10 steps from t = 396, spaced in log-snr`."""
        if self.steps is None:
            where = f"{self.calls} of {self.spacing}{' matched' * self.matched}"
        else:
            where = f"{self.steps} step{'s' * (self.steps > 1)} from t = {self.start:g}, spaced in {self.spacing}"
        adapted = f", adapted between {self.adapt.least:g} and {self.adapt.most:g}" if self.adapt else ""
        return f"{self.solver}, {where}{adapted}{f', eta {self.eta:g}' * (self.eta > 0)}"

    def shortened(self, calls: int) -> "Preset":
        """The same sampler with `calls` calls: of a respacing, a lower start."""
        return self.model_copy(update={"start": calls} if self.steps is None else {"steps": calls})


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

    default_preset: of `presets`, the one that is used where none is named.
    """

    format: Literal[1]
    system: str
    title: str
    image_size: int
    schedule: NoiseSchedule
    stages: tuple[Annotated[Estimate | Diffuse | Denoise, Field(discriminator="kind")], ...]
    presets: dict[str, Preset]
    default_preset: str = "reference"
    networks: dict[str, Network]
    licence: Licence
    verified: tuple[Check, ...] = ()
    made_with: dict[str, str]
    engines: tuple[Engine, ...] = ()
