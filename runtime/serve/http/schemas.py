"""The JSON that the HTTP interface answers with."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel

from bfr.runtime.jobs.options import RestoreOptions

Text = Annotated[str, Path(max_length=64, description="An id.")]


class PresetInfo(BaseModel):
    """A preset. steps: calls of the denoiser."""

    steps: int
    description: str


class Limits(BaseModel):
    """What the server takes. body_bytes: of an image; job_bytes: of a job. queue: requests in the house."""

    body_bytes: int
    job_bytes: int
    pixels: int
    timeout_seconds: float
    queue: int


class Info(BaseModel):
    """What is served. defaults: what a request without options gets. options: the JSON Schema of each option."""

    system: str
    title: str
    licence: str
    bundle: str
    image_size: int
    backend: str
    presets: dict[str, PresetInfo]
    default_preset: str | None
    defaults: RestoreOptions
    options: dict[str, dict[str, Any]]
    limits: Limits
    formats: list[str]
    api_key: bool
    jobs: bool
    version: str


class RequestInfo(BaseModel):
    """Where a request is. share: of its denoising, 0 to 1. ahead: requests that came before it."""

    state: Literal["queued", "reading", "restoring", "writing"]
    share: float
    ahead: int


class JobInfo(BaseModel):
    """Where a job is. share: 0 to 1. created: ISO 8601. result: where its file is, once it is done."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    share: float
    created: str
    error: str | None
    result: str | None
    faces: int | None
    frames: int | None
