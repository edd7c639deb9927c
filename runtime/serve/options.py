"""How a server is set up: the flags of `bfr serve`, and the `args` of a Serve YAML."""

import os
from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bfr.runtime.backends.registry import BACKENDS
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.images.decode import MAX_PIXELS

KEY_VARIABLE = "BFR_API_KEY"
BATCH, CPU_BATCH = 4, 2  # on a CPU larger ones gain little, and two requests at a time overlap
LEAST_KEY = 16  # characters


class ServeOptions(BaseModel):
    """What is served, and its limits.

    bundle: None is the default system. presets: those that are offered, the first being the default; empty is all of
    the bundle's. batch: faces that go through the networks together; None is BATCH, for `bfr serve` without a GPU
    CPU_BATCH. replicas: of the networks, one for each GPU; None is as many as there are GPUs, and one without.
    max_replicas: more than `replicas` turns on autoscaling by queue length. photo_replicas: processes that decode,
    align, paste and encode; None is one for each four cores.
    queue: requests in the house; more get 503. timeout: seconds that a request may take. linger: seconds that a batch
    waits to be filled. body_bytes, job_bytes: largest body of a request and of a job. body_seconds: that a body may
    take to arrive. jobs: folder of long work, None for none. keep_jobs: hours that finished ones are kept.
    keys: sha256 of the API keys, hexadecimal; empty where none is needed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path | None = None
    backend: str = "auto"
    precision: str = "fp32"
    presets: tuple[str, ...] = ()
    batch: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    detector: str = "auto"
    replicas: int | None = Field(None, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    photo_replicas: int | None = Field(None, ge=1)
    queue: int = Field(64, ge=1)
    timeout: float = Field(120.0, gt=0)
    linger: float = Field(0.005, ge=0, le=1)
    body_bytes: int = Field(50_000_000, ge=1)
    body_seconds: float = Field(30.0, gt=0)
    job_bytes: int = Field(2_000_000_000, ge=1)
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    jobs: Path | None = None
    keep_jobs: float = Field(24.0, gt=0)
    keys: tuple[str, ...] = ()

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


def make_options(**values: object) -> ServeOptions:
    """Options from flags. Raises InvalidOption naming each one that is out of range."""
    if (backend := values.get("backend", "auto")) not in BACKENDS:
        raise InvalidOption(f"backend {backend!r} is unknown: choose one of {', '.join(BACKENDS)}")
    try:
        return ServeOptions.model_validate(values)
    except ValidationError as error:
        found = "; ".join(f"--{'-'.join(map(str, e['loc']))}: {e['msg']}".replace("_", "-") for e in error.errors())
        raise InvalidOption(f"{found}; see `bfr serve --help`") from None


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
