"""A run over files whose networks are a server's: the same names, reports and statuses as of `run_job`."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bfr.runtime.client import Client
from bfr.runtime.errors import InvalidOption, RequestRefused, ServerError, ServerUnavailable, explain_failure
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.images.decode import decode_image, read_image
from bfr.runtime.images.headers import header_size
from bfr.runtime.jobs.faults import ends_run, name_notes, shown
from bfr.runtime.jobs.options import JobOptions, RestoreOptions
from bfr.runtime.jobs.report import Entry, Report, describe_now, describe_passed_over, describe_versions, rounded
from bfr.runtime.jobs.run import Progress, Run
from bfr.runtime.jobs.sources import Item

REQUESTS = 4  # that are under way at once
# Of JobOptions, what a server does not take.
_SERVERS = ("quality", "metadata", "codec", "crf", "crops", "boxes")
_CHOSEN = PhotoOptions.model_fields.keys() & RestoreOptions.model_fields.keys()  # of PhotoOptions, what a client does


def run_remote_job(
    client: Client,
    items: Sequence[Item],
    options: JobOptions,
    photo: PhotoOptions | None,
    *,
    preset: str | None = None,
    passed_over: Mapping[str, str] | None = None,
    progress: Progress = lambda _done, _name: None,
) -> Report:
    """Restore `items` on a server into the output folder, and write `report.json` there.

    A file that the server refuses or fails to restore becomes a failed entry. If the run ends early, finished results
    stay, and `resume` continues it.

    Args:
        client: A client of the server.
        items: The inputs, from `find_images`.
        options: How results are written.
        photo: How faces are found and pasted; None for aligned faces.
        preset: None for the server's default.
        passed_over: See `run_job`.
        progress: See `Progress`.

    Raises:
        InvalidOption: See `run_job`; also for options that a server does not take.
        ServerUnavailable: The server does not answer any more.
        RequestRefused: The server does not accept the key.
    """
    given = [name for name in _SERVERS if getattr(options, name) != JobOptions.model_fields[name].default]
    if photo is not None:
        given += photo.model_dump(exclude=_CHOSEN, exclude_defaults=True)
    if given:
        raise InvalidOption(f"{', '.join(given)} cannot go to a server: leave it out, or restore without a server")
    info = client.info()
    preset = preset or info["default_preset"]
    return _RemoteRun(client, info, items, options, photo, preset, progress, passed_over or {}).run()


class _RemoteRun(Run):
    def __init__(
        self,
        client: Client,
        info: dict[str, Any],
        items: Sequence[Item],
        options: JobOptions,
        photo: PhotoOptions | None,
        preset: str | None,
        progress: Progress,
        passed_over: Mapping[str, str],
    ) -> None:
        presets = info["presets"]  # none of a system without a loop
        if preset is not None and preset not in presets:
            offered = ", ".join(presets) or "none"
            raise InvalidOption(f"preset {preset!r} is not offered by the server: choose one of {offered}")
        self.client, self.info, self.photo = client, info, photo
        # Only if chosen: servers of an earlier version have no such option.
        frames = options.model_dump(include={"key_frames"}, exclude_defaults=True)
        self.asked: dict[str, Any] = {"seed": options.seed} | ({"preset": preset} if preset else {}) | frames
        chosen = {} if photo is None else photo.model_dump(include=_CHOSEN)
        self.asked |= chosen or {"mode": "aligned"}
        settings = {"system": info["system"], "bundle_hash": info["bundle"], "preset": preset}
        settings |= {"sampler": presets.get(preset), "seed": options.seed, "format": options.format}
        settings["server"] = info["version"]
        facts = {"backend": info["backend"], "server": client.url, "started": describe_now()}
        facts["passed_over"] = describe_passed_over(passed_over)
        versions = {**describe_versions(), "server": info["version"]}
        super().__init__(
            items,
            options,
            progress,
            settings=settings | frames | ({"photo": chosen} if chosen else {}),
            facts={**facts, "versions": versions},
        )

    def restore(self, items: Sequence[Item]) -> None:
        pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="bfr-remote")
        try:
            waiting = {pool.submit(self._enter, self._image, item): item for item in items if not item.is_video}
            for future in as_completed(waiting):
                future.result()  # raises what ends the run
                self.progress(len(self.entries), waiting[future].name)
        finally:
            pool.shutdown(cancel_futures=True)
        for item in items:
            if item.is_video:
                self._enter(self._video, item)
                self.progress(len(self.entries), item.name)

    def _enter(self, restore: Callable[[Item], Entry], item: Item) -> None:
        """Enter what becomes of an item. Raises where no other one would fare better."""
        version = item.version
        try:
            entry = restore(item)
        except Exception as error:
            if ends_run(error) or (isinstance(error, RequestRefused) and error.status in (401, 403)):
                raise
            if isinstance(error, ServerUnavailable) and not self.client.ready():
                raise ServerUnavailable(
                    f"{error}\nfinished results are kept, and --resume continues the run"
                ) from error
            entry = Entry(item.key, "failed", error=explain_failure(error))
        if (output := entry.output) is not None:
            notes = (*entry.notes, *name_notes(item, output))
            made = self.store.version(output)
            entry = replace(entry, notes=notes, source_version=version, output_version=made)
        self.enter(rounded(entry))

    def _image(self, item: Item) -> Entry:
        """Send an image, and write its result. Called in a thread."""
        target, options = self.target(item), self.options
        result = self.client.restore(Path(item.source), **self.asked, format=target.suffix)
        if result.bundle != self.info["bundle"]:
            raise ServerError("the server has another bundle than when this run began: run it again with --resume")
        begin = time.perf_counter()
        self.store.write(self.outputs[item.key], result.data)

        def show() -> None:
            before = read_image(Path(item.source), max_pixels=options.max_pixels).pixels
            after = decode_image(result.data, name=target.name, max_pixels=16 * options.max_pixels).pixels
            if before.dtype != after.dtype:  # 16 bits were asked for as a JPEG
                before = (before // 257).astype(after.dtype)
            self.show(item, before, after)

        errors = [f"{result.failed} of {result.faces + result.failed} faces failed" if result.failed else None]
        if options.compare or options.html:
            errors.append(shown(show))
        width, height = header_size(result.data) or (None, None)
        total = result.faces + result.failed
        return Entry(
            item.key,
            "restored" if total or self.photo is None else "already sharp" if result.sharp else "no face",
            self.outputs[item.key],
            width=width,
            height=height,
            faces=result.faces,
            sharp=result.sharp or None,
            seconds={**result.seconds, "write": time.perf_counter() - begin},
            error="; ".join(filter(None, errors)) or None,
            notes=result.notes,
        )

    def _video(self, item: Item) -> Entry:
        finished, begin, name = len(self.entries), time.perf_counter(), None
        if not self.info["jobs"]:
            raise InvalidOption("this server takes no videos: start it with a folder for jobs, or restore without it")
        try:
            name = self.client.submit(Path(item.source), **self.asked).id
            for job in self.client.states(name):
                self.progress(finished + job.share, item.name)
                if job.error and not job.ended:  # the server was restarted, and offers no such bundle any more
                    break
            if job.state != "done":
                raise ServerError(job.error or f"the job was {job.state} on the server: restore it again")
            self.client.download(name, self.target(item))
        finally:
            if name:
                with suppress(ServerError):  # it is forgotten in its time
                    self.client.delete(name)
        return Entry(
            item.key,
            "restored" if job.faces else "no face",
            self.outputs[item.key],
            faces=job.faces,
            warped=job.warped,
            frames=job.frames,
            seconds={"job": time.perf_counter() - begin},
            error=job.error,
        )
