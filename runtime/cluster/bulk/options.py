"""What a bulk run does with each image; the same on every node."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.detect import open_detector
from bfr.runtime.faces.photo import PhotoOptions
from bfr.runtime.images.decode import MAX_PIXELS
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import describe_system
from bfr.runtime.restore.restorer import DEFAULT_SEED


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """What a bulk run does with each image; see `Restorer.open`, `PhotoOptions` and `JobOptions`.

    bundle: its folder, which every node must have; None is the default system. photo: None for aligned faces.
    threads: of the CPU backend in each worker; None is the worker's share of the machine.
    """

    bundle: Path | None = None
    backend: str = "auto"
    preset: str | None = None
    precision: str = "fp32"
    batch: int = 1
    threads: int | None = None
    photo: PhotoOptions | None = field(default_factory=PhotoOptions)
    detector: str = "auto"
    seed: int = DEFAULT_SEED
    format: str = "same"
    quality: int = 95
    metadata: bool = True
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        """Raise InvalidOption for values out of range."""
        JobOptions(
            Path(),
            seed=self.seed,
            format=self.format,
            quality=self.quality,
            metadata=self.metadata,
            max_pixels=self.max_pixels,
        )
        if self.batch < 1:
            raise InvalidOption(f"batch {self.batch} is out of range: choose 1 or more")
        if self.threads is not None and self.threads < 1:
            raise InvalidOption(f"{self.threads} threads are out of range: choose 1 or more")

    @property
    def folder(self) -> Path:
        """The bundle's folder, absolute: workers run elsewhere."""
        return (self.bundle or default_bundle()).absolute()

    def settings(self) -> dict[str, Any]:
        """All that a result depends on, as `describe_settings` has it; no network is opened.

        Raises a BfrError where the bundle, the preset, the precision or the detector is not there.
        """
        bundle = Bundle.open(self.folder)
        chosen = describe_system(bundle, bundle.precision(self.precision), bundle.preset(self.preset))
        chosen |= {name: getattr(self, name) for name in ("seed", "format", "quality", "metadata")}
        if self.photo is not None:
            chosen |= {"photo": asdict(self.photo), "detector": open_detector(self.detector).name}
        return chosen
