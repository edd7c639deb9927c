"""What `bfr export` and `bfr build` are told; nothing here needs torch, onnx or TensorRT."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bfr.runtime.backends.cuda.device import BUCKETS
from bfr.runtime.bundle.manifest import Extent, Precision
from bfr.runtime.options import COMMAS, Options

Opset = Literal[18, 20, 21, 23]


def _with_float32(precisions: tuple[Precision, ...]) -> tuple[Precision, ...]:
    return tuple(dict.fromkeys(("fp32", *precisions)))


def _ascending(batches: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(batches)))


class ExportOptions(Options):
    """How a system is exported."""

    precision: Annotated[tuple[Precision, ...], AfterValidator(_with_float32)] = Field(
        default=("fp32",), description="fp32 always, which half precision falls back on; fp16 and int8 add theirs."
    )
    calibration: Path | None = Field(default=None, description="For int8: a folder of aligned faces, some 32.")
    opset: Opset = Field(
        default=20,
        description="20 suits every backend. For TensorRT from 10.14 on 23: it has operators for attention and "
        "normalization; from 10.9 on 21, for normalization.",
    )
    learned_variance: bool = Field(default=False, description="DDPM with the learned variance, instead of DDIM.")
    time_table: bool | None = Field(
        default=None,
        description="Compute what depends on time alone once a run; the default where the denoiser is one UNet.",
    )
    verify: Extent = Field(
        default="quick",
        description="quick compares each network at two batch sizes, and loops of a few steps over all of their time; "
        "full runs every step, as `bfr verify` does later.",
    )
    replace: bool = Field(default=False, description="Replace a bundle that is there.")


class BuildOptions(Options):
    """What TensorRT's builder may do."""

    batches: Annotated[tuple[Annotated[int, Field(ge=1)], ...], COMMAS, AfterValidator(_ascending)] = Field(
        default=(),
        description="Batch sizes, separated by commas: an optimization profile each. 1,2,4,8,16 if left out.",
    )
    workspace: int | None = Field(
        default=None, ge=1, description="Most scratch memory of a layer, in MiB; without a limit if left out."
    )
    level: int = Field(default=3, ge=0, le=5, description="Effort of the builder. Higher builds longer.")
    aux_streams: int | None = Field(
        default=None,
        ge=0,
        description="Most streams beside the caller's; TensorRT chooses if left out. 0 takes the least memory.",
    )

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes, ascending."""
        return self.batches or BUCKETS

    @property
    def key_options(self) -> dict[str, str | int | bool | None]:
        """What of these an engine depends on beside its buckets: the `options` of its key."""
        return {
            "optimization_level": self.level,
            "workspace_mib": self.workspace,
            "max_aux_streams": self.aux_streams,
            "tf32": False,
        }
