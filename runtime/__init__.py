"""What runs in production: images in, restored images out. NumPy, OpenCV and ONNX Runtime; never torch."""

from bfr.runtime.errors import BfrError
from bfr.runtime.restorer import Restored, Restorer

__all__ = ["BfrError", "Restored", "Restorer"]
