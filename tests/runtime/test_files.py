"""Files and folders are absent or whole: failures, kills, leftovers."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from interpreter import python

from bfr.runtime import files
from bfr.runtime.errors import InputNotFound, WriteFailed


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leftover(name: str, pid: int, kind: str = "part") -> str:
    return f".{name}.{pid}-{files._MACHINE}00c0ffee.{kind}"


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    files.write_bytes(path, b"old")
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["a.bin"]


def test_final_name_appears_only_at_the_end(tmp_path: Path) -> None:
    with files.atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        assert names(tmp_path) == [temporary.name]
        assert temporary.name.startswith(f".a.{os.getpid()}-")
        assert temporary.suffix == ".part"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_any_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, exception: type[BaseException]) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail() -> None:
        with files.atomic_path(tmp_path / "a") as temporary:
            temporary.write_bytes(b"half")
            raise exception

    with pytest.raises(exception):
        fail()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EACCES, "permission"), (errno.EIO, "disk")],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failures_name_the_folder_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, remedy: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(WriteFailed, match=remedy) as caught:
        files.write_bytes(tmp_path / "a", b"data")
    assert str(tmp_path) in str(caught.value)
    assert names(tmp_path) == []


def test_disk_full_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(WriteFailed, match="full"):
        files.write_bytes(tmp_path / "a", b"data")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_file_or_folder_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    (tmp_path / "a").mkdir()
    for name, said in (("out/a", r"in the way|folder is needed"), ("a", "folder")):
        with pytest.raises(WriteFailed, match=said):
            files.write_bytes(tmp_path / name, b"data")
    assert names(tmp_path) == ["a", "out"]


def test_errors_of_others_pass_unchanged(tmp_path: Path) -> None:
    """A missing input, a connection or an unreadable file elsewhere is not a failed write."""
    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/somewhere/input.png")
    for error in (InputNotFound("x does not exist"), ConnectionError("reset"), elsewhere):

        def fail(error: Exception) -> None:
            with files.atomic_path(tmp_path / "a"):
                raise error

        with pytest.raises(type(error)) as caught:
            fail(error)
        assert caught.value is error


def test_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "b") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "x").write_text("1")
        assert names(tmp_path) == [temporary.name]
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b" / "sub" / "x").read_text() == "1"


def test_folder_that_exists_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "f").write_text("a file")
    (tmp_path / "home" / "sub").mkdir(parents=True)
    refused = (("b", False, "exists: choose another"), ("f", True, "not a folder"), ("home", True, "has no mark"))
    for name, replace, text in refused:
        with pytest.raises(WriteFailed, match=text), files.atomic_folder(tmp_path / name, replace=replace, mark="mark"):
            pytest.fail("the body was entered")
    assert names(tmp_path) == ["b", "f", "home"]
    with files.atomic_folder(tmp_path / "b", replace=True, mark="mark") as temporary:  # an empty one
        (temporary / "mark").touch()
    with files.atomic_folder(tmp_path / "b", replace=True, mark="mark"):
        pass


def make(path: Path, text: str, *, replace: bool = True, error: BaseException | None = None) -> None:
    with files.atomic_folder(path, replace=replace) as temporary:
        (temporary / "x").write_text(text)
        if error:
            assert (path / "x").read_text() == "old"
            raise error


def test_replacing_keeps_the_old_folder_until_the_new_one_is_complete(tmp_path: Path) -> None:
    make(tmp_path / "b", "old")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", "half", error=KeyboardInterrupt())
    assert (tmp_path / "b" / "x").read_text() == "old"
    make(tmp_path / "b", "new")
    assert (tmp_path / "b" / "x").read_text() == "new"
    assert names(tmp_path) == ["b"]


def test_failed_rename_in_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "b", "old")
    rename = os.rename

    def fail_in(source: Path, target: Path) -> None:
        if source.suffix == ".part":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_in)
    with pytest.raises(WriteFailed, match="full"):
        make(tmp_path / "b", "new")
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b" / "x").read_text() == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
from bfr.runtime import files
where, path = sys.argv[1], Path(sys.argv[2])
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if where == "between":
    rename = os.rename
    os.rename = lambda a, b: die() if a.suffix == ".part" else rename(a, b)
if where == "after":
    files._remove = die
with files.atomic_folder(path, replace=True) as temporary:
    (temporary / "x").write_text("new")
    if where == "inside": die()
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize(("where", "kept"), [("inside", "old"), ("between", None), ("after", "new")])
def test_kill_leaves_absent_or_whole_and_blocks_nothing(tmp_path: Path, where: str, kept: str | None) -> None:
    path = tmp_path / "b"
    make(path, "old")
    python(KILLED, where, path, status=-signal.SIGKILL, timeout=30)
    assert len(names(tmp_path)) > 1 or kept is None
    assert (path / "x").read_text() == kept if kept else not path.exists()

    files.recover_folder(path)
    assert names(tmp_path) == ["b"]
    assert (path / "x").read_text() == (kept or "old")
    make(path, "newest")
    assert names(tmp_path) == ["b"]
    assert (path / "x").read_text() == "newest"


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_next_run_recovers_by_itself_and_refuses_without_replace(tmp_path: Path) -> None:
    old = tmp_path / leftover("b", dead_pid(), "old")
    old.mkdir()
    (old / "x").write_text("old")
    with pytest.raises(WriteFailed, match="exists"):
        make(tmp_path / "b", "new", replace=False)
    assert (tmp_path / "b" / "x").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="no process can be asked for on Windows")
def test_only_leftovers_of_the_dead_are_cleaned(tmp_path: Path) -> None:
    dead = dead_pid()
    kept = [
        leftover("a", os.getppid()),  # alive
        leftover("a", dead, "old"),  # may be the only copy
        f".a.{dead}-0123456700c0ffee.part",  # of another machine
        ".hidden.part",
        "a.part",
    ]
    for name in [*kept, leftover("a", dead), leftover("a", os.getpid()), leftover("b.png", dead)]:
        (tmp_path / name).touch()
    with files.atomic_path(tmp_path / "c") as temporary:
        temporary.touch()
        files.clean_leftovers(tmp_path)
        assert names(tmp_path) == sorted([*kept, temporary.name])


def test_many_threads_write_one_name(tmp_path: Path) -> None:
    contents = [bytes([i]) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: files.write_bytes(tmp_path / "a", data), contents))
    assert (tmp_path / "a").read_bytes() in contents
    assert names(tmp_path) == ["a"]


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BFR_HOME", str(tmp_path / "own"))
    assert files.cache_folder() == tmp_path / "own"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BFR_HOME", "~/own")
    assert files.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("BFR_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_folder() == tmp_path / "xdg" / "bfr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder() == tmp_path / ".cache" / "bfr"
    assert list(tmp_path.iterdir()) == []


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("BFR_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(WriteFailed, match="set BFR_HOME"):
        files.cache_folder()


@pytest.mark.skipif(os.name == "nt", reason="names are counted in other units there")
@pytest.mark.parametrize("letter", [b"m", "\u00e9".encode(), "\U0001f600".encode(), b"\xff"])
@pytest.mark.parametrize("length", [95, 96, 97, 200, 227, 254, 255])
def test_any_name_that_the_file_system_allows(tmp_path: Path, letter: bytes, length: int) -> None:
    data = letter * (length // len(letter))
    name = os.fsdecode(data + b"x" * (length - len(data)))
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system does not allow it")
    with files.atomic_path(tmp_path / name) as temporary:
        assert len(os.fsencode(temporary.name)) <= 143  # of encrypted folders
        temporary.write_bytes(b"new")
    assert (tmp_path / name).read_bytes() == b"new"
    (tmp_path / name).unlink()
    make(tmp_path / name, "old")
    make(tmp_path / name, "new")
    assert (tmp_path / name / "x").read_text() == "new"
    assert names(tmp_path) == [name]


@pytest.mark.skipif(os.name == "nt", reason="no process can be asked for on Windows")
def test_long_names_that_begin_alike_are_recovered_apart(tmp_path: Path) -> None:
    one, two = (tmp_path / (200 * "m" + end) for end in "ab")
    short = files.shortened(one.name, files._LONGEST_PART)
    assert files.shortened(two.name, files._LONGEST_PART) != short
    old = tmp_path / leftover(short, dead_pid(), "old")
    old.mkdir()
    files.recover_folder(two)
    assert not two.exists()
    files.recover_folder(one)
    assert one.is_dir()
    assert not old.exists()


def test_a_name_is_shortened_at_a_character(tmp_path: Path) -> None:
    name = files.shortened("\u00e9" * 200, 60, suffix=".png")
    assert len(name.encode()) in (59, 60)
    assert name.startswith("\u00e9" * 19)
    assert name.endswith(".png")
    assert files.shortened("a", 60, suffix=".png") == "a.png"


def test_whose_fault_a_write_is(tmp_path: Path) -> None:
    """A name that is too long, or a folder in its place, is that file's; a full disk is the run's."""
    (tmp_path / "folder").mkdir()
    for name in ("x" * 300, "folder"):
        with pytest.raises(WriteFailed) as caught:
            files.write_bytes(tmp_path / name, b"data")
        assert files.concerns_one_file(caught.value)
    assert not files.concerns_one_file(WriteFailed("the bucket is gone"))
    failed = WriteFailed("the disk is full")
    failed.errno = errno.ENOSPC
    assert not files.concerns_one_file(failed)
    assert str(failed) == "the disk is full"
