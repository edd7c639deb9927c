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
LEAST_WIDTH, LARGEST_VALUE = 0.001, 1_000_000  # of a range: float32 maps no others to [0, 1] and back


def _with_float32(precisions: tuple[Precision, ...]) -> tuple[Precision, ...]:
    return tuple(dict.fromkeys(("fp32", *precisions)))


def _black_and_white(value: Any) -> Any:
    """The two numbers of a text as `0..255`."""
    if not isinstance(value, str):
        return value
    try:
        black, white = map(float, value.split(".."))
    except ValueError as error:
        raise ValueError("name black and white, as -1..1 or 0..255") from error
    return black, white


def _black_first(extent: tuple[float, float] | None) -> tuple[float, float] | None:
    if extent and not extent[0] < extent[1]:
        raise ValueError("black must be less than white")
    if extent and (extent[1] - extent[0] < LEAST_WIDTH or max(map(abs, extent)) > LARGEST_VALUE):
        raise ValueError(f"black and white differ by {LEAST_WIDTH} or more, and lie within {LARGEST_VALUE:,} of 0")
    return extent


Extremes = Annotated[tuple[float, float] | None, BeforeValidator(_black_and_white), AfterValidator(_black_first)]


def _by_name(value: Any) -> Any:
    """Numbers by name, of texts as `w=0.5`."""
    if isinstance(value, Mapping):
        return value
    parts = [text.rpartition("=") for text in value]
    try:
        return {name: float(number if name else "") for name, _, number in parts}  # no name: refused like no number
    except ValueError as error:
        raise ValueError("name each input and its value, as w=0.5") from error


class ExportOptions(Options):
    """How a system is exported."""

    precision: Annotated[tuple[Precision, ...], AfterValidator(_with_float32)] = Field(
        default=("fp32",), description="Precisions. fp32 is always included, as fallback; fp16 and int8 add a variant."
    )
    calibration: Path | None = Field(default=None, description="For int8: a folder of about 32 aligned faces.")
    opset: Opset = Field(
        default=20,
        description="20 suits every backend. For TensorRT alone: 21 has an operator for normalization (from 10.9 on), "
        "23 also for attention (from 10.14 on).",
    )
    learned_variance: bool = Field(default=False, description="Use DDPM with the learned variance instead of DDIM.")
    time_table: bool | None = Field(
        default=None,
        description="Compute time embeddings once per run. The default if the denoiser is one UNet.",
    )
    verify: Extent = Field(
        default="quick",
        description="quick compares each network at two batch sizes, and loops of a few steps over the whole range of "
        "time; full runs every step, as `bfr verify` does.",
    )
    replace: bool = Field(default=False, description="Replace an existing bundle.")


class WrapOptions(Options):
    """What an ONNX file expects and returns; `bfr wrap` determines what is None."""

    input_range: Extremes = Field(
        default=None, description="Black and white of the input: -1..1, 0..1 or 0..255. Default: guessed."
    )
    output_range: Extremes = Field(default=None, description="Black and white of the output. Default: guessed.")
    colour: Literal["rgb", "bgr"] = Field(default="rgb", description="Order of the channels.")
    size: int | None = Field(default=None, ge=1, description="Side of the input in pixels, if the file leaves it open.")
    input: str | None = Field(default=None, description="Name of the image input, if there are several candidates.")
    output: str | None = Field(default=None, description="Name of the image output, if there are several candidates.")
    reference: str | None = Field(
        default=None, description="Name of the input for a second picture, `bfr restore --reference`."
    )
    values: Annotated[dict[str, float], BeforeValidator(_by_name)] = Field(
        default={}, description="Value of a further input, as w=0.5; repeatable."
    )
    precision: Annotated[tuple[Literal["fp32", "fp16"], ...], AfterValidator(_with_float32)] = Field(
        default=("fp32",), description="fp32, the file itself, is always included; fp16 adds a half-precision variant."
    )
    name: str | None = Field(default=None, description="Name of the system. Default: the file's name.")
    licence: str = Field(default="unknown", min_length=1, description="Licence of the weights, for the manifest.")
    replace: bool = field_of(ExportOptions, "replace")


class TritonOptions(Options):
    """How a bundle becomes a model repository of Triton."""

    precision: Precision = Field(default="fp32", description="Networks without this precision run in fp32.")
    processor: Literal["gpu", "cpu"] = Field(default="gpu", description="Where the networks run.")
    batch: int = Field(
        default=8,
        ge=1,
        description="Largest number of faces in a network call. A bundle with a fixed batch keeps its own.",
    )
    instances: int = Field(
        default=2, ge=1, description="Loops that run concurrently; the steps of their images share batches."
    )
    replace: bool = Field(default=False, description="Replace an existing folder.")


class BuildOptions(Options):
    """What TensorRT's builder may do."""

    precision: tuple[Literal["fp32", "fp16", "bf16"], ...] = Field(
        default=("fp32",),
        description="Repeatable. A network without this precision is built in fp32. int8 is for CPUs.",
    )
    library: Literal["auto", Library] = Field(
        default="auto", description="Library to build with. auto: the first that is installed."
    )
    batches: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], COMMAS, AfterValidator(lambda sizes: tuple(sorted(set(sizes))))
    ] = Field(
        default=(),
        description="Batch sizes, separated by commas, with an optimization profile each. Default: 1,2,4,8,16.",
    )
    workspace: int | None = Field(
        default=None, ge=1, description="Largest scratch memory of a layer, in MiB. Default: no limit."
    )
    level: int = Field(default=3, ge=0, le=5, description="Builder effort. Higher builds longer.")
    aux_streams: int | None = Field(
        default=None,
        ge=0,
        description="Largest number of auxiliary streams. 0 takes the least memory. Default: TensorRT chooses.",
    )

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes, ascending."""
        return self.batches or BUCKETS

    @property
    def key_options(self) -> dict[str, str | int | bool | None]:
        """The options that an engine depends on, without its buckets: the `options` of its key."""
        return {
            "optimization_level": self.level,
            "workspace_mib": self.workspace,
            "max_aux_streams": self.aux_streams,
            "tf32": False,
        }
