"""A worker of a bulk run: opens a system once, then restores blocks of images, each block through one pipeline."""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.cluster.bulk.options import BulkOptions
from bfr.runtime.cluster.bulk.table import BATCH, NodeEntry
from bfr.runtime.errors import BfrError, BundleInvalid, DeviceLost, InputNotFound, InvalidOption, WriteFailed
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import Image
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import describe_versions
from bfr.runtime.jobs.sources import Item
from bfr.runtime.jobs.store import Store
from bfr.runtime.jobs.work import ImageWork
from bfr.runtime.restore.restorer import Restorer

_log = logging.getLogger("bfr")


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """The settings of every worker of a run. A node refuses to work where its own would give other pictures.

    Attributes:
        options: What is done with each image.
        out: The output folder, an absolute path or URL.
        run: Its mark in `batch.json`.
        bundle_hash: Hash of the driver's bundle.
        versions: Versions of the driver's libraries.
        threads: Threads of a CPU backend.
    """

    options: BulkOptions
    out: str
    run: str
    bundle_hash: str
    versions: dict[str, str]
    threads: int | None


class Worker:
    """The actor of `map_batches`: {"task": JSON of an Item and its output} in, {"row": JSON of NodeEntry} out.

    Rows come one for one, in order. An error that concerns more than one image ends the run: it is a row of its own,
    {"refusal": its text}, so that the driver can say it as it is.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self.node = ray.get_runtime_context().get_node_id()[:8]
        self.refusal: BfrError | None = None
        try:
            self._open(setup)
        except BfrError as error:
            self.refusal = error

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Restore a block of images."""
        if self.refusal:
            return self._refused(self.refusal)
        tasks = [json.loads(text) for text in block["task"]]
        items = [Item(**task["item"]) for task in tasks]
        outputs = {item.key: task["output"] for item, task in zip(items, tasks, strict=True)}
        try:
            self._check_folder()
            return {"row": self._rows(items, outputs)}
        except (InvalidOption, WriteFailed) as error:
            return self._refused(error)
        except DeviceLost as error:
            _log.error("%s", error)
            os._exit(1)  # only a new process can use the GPU again: Ray starts one, and gives it this block

    def _rows(self, items: Sequence[Item], outputs: dict[str, str]) -> list[str]:
        work = _NodeWork(self.worker, self.store, outputs, self.options)
        work.node, backend = self.node, self.restorer.device.name
        with closing(work.restore(items)) as entries:
            return [json.dumps(asdict(NodeEntry.of(entry, backend=backend, node=self.node))) for entry in entries]

    def _open(self, setup: WorkerSetup) -> None:
        options = setup.options
        here = describe_versions()
        if different := [
            f"{name} {here.get(name)}, not {no}" for name, no in setup.versions.items() if here.get(name) != no
        ]:
            raise InvalidOption(
                f"node {self.node} has {'; '.join(different)}: results would differ from node to node. "
                "Install the same versions everywhere"
            )
        self.store = Store(setup.out)
        self._check_folder()
        if (bundle := Bundle.open(options.folder)).hash != setup.bundle_hash:
            raise BundleInvalid(
                f"{options.folder} on node {self.node} is another bundle ({bundle.hash[:12]}, "
                f"not {setup.bundle_hash[:12]}): copy the same one to every node"
            )
        self.restorer = Restorer.open(
            options.folder,
            backend=options.backend,
            preset=options.preset,
            precision=options.precision,
            batch=options.batch,
            threads=setup.threads,
        )
        shared = JobOptions.model_fields.keys() & BulkOptions.model_fields.keys()
        self.options = JobOptions(out=Path(setup.out), **options.model_dump(include=shared))
        self.worker: Restorer | PhotoRestorer = self.restorer
        if options.photo is not None:
            self.worker = PhotoRestorer(self.restorer, options.photo)

    def _check_folder(self) -> None:
        """Raise InvalidOption where this is another folder than the driver's, or another run has begun in it.

        Raises WriteFailed if it cannot be read.
        """
        if self.setup.run.encode() not in (self.store.read(BATCH) or b""):  # a mark is random
            raise InvalidOption(
                f"{self.setup.out} on node {self.node} is not the folder that this run writes to, or another run has "
                "begun in it: choose one that every node sees, on a shared disk or in an object store, for each run"
            )

    def _refused(self, error: BfrError) -> dict[str, list[str]]:
        text = str(error) if self.node in str(error) else f"{error} (node {self.node})"
        if isinstance(error, WriteFailed):
            text += ": finished results are kept, --resume continues the run"
        return {"row": [json.dumps({"refusal": text, "kind": type(error).__name__})]}


class _NodeWork(ImageWork):
    """On a cluster a file that was listed may be missing on this node."""

    node: str

    def read(self, item: Item) -> Image:
        if item.path is not None and not item.path.exists():
            raise InputNotFound(
                f"{item.path} is not there on node {self.node}: on a cluster, read from a disk that every node sees or "
                "from an object store"
            )
        return super().read(item)
