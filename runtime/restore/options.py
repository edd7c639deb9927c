"""How a bundle is opened and which sampler it runs."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bfr.runtime.backends.registry import HELP, BackendName, CompilerOption
from bfr.runtime.diffusion.solvers import Solver
from bfr.runtime.options import COMMAS, Options
from bfr.runtime.restore.precision import PrecisionChoice


class OpenOptions(Options):
    """How a bundle is opened."""

    bundle: Path | None = Field(
        default=None, description="Bundle folder, or hf://owner/name. Default: the system mini."
    )
    backend: BackendName = Field(default="auto", description=f"Backend that runs the networks. {HELP}.")
    preset: str | None = Field(
        default=None, description="A preset of the bundle; `bfr info` lists them. Default: the bundle's."
    )
    precision: PrecisionChoice = Field(
        default="auto",
        description="auto: the fastest that agrees with fp32 on this machine. Networks without this precision run in "
        "fp32.",
    )
    batch: int = Field(default=1, ge=1, description="Largest number of faces in a network call.")
    threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads of the CPU backend, at most four per core. Default: OMP_NUM_THREADS, else one per core.",
    )
    device: int = Field(default=0, ge=0, description="Number of the GPU.")
    compiler: Annotated[tuple[CompilerOption, ...], COMMAS] = Field(
        default=("max_autotune", "conv_1x1_as_mm"),
        description="Compiler options of torch-cuda, separated by commas. More options compile longer.",
    )


class SamplerOptions(Options):
    """Fields that replace those of a preset's sampler; None keeps the preset's value."""

    solver: Solver | None = Field(default=None, description="Solver of the diffusion loop.")
    spacing: str | None = Field(
        default=None, description="Spacing of the timesteps: time, log-snr, quadratic, or a respacing such as ddim250."
    )
    start: float | None = Field(
        default=None, description="Start timestep. Lower keeps more of the input; higher generates more detail."
    )
    steps: int | None = Field(default=None, ge=1, description="Calls of the denoiser. More take longer.")
    stop: int | None = Field(
        default=None,
        ge=0,
        description="Index of a respacing's last call, whose x0 is the result. Higher removes more detail.",
    )
    eta: float | None = Field(
        default=None, ge=0, le=1, description="Noise that each step adds: 0 is deterministic, 1 is DDPM's."
    )
    guidance: float | None = Field(
        default=None,
        ge=0,
        description="Strength of guidance, in guided systems. Higher guides more; 0 is none.",
    )
    weight: float | None = Field(
        default=None,
        description="Fidelity weight of networks that have one, such as CodeFormer. 1 keeps most of the input.",
    )

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that replace the preset's."""
        return self.model_dump(exclude_none=True)
