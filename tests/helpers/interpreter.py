"""Another interpreter, for what a test must not do in its own."""

import os
import subprocess
import sys
from typing import Any


def python(
    code: str, *arguments: object, status: int = 0, env: dict[str, str] | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run code, which must end with this status. env: what is added to the environment of this process."""
    command, environment = [sys.executable, "-c", code, *map(str, arguments)], {**os.environ, **(env or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)  # noqa: S603
    assert done.returncode == status, done.stderr
    return done
