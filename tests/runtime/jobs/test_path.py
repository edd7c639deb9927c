"""How many files an aligned face goes through from the command line to the ONNX Runtime session."""

import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

import bfr.runtime
from bfr.runtime.cli.main import app
from bfr.runtime.jobs.run import JobOptions, run_job
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.restore.restorer import Restorer

ROOT = Path(str(bfr.runtime.__file__)).resolve().parent
ON_THE_STACK = 20  # files
EXECUTED = 21  # with what checks the file before a decoder reads it, and what writes reports


class Arrived(Exception):
    """The face is at the session."""


def file_of(frame: FrameType) -> str | None:
    """The file of a function of `bfr.runtime`; None for others, for modules and for classes that are being made."""
    path = Path(frame.f_code.co_filename).resolve()
    function = bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED)
    return path.relative_to(ROOT).as_posix() if function and path.is_relative_to(ROOT) else None


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of the frames between the caller and the session's first run, outermost first; the run ends there."""
    found: list[str] = []

    def run(*_arguments: Any) -> None:
        frame = sys._getframe(1)
        while frame.f_back:
            if name := file_of(frame):
                found.insert(0, name)
            frame = frame.f_back
        raise Arrived

    monkeypatch.setattr("onnxruntime.InferenceSession.run_with_iobinding", run)
    return found


@pytest.fixture
def face(tmp_path: Path) -> Path:
    Pillow.new("RGB", (256, 256), (90, 80, 70)).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def executed(call: Callable[[], object]) -> set[str]:
    """The files whose functions a call executes, in all threads, until the session is reached."""
    found: set[str] = set()

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and (name := file_of(frame)):
            found.add(name)

    before = sys.getprofile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        with pytest.raises(Arrived):
            call()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    return found


def test_the_call_stack_from_the_command_line_to_the_session(stack: list[str], face: Path, tmp_path: Path) -> None:
    command = ["restore", str(face), "-o", str(tmp_path / "out"), "--aligned", "--backend", "onnxruntime-cpu"]
    ended = CliRunner().invoke(app, command)
    assert isinstance(ended.exception, Arrived)
    assert stack[-1] == "backends/onnxruntime.py"
    assert len(set(stack)) <= ON_THE_STACK, stack


def test_the_files_that_a_face_goes_through(face: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Of an open Restorer: naming, reports, reading, the pipeline and the networks."""
    with Restorer.open(backend="onnxruntime-cpu", preset="fast") as restorer:
        restorer.warm_up(batch=1, times=1)
        items, options = find_images([face]), JobOptions(out=tmp_path / "out")
        request.getfixturevalue("stack")
        files = executed(lambda: run_job(restorer, items, options))
    assert {"jobs/run.py", "jobs/work.py", "images/decode.py", "backends/onnxruntime.py"} <= files
    assert len(files) <= EXECUTED, "\n".join(sorted(files))
