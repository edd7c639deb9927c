"""A run over files whose networks are a server's: the same names, reports and statuses as of `run_job`."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from typing import Any, cast

from bfr.runtime.client.client import Client
from bfr.runtime.client.types import RestoreOptions, Result
from bfr.runtime.errors import BfrError, InvalidOption, RequestRefused, ServerError, ServerUnavailable, WriteFailed
from bfr.runtime.faces.photo import PhotoOptions
from bfr.runtime.files import write_bytes
from bfr.runtime.images.decode import decode_image, read_image
from bfr.runtime.images.metadata import size_in_header
from bfr.runtime.jobs.files import FileRun, Progress
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import Entry, Report, describe_now, describe_versions
from bfr.runtime.jobs.sources import Item
from bfr.runtime.video.formats import is_video

REQUESTS = 4  # that are under way at once
_SERVERS = ("quality", "metadata", "codec", "crf")  # of JobOptions, what a server decides


def run_remote_job(
    client: Client,
    items: Sequence[Item],
    options: JobOptions,
    photo: PhotoOptions | None,
    *,
    preset: str | None = None,
    progress: Progress = lambda _done, _name: None,
) -> Report:
    """Have `items` restored by a server, into the output folder, and write `report.json` there.

    photo: None for aligned faces. preset: None is the server's default. A file that the server refuses or fails at is a
    failed entry. Raises InvalidOption as `run_job` does, and for options that the server decides; ServerUnavailable
    where nobody answers any more, and RequestRefused for a key that is not let in: what was finished until then stays,
    and `resume` goes on from there.
    """
    given = [name for name in _SERVERS if getattr(options, name) != JobOptions.__dataclass_fields__[name].default]
    if photo is not None and photo.min_eye_distance != PhotoOptions().min_eye_distance:
        given.append("min_eye_distance")
    if given:
        raise InvalidOption(f"the server decides {', '.join(given)}: leave it out, or restore without a server")
    info = client.info()
    return _RemoteJob(client, info, items, options, photo, preset or info["default_preset"], progress).run()


class _RemoteJob(FileRun):
    def __init__(
        self,
        client: Client,
        info: dict[str, Any],
        items: Sequence[Item],
        options: JobOptions,
        photo: PhotoOptions | None,
        preset: str | None,
        progress: Progress,
    ) -> None:
        presets = info["presets"]  # none of a system without a loop
        if preset is not None and preset not in presets:
            offered = ", ".join(presets) or "none"
            raise InvalidOption(f"preset {preset!r} is not offered by the server: choose one of {offered}")
        self.client, self.info, self.photo = client, info, photo
        self.asked: dict[str, Any] = {"seed": options.seed} | ({"preset": preset} if preset else {})
        chosen = {} if photo is None else asdict(photo)
        chosen.pop("min_eye_distance", None)
        self.asked |= chosen or {"mode": "aligned"}
        settings = {"system": info["system"], "bundle_hash": info["bundle"], "preset": preset}
        settings |= {"sampler": presets.get(preset), "seed": options.seed, "format": options.format}
        facts = {"backend": info["backend"], "server": client.url, "started": describe_now()}
        versions = {**describe_versions(), "server": info["version"]}
        super().__init__(
            items,
            options,
            progress,
            settings=settings | ({"photo": chosen} if chosen else {}),
            facts={**facts, "versions": versions},
        )

    def restore(self, items: Sequence[Item]) -> None:
        pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="bfr-remote")
        try:
            waiting = {pool.submit(self._image, item): item for item in items if not is_video(item.source)}
            for future in as_completed(waiting):
                future.result()  # raises what ends the run
                self.progress(len(self.entries), waiting[future].name)
        finally:
            pool.shutdown(cancel_futures=True)
        for item in items:
            if is_video(item.source):
                self.entries[item.source] = self._video(item)
                self.progress(len(self.entries), item.name)

    def _image(self, item: Item) -> None:
        """In a thread: send, write, and enter what became of it."""
        target = self.targets[item.source]
        try:
            result = self.client.restore(item.source, **self._options(format=target.suffix))
            begin = time.perf_counter()
            write_bytes(target, result.data)
            if self.options.compare or self.options.html:
                before = read_image(item.source, max_pixels=self.options.max_pixels).pixels
                after = decode_image(result.data, name=target.name, max_pixels=16 * self.options.max_pixels).pixels
                if before.dtype != after.dtype:  # 16 bits were asked for as a JPEG
                    before = (before // 257).astype(after.dtype)
                self.show(item, before, after)
            self.entries[item.source] = self._entry(item, result, time.perf_counter() - begin)
        except BfrError as error:
            self.entries[item.source] = self._failed(item, error)

    def _entry(self, item: Item, result: Result, seconds: float) -> Entry:
        width, height = size_in_header(BytesIO(result.data)) or (None, None)
        total = result.faces + result.failed
        faceless = self.photo is not None and not total
        return Entry(
            str(item.source),
            "no face" if faceless else "restored",
            self.output(item),
            width=width,
            height=height,
            faces=result.faces,
            seconds={**result.seconds, "write": round(seconds, 4)},
            error=f"{result.failed} of {total} faces failed" if result.failed else None,
        )

    def _video(self, item: Item) -> Entry:
        finished, name = len(self.entries), None
        try:
            if not self.info["jobs"]:
                raise InvalidOption(
                    "this server takes no videos: start it with a folder for jobs, or restore without it"
                )
            begin = time.perf_counter()
            name = self.client.submit(item.source, **self._options()).id
            job = self.client.wait(name, progress=lambda job: self.progress(finished + job.share, item.name))
            if job.state != "done":
                raise ServerError(job.error or f"the job was {job.state} on the server: restore it again")
            self.client.download(name, self.targets[item.source])
            return Entry(
                str(item.source),
                "restored" if job.faces else "no face",
                self.output(item),
                faces=job.faces,
                frames=job.frames,
                seconds={"job": round(time.perf_counter() - begin, 4)},
                error=job.error,
            )
        except BfrError as error:
            return self._failed(item, error)
        finally:
            if name:
                with suppress(ServerError):  # it is forgotten in its time
                    self.client.delete(name)

    def _options(self, **more: Any) -> RestoreOptions:
        return cast("RestoreOptions", {**self.asked, **more})

    def _failed(self, item: Item, error: BfrError) -> Entry:
        """The entry of a file that could not be restored. Raises where no other file would fare better."""
        if isinstance(error, WriteFailed):
            raise error
        if isinstance(error, RequestRefused) and error.status in (401, 403):
            raise error
        if isinstance(error, ServerUnavailable) and not self.client.ready():
            raise ServerUnavailable(f"{error}\nwhat was finished is kept, and --resume goes on from there") from error
        return Entry(str(item.source), "failed", error=str(error))
