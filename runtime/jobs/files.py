"""The files of a run: which results there are already, where new ones go, and the reports, whoever restores them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.files import clean_leftovers
from bfr.runtime.images.encode import write_image
from bfr.runtime.images.formats import BY_SUFFIX, result_suffix
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.page import write_page
from bfr.runtime.jobs.pictures import comparison_paths, page_rows, side_by_side, write_previews
from bfr.runtime.jobs.report import Entry, Report, earlier_entries, write_report
from bfr.runtime.jobs.sources import Item, choose_targets
from bfr.runtime.video.formats import is_video, output_suffix

Progress = Callable[[float, str], None]
"""Called with how many inputs are done, fractions for those under way, and the name of one of them."""


class FileRun(ABC):
    """A run over files. A child restores: it fills `entries`, and writes below `targets` alone.

    settings: what results depend on. facts: where and with what they are made.
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
        self.items, self.options, self.progress = items, options, progress
        self.settings, self.facts = settings, facts
        self.targets: dict[Path, Path] = {}
        self.comparisons: dict[Path, Path] = {}
        self.entries: dict[Path, Entry] = {}
        self.stale: dict[Path, Entry] = {}

    @abstractmethod
    def restore(self, items: Sequence[Item]) -> None:
        """Restore what is left to do, and enter what became of it. Raises WriteFailed."""

    def run(self) -> Report:
        """As `run_job`."""
        begin = time.perf_counter()
        options = self.options
        self.targets, refused = choose_targets(self.items, options.out, self._suffix)
        self.entries = {source: Entry(str(source), "failed", error=error) for source, error in refused.items()}
        self.comparisons = comparison_paths(self.targets)
        todo = [item for item in self.items if item.source in self.targets]
        if options.resume:
            todo = self._resumed(todo)
        for folder in {options.out, *(target.parent for target in self.targets.values())}:
            if folder.is_dir():
                clean_leftovers(folder)
        # Should this run be killed, what lies there from before must not pass for its results.
        error = "the run ended before it was restored"
        self.stale = {
            i.source: Entry(str(i.source), "failed", error=error) for i in todo if self.targets[i.source].exists()
        }
        facts = {**self.facts, "network_seconds": 0.0, "seconds": 0.0}
        write_report(self._report(facts), options.out)  # a killed run can be resumed, with these settings
        try:
            self.restore(todo)
        finally:
            network = sum(
                entry.seconds.get("network", 0.0) for entry in self.entries.values() if entry.status != "skipped"
            )
            facts |= {"network_seconds": round(network, 3), "seconds": round(time.perf_counter() - begin, 3)}
            report = self._report(facts)
            write_report(report, options.out)
            if options.html:
                names = {str(item.source): item.name for item in self.items}
                rows = page_rows(options.out, [names[entry.source] for entry in report.entries], report)
                write_page(options.out, rows, {**report.settings, **report.facts})
        return report

    def output(self, item: Item) -> str:
        """Where the result of an item goes, relative to the output folder."""
        return self.targets[item.source].relative_to(self.options.out).as_posix()

    def show(self, item: Item, before: NDArray[Any], after: NDArray[Any]) -> None:
        """Write what shows a result beside its source, where it is wanted."""
        if self.options.compare:
            write_image(self.comparisons[item.source], side_by_side(before, after))
        if self.options.html:
            write_previews(self.options.out, item.name, before, after)

    def _report(self, facts: dict[str, Any]) -> Report:
        known = {**self.stale, **self.entries}
        return Report(tuple(known[i.source] for i in self.items if i.source in known), self.settings, facts)

    def _suffix(self, item: Item) -> str:
        if is_video(item.source):
            return output_suffix(item.source.suffix)
        return (
            result_suffix(BY_SUFFIX.get(item.source.suffix.lower()))
            if self.options.format == "same"
            else self.options.format
        )

    def _resumed(self, items: Sequence[Item]) -> list[Item]:
        """What is left to do; the rest becomes skipped entries, as the earlier run reported them."""
        earlier = earlier_entries(self.options.out, self.settings)
        todo = []
        for item in items:
            known = earlier.get(str(item.source))
            if not self.targets[item.source].is_file() or (known and known.output is None):
                todo.append(item)
                continue
            known = known or Entry(str(item.source), "skipped")
            self.entries[item.source] = replace(known, status="skipped", output=self.output(item))
        return todo
