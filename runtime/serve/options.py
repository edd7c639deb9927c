"""The options of a server: the flags of `bfr serve`, and the `args` of a Serve YAML."""

import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from pydantic import Field

from bfr.runtime.backends.registry import BackendName
from bfr.runtime.bundle.bundle import default_bundle
from bfr.runtime.bundle.hub import is_address, pull
from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.options import Options, field_of
from bfr.runtime.restore.options import OpenOptions
from bfr.runtime.restore.precision import PrecisionChoice
from bfr.runtime.serve.keys import KEY_VARIABLE

BATCH, CPU_BATCH = 4, 1  # on a CPU larger ones gain nothing, and make every face wait for its neighbours
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ServeOptions(Options):
    """What is served, and its limits."""

    bundle: Path | None = field_of(OpenOptions, "bundle")
    bundles: tuple[str, ...] = Field(
        default=(),
        description="A further bundle as NAME=FOLDER, chosen by ?bundle=NAME; repeatable. The first bundle is the "
        "default.",
    )
    backend: BackendName = field_of(OpenOptions, "backend")
    precision: PrecisionChoice = field_of(OpenOptions, "precision")
    presets: tuple[str, ...] = Field(
        default=(), description="Presets to offer; the first is the default. Default: all of the bundle's."
    )
    batch: int | None = Field(
        default=None,
        ge=1,
        description=f"Largest number of faces in a network call, across requests. Default: {BATCH}, without a GPU "
        f"{CPU_BATCH}.",
    )
    threads: int | None = field_of(OpenOptions, "threads")
    workers: int | None = Field(
        default=None, ge=1, description="Processes that run the networks. Default: one per GPU, else one."
    )
    photo_threads: int | None = Field(
        default=None, ge=1, description="Threads that decode, paste and encode. Default: one per core, at most 8."
    )
    queue: int = Field(default=64, ge=1, description="Requests in flight; more are answered 503 with Retry-After.")
    face_queue: int = Field(
        default=256,
        ge=1,
        description="Faces in flight; beyond them further requests are answered 503 with Retry-After.",
    )
    max_faces: int = field_of(
        PhotoOptions, "max_faces", default=64, description="Refuse photographs and frames with more faces."
    )
    upload_bytes: int = Field(
        default=256_000_000, ge=1, description="Bytes of all bodies in memory; more are answered 503 with Retry-After."
    )
    photo_pixels: int = Field(
        default=80_000_000,
        ge=1,
        description="Pixels of images and their results in memory at once, 13 bytes each; others wait. A larger "
        "image is processed alone.",
    )
    timeout: float = Field(default=120.0, gt=0, description="Seconds that a request may take.")
    linger: float = Field(default=0.005, ge=0, le=1, description="Seconds that a batch waits to fill.")
    body_bytes: int = Field(default=50_000_000, ge=1, description="Largest body of a request, in bytes.")
    body_seconds: float = Field(default=30.0, gt=0, description="Seconds that a body may take to arrive.")
    max_pixels: int = field_of(JobOptions, "max_pixels")
    jobs: Path | None = Field(default=None, description="Folder of jobs. Default: in bfr's cache folder.")
    keep_jobs: float = Field(default=24.0, gt=0, description="Hours that finished jobs are kept.")
    job_bytes: int = Field(default=2_000_000_000, ge=1, description="Largest body of a job, in bytes.")
    job_quota: int = Field(default=100, ge=1, description="Jobs of an API key on disk, finished ones included.")
    job_hours: float = Field(default=6.0, gt=0, description="Hours that a job may run.")
    job_frames: int = Field(default=200_000, ge=1, description="Largest number of frames of a job's video.")
    job_pixels: int = Field(
        default=500_000_000_000, ge=1, description="Largest number of pixels of a job's result, all frames together."
    )
    job_output: int = Field(default=8_000_000_000, ge=1, description="Largest result of a job, in bytes.")
    keys: tuple[str, ...] = Field(
        default=(), description="The API keys, each as `SHA256 name=NAME priority=1 rate=60`; empty: none is needed."
    )

    @property
    def batch_size(self) -> int:
        """Faces that go through the networks together, at most."""
        return self.batch or BATCH

    @property
    def photo_workers(self) -> int:
        """How many threads decode, align, paste and encode."""
        return self.photo_threads or max(2, min(8, os.cpu_count() or 1))

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of the bundles by their names, the default one first. Raises InvalidOption."""
        found: dict[str, Path] = {}
        if self.bundle is not None:
            name = re.sub(r"[^A-Za-z0-9._-]", "-", self.bundle.absolute().name.partition("@")[0]).lstrip("._-")
            found[name[:64] or "bundle"] = self.bundle
        elif not self.bundles:
            found["mini"] = default_bundle()
        for text in self.bundles:
            name, _, folder = text.partition("=")
            if not folder or not _NAME.fullmatch(name):
                raise InvalidOption(f"bundles {text!r} is not accepted: give a bundle as NAME=FOLDER")
            if name in found:
                raise InvalidOption(f"two bundles are called {name!r}: give each its own NAME=FOLDER")
            found[name] = Path(folder)
        return found

    def absolute(self) -> "ServeOptions":
        """The same with absolute paths, for processes that run elsewhere. Raises InvalidOption."""
        return self._with(lambda folder: folder if is_address(folder) else folder.absolute())

    def fetched(self) -> "ServeOptions":
        """The same with folders of this machine instead of addresses. Raises what `pull` raises."""
        return self._with(lambda folder: pull(folder) if is_address(folder) else folder)

    def _with(self, change: Callable[[Path], Path]) -> "ServeOptions":
        folders = self.folders if self.bundle or self.bundles else {}
        named = tuple(f"{name}={change(folder)}" for name, folder in folders.items())
        changes = {"bundle": None, "bundles": named, "jobs": self.jobs and self.jobs.absolute()}
        return self.model_copy(update=changes)


class ListenOptions(Options):
    """Where `bfr serve` listens, which clients it accepts, and how it ends."""

    host: str = Field(default="127.0.0.1", description="Address to listen on. Other machines need an API key.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on.")
    names: tuple[str, ...] = Field(
        default=(),
        description="A further name that clients use for this server, such as behind a proxy; repeatable. Without "
        "an API key, the server refuses other names.",
    )
    api_key_file: Path | None = Field(
        default=None,
        description=f"File of API keys, one per line, read again when it changes. {KEY_VARIABLE} in the environment is "
        "one more key.",
    )
    drain: float = Field(default=60.0, ge=0, description="Seconds to finish requests in flight after SIGTERM.")
    connections: int = Field(
        default=1000, ge=1, description="Most connections at once; beyond it the longest idle one is closed."
    )
    header_seconds: float = Field(default=10.0, gt=0, description="Seconds that a request's headers may take.")


def check_host(host: str, keyed: bool) -> None:
    """Raise InvalidOption for what is no address, and if the server would listen beyond this machine without a key."""
    if re.search(r"[/\s]|^[^:]*:\d*$|^$", host):
        raise InvalidOption(f"--host {host!r} is no address: give a name or an IP address, and the port with --port")
    if keyed or is_local(host):
        return
    raise InvalidOption(
        f"--host {host} lets other machines in: give an API key with --api-key-file FILE or {KEY_VARIABLE} "
        "(`openssl rand -hex 24` makes one), or leave --host out to serve this machine alone"
    )


def is_local(host: str) -> bool:
    """Whether a server at this address is reached from its own machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
