"""A copy of a bundle to build engines in: the packaged one, and those in read-only folders, are not written to."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from bfr.runtime.bundle import Bundle, default_bundle
from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import atomic_folder, write_bytes
from bfr.runtime.manifest import MANIFEST, Engine


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
    content = json.loads((folder / MANIFEST).read_bytes())
    content.pop("engines", None)
    if engines:
        content["engines"] = [engine.model_dump(mode="json") for engine in engines]
    write_bytes(folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
