"""What the routes share in their descriptions, and the JSON that they answer with."""

from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel

from bfr.runtime.images.formats import WRITTEN
from bfr.runtime.jobs.options import RestoreOptions
from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.http.requests import RestoreQuery

BINARY = {"schema": {"type": "string", "format": "binary"}}
Options = Annotated[RestoreQuery, Query()]
Text = Annotated[str, Path(max_length=64, description="An id.")]


class PresetInfo(BaseModel):
    """A preset. steps: calls of the denoiser."""

    steps: int
    description: str


class Limits(BaseModel):
    """What the server takes.

    body_bytes, pixels, faces: of an image, the pixels of its result too. job_bytes, job_frames, job_hours: of a job.
    queue: requests in flight.
    """

    body_bytes: int
    job_bytes: int
    pixels: int
    faces: int
    timeout_seconds: float
    queue: int
    job_frames: int
    job_hours: float


class BundleInfo(BaseModel):
    """A bundle that is served. bundle: its hash. image_size: sides of its aligned faces, pixels."""

    system: str
    title: str
    licence: str
    bundle: str
    image_size: int
    presets: dict[str, PresetInfo]
    default_preset: str | None


class Info(BundleInfo):
    """What is served: the default bundle, and all of them by name.

    defaults: what a request without options gets. options: the JSON Schema of each option.
    """

    bundles: dict[str, BundleInfo]
    default_bundle: str
    backend: str
    defaults: RestoreOptions
    options: dict[str, dict[str, Any]]
    limits: Limits
    formats: list[str]
    api_key: bool
    jobs: bool
    version: str


def describe(front: Front) -> dict[str, Any]:
    """Describe a server as `Info`."""
    options, names = front.options, list(front.systems)
    return {
        **front.systems[names[0]].describe(),
        "bundles": {name: system.describe() for name, system in front.systems.items()},
        "default_bundle": names[0],
        "backend": (front.engine and front.engine.backend) or options.backend,
        "defaults": RestoreQuery().model_dump(),
        "options": RestoreQuery.model_json_schema()["properties"],
        "limits": {
            "body_bytes": options.body_bytes,
            "job_bytes": options.job_bytes,
            "pixels": options.max_pixels,
            "faces": options.max_faces,
            "timeout_seconds": options.timeout,
            "queue": options.queue,
            "job_frames": options.job_frames,
            "job_hours": options.job_hours,
        },
        "formats": [one.media_type for one in WRITTEN],
        "api_key": bool(front.keys),
        "jobs": options.jobs is not None,
        "version": version("bfr-runtime"),
    }


class RequestInfo(BaseModel):
    """Where a request is. share: of its denoising, 0 to 1. ahead: requests that came before it."""

    state: Literal["queued", "reading", "restoring", "writing"]
    share: float
    ahead: int


class JobInfo(BaseModel):
    """Where a job is.

    share: 0 to 1. created: ISO 8601. error: why it failed; of a queued one, why this server does not begin it. result:
    where its file is, once it is done. warped: how many of the faces were warped from a key frame.
    """

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    share: float
    created: str
    error: str | None
    result: str | None
    faces: int | None
    warped: int | None
    frames: int | None
