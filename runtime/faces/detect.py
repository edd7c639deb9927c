"""Face detectors: YuNet where it was fetched, else the cascades that come inside OpenCV 4."""

import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, get_args

from numpy.typing import NDArray

from bfr.runtime.errors import BundleCorrupt, InputNotFound, InvalidOption, WriteFailed
from bfr.runtime.faces.geometry import Face
from bfr.runtime.faces.haar import Haar
from bfr.runtime.faces.options import DetectorName
from bfr.runtime.faces.yunet import YuNet
from bfr.runtime.files import cache_folder, write_bytes

RGB8 = NDArray[Any]  # uint8
DETECTORS: tuple[str, ...] = get_args(DetectorName)
YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_URL = f"https://huggingface.co/opencv/face_detection_yunet/resolve/main/{YUNET_FILE}"
YUNET_BYTES = 232_589
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
_log = logging.getLogger(__name__)


class Detector(Protocol):
    """Finds faces. One thread at a time may call `detect`; several may call `refine`."""

    name: str

    def detect(self, pixels: RGB8) -> list[Face]:
        """The faces of an (H, W, 3) uint8 RGB image, best first, in its pixels."""
        ...

    def refine(self, pixels: RGB8, face: Face) -> Face:
        """The same face with landmarks from a closer look, where the detector knows one."""
        ...


def open_detector(name: str = "auto", *, folder: Path | None = None) -> Detector:
    """Open a face detector.

    Args:
        name: One of DETECTORS; `auto` is YuNet where `bfr fetch yunet` has been run, else OpenCV's cascades.
        folder: The folder with YuNet, instead of the cache.

    Raises:
        InvalidOption: There is no detector of that name.
        InputNotFound: YuNet was requested and is missing.
        BundleCorrupt: YuNet's file is not the published one.
    """
    if name not in DETECTORS:
        raise InvalidOption(f"detector {name!r} is unknown: choose one of {', '.join(DETECTORS)}")
    if name == "haar":
        return Haar()
    path = (folder or cache_folder() / "yunet") / YUNET_FILE
    if name == "auto" and not path.is_file():
        _notice(path.with_name("noticed"))
        return Haar()
    if not path.is_file():
        raise InputNotFound(f"{path} does not exist: `bfr fetch yunet` downloads it")
    model = path.read_bytes()
    if (found := hashlib.sha256(model).hexdigest()) != YUNET_SHA256:
        raise BundleCorrupt(
            f"{path} has sha256 {found}, the published file {YUNET_SHA256}: delete it and run `bfr fetch yunet`"
        )
    return YuNet(model)


def _notice(marker: Path) -> None:
    """Recommend the better detector, once on each machine: writes `marker`, if possible."""
    if marker.exists():
        return
    _log.warning(
        "faces are found with the cascades inside OpenCV, which miss small, turned and rotated ones: "
        "`bfr fetch yunet` downloads a better detector (230 kB). This message appears once"
    )
    with suppress(WriteFailed):
        write_bytes(marker, b"")
