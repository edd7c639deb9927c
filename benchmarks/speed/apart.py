"""An object in a separate process, whose methods are called from here.

A crash, a hang and memory that runs out end that process alone; here they become `Lost`, with the reason. The process
is `python -m bfr.benchmarks.speed.apart`, and not one of `multiprocessing`, which would run the caller's main module.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bfr.runtime.errors import BfrError

END_SECONDS = 30


class Lost(Exception):
    """The process is gone, or its object raised. The text says why, in one line."""


class Apart:
    """A process that makes an object and answers calls of its methods, one at a time, until it is closed."""

    def __init__(self, make: Callable[..., Any], *arguments: Any, limit: float) -> None:
        """Start the process and wait until the object is there. Raises Lost if it could not be made.

        Args:
            make: Makes the object; a function or class of a module that can be imported.
            arguments: Of `make`. They are pickled, as are arguments and results of all calls.
            limit: Seconds that making it, and each call, may take.
        """
        self.limit = limit
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process lives)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bfr.benchmarks.speed.apart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # a module of the current folder is not the one that is meant
        )
        self._answers: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._ask((make, arguments), "to start")

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method there. Raises Lost if it raised, ended the process or took too long; the process is gone."""
        return self._ask((method, arguments), f"to {method}")

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.stdin.close()  # type: ignore[union-attr]
            self._process.wait(END_SECONDS)
        self._kill()

    def _ask(self, request: tuple[Any, ...], what: str) -> Any:
        if self._errors.closed:
            raise Lost("its process is gone")
        answer = None
        try:
            with suppress(OSError):  # it has ended
                pickle.dump(request, self._process.stdin)  # type: ignore[arg-type]
                self._process.stdin.flush()  # type: ignore[union-attr]
                answer = self._answers.get(timeout=self.limit)
        except queue.Empty:
            self._kill()
            raise Lost(f"it took more than {self.limit:g} s {what}") from None
        if answer is None:
            raise self._lost()
        failed, value = answer
        if failed:
            self._kill()
            raise Lost(value)
        return value

    def _read(self) -> None:
        """Queue the answers, and None at their end."""
        # An answer in pieces ends them too.
        with suppress(EOFError, OSError, pickle.UnpicklingError, AttributeError, ImportError):
            while True:
                self._answers.put(pickle.load(self._process.stdout))  # type: ignore[arg-type]  # noqa: S301
        self._answers.put(None)
        self._process.stdout.close()  # type: ignore[union-attr]

    def _lost(self) -> Lost:
        """Why a process ended without an answer: how, and the last line that it wrote."""
        code = 0
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(END_SECONDS)
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").split("\n")
        self._kill()
        why = f"its process ended with status {code}"
        if code < 0:
            name = signal.Signals(-code).name
            why = f"its process was ended by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        return Lost(f"{why}: {last}" if last else why)

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()


def main() -> None:
    """What the process does: make the object, then answer calls until nothing more is asked."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    thing: Any = None
    while True:
        try:
            what, values = pickle.load(requests)  # noqa: S301
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            if thing is None:
                thing, answer = what(*values), (False, None)
            else:
                answer = False, getattr(thing, what)(*values)
        except Exception as error:
            traceback.print_exc()
            line = (str(error).strip() or "no more is known").splitlines()[0]
            answer = True, line if isinstance(error, BfrError) else f"{type(error).__name__}: {line}"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
