"""What runs in production: images in, restored images out. NumPy, OpenCV and ONNX Runtime; never torch."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bfr.runtime.errors import BfrError
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.options import OpenOptions, SamplerOptions
from bfr.runtime.restore.restorer import Restorer

if TYPE_CHECKING:
    from bfr.runtime.faces.options import PhotoOptions
    from bfr.runtime.faces.photo import PhotoRestorer, RestoredPhoto
    from bfr.runtime.jobs.options import JobOptions
    from bfr.runtime.jobs.run import run_job
    from bfr.runtime.jobs.single import RestoredImage, as_image, restore_image
    from bfr.runtime.jobs.sources import find_images

    __version__: str

__all__ = [
    "BfrError",
    "JobOptions",
    "OpenOptions",
    "PhotoOptions",
    "PhotoRestorer",
    "Restored",
    "RestoredImage",
    "RestoredPhoto",
    "Restorer",
    "SamplerOptions",
    "as_image",
    "find_images",
    "restore_image",
    "run_job",
]

# Imported when first asked for: OpenCV is slow to load, and aligned faces do without it.
_LATER = {
    "JobOptions": "jobs.options",
    "PhotoOptions": "faces.options",
    "PhotoRestorer": "faces.photo",
    "RestoredPhoto": "faces.photo",
    "RestoredImage": "jobs.single",
    "as_image": "jobs.single",
    "find_images": "jobs.sources",
    "restore_image": "jobs.single",
    "run_job": "jobs.run",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("bfr-runtime")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
