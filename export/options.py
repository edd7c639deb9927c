"""The options of `bfr export`, `wrap`, `build` and `export-triton`. Importing them needs no torch, onnx or TensorRT."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from bfr.runtime.backends.cuda.device import BUCKETS
from bfr.runtime.backends.tensorrt_key import Library
from bfr.runtime.bundle.manifest import Extent, Precision
from bfr.runtime.options import COMMAS, Options, field_of

Opset = Literal[18, 20, 21, 23]


def _with_float32(precisions: tuple[Precision, ...]) -> tuple[Precision, ...]:
    return tuple(dict.fromkeys(("fp32", *precisions)))


def _ascending(batches: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(batches)))


def _black_and_white(value: Any) -> Any:
    """The two numbers of a text as `0..255`."""
    try:
        return tuple(map(float, value.split(".."))) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError("name black and white, as -1..1 or 0..255") from error


def _black_first(extent: tuple[float, float] | None) -> tuple[float, float] | None:
    if extent and not extent[0] < extent[1]:
        raise ValueError("black must be less than white")
    return extent


Extremes = Annotated[tuple[float, float] | None, BeforeValidator(_black_and_white), AfterValidator(_black_first)]


def _by_name(value: Any) -> Any:
    """Numbers by name, of texts as `w=0.5`."""
    try:
        pairs = value if isinstance(value, Mapping) else {n: float(x) for n, _, x in (t.partition("=") for t in value)}
    except ValueError as error:
        raise ValueError("name each input and its value, as w=0.5") from error
    return pairs


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
        description="Compute time embeddings once a run; the default if the denoiser is one UNet.",
    )
    verify: Extent = Field(
        default="quick",
        description="quick compares each network at two batch sizes, and loops of a few steps over all of their time; "
        "full runs every step, as `bfr verify` does later.",
    )
    replace: bool = Field(default=False, description="Replace an existing bundle.")


class WrapOptions(Options):
    """What an ONNX file expects and gives; None where `bfr wrap` is to find out."""

    input_range: Extremes = Field(
        default=None, description="Black and white of its input: -1..1, 0..1 or 0..255; guessed if left out."
    )
    output_range: Extremes = Field(default=None, description="Black and white of its output.")
    colour: Literal["rgb", "bgr"] = Field(default="rgb", description="Order of its channels.")
    size: int | None = Field(
        default=None, ge=1, description="Side of its input in pixels, where the file leaves it open."
    )
    input: str | None = Field(default=None, description="Its input, where several could be.")
    output: str | None = Field(default=None, description="Its output, where several could be.")
    reference: str | None = Field(
        default=None, description="Its input for a second picture, `bfr restore --reference`."
    )
    values: Annotated[dict[str, float], BeforeValidator(_by_name)] = Field(
        default={}, description="The value of a further input, as w=0.5; may be repeated."
    )
    precision: Annotated[tuple[Literal["fp32", "fp16"], ...], AfterValidator(_with_float32)] = Field(
        default=("fp32",), description="fp32 always, the file as it is; fp16 adds a variant in half."
    )
    name: str | None = Field(default=None, description="Name of the system; the file's if left out.")
    licence: str = Field(default="unknown", description="Licence of the weights, for the manifest.")
    replace: bool = field_of(ExportOptions, "replace")


class TritonOptions(Options):
    """How a bundle becomes a model repository of Triton."""

    precision: Precision = Field(default="fp32", description="Networks without this precision run in fp32.")
    processor: Literal["gpu", "cpu"] = Field(default="gpu", description="What runs the networks.")
    batch: int = Field(
        default=8,
        ge=1,
        description="Faces that go through a network together, at most; a bundle that fixes its batch keeps its own.",
    )
    instances: int = Field(
        default=2, ge=1, description="Loops that run beside each other; the steps of their images share batches."
    )
    replace: bool = Field(default=False, description="Replace an existing folder.")


class BuildOptions(Options):
    """What TensorRT's builder may do."""

    precision: tuple[Literal["fp32", "fp16", "bf16"], ...] = Field(
        default=("fp32",),
        description="May be repeated. Networks without one of them are built in fp32 for it; int8 is for CPUs.",
    )
    library: Literal["auto", Library] = Field(
        default="auto", description="What builds; auto: the first that is installed."
    )
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
