"""Media types of the files that are sent and received, by suffix and by their first bytes."""

from bfr.runtime.images.encode import format_of

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
    ".avi": "video/x-msvideo",
    ".m4v": "video/x-m4v",
}
USUAL_SUFFIXES = {media_type: suffix for suffix, media_type in reversed(MEDIA_TYPES.items())}
IMAGES = tuple(media_type for media_type in USUAL_SUFFIXES if media_type.startswith("image/"))
VIDEOS = tuple(media_type for media_type in USUAL_SUFFIXES if media_type.startswith("video/"))
WRITTEN = ("image/png", "image/jpeg", "image/webp")


def media_type_of(data: bytes) -> str:
    """Of an image file, by its first bytes; `application/octet-stream` for what is none."""
    if suffix := format_of(data):
        return MEDIA_TYPES[suffix]
    if data.startswith(b"BM"):
        return "image/bmp"
    return "image/tiff" if data.startswith((b"II*\0", b"MM\0*")) else "application/octet-stream"
