"""Open containers that come from strangers.

They are read as open files, by a list of formats and one of decoders: a playlist that is called .mp4 would otherwise
make FFmpeg open whatever file or address it names.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bfr.runtime.errors import InputNotFound, InvalidImage
from bfr.runtime.images.decode import MAX_PIXELS
from bfr.runtime.install import importing
from bfr.runtime.video.formats import SUFFIXES

with importing("PyAV", "video"):
    import av
    from av.container import InputContainer
    from av.stream import Disposition
    from av.video.stream import VideoStream

_DEMUXERS = "matroska,webm,mov,mp4,avi,mpegts,mpeg,asf"
# What videos and their sound are decoded by: what cameras, phones and the web use. Other decoders are tried less.
# fmt: off
DECODERS = frozenset((
    "h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d", "mpeg4", "mpeg2video", "mpeg1video",
    "msmpeg4v2", "msmpeg4", "h263", "wmv1", "wmv2", "wmv3", "vc1", "mjpeg", "prores", "dnxhd", "ffv1", "png",
    "rawvideo", "aac", "mp3", "mp3float", "mp2", "mp2float", "ac3", "eac3", "dca", "truehd", "opus", "libopus",
    "vorbis", "libvorbis", "flac", "alac", "wmav1", "wmav2", "wmapro", "amrnb", "amrwb", "pcm_s16le", "pcm_s16be",
    "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_u8", "pcm_mulaw", "pcm_alaw",
    "pcm_bluray", "adpcm_ms", "adpcm_ima_wav", "ass", "ssa", "subrip", "srt", "mov_text", "webvtt", "text",
))
# fmt: on


@contextmanager
def open_container(path: Path, *, max_pixels: int = MAX_PIXELS) -> Iterator[InputContainer]:
    """The container of a file, which reads nothing but this file. Raises InputNotFound and InvalidImage."""
    if not path.exists():
        raise InputNotFound(f"{path} does not exist: check the name")
    if not path.is_file():
        raise InvalidImage(f"{path} is not a file but a folder or device: name a video")
    if not path.stat().st_size:
        raise InvalidImage(f"{path} is empty: copy or download it again")
    options = {
        "format_whitelist": _DEMUXERS,
        "codec_whitelist": ",".join(sorted(DECODERS)),
        "max_pixels": str(max_pixels),
    }
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise InvalidImage(f"{path} cannot be read ({error.strerror}): check its permissions") from error
        try:
            container = stack.enter_context(
                av.open(file, "r", options=options, metadata_errors="replace", io_open=_refuse)
            )
        except (av.FFmpegError, OSError) as error:  # OSError: hostile headers lead to places that no file has
            raise InvalidImage(
                f"{path} is not a video of {', '.join(SUFFIXES)}, or is damaged ({error.strerror}): "
                "copy it again or convert it, whatever its suffix"
            ) from error
        yield container


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream of moving pictures. Raises InvalidImage if there is none, or none that is decoded here."""
    stream = container.streams.best("video")
    # A song's cover is a stream of one frame.
    if not isinstance(stream, VideoStream) or Disposition.attached_pic in Disposition(stream.disposition):
        raise InvalidImage(f"{path} holds no video, or was cut short: name a file that does, or copy it again")
    if stream.codec_context is None:
        raise InvalidImage(f"{path} has a video codec that is not known here: convert it to H.264")
    if stream.codec_context.codec.name not in DECODERS:
        raise InvalidImage(f"{path} is a video of {stream.codec_context.codec.name}: convert it to H.264")
    return stream


def threads_of(codec: str) -> str:
    """How a decoder uses threads: never for a frame each, which holds frames back and loses those near a damaged one.

    With a thread for each slice, FFmpeg's H.264 decoder does not conceal what is missing of a damaged frame: there the
    frame has what lay in its memory.
    """
    return "NONE" if codec == "h264" else "SLICE"


def _refuse(url: str, _flags: int, _options: dict[str, str]) -> None:
    raise PermissionError(f"a video may not open other files: {url}")
