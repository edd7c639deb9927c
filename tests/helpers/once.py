"""What is made once for all the processes of a test run."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

WAIT = 240  # seconds; less than a test may take, so that who waits in vain says what for


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder of this run's temporary files, which all of its processes see."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` has filled, by whichever process came first. It is read only: others read it too."""
    folder = run_folder(factory) / "once" / name
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "made"
    with FileLock(folder / "lock", timeout=WAIT):
        if not made.exists():
            make(folder)
            made.touch()
    return folder
