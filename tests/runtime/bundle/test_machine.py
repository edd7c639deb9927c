"""What this machine made of a bundle: found again by its hash, and never taken from the bundle or from another user."""

import logging
import os
import shutil
from pathlib import Path

import pytest
from bundles import edited

from bfr.runtime.bundle import bundle as module
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.files import check_file, map_file, read_file
from bfr.runtime.bundle.machine import RECORD, MachineFiles, MachineRecord, private_folder
from bfr.runtime.bundle.manifest import BundleFile
from bfr.runtime.errors import BackendUnavailable, BundleCorrupt, WriteFailed

posix = pytest.mark.skipif(os.name == "nt", reason="Windows keeps a user's profile to itself")


def test_recorded_checks_take_the_place_of_their_own_kind(tiny_bundle: Bundle, home: Path) -> None:
    files = MachineFiles(tiny_bundle.hash)
    assert files.read() == MachineRecord()
    assert not home.exists()  # to look makes nothing
    loop = next(c for c in tiny_bundle.manifest.verified if c.what.startswith("loop") and c.precision == "fp32")
    here = loop.model_copy(update={"gpu": "NVIDIA X", "backend": "onnxruntime-cuda", "seconds_a_step": 0.5})
    other = here.model_copy(update={"gpu": "NVIDIA Y"})
    files.record_checks([here, other])
    files.record_checks([here.model_copy(update={"seconds_a_step": 0.25})])
    assert [(c.gpu, c.seconds_a_step) for c in files.read().verified] == [("NVIDIA Y", 0.5), ("NVIDIA X", 0.25)]
    assert MachineFiles("0" * 64).read() == MachineRecord()


def test_engines_that_a_bundle_brings_are_left_unused_and_said_once(
    tiny_bundle: Bundle, tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Security 1: key and sha256 in a stranger's manifest prove nothing, its author writes both."""
    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "stranger"))
    (folder / "engines").mkdir()
    (folder / "engines" / "evil.engine").write_bytes(b"machine code")
    with edited(folder) as manifest:
        manifest["engines"] = [{"network": "denoiser", "file": {"path": "engines/evil.engine"}, "key": {"gpu": "any"}}]
    module._warn_of_engines.cache_clear()
    with caplog.at_level(logging.WARNING, "bfr"):
        opened = [Bundle.open(folder), Bundle.open(folder)]
    assert caplog.text.count("contains engines") == 1
    assert f"bfr build {folder}" in caplog.text
    assert {bundle.hash for bundle in opened} == {tiny_bundle.hash}
    assert MachineFiles(opened[0].hash).read().engines == ()


@posix
def test_the_folders_are_this_users_alone(home: Path) -> None:
    umask = os.umask(0)
    try:
        made = private_folder("engines", "0" * 64)
        assert [oct(folder.stat().st_mode & 0o777) for folder in (made.parent, made)] == ["0o700", "0o700"]
    finally:
        os.umask(umask)


@posix
@pytest.mark.parametrize("how", ["group", "all", "parent", "link"])
def test_what_another_user_could_have_written_is_not_read(tiny_bundle: Bundle, home: Path, how: str) -> None:
    files = MachineFiles(tiny_bundle.hash)
    files.write_engines(())
    assert files.read() == MachineRecord()
    folder = files.folder
    if how == "link":
        folder.rename(home / "elsewhere")
        folder.symlink_to(home / "elsewhere")
    elif how == "parent":
        folder.parent.chmod(0o777)
    else:
        folder.chmod(0o770 if how == "group" else 0o707)
    for act in (files.read, files.make, lambda: files.write_engines(())):
        with pytest.raises(BackendUnavailable, match="another user"):
            act()


@posix
@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_is_not_read(tiny_bundle: Bundle, home: Path) -> None:
    files = MachineFiles(tiny_bundle.hash)
    files.write_engines(())
    os.chown(files.folder, 12345, -1)
    with pytest.raises(BackendUnavailable, match="another user"):
        files.read()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"engines": [{}]}', '{"surprise": 1}'])
def test_a_damaged_record_names_the_remedy(tiny_bundle: Bundle, home: Path, text: str) -> None:
    files = MachineFiles(tiny_bundle.hash)
    (files.make() / RECORD).write_text(text)
    with pytest.raises(BundleCorrupt, match="bfr build"):
        files.read()


def test_files_are_checked_against_their_entries(tmp_path: Path) -> None:
    path = tmp_path / "a.engine"
    path.write_bytes(b"engine")
    entry = module.describe_file(tmp_path, path)
    assert read_file(tmp_path, entry, "build") == bytes(map_file(tmp_path, entry, "build")) == b"engine"
    assert check_file(tmp_path, entry, "build") == path
    for data in (b"engins", b"engine+", b""):
        path.write_bytes(data)
        for act in (read_file, map_file, check_file):
            with pytest.raises(BundleCorrupt, match="build it"):
                act(tmp_path, entry, "build it")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 6\n")
    with pytest.raises(BundleCorrupt, match="git lfs pull"):
        check_file(tmp_path, entry, "build it")
    with pytest.raises(BundleCorrupt, match="missing"):
        read_file(tmp_path, BundleFile(path="b.engine", sha256="0" * 64, bytes=1), "build it")


def test_without_a_place_nothing_is_there_and_nothing_is_written(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BFR_HOME", str(tmp_path / "file" / "bfr"))
    assert MachineFiles(tiny_bundle.hash).read() == MachineRecord()
    with pytest.raises(WriteFailed, match="BFR_HOME"):
        MachineFiles(tiny_bundle.hash).write_engines(())
