"""The command line called in this process."""

import sys

import pytest

from bfr.runtime.cli import main as cli
from bfr.runtime.cli.terminal import volume


class Called:
    """`main` called in this process: its exit status, what it printed, and what it would have opened and run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.status, self.stdout, self.stderr = -1, "", ""

    def __call__(self, *arguments: object) -> "Called":
        self._monkeypatch.setattr(sys, "argv", ["bfr", *map(str, arguments)])
        for flag in ("quiet", "verbose"):  # what a command sets ends with the test
            self._monkeypatch.setattr(volume, flag, False)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        self.status = 0 if ended.value.code is None else int(ended.value.code)
        self.stdout, self.stderr = self._capsys.readouterr()
        return self

    def refused(self, *arguments: object) -> str:
        """What is printed on standard error by a command that ends with status 2, as one that was written wrongly."""
        done = self(*arguments)
        assert done.status == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr
