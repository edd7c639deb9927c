"""A worker of a bulk run: opens a system once, then restores blocks of images, each block through one pipeline."""

import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.cluster.bulk.names import Source
from bfr.runtime.cluster.bulk.options import BulkOptions
from bfr.runtime.cluster.bulk.store import Store, local_path, open_url
from bfr.runtime.cluster.bulk.table import BATCH, Row
from bfr.runtime.errors import (
    BfrError,
    BundleInvalid,
    DeviceLost,
    InputNotFound,
    InvalidImage,
    InvalidOption,
    WriteFailed,
)
from bfr.runtime.faces.detect import open_detector
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import Image, byte_limit, decode_image, header_size, read_image
from bfr.runtime.jobs.report import Entry, describe_versions
from bfr.runtime.jobs.work import Photo, finish_photo, prepare_photo, rounded, side_threads
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.pipeline import Pipeline, Work
from bfr.runtime.restore.restorer import Restorer

_log = logging.getLogger("bfr")
PIXELS_PER_BYTE = 8  # of a compressed photograph, about; for those whose header is not at hand


@dataclass(frozen=True, slots=True)
class Order:
    """What every worker of a run is told.

    out: the output folder, an absolute path or URL. run: its mark in `batch.json`. bundle_hash, versions, detector: the
    driver's; a node that has others would give other pictures.
    """

    options: BulkOptions
    out: str
    run: str
    bundle_hash: str
    versions: dict[str, str]
    detector: str | None
    threads: int | None


@dataclass(frozen=True, slots=True)
class Task:
    """One image of a block: what to read, and where below the output folder its result goes."""

    source: Source
    output: str


class Worker:
    """The actor of `map_batches`: {"task": JSON of Task} in, {"row": JSON of Row} out, one for one, in order.

    An error that concerns more than one image ends the run: it is a row of its own, {"refusal": its text}, so that the
    driver can say it as it is.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.node = ray.get_runtime_context().get_node_id()[:8]
        self.refusal: BfrError | None = None
        try:
            self._open(order)
        except BfrError as error:
            self.refusal = error

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Restore a block of images."""
        if self.refusal:
            return self._refused(self.refusal)
        tasks = [
            Task(Source(**task["source"]), task["output"]) for task in (json.loads(text) for text in block["task"])
        ]
        threads = side_threads()
        pipeline = Pipeline[Task, tuple[Task, Photo], Row](
            self.restorer,
            self._read,
            self._finish,
            seed=self.order.options.seed,
            weigh=self._weigh,
            readers=threads,
            writers=threads,
        )
        try:
            with closing(pipeline.run(tasks)) as rows:
                return {"row": [json.dumps(asdict(row)) for row in rows]}
        except WriteFailed as error:
            return self._refused(error)
        except DeviceLost as error:
            _log.error("%s", error)
            os._exit(1)  # only a new process can use the GPU again: Ray starts one, and gives it this block

    def _open(self, order: Order) -> None:
        options = order.options
        here = describe_versions()
        if different := [
            f"{name} {here.get(name)}, not {no}" for name, no in order.versions.items() if here.get(name) != no
        ]:
            raise InvalidOption(
                f"node {self.node} has {'; '.join(different)}: results would differ from node to node. "
                "Install the same versions everywhere"
            )
        self.store = Store(order.out)
        mark = json.loads(self.store.read(BATCH) or b"{}")
        if mark.get("run") != order.run:
            raise InvalidOption(
                f"{order.out} on node {self.node} is not the folder that this run writes to: "
                "choose one that every node sees, on a shared disk or in an object store"
            )
        if (bundle := Bundle.open(options.folder)).hash != order.bundle_hash:
            raise BundleInvalid(
                f"{options.folder} on node {self.node} is another bundle ({bundle.hash[:12]}, "
                f"not {order.bundle_hash[:12]}): copy the same one to every node"
            )
        self.restorer = Restorer.open(
            options.folder,
            backend=options.backend,
            preset=options.preset,
            precision=options.precision,
            batch=options.batch,
            threads=order.threads,
        )
        self.photo = None
        if options.photo is not None and order.detector is not None:
            self.photo = PhotoRestorer(self.restorer, options.photo, detector=open_detector(order.detector))

    def _refused(self, error: BfrError) -> dict[str, list[str]]:
        text = str(error) if self.node in str(error) else f"{error} (node {self.node})"
        return {"row": [json.dumps({"refusal": text, "kind": type(error).__name__})]}

    def _weigh(self, task: Task) -> int:
        """Pixels of the result, from the header; of an object, which would be read twice, from its bytes."""
        options, path = self.order.options, local_path(task.source.url)
        if path is None:
            pixels = min(PIXELS_PER_BYTE * (task.source.bytes or 0), options.max_pixels)
        else:
            width, height = header_size(path) or (0, 0)
            pixels = width * height
        return pixels * (options.photo.upscale**2 if options.photo else 1)

    def _read(self, task: Task) -> Work[tuple[Task, Photo]]:
        url = task.source.url
        photo = Photo(url, partial(_load, url))
        work = prepare_photo(photo, partial(self._decoded, task.source), self.photo)
        return Work((task, photo), work.crops)

    def _decoded(self, source: Source) -> Image:
        most, path = self.order.options.max_pixels, local_path(source.url)
        if path is None:
            limit = byte_limit(most)
            if source.bytes is not None and source.bytes > limit:
                raise InvalidImage(
                    f"{source.url} has {source.bytes} bytes, more than the {limit} of an image of {most} pixels: "
                    "make it smaller"
                )
            return decode_image(_load(source.url), name=source.url, max_pixels=most)
        if not path.exists():  # it was listed: this node does not see it, or it has gone since
            raise InputNotFound(
                f"{path} is not there on node {self.node}: on a cluster, read from a disk that every node sees or "
                "from an object store"
            )
        return read_image(path, max_pixels=most)

    def _finish(self, payload: tuple[Task, Photo], results: Sequence[Restored]) -> Row:
        """Paste, write, and say what became of an image. Raises WriteFailed."""
        (task, photo), options = payload, self.order.options
        try:
            result = finish_photo(
                photo,
                results,
                self.photo,
                suffix=Path(task.output).suffix,
                quality=options.quality,
                metadata=options.metadata,
            )
            begin = time.perf_counter()
            self.store.write(task.output, result.data)
            photo.seconds["write"] += time.perf_counter() - begin
            entry = result.entry(photo, task.output)
        except WriteFailed:
            raise
        except BfrError as error:
            entry = Entry(photo.source, "failed", seconds=rounded(photo.seconds), error=str(error))
        return Row.of(entry, backend=self.restorer.device.name, node=self.node)


def _load(url: str) -> bytes:
    """The bytes of a file. Raises InputNotFound, and InvalidImage where it cannot be read."""
    if (path := local_path(url)) is not None:
        return path.read_bytes()
    system, key = open_url(url)
    try:
        return bytes(system.cat_file(key))
    except FileNotFoundError as error:
        raise InputNotFound(f"{url} does not exist any more") from error
    except BfrError:
        raise
    except Exception as error:  # of whatever package serves the protocol
        raise InvalidImage(f"{url} cannot be read ({error}): check the credentials and the network") from error
