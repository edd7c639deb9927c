"""What runs in production: images in, restored images out. NumPy, OpenCV and ONNX Runtime; never torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bfr.runtime.batch import Restored
from bfr.runtime.errors import BfrError
from bfr.runtime.restorer import Restorer

if TYPE_CHECKING:
    from bfr.runtime.folder import find_images
    from bfr.runtime.job import JobOptions, run_job
    from bfr.runtime.photo import PhotoOptions, PhotoRestorer, RestoredPhoto

__all__ = [
    "BfrError",
    "JobOptions",
    "PhotoOptions",
    "PhotoRestorer",
    "Restored",
    "RestoredPhoto",
    "Restorer",
    "find_images",
    "run_job",
]

# Imported when first asked for: OpenCV is slow to load, and aligned faces do without it.
_LATER = {
    "JobOptions": "job",
    "PhotoOptions": "photo",
    "PhotoRestorer": "photo",
    "RestoredPhoto": "photo",
    "find_images": "folder",
    "run_job": "job",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
