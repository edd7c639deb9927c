"""Temporary files: none stays, and no message names one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def restoring(tmp_path: Path) -> "subprocess.Popen[bytes]":
    """A command that restores an image from its standard input for minutes."""
    (tmp_path / "scratch").mkdir()
    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows lacks it
    before = signal.signal(hangup, signal.SIG_DFL)  # the command would inherit that nohup ignores it
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "bfr", "restore", "-", "-o", "out.png", "--aligned", "--steps", "900"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(tmp_path / "scratch")},
        )
    finally:
        signal.signal(hangup, before)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_that_is_ended_leaves_none(name: str, restoring: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    assert restoring.stdin is not None
    Image.new("RGB", (64, 64)).save(restoring.stdin, "PNG")
    restoring.stdin.close()
    restoring.stdin = None
    while not list(tmp_path.glob(".out.png.*/report.json")) and restoring.poll() is None:  # until the run has begun
        time.sleep(0.05)
    restoring.send_signal(getattr(signal, name))
    _, said = restoring.communicate(timeout=120)
    # Python that the signal met inside exec, as of a dataclass, ends itself by SIGINT; a shell calls that 130, too.
    assert restoring.returncode in (130, -signal.SIGINT)
    assert b"interrupted" in said
    assert list(tmp_path.glob("scratch/*")) == []


def test_an_error_of_standard_input_names_none(restoring: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    _, said = restoring.communicate((tmp_path / "whole.png").read_bytes()[:1000], timeout=120)
    assert b"standard input is damaged" in said
    assert b"scratch" not in said
