"""Options that video files and live streams share. Needs no PyAV."""

from pydantic import Field

from bfr.runtime.options import Options


class VideoOptions(Options):
    """How the faces of a video are restored."""

    key_frames: int = Field(
        default=1,
        ge=1,
        description="Run the networks for a face of a video at least every so many frames, and where it changes; bfr "
        "warps its detail to the frames between. 1 runs them for every frame.",
    )
