"""The manifest of a deployment bundle: what `manifest.json` may say, checked when it is read."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

FORMAT = 1
MANIFEST = "manifest.json"

Precision = Literal["fp32", "fp16", "bf16"]


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

    kind: Literal["estimator", "step", "step-learned"]
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
    """The preset's sampler loop; `prediction` is what the network predicts."""

    kind: Literal["denoise"] = "denoise"
    network: str
    prediction: Literal["eps", "v", "x0"] = "eps"


class Preset(_Model):
    """A sampler: solver, spacing of the kept timesteps, start index N (the number of network calls), eta, and whether
    the start is diffused to the timestep of the first call (`matched`) or one index beyond it, as published.

    See `bfr.runtime.solvers.step_table`.
    """

    solver: Literal["ddim", "ddpm", "ddpm-learned"] = "ddim"
    spacing: str = "ddim250"
    start: int = 100
    eta: float = 0.0
    matched: bool = False


class Licence(_Model):
    """Under what the weights are given away."""

    name: str
    url: str
    notice: str


class Check(_Model):
    """One comparison with eager float32 on the same inputs and the same noise.

    what: a network or `loop`. psnr_db: peak 2, since images are in [-1, 1]. max_abs: largest absolute difference.
    relative: L2 norm of the difference over that of the reference. floor_db: what psnr_db had to reach.
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
    seconds_a_step: float | None = None
    eager_seconds_a_step: float | None = None


class Manifest(_Model):
    """All that the runtime knows of a system."""

    format: Literal[1]
    system: str
    title: str
    image_size: int
    schedule: NoiseSchedule
    stages: tuple[Annotated[Estimate | Diffuse | Denoise, Field(discriminator="kind")], ...]
    presets: dict[str, Preset]
    networks: dict[str, Network]
    licence: Licence
    verified: tuple[Check, ...] = ()
    made_with: dict[str, str]
