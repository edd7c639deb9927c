"""What `bfr bench` measures."""

import shlex
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from bfr.runtime.options import COMMAS, Options, field_of
from bfr.runtime.restore.options import OpenOptions, SamplerOptions

Values = TypeVar("Values", bound=tuple[object, ...])


def _distinct(values: Values) -> Values:
    if len(set(values)) < len(values):
        raise ValueError("it names something twice")
    return values


class BenchOptions(Options):
    """What to measure; the names of backends are described in `bfr.benchmarks.speed.contender`."""

    bundle: Path | None = field_of(OpenOptions, "bundle")
    out: Path = Field(default=Path("bench"), description="Folder for bench.json, bench.md and roofline.png.")
    backends: Annotated[tuple[str, ...], COMMAS, AfterValidator(_distinct)] = Field(
        default=(), description="Backends, separated by commas. Default: all that work on this machine."
    )
    batches: Annotated[tuple[Annotated[int, Field(ge=1)], ...], COMMAS, AfterValidator(_distinct)] = Field(
        default=(1,), min_length=1, description="Batch sizes, separated by commas."
    )
    preset: str | None = field_of(OpenOptions, "preset")
    steps: int | None = field_of(SamplerOptions, "steps")
    repeats: int = Field(default=20, ge=1, description="Timed calls of each backend and batch size.")
    warmup: int = Field(default=2, ge=1, description="Untimed calls before them.")
    threads: int | None = field_of(
        OpenOptions, "threads", description="CPU threads of all backends. Default: PyTorch's choice."
    )
    device: int = field_of(OpenOptions, "device")
    published: Path | None = Field(
        default=None,
        description="Clone of github.com/zsyOAOA/DifFace: also measure its own code, on the CPU, for DifFace.",
    )
    compare: Path | None = Field(
        default=None, description="bench.json of an earlier run: print what became faster or slower."
    )
    cold: bool = Field(
        default=True, description="Measure each backend's start and memory in fresh processes, after everything else."
    )
    limit: float = Field(default=3600.0, gt=0, description="Seconds after which a call is stopped.")

    @property
    def command(self) -> str:
        """The command of these options; its folders are placeholders, so that it can be published."""
        words = ["bfr", "bench", "BUNDLE", "--out", "DIR"]
        left = {"bundle", "out", "published", "compare", "cold", "limit"}
        for name, value in self.model_dump(exclude=left).items():
            if value not in (None, (), 0):
                words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        words += ["--published", "CLONE"] if self.published else []
        return shlex.join([*words, *([] if self.cold else ["--no-cold"])])
