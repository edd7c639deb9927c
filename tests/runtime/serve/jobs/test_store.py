"""Jobs on disk: what is kept, whose it is, what is left behind, and what never is."""

import asyncio
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.serve.jobs.job import Job, JobRequest, Status
from bfr.runtime.serve.jobs.store import PARTS, JobStore


def request(**more: Any) -> JobRequest:
    fast: dict[str, Any] = {"bundle": "mini", "preset": "fast", "seed": 3, "aligned": True}
    return JobRequest(**{**fast, "created": 1.0, "photo": PhotoOptions(), "suffix": ".png", **more})


async def body(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 100):
        yield data[begin : begin + 100]


def add(store: JobStore, data: bytes = b"data", **more: Any) -> Job:
    return asyncio.run(store.add(request(**more), body(data)))


def files(store: JobStore) -> list[str]:
    return sorted(path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs")


def test_a_job_is_kept_described_ended_and_deleted(store: JobStore) -> None:
    data = bytes(range(256)) * 50
    job = add(store, data, photo=PhotoOptions(faces="largest", upscale=2))
    assert job.input.read_bytes() == data
    assert job.describe({})["state"] == "queued"
    assert [one.request for one in store.waiting()] == [job.request]
    job.write(Status("running", 0.5, attempts=1))
    assert job.describe({})["share"] == 0.5
    job.out.mkdir()
    (job.out / "result.png").write_bytes(b"result")
    store.end(job, Status("done", 1.0, result="result.png", faces=1))
    found = store.get(job.id)
    assert found is not None
    assert (store.count(), store.waiting()) == (0, [])
    assert found.describe({})["result"] == f"/jobs/{job.id}/result"
    assert found.result is not None
    assert found.open(found.result).read() == b"result"
    assert (job.status, job.open(found.result).read()) == (found.status, b"result")  # found before it moved
    store.remove(job.id)
    assert store.get(job.id) is None
    assert files(store) == []


def test_folders_and_files_are_their_owners_alone(store: JobStore) -> None:
    old = os.umask(0o022)
    try:
        job = add(store)
        job.write(Status("running"))
    finally:
        os.umask(old)
    for path in (store.folder, *store.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_folder_that_others_could_read_is_closed(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir(mode=0o755)
    assert stat.S_IMODE(JobStore(tmp_path / "jobs").folder.stat().st_mode) == 0o700


def test_a_disk_of_another_user_that_may_be_written_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes mounts a volume for a group."""
    chmod = Path.chmod

    def only_own(path: Path, mode: int) -> None:
        if path == tmp_path:
            raise PermissionError(1, "Operation not permitted")
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", only_own)
    store = JobStore(tmp_path)
    assert add(store).status.state == "queued"
    assert {stat.S_IMODE((tmp_path / part).stat().st_mode) for part in PARTS} == {0o700}


def test_a_folder_of_other_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(InvalidOption, match=r"holds other files \(letter.txt\): choose a folder for jobs alone"):
        JobStore(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_disk_of_its_own_is_taken(tmp_path: Path) -> None:
    for name in ("lost+found", ".snapshot"):
        (tmp_path / name).mkdir()
    JobStore(tmp_path)
    JobStore(tmp_path)


def test_a_job_of_an_earlier_version_is_done(store: JobStore) -> None:
    job = add(store)
    file = job.folder / "request.json"
    found = json.loads(file.read_bytes())
    file.write_text(json.dumps({**found, "photo": {**found["photo"], "detector": "auto"}}))
    assert [one.request for one in store.waiting()] == [job.request]


def test_what_is_no_job_is_not_deleted(store: JobStore) -> None:
    mine = [store.folder / part / name for part in PARTS for name in ("photos 2019", "photos.lock")]
    for folder in mine:
        folder.mkdir()
        (folder / "a.jpg").touch()
        os.utime(folder, (0, 0))
    store.sweep(1)
    assert all((folder / "a.jpg").exists() for folder in mine)
    assert store.count() == 0


def test_an_upload_that_breaks_off_leaves_nothing(store: JobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half" * 1_000_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(store.add(request(), broken()))
    assert store.waiting() == []
    assert files(store) == []


def test_an_upload_leaves_the_last_room_of_the_disk(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "free", lambda: -1)
    with pytest.raises(OSError, match="No space left"):
        add(store, bytes(2 << 20))
    assert files(store) == []


def test_an_upload_that_is_cancelled_as_it_is_accepted_is_a_job_or_is_none(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    async def cancelled() -> bool:
        loop, told = asyncio.get_running_loop(), threading.Event()
        adding = asyncio.create_task(store.add(request(), body(b"data")))

        def cancel() -> None:
            adding.cancel()
            told.set()

        def late(path: Path, target: Path) -> Path:
            found = rename(path, target)
            loop.call_soon_threadsafe(cancel)
            if threading.current_thread() is not threading.main_thread():
                told.wait()
            return found

        monkeypatch.setattr(Path, "rename", late)
        await asyncio.wait({adding})
        return adding.cancelled()

    refused = asyncio.run(cancelled())
    assert store.count() == (0 if refused else 1)


def test_what_a_crash_left_is_deleted_at_the_start_and_what_lives_is_not(store: JobStore) -> None:
    dead = "0" * 32
    for part in ("incoming", "deleted", "open"):  # an upload, an interrupted DELETE, what a deleted job's process wrote
        (store.folder / part / dead).mkdir()
        (store.folder / part / dead / "input.png").write_bytes(b"private")
    (store.folder / "incoming" / f"{dead}.lock").touch()
    arriving, go = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"half"
        arriving.set()
        await go.wait()
        yield b"more"

    async def work() -> Job:
        adding = asyncio.create_task(store.add(request(), slow()))
        await arriving.wait()
        JobStore(store.folder).sweep(1000)  # of another server, or of this one
        go.set()
        return await adding

    job = asyncio.run(work())
    assert job.input.read_bytes() == b"halfmore"
    assert files(store) == [f"open/{job.id}/input.png", f"open/{job.id}/request.json"]


def test_a_deleted_job_is_not_made_again_by_what_is_written_late(store: JobStore) -> None:
    job = add(store)
    store.remove(job.id)
    with pytest.raises(FileNotFoundError):
        job.write(Status("running"))
    assert store.get(job.id) is None
    assert files(store) == []


def test_a_job_is_worked_on_by_one_process(store: JobStore) -> None:
    job = add(store)
    with store.taken(job) as ours:
        assert ours
        with JobStore(store.folder).taken(job) as theirs:
            assert not theirs
    with store.taken(job) as again:
        assert again
    store.remove(job.id)
    with store.taken(job) as gone:
        assert not gone


def test_jobs_have_owners(store: JobStore) -> None:
    jobs = [add(store, owner=owner, created=float(k)) for k, owner in enumerate(("anna", "ben", "anna"))]
    store.end(jobs[0], Status("failed"))
    assert [job.id for job in store.of("anna")] == [jobs[2].id, jobs[0].id]
    assert store.of("nobody") == []


def test_the_oldest_comes_first(store: JobStore) -> None:
    later, earlier = add(store, created=2.0), add(store, created=1.0)
    assert [job.id for job in store.waiting()] == [earlier.id, later.id]


@pytest.mark.parametrize("name", ["..", "../..", "/etc", "a" * 32 + "/..", "A" * 32, "", "\0" * 32, "lock"])
def test_only_an_id_is_ever_looked_for(store: JobStore, name: str) -> None:
    assert store.get(name) is None


def test_a_result_is_a_file_of_its_own_job(store: JobStore, tmp_path: Path) -> None:
    job = add(store)
    (tmp_path / "outside.png").write_bytes(b"secret")
    store.end(job, Status("done", result="../../outside.png"))
    found = store.get(job.id)
    assert found is not None
    assert found.result is None


def test_what_ended_long_ago_is_deleted(store: JobStore) -> None:
    old, new = add(store), add(store)
    for job in (old, new):
        store.end(job, Status("done"))
    os.utime(store.folder / "ended" / old.id, (time.time() - 100, time.time() - 100))
    store.sweep(50)
    assert store.get(old.id) is None
    assert store.get(new.id) is not None


def test_a_status_that_cannot_be_read_counts_as_queued_and_of_an_ended_job_as_failed(store: JobStore) -> None:
    job, ended = add(store), add(store)
    store.end(ended, Status("done"))
    ended = store.get(ended.id) or ended
    for text in ("", "[]", '{"state": "dancing"}', '{"colour": 1}'):
        for one in (job, ended):
            (one.folder / "state.json").write_text(text)
        assert job.status == Status()
        assert (ended.status.state, "send it again" in str(ended.status.error)) == ("failed", True)


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOption, match="--jobs"):
        JobStore(tmp_path / "file")


def test_a_disk_that_is_gone_counts_as_full(store: JobStore) -> None:
    assert store.free() > 0
    shutil.rmtree(store.folder)
    assert store.free() < 0
