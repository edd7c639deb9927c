"""A copy of a bundle to build engines in: the packaged one, and those in read-only folders, are not written to."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import MANIFEST, Check, Engine
from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import atomic_folder, write_bytes


def writable_bundle(source: Path | None, copy: Path | None) -> Path:
    """The folder to build in.

    source: a bundle; None, or `mini` where there is no such folder, is the packaged one. copy: where it is copied
    first, without its engines; a copy of the same bundle that is there is used as it is.
    Raises InvalidOption where the packaged one would be changed, or `copy` holds another bundle; WriteFailed.
    """
    packaged = default_bundle()
    if source is None or (str(source) == "mini" and not source.exists()):
        source = packaged
    if copy is None:
        if source.resolve() == packaged.resolve():
            raise InvalidOption(
                "the installed bundle is not changed: name a folder for a copy of it with `-o COPY`, "
                "and restore with `--bundle COPY`"
            )
        return source
    bundle = Bundle.open(source)
    if copy.exists():
        if Bundle.open(copy).hash != bundle.hash:
            raise InvalidOption(f"{copy} holds another bundle than {source}: choose another -o, or delete it")
        return copy
    bundle.check_all()
    with atomic_folder(copy) as partial:
        for entry in bundle.manifest.networks.values():
            for variant in entry.variants.values():
                for file in (variant.graph, *variant.weights):
                    (partial / file.path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(bundle.folder / file.path, partial / file.path)
        shutil.copyfile(bundle.folder / MANIFEST, partial / MANIFEST)
        write_engines(partial, ())
    return copy


def write_engines(folder: Path, engines: Sequence[Engine]) -> None:
    """Replace the engines of a manifest, whole or not at all, and nothing else in it: the bundle's hash stays.

    (Fields that a newer version added, and an older file lacks, are not written into it.)
    """
    _amend(folder, "engines", engines)


def record_checks(folder: Path, checks: Sequence[Check]) -> None:
    """Put checks into a manifest, in the place of earlier ones of the same backend, precision and GPU."""

    def place(check: Check) -> tuple[str, str, str | None]:
        return check.backend, check.precision, check.gpu

    new = {place(check) for check in checks}
    kept = [check for check in Bundle.open(folder).manifest.verified if place(check) not in new]
    _amend(folder, "verified", [*kept, *checks])


def _amend(folder: Path, key: str, entries: Sequence[Engine] | Sequence[Check]) -> None:
    content = json.loads((folder / MANIFEST).read_bytes())
    content.pop(key, None)
    if entries:
        content[key] = [entry.model_dump(mode="json") for entry in entries]
    write_bytes(folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
