"""A bundle's engines that were built on this machine, and the backends that were verified on it.

An engine is machine code, and recorded timings choose the backend. The maker of a bundle could write a fitting key and
sha256 into it, so a bundle holds none of this. It is in this user's cache folder, by the bundle's hash, in folders that
no other user can write.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from bfr.runtime.bundle.manifest import BundleFile, Check, Model, Precision
from bfr.runtime.errors import BackendUnavailable, BundleCorrupt, WriteFailed
from bfr.runtime.files import cache_folder, write_bytes

FOLDER = "engines"  # inside the cache folder
RECORD = "machine.json"


class EngineKey(Model):
    """What an engine depends on.

    `bfr` uses an engine only if no field has changed since it was built.

    Attributes:
        graph_sha256: Sha256 of the network's graph in the bundle.
        weights_sha256: Sha256 of the network's weights in the bundle.
        buckets: The batch sizes, one optimization profile each, ascending.
        library: `tensorrt` or `tensorrt-rtx`, and its version.
        cuda: Version of the CUDA runtime that the library was used with, as `13.0`.
        driver: The CUDA version that the driver supports, as `13.0`.
        gpu: Name of the GPU.
        power: A board's power mode, with whose clocks the builder timed kernels; None on other machines.
        options: The builder's options, by name.
    """

    graph_sha256: str
    weights_sha256: tuple[str, ...]
    precision: Precision
    buckets: tuple[Annotated[int, Field(ge=1)], ...]
    library: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    cuda: str
    driver: str
    gpu: str
    compute_capability: str
    power: str | None = None
    options: dict[str, str | int | bool | None]


class Engine(Model):
    """An engine that was built, proven and published on this machine.

    Attributes:
        file: Relative to the folder of the record.
        half_share: Share in half of the tensors that the engine's inspector lists with a floating type, 0 to 1.
        build_seconds: Seconds of the build alone.
        checks: The comparisons with float32 that it passed.
        runtime_cache: What TensorRT-RTX compiled at its first run.
    """

    network: str
    file: BundleFile
    key: EngineKey
    half_share: float
    build_seconds: float
    checks: tuple[Check, ...] = ()
    runtime_cache: BundleFile | None = None


class MachineRecord(Model):
    """`machine.json`: the engines of one bundle, and what `bfr verify --record` found."""

    engines: tuple[Engine, ...] = ()
    verified: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """The folder of one bundle's engines and checks on this machine, by `Bundle.hash`."""

    bundle_hash: str

    @property
    def folder(self) -> Path:
        """Its path; it need not exist. Raises WriteFailed if the user has no home folder."""
        return cache_folder() / FOLDER / self.bundle_hash

    def make(self) -> Path:
        """Make the folder, for this user alone. Raises as `private_folder`."""
        return private_folder(FOLDER, self.bundle_hash)

    def read(self) -> MachineRecord:
        """Return the record; an empty one if nothing was made here.

        Raises BackendUnavailable if another user could have written it, BundleCorrupt if it is damaged.
        """
        try:
            path = self.folder / RECORD
        except WriteFailed:
            return MachineRecord()
        if not path.is_file():
            return MachineRecord()
        for folder in (path.parent.parent, path.parent):
            _check_owner(folder)
        try:
            return MachineRecord.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise BundleCorrupt(
                f"{path} is damaged, or of another version of bfr: delete {path.parent}, then `bfr build` again"
            ) from error

    def write_engines(self, engines: Sequence[Engine]) -> None:
        """Replace the engines of the record, whole or not at all. Raises WriteFailed."""
        self._write(self.read().model_copy(update={"engines": tuple(engines)}))

    def record_checks(self, checks: Sequence[Check]) -> None:
        """Add checks to the record; they replace earlier ones of the same backend, precision and GPU."""

        def place(check: Check) -> tuple[str, str, str | None]:
            return check.backend, check.precision, check.gpu

        record, new = self.read(), {place(check) for check in checks}
        kept = (check for check in record.verified if place(check) not in new)
        self._write(record.model_copy(update={"verified": (*kept, *checks)}))

    def _write(self, record: MachineRecord) -> None:
        write_bytes(self.make() / RECORD, record.model_dump_json(indent=1).encode() + b"\n")


def private_folder(*parts: str) -> Path:
    """Make a folder inside the cache folder that no other user can enter, and its parents below the cache folder.

    Raises WriteFailed if it cannot be made, BackendUnavailable if it is there, and another user can write in it.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in parts:
            folder /= part
            folder.mkdir(mode=0o700, exist_ok=True)
            _check_owner(folder)
    except OSError as error:
        if isinstance(error, WriteFailed):
            raise
        raise WriteFailed(
            f"cannot write in {folder} ({error.strerror or error}): set BFR_HOME to a folder that can be written"
        ) from error
    return folder


def _check_owner(folder: Path) -> None:
    """Raise BackendUnavailable if another user, root excepted, could have written into a folder."""
    if os.name == "nt":  # folders of a user's profile are that user's
        return
    found = folder.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid in (os.geteuid(), 0)
    if not mine or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BackendUnavailable(
            f"{folder} can be written by another user, and bfr would run its content as code: "
            "delete it and build again, or set BFR_HOME to a folder of your own"
        )
