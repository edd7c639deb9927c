"""What a bulk run does with each image; the same on every node."""

from pathlib import Path
from typing import Any

from pydantic import Field

from bfr.runtime.backends.registry import BackendName
from bfr.runtime.bundle.bundle import Bundle, locate
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.jobs.options import Format, JobOptions
from bfr.runtime.options import Options, field_of
from bfr.runtime.restore.options import OpenOptions


class BulkOptions(Options):
    """What a bulk run does with each image.

    Attributes:
        photo: None for aligned faces.
    """

    bundle: Path | None = field_of(OpenOptions, "bundle")
    backend: BackendName = field_of(OpenOptions, "backend")
    preset: str | None = field_of(OpenOptions, "preset")
    precision: Precision = field_of(
        OpenOptions,
        "precision",
        default="fp32",
        description="The same on every node. Networks without this precision run in fp32.",
    )
    batch: int = field_of(OpenOptions, "batch")
    threads: int | None = field_of(
        OpenOptions, "threads", description="Threads of the CPU backend in each worker. Default: the worker's share."
    )
    photo: PhotoOptions | None = PhotoOptions()
    seed: int = field_of(JobOptions, "seed")
    format: Format = field_of(JobOptions, "format")
    quality: int = field_of(JobOptions, "quality")
    metadata: bool = field_of(JobOptions, "metadata")
    max_pixels: int = field_of(JobOptions, "max_pixels")

    @property
    def folder(self) -> Path:
        """The bundle's folder, absolute: workers run elsewhere."""
        return locate(self.bundle).absolute()

    def settings(self) -> dict[str, Any]:
        """All that a result depends on, as `describe_settings` has it; no network is opened.

        Raises a BfrError if the bundle, the preset or the precision is not there.
        """
        from bfr.runtime.faces.yunet import YuNet
        from bfr.runtime.jobs.report import describe_system

        bundle = Bundle.open(self.folder)
        chosen = describe_system(bundle, bundle.precision(self.precision), bundle.preset(self.preset))
        chosen |= {name: getattr(self, name) for name in ("seed", "format", "quality", "metadata")}
        if self.photo is not None:
            if self.photo.background:
                raise InvalidOption("a bulk run has no network for the background: leave background out")
            photo = self.photo.model_dump(exclude={"background"})
            chosen |= {"photo": photo, "detector": YuNet.name}
        return chosen


class PoolOptions(Options):
    """Where a bulk run works."""

    workers: int | None = Field(
        default=None, ge=1, description="Number of workers. Default: one per GPU, else one per machine."
    )
    address: str | None = Field(
        default=None,
        description="Address of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT. Default: this machine.",
    )
    resume: bool = field_of(JobOptions, "resume")
