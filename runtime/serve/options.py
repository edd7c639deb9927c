"""How a server is set up: the flags of `bfr serve`, and the `args` of a Serve YAML."""

import os
from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from pathlib import Path

from pydantic import Field

from bfr.runtime.backends.registry import BackendName
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.faces.options import DetectorName, PhotoOptions
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.options import Options, field_of
from bfr.runtime.restore.options import OpenOptions

KEY_VARIABLE = "BFR_API_KEY"
BATCH, CPU_BATCH = 4, 2  # on a CPU larger ones gain little, and two requests at a time overlap
LEAST_KEY = 16  # characters


class ServeOptions(Options):
    """What is served, and its limits."""

    bundle: Path | None = field_of(OpenOptions, "bundle")
    backend: BackendName = field_of(OpenOptions, "backend")
    precision: Precision = field_of(OpenOptions, "precision")
    presets: tuple[str, ...] = Field(
        default=(), description="Presets to offer, the first is the default; all of the bundle's if left out."
    )
    batch: int | None = Field(
        default=None,
        ge=1,
        description=f"Faces that go through the networks together, across requests; if left out {BATCH}, "
        f"without a GPU {CPU_BATCH}.",
    )
    threads: int | None = field_of(OpenOptions, "threads")
    detector: DetectorName = field_of(PhotoOptions, "detector")
    replicas: int | None = Field(
        default=None, ge=1, description="Processes that run the networks; one for each GPU if left out."
    )
    max_replicas: int | None = Field(
        default=None, ge=1, description="Scale up to so many processes by queue length; no autoscaling if left out."
    )
    photo_replicas: int | None = Field(
        default=None, ge=1, description="Processes that decode, paste and encode; one for four cores if left out."
    )
    queue: int = Field(default=64, ge=1, description="Requests in flight; more are answered 503 with Retry-After.")
    timeout: float = Field(default=120.0, gt=0, description="Seconds that a request may take.")
    linger: float = Field(default=0.005, ge=0, le=1, description="Seconds that a batch waits to be filled.")
    body_bytes: int = Field(default=50_000_000, ge=1, description="Largest body of a request, in bytes.")
    body_seconds: float = Field(default=30.0, gt=0, description="Seconds that a body may take to arrive.")
    job_bytes: int = Field(default=2_000_000_000, ge=1, description="Largest body of a job, in bytes.")
    max_pixels: int = field_of(JobOptions, "max_pixels")
    jobs: Path | None = Field(default=None, description="Folder of long work; in bfr's cache folder if left out.")
    keep_jobs: float = Field(default=24.0, gt=0, description="Hours that finished jobs are kept.")
    keys: tuple[str, ...] = Field(default=(), description="sha256 of the API keys, hexadecimal; empty: none is needed.")

    def allows(self, key: str | None) -> bool:
        """Whether a request with this API key is let in; compared in constant time."""
        if not self.keys:
            return True
        digest = hash_key(key or "")
        return max(compare_digest(digest, known) for known in self.keys)  # all are compared, whichever fits

    @property
    def batch_size(self) -> int:
        """Faces that go through the networks together, at most."""
        return self.batch or BATCH

    @property
    def photo_processes(self) -> int:
        """How many processes decode, align, paste and encode."""
        return self.photo_replicas or max(1, (os.cpu_count() or 1) // 4)


class ListenOptions(Options):
    """Where `bfr serve` listens, who is let in, and how it ends."""

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; beyond this machine an API key is needed."
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on.")
    api_key_file: Path | None = Field(
        default=None, description=f"File of API keys, one a line; {KEY_VARIABLE} in the environment is one too."
    )
    drain: float = Field(default=60.0, ge=0, description="Seconds to finish requests in flight when told to end.")


def read_keys(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The hashes of the API keys of a file, one a line, and of the environment's BFR_API_KEY.

    Raises InputNotFound, and InvalidOption for a key that could be guessed.
    """
    keys = [environment[KEY_VARIABLE]] if environment.get(KEY_VARIABLE) else []
    if file is not None:
        try:
            keys += [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise InputNotFound(
                f"{file} cannot be read ({error.strerror}): it holds the API keys, one a line"
            ) from None
        if not keys:
            raise InvalidOption(f"{file} holds no API key: write one a line, for example from `openssl rand -hex 24`")
    for key in keys:
        if len(key) < LEAST_KEY or not key.isascii() or any(c.isspace() for c in key):
            raise InvalidOption(
                f"an API key has {LEAST_KEY} ASCII characters or more and no spaces: `openssl rand -hex 24` makes one"
            )
    return tuple(hash_key(key) for key in dict.fromkeys(keys))


def hash_key(key: str) -> str:
    """The sha256 of an API key: keys themselves are passed nowhere. They are long and random, so that no salt helps."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def check_host(host: str, keys: tuple[str, ...]) -> None:
    """Raise InvalidOption where the server would listen beyond this machine without an API key."""
    if keys or is_local(host):
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
