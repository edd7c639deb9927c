"""The driver of a bulk run: lists inputs, resumes, gives blocks of images to the workers, and keeps the table."""

import json
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from bfr.runtime import errors
from bfr.runtime.cluster.bulk.options import BulkOptions
from bfr.runtime.cluster.bulk.pool import connected, size_pool
from bfr.runtime.cluster.bulk.table import (
    BATCH,
    RESULTS,
    EntryLog,
    NodeEntry,
    node_entry_of,
    parts_of,
    read_entries,
    write_table,
)
from bfr.runtime.errors import BfrError, InvalidOption, RestorationFailed
from bfr.runtime.jobs.report import (
    STATUSES,
    Report,
    check_settings,
    describe_now,
    describe_passed_over,
    describe_versions,
)
from bfr.runtime.jobs.sources import Item, check_found, check_free, choose_outputs, find_inputs
from bfr.runtime.jobs.store import Store
from bfr.runtime.text import without_secrets

LARGEST_BLOCK = 32  # images; a block ends with its pipeline running empty, and its rows come back together
BLOCKS = 8  # for each worker, where there are enough images: the last ones end at about the same time
RETRIES = 8  # of a block whose worker or node died; an image that kills its worker must not do so for ever


def run_bulk(
    inputs: Sequence[str],
    out: str,
    options: BulkOptions,
    *,
    workers: int | None = None,
    address: str | None = None,
    resume: bool = False,
    overwrite: bool = True,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Report:
    """Restore the images that `inputs` name into `out`, folders or URLs, on this machine or a cluster.

    An image that cannot be read or restored is a failed entry. One that an earlier run restored is a skipped entry,
    if neither it, nor the settings, nor the result have changed since. A block of images whose worker or node dies
    is restored again, there or elsewhere: a result depends on its image and the settings alone, so that the file is the
    same.

    Args:
        inputs: Files, folders, globs and URLs.
        out: The output folder, a path or URL.
        options: What is done with each image.
        workers: How many, see `size_pool`.
        address: Address of a Ray cluster; None for this machine.
        resume: Skip inputs whose result is in `out`.
        overwrite: Results may replace files in `out`.
        progress: Called with how many inputs are done, and with how many there are.

    Raises:
        InputNotFound: There is no image.
        InvalidOption: Before any work, for settings that differ from those of the run that is resumed, and for files
            that would be replaced without `overwrite`.
        RestorationFailed: The rows at the end are not those of the inputs, or workers died too often.
        BfrError: A worker cannot work.
    """
    begin = time.perf_counter()
    store = Store(out)
    found = find_inputs(inputs, out=store.url)
    check_found(found, inputs)
    items = [replace(item, source=str(item.path.absolute() if item.path else item.source)) for item in found.items]
    if not (overwrite or resume):
        check_free(choose_outputs(items, store, options.format)[0].values(), store)
    run = _BulkRun(items, list(inputs), store, options, resume)
    run.facts["passed_over"] = describe_passed_over(found.passed_over)
    return run.run(workers, address, progress, begin)


class _BulkRun:
    def __init__(
        self, items: Sequence[Item], inputs: list[str], store: Store, options: BulkOptions, resume: bool
    ) -> None:
        self.items, self.store, self.options = items, store, options
        self.settings = options.settings()
        self.outputs, refused = choose_outputs(items, store, options.format)
        self.entries = {url: NodeEntry(url, "failed", error=error) for url, error in refused.items()}
        self.facts: dict[str, Any] = {
            "run": secrets.token_hex(8),
            "settings": self.settings,
            "inputs": [without_secrets(name) for name in inputs],
            "versions": describe_versions(),
            "started": describe_now(),
        }
        self.taken_over: set[str] = set()
        names = store.versions()
        resume = resume and self._known_settings()
        if resume:
            self._take_over(names)
        store.clean(self.outputs.values())
        self.log = EntryLog(store, parts_of(names)) if resume else self._clear(names)

    def run(
        self, workers: int | None, address: str | None, progress: Callable[[int, int], None], begin: float
    ) -> Report:
        todo = [item for item in self.items if item.key not in self.entries]
        self._write_facts()  # a killed run can be resumed, with these settings
        progress(len(self.entries), len(self.items))
        if todo:
            with connected(address) as ray:
                try:
                    for rows in self._restored(ray, todo, workers):
                        self._enter(rows)
                        progress(len(self.entries), len(self.items))
                finally:
                    self.log.flush()
        entries = self._checked()
        write_table(self.store, entries)
        counts = Counter(entry.status for entry in entries)
        self.facts |= {
            "seconds": round(time.perf_counter() - begin, 3),
            "counts": {status: counts[status] for status in STATUSES},
            "taken_over": len(self.taken_over),
        }
        self._write_facts()
        self.log.remove()
        reported = (replace(one, status="skipped") if one.source in self.taken_over else one for one in entries)
        return Report(tuple(reported), self.settings, self.facts)

    def _restored(self, ray: Any, todo: Sequence[Item], workers: int | None) -> Iterator[list[NodeEntry]]:
        """The rows of a block, whenever one is done. Raises what a worker refused to work for."""
        from bfr.runtime.cluster.bulk.worker import Worker, WorkerSetup

        options = self.options
        pool = size_pool(ray.nodes(), backend=options.backend, workers=workers, threads=options.threads)
        self.facts |= {"versions": {**self.facts["versions"], "ray": ray.__version__}, "workers": pool.workers}
        setup = WorkerSetup(
            options,
            self.store.url,
            self.facts["run"],
            self.settings["bundle_hash"],
            describe_versions(),
            pool.threads,
        )
        tasks = [{"task": json.dumps({"item": asdict(item), "output": self.outputs[item.key]})} for item in todo]
        size = block_size(len(tasks), pool.workers, options.batch)
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        with ray.data.DataContext.current(context), warnings.catch_warnings():
            # Of arguments for actors, which nothing that is named replaces: without them retries have no end.
            warnings.simplefilter("ignore", DeprecationWarning)
            blocks = ray.data.from_items(tasks, override_num_blocks=-(-len(tasks) // size)).map_batches(
                Worker,
                batch_size=None,
                fn_constructor_args=(setup,),
                compute=ray.data.ActorPoolStrategy(size=pool.workers),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
                ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": RETRIES},
            )
            try:
                for block in blocks.iter_batches(batch_size=None, prefetch_batches=0):
                    yield _rows(block["row"])
            except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
                raise RestorationFailed(
                    f"workers died {RETRIES + 1} times over the same images, or the cluster went away ({error}): "
                    "see Ray's logs; finished results are kept, --resume continues the run"
                ) from error

    def _enter(self, rows: Sequence[NodeEntry]) -> None:
        for row in rows:
            if row.source not in self.outputs or row.source in self.entries:
                raise RestorationFailed(f"{row.source} has two rows, or is no input: report this, it is a bug")
            self.entries[row.source] = row
        self.log.add(rows)

    def _checked(self) -> list[NodeEntry]:
        """The rows in the order of the inputs. Raises RestorationFailed if they are not the same set."""
        missing = [item.key for item in self.items if item.key not in self.entries]
        if missing or len(self.entries) != len(self.items):
            raise RestorationFailed(
                f"{len(missing)} of {len(self.items)} inputs have no row, {', '.join(missing[:3])} among them: "
                "finished results are kept, --resume continues the run"
            )
        return [self.entries[item.key] for item in self.items]

    def _known_settings(self) -> bool:
        """Whether an earlier run says what its results were made with. Raises InvalidOption if that was other."""
        try:
            earlier = json.loads(self.store.read(BATCH) or b"")["settings"]
            check_settings(earlier, self.settings, self.store.url)
        except InvalidOption:  # a ValueError too
            raise
        except (ValueError, KeyError, TypeError):
            return False  # none there, or of another version
        return True

    def _take_over(self, names: Mapping[str, str | None]) -> None:
        """Enter what has a result already, as the earlier run reported it; nothing is taken by its name alone."""
        earlier = read_entries(self.store, names)
        for item in self.items:
            known, output = earlier.get(item.key), self.outputs.get(item.key)
            if known is None or output is None or known.output != output or None in (item.version, names.get(output)):
                continue
            if (known.source_version, known.output_version) == (item.version, names[output]):
                self.taken_over.add(item.key)
                self.entries[item.key] = known

    def _clear(self, names: Mapping[str, str | None]) -> EntryLog:
        """Take away what an earlier run said, and start a log."""
        for name in (*parts_of(names), *({RESULTS} & names.keys())):
            self.store.remove(name)
        return EntryLog(self.store)

    def _write_facts(self) -> None:
        self.store.write(BATCH, json.dumps(self.facts, indent=1).encode() + b"\n")


def block_size(count: int, workers: int, batch: int) -> int:
    """How many images a worker is given at once: whole batches, where there are enough.

    Args:
        count: Images of the run.
        workers: Number of workers of the pool.
        batch: Faces that go through the networks together.
    """
    share = min(LARGEST_BLOCK, -(-count // (BLOCKS * workers)))
    return -(-max(1, share) // batch) * batch


def _rows(texts: Sequence[str]) -> list[NodeEntry]:
    found = [json.loads(text) for text in texts]
    for row in found:
        if "refusal" in row:
            kind = getattr(errors, row["kind"], BfrError)
            raise kind(row["refusal"])
    return [node_entry_of(row) for row in found]
