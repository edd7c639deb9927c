"""The deployment runtime: images in, restored images out. Needs NumPy, OpenCV and ONNX Runtime; never torch."""

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import bfr.runtime.restore as _restore  # the package, which is made callable below
from bfr.runtime.errors import BfrError

if TYPE_CHECKING:
    from bfr.runtime.faces.options import PhotoOptions
    from bfr.runtime.faces.photo import PhotoRestorer, RestoredPhoto
    from bfr.runtime.images.given import as_image
    from bfr.runtime.jobs.options import JobOptions
    from bfr.runtime.jobs.run import run_job
    from bfr.runtime.jobs.single import restore_image
    from bfr.runtime.jobs.sources import find_images
    from bfr.runtime.restore.batch import Restored
    from bfr.runtime.restore.options import OpenOptions, SamplerOptions
    from bfr.runtime.restore.restorer import Restorer

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

# Imported on first use: NumPy, OpenCV and pydantic are slow to load, and not every command needs them.
_LATER = {
    "JobOptions": "jobs.options",
    "OpenOptions": "restore.options",
    "PhotoOptions": "faces.options",
    "PhotoRestorer": "faces.photo",
    "Restored": "restore.batch",
    "RestoredPhoto": "faces.photo",
    "Restorer": "restore.restorer",
    "SamplerOptions": "restore.options",
    "as_image": "images.given",
    "find_images": "jobs.sources",
    "restore_image": "jobs.single",
    "run_job": "jobs.run",
}


class _Callable(ModuleType):
    """The package `restore`, made callable: `restore("old.jpg").save("new.jpg")`."""

    @staticmethod
    def __call__(image: Any, **options: Any) -> "RestoredPhoto":
        from bfr.runtime.jobs.single import restore_image

        return restore_image(image, **options)


_restore.__class__ = _Callable
# From 1.32 on, ONNX Runtime sends telemetry unless this is set before it is loaded; bfr sends none.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # else it prints a line for each private tag of a TIFF


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bfr-runtime")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
