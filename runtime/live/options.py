"""What a person chooses of a live stream, and the addresses that it is read from and shown at. Needs no PyAV."""

import re
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field

from bfr.runtime.errors import InvalidOption
from bfr.runtime.options import Options, field_of
from bfr.runtime.serve.options import is_local
from bfr.runtime.video.options import VideoOptions

PAGE = "http://127.0.0.1:8090"  # where a stream is shown that is sent nowhere else
FILES = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov"}  # suffix -> FFmpeg's muxer
STREAMS = {"udp": "mpegts", "rtsp": "rtsp"}  # scheme -> FFmpeg's muxer
WINDOW = "window"
_SECRET = 16  # characters of a path that cannot be guessed

SourceKind = Literal["camera", "rtsp", "udp"]


class LiveOptions(Options):
    """How a live stream is restored."""

    max_delay: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Largest delay of a frame, in seconds. bfr drops later frames. If it cannot restore all faces in "
        "time, the smallest stay unchanged.",
    )
    key_frames: int = field_of(VideoOptions, "key_frames")
    reconnect: float = Field(default=30.0, ge=0, description="Seconds to try to reopen a lost stream; 0 ends at once.")
    duration: float | None = Field(default=None, gt=0, description="End after this many seconds.")
    size: str | None = Field(
        default=None, pattern=r"^\d+x\d+$", description="Size to request from a camera, as 1280x720. Default: its own."
    )
    rate: int | None = Field(default=None, ge=1, description="Frames per second to request from a camera.")
    overlay: bool = Field(
        default=True, description="Draw frames per second, delay and drops into the window and the page."
    )


def kind_of(source: str) -> SourceKind:
    """What a source is. Raises InvalidOption for what is no camera and no stream."""
    scheme = urlsplit(source).scheme.lower()
    if scheme in ("rtsp", "rtsps"):
        _port(source, urlsplit(source), 554)
        return "rtsp"
    if scheme == "udp":
        _port(source, urlsplit(source))
        return "udp"
    if re.fullmatch(r"/dev/\S+", source):
        return "camera"
    raise InvalidOption(
        f"{source} is no camera and no live stream: name /dev/video0, rtsp://..., or udp://0.0.0.0:PORT; "
        "`bfr restore` takes files"
    )


def check_sink(sink: str, *, overwrite: bool) -> None:
    """Raise InvalidOption for a sink that is none, is a file that is there already, or lets strangers look."""
    address = urlsplit(sink)
    scheme = address.scheme.lower()
    if scheme == "http":
        _port(sink, address)
        if not is_local(address.hostname or "") and len(address.path.strip("/")) < _SECRET:
            raise InvalidOption(
                f"{sink} would show the camera to everybody in the network: name a path of {_SECRET} characters or "
                f"more that only you know, as http://{address.netloc}/PATH with the PATH of `openssl rand -hex 16`"
            )
    elif scheme in STREAMS:
        if scheme == "udp":
            _port(sink, address)
    elif sink != WINDOW:
        if scheme or Path(sink).suffix.lower() not in FILES:
            raise InvalidOption(
                f"{sink} cannot be sent to: name a file ({', '.join(FILES)}), rtsp://HOST/NAME, udp://HOST:PORT, "
                f"{WINDOW}, or http://127.0.0.1:PORT for a page"
            )
        if Path(sink).exists() and not overwrite:
            raise InvalidOption(f"{sink} exists: replace it with --overwrite, or choose another name")


def _port(text: str, address: SplitResult, usual: int | None = None) -> None:
    try:
        if (address.port or usual) and address.hostname:
            return
    except ValueError:
        pass
    raise InvalidOption(
        f"{text} lacks its host or port, or the port is none: write it as {address.scheme}://127.0.0.1:5000"
    )
