"""A run over files: read, restore, write, report. One bad file never ends it."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.encode import write_image
from bfr.runtime.images.result import side_by_side
from bfr.runtime.jobs.cards import cards_of, preview_paths
from bfr.runtime.jobs.faces import check_face_folders, face_folder
from bfr.runtime.jobs.film import restore_film
from bfr.runtime.jobs.ledger import Ledger
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.page import write_page
from bfr.runtime.jobs.pictures import comparison_names, write_previews
from bfr.runtime.jobs.report import (
    Entry,
    Report,
    describe_passed_over,
    describe_run,
    describe_settings,
    write_report,
)
from bfr.runtime.jobs.sources import Item, choose_outputs, find_masks
from bfr.runtime.jobs.store import Store, identity_of
from bfr.runtime.jobs.work import ImageWork, Picture
from bfr.runtime.restore.pipeline import FaceRestorer

__all__ = ["JobOptions", "Progress", "run_job"]

Progress = Callable[[float, str], None]
"""Called with how many inputs are done, fractions for those under way, and the name of one of them."""


class Run(ABC):
    """The files of a run. A child class restores them.

    outputs: key of an item -> its result, relative to the output folder.
    entries: the outcomes of the items, by their keys. A child class fills it.
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
            facts: Where and with what the results are made.

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
        """Restore the remaining items, and enter their outcomes. Raises WriteFailed."""

    def run(self) -> Report:
        """As `run_job`."""
        begin, options = time.perf_counter(), self.options
        outputs, refused = choose_outputs(self.items, self.store, options.format)
        self.outputs.update(outputs)
        if options.crops:
            check_face_folders(options.out, self.items, outputs)
        self.entries.update({key: Entry(key, "failed", error=error) for key, error in refused.items()})
        todo = [item for item in self.items if item.key in self.outputs]
        if options.compare:
            inputs = {identity_of(item.source) for item in self.items} - {None}
            self._comparisons = comparison_names(self.outputs, lambda name: self.store.identity(name) in inputs)
        if options.resume:
            todo = self._resumed(todo)
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
        """Keep the outcome of an item; if it has a result, for later runs too. In any thread. Raises WriteFailed."""
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

    def _lacks(self, item: Item, known: Entry) -> bool:
        """Whether an earlier run did not write what this one shows beside the result."""
        options, wanted = self.options, list[PurePath | str]()
        if options.crops and known.faces:
            wanted.append(face_folder(self.outputs[item.key]))
        if not item.is_video:  # of those without faces, and of a server's, nothing is shown
            wanted += [self._comparisons[item.key]] if options.compare else []
            wanted += preview_paths(item.name) if options.html else []
        return not all((options.out / path).exists() for path in wanted)

    def _resumed(self, items: Sequence[Item]) -> list[Item]:
        """The remaining items; the others become skipped entries, as the earlier run reported them."""
        todo = []
        for item in items:
            output = self.outputs[item.key]
            known = self.ledger.known(item.key, self.version(item), output, self.store.version(output))
            if known is None or self._lacks(item, known):
                todo.append(item)
            else:
                self.entries[item.key] = replace(known, status="skipped")
        return todo


def run_job(
    restorer: FaceRestorer | PhotoRestorer,
    items: Sequence[Item],
    options: JobOptions,
    *,
    mask: Path | str | None = None,
    passed_over: Mapping[str, str] | None = None,
    progress: Progress = lambda _done, _name: None,
) -> Report:
    """Restore `items` into the output folder and write `report.json` there.

    A PhotoRestorer takes photographs and videos, a Restorer aligned faces. A file that cannot be read or restored
    becomes a failed entry.

    Args:
        restorer: The Restorer or PhotoRestorer.
        items: The inputs, from `find_images`.
        options: How results are written.
        mask: For systems that inpaint aligned faces: a mask for all pictures, or a folder with one mask of each
            picture's name, white where to inpaint. Without it, pixels that are 0 in all channels are inpainted, as
            published.
        passed_over: Files that `find_inputs` skipped, for the report.
        progress: See `Progress`.

    Raises:
        InvalidOption: Before any work, for items of another type, a result that would replace its source, options that
            differ from those of the run that is resumed, and a mask for a system that takes none.
        InputNotFound: A mask is missing.
        WriteFailed: The output folder cannot be written: finished results stay, and `resume` continues the run.
    """
    if not hasattr(restorer, "run") and not isinstance(restorer, PhotoRestorer):
        raise InvalidOption(f"an object of type {type(restorer).__name__} was given: open a Restorer first")
    if not isinstance(options, JobOptions):
        raise InvalidOption(f"options are JobOptions, not of type {type(options).__name__}")
    items = list(items)
    if strange := [item for item in items if not isinstance(item, Item)]:
        raise InvalidOption(f"{strange[0]!r} is no Item: give what find_images returns")
    return _LocalRun(restorer, items, options, mask, progress, passed_over or {}).run()


class _LocalRun(Run):
    def __init__(
        self,
        restorer: FaceRestorer | PhotoRestorer,
        items: Sequence[Item],
        options: JobOptions,
        mask: Path | str | None,
        progress: Progress,
        passed_over: Mapping[str, str],
    ) -> None:
        photo = restorer if isinstance(restorer, PhotoRestorer) else None
        networks = restorer.restorer if isinstance(restorer, PhotoRestorer) else restorer
        self.named = {item.key: item.name for item in items}
        self.reached = 0.0  # inputs, with the shares of those that the networks are done with in part
        self.shares: dict[str, float] = {}
        if not photo and (flags := [f"--{name}" for name in ("crops", "boxes") if getattr(options, name)]):
            raise InvalidOption(f"{', '.join(flags)} is for faces of photographs: leave it out, or --aligned")
        wanted: dict[str, Any] = options.model_dump(include={"seed", "format", "quality", "metadata", "codec", "crf"})
        # Only if chosen: a run of an earlier version, which has no such option, can be resumed.
        wanted |= options.model_dump(include={"boxes", "key_frames"}, exclude_defaults=True)
        if photo:
            chosen = photo.options.model_dump(exclude={"background"})
            wanted |= {"photo": chosen, "detector": photo.detector.name, "background": photo.background.name}
        masks: dict[str, Path] = {}
        if mask is not None:
            manifest = networks.bundle.manifest
            if photo or "mask" not in {one.name for one in manifest.inputs}:
                raise InvalidOption(
                    f"{manifest.system} takes no mask here: leave it out, or name a bundle that inpaints"
                )
            masks, wanted["masks"] = find_masks(items, mask), str(mask)
        settings = describe_settings(networks, wanted)
        facts = {**describe_run(networks), "passed_over": describe_passed_over(passed_over)}
        super().__init__(items, options, progress, settings=settings, facts=facts)
        self.work = ImageWork(
            restorer, self.store, self.outputs, options, masks=masks, show=self.show, enter=self.enter
        )

    def version(self, item: Item) -> str | None:
        return self.work.version(item)

    def restore(self, items: Sequence[Item]) -> None:
        self.reached = float(len(self.entries))
        with closing(self.work.restore([item for item in items if not item.is_video], self._step)) as entries:
            for entry in entries:
                self.reached += 1 - self.shares.pop(entry.source, 0.0)
                self.progress(round(self.reached, 6), self.named[entry.source])
        for item in items:
            if item.is_video:
                self._film(item, len(self.entries))
                self.progress(len(self.entries), item.name)

    def _film(self, item: Item, finished: int) -> None:
        entry = restore_film(
            self.work.editor,
            item,
            self.outputs[item.key],
            self.options,
            show=partial(self.show, item),
            progress=lambda share: self.progress(finished + share, item.name),
        )
        self.enter(entry)

    def _step(self, done: int, pictures: list[Picture]) -> None:
        steps = self.work.restorer.plan.steps
        shares = [1 / max(1, len(picture.faces or ())) for picture in pictures]
        moved = sum(shares) * (done / steps if steps else 1.0)
        self.progress(round(self.reached + moved, 6), self.named[pictures[0].source])
        if done == steps:
            self.reached += moved
            for picture, share in zip(pictures, shares, strict=True):
                self.shares[picture.source] = self.shares.get(picture.source, 0.0) + share
