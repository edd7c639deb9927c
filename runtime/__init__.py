"""What runs in production: images in, restored images out. NumPy, OpenCV and ONNX Runtime; never torch."""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bfr.runtime.errors import BfrError
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.options import OpenOptions, SamplerOptions
from bfr.runtime.restore.restorer import Restorer

if TYPE_CHECKING:
    from bfr.runtime.faces.options import PhotoOptions
    from bfr.runtime.faces.photo import PhotoRestorer, RestoredPhoto
    from bfr.runtime.images.given import as_image
    from bfr.runtime.jobs.options import JobOptions
    from bfr.runtime.jobs.run import run_job
    from bfr.runtime.jobs.single import restore_image
    from bfr.runtime.jobs.sources import find_images

    __version__: str

__all__ = [
    "BfrError",
    "JobOptions",
    "OpenOptions",
    "PhotoOptions",
    "PhotoRestorer",
    "Restored",
    "RestoredPhoto",
    "Restorer",
    "SamplerOptions",
    "as_image",
    "find_images",
    "restore",
    "restore_image",
    "run_job",
]

# Imported when first asked for: OpenCV is slow to load, and aligned faces do without it.
_LATER = {
    "JobOptions": "jobs.options",
    "PhotoOptions": "faces.options",
    "PhotoRestorer": "faces.photo",
    "RestoredPhoto": "faces.photo",
    "as_image": "images.given",
    "find_images": "jobs.sources",
    "restore_image": "jobs.single",
    "run_job": "jobs.run",
}


class _Callable(ModuleType):
    """The package `restore`, which `from bfr.runtime import restore` calls: `restore("old.jpg").save("new.jpg")`."""

    @staticmethod
    def __call__(image: Any, **options: Any) -> "RestoredPhoto":
        from bfr.runtime.jobs.single import restore_image

        return restore_image(image, **options)


sys.modules[f"{__name__}.restore"].__class__ = _Callable
# ONNX Runtime reports to its maker from 1.32 on unless this is set before it is loaded; nothing here calls home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("bfr-runtime")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
