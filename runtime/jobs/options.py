"""How a run writes its results."""

from dataclasses import dataclass
from pathlib import Path

from bfr.runtime.diffusion.noise import check_seed
from bfr.runtime.errors import InvalidOption
from bfr.runtime.images.decode import MAX_PIXELS
from bfr.runtime.restore.restorer import DEFAULT_SEED

FORMATS = ("same", ".png", ".jpg", ".webp")
CODECS = ("h264", "vp9")  # those of `bfr.runtime.video.write`, which needs PyAV
WORST_CRF = 63
QUALITY = 95  # of JPEG and WebP


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a run writes its results.

    out: the output folder. format: one of FORMATS; `same` is the source's own where it can be written, else PNG.
    quality: of JPEG and WebP, 1 to 100. metadata: keep the photographs' EXIF data. html: write `report.html`, with a
    slider for each picture. compare: write a before/after picture beside each result. resume: skip inputs whose result
    is there. max_pixels: larger images are refused. codec, crf: of videos, see `bfr.runtime.video.write`.
    """

    out: Path
    seed: int = DEFAULT_SEED
    format: str = "same"
    quality: int = QUALITY
    metadata: bool = True
    compare: bool = False
    html: bool = False
    resume: bool = False
    max_pixels: int = MAX_PIXELS
    codec: str | None = None
    crf: int | None = None

    def __post_init__(self) -> None:
        """Raise InvalidOption for values out of range."""
        check_seed(self.seed)
        if self.format not in FORMATS:
            raise InvalidOption(f"format {self.format!r} is not offered: choose one of {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise InvalidOption(f"quality {self.quality} is out of range: choose between 1 and 100")
        if self.max_pixels < 1:
            raise InvalidOption(f"the limit of {self.max_pixels} pixels is out of range: choose 1 or more")
        if self.codec not in (None, *CODECS):
            raise InvalidOption(f"codec {self.codec!r} is not offered: choose one of {', '.join(CODECS)}")
        if self.crf is not None and not 0 <= self.crf <= WORST_CRF:
            raise InvalidOption(f"crf {self.crf} is out of range: choose between 0 and {WORST_CRF}")
