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
        default=(), description="Separated by commas; what works here if left out."
    )
    batches: Annotated[tuple[Annotated[int, Field(ge=1)], ...], COMMAS, AfterValidator(_distinct)] = Field(
        (1,), min_length=1, description="Images a call, separated by commas."
    )
    preset: str | None = field_of(OpenOptions, "preset")
    steps: int | None = field_of(SamplerOptions, "steps")
    repeats: int = Field(default=20, ge=1, description="Timed calls of each backend and batch size.")
    warmup: int = Field(default=2, ge=1, description="Calls before those, which are not timed.")
    threads: int | None = field_of(
        OpenOptions, "threads", description="Threads of the CPU, for all; PyTorch's choice if left out."
    )
    device: int = field_of(OpenOptions, "device")
    compare: Path | None = Field(
        default=None, description="bench.json of another run: print what is faster or slower now."
    )
    cold: bool = Field(
        default=True, description="Measure each backend's start and memory in fresh processes, after everything else."
    )
    limit: float = Field(default=3600.0, gt=0, description="Seconds after which a call that does not end is given up.")

    @property
    def command(self) -> str:
        """The command of these options; its folders are placeholders, so that it can be published."""
        words = ["bfr", "bench", "BUNDLE", "--out", "DIR"]
        for name, value in self.model_dump(exclude={"bundle", "out", "compare", "cold", "limit"}).items():
            if value not in (None, (), 0):
                words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        return shlex.join([*words, *([] if self.cold else ["--no-cold"])])
