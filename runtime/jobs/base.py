"""What all runs over files share: which results there are already, where new ones go, and the reports."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.images.encode import write_image
from bfr.runtime.images.result import side_by_side
from bfr.runtime.jobs.cards import cards_of
from bfr.runtime.jobs.faces import check_face_folders, face_folder
from bfr.runtime.jobs.ledger import Ledger
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.page import write_page
from bfr.runtime.jobs.pictures import comparison_names, write_previews
from bfr.runtime.jobs.report import Entry, Report, write_report
from bfr.runtime.jobs.sources import Item, choose_outputs
from bfr.runtime.jobs.store import Store

Progress = Callable[[float, str], None]
"""Called with how many inputs are done, fractions for those under way, and the name of one of them."""


class Run(ABC):
    """The files of a run. A child class restores them.

    Attributes:
        outputs: Key of an item -> its result, relative to the output folder.
        entries: What became of the items, by their keys. A child class fills it.
    """

    def __init__(
        self,
        items: Sequence[Item],
        options: JobOptions,
        progress: Progress,
        *,
        settings: dict[str, Any],
        facts: dict[str, Any],
    ) -> None:
        """Read what earlier runs left.

        Args:
            items: The inputs.
            options: How results are written.
            progress: See `Progress`.
            settings: What results depend on.
            facts: Where and with what they are made.

        Raises:
            InvalidOption: The settings differ from those of the run that is resumed.
        """
        self.items, self.options, self.progress = items, options, progress
        self.settings, self.facts = settings, facts
        self.store = Store(options.out)
        self.ledger = Ledger(options.out, settings, resume=options.resume)
        self.outputs: dict[str, str] = {}
        self.entries: dict[str, Entry] = {}
        self._comparisons: dict[str, str] = {}

    @abstractmethod
    def restore(self, items: Sequence[Item]) -> None:
        """Restore what is left to do, and enter what became of it. Raises WriteFailed."""

    def run(self) -> Report:
        """As `run_job`."""
        begin, options = time.perf_counter(), self.options
        outputs, refused = choose_outputs(self.items, self.store, options.format)
        self.outputs.update(outputs)
        if options.crops:
            check_face_folders(options.out, self.items, outputs)
        self.entries.update({key: Entry(key, "failed", error=error) for key, error in refused.items()})
        todo = [item for item in self.items if item.key in self.outputs]
        if options.resume:
            todo = self._resumed(todo)
        if options.compare:
            self._comparisons = comparison_names(self.outputs)
        self.store.clean(self.outputs.values())
        facts = {**self.facts, "network_seconds": 0.0, "seconds": 0.0}
        write_report(self._report(facts), options.out)
        self.ledger.begin({self.outputs[item.key] for item in todo})
        try:
            self.restore(todo)
        finally:
            network = sum(e.seconds.get("network", 0.0) for e in self.entries.values() if e.status != "skipped")
            facts |= {"network_seconds": round(network, 3), "seconds": round(time.perf_counter() - begin, 3)}
            report = self._report(facts)
            write_report(report, options.out)
            if options.html:
                cards = cards_of(options.out, {item.key: item.name for item in self.items}, report)
                write_page(options.out, cards, {**report.settings, **report.facts})
        return report

    def target(self, item: Item) -> Path:
        """The path of an item's result."""
        return self.options.out / self.outputs[item.key]

    def enter(self, entry: Entry) -> None:
        """Keep what became of an item; where it has a result, for later runs too. In any thread. Raises WriteFailed."""
        self.entries[entry.source] = entry
        if entry.output is not None:
            self.ledger.add(entry)

    def show(self, item: Item, before: NDArray[Any], after: NDArray[Any]) -> None:
        """Write what shows a result beside its source, where it is wanted."""
        if self.options.compare:
            write_image(self.options.out / self._comparisons[item.key], side_by_side(before, after))
        if self.options.html:
            write_previews(self.options.out, item.name, before, after)

    def _report(self, facts: dict[str, Any]) -> Report:
        entries = [self.entries[item.key] for item in self.items if item.key in self.entries]
        return Report(tuple(entries), self.settings, facts)

    def version(self, item: Item) -> str | None:
        """What changes when an item does, or what else its result is made of."""
        return item.version

    def _has_faces(self, output: str) -> bool:
        return (self.options.out / face_folder(output)).is_dir()

    def _resumed(self, items: Sequence[Item]) -> list[Item]:
        """What is left to do; the rest becomes skipped entries, as the earlier run reported them."""
        todo = []
        for item in items:
            output = self.outputs[item.key]
            known = self.ledger.known(item.key, self.version(item), output, self.store.version(output))
            lacks_faces = self.options.crops and known and known.faces and not self._has_faces(output)
            if known is None or lacks_faces:
                todo.append(item)
            else:
                self.entries[item.key] = replace(known, status="skipped")
        return todo
