"""What reaches a terminal: names and words from outside cannot steer it."""

import io
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bfr.runtime.cli import main as cli
from bfr.runtime.cli import terminal
from bfr.runtime.cli.restore import print_report
from bfr.runtime.jobs.report import Entry, Report

ESCAPES = "\x1b]0;owned\x07\x9b2J\rx\u202e"
SHOWN = r"\x1b]0;owned\x07\x9b2J\rx\u202e"


def clean(text: str) -> bool:
    return not any((ord(sign) < 32 and sign != "\n") or 127 <= ord(sign) < 160 or sign == "\u202e" for sign in text)


@pytest.mark.parametrize("say", [terminal.say, terminal.show])
def test_messages_and_results_are_escaped(say: Any, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"photo{ESCAPES}.jpg of https://user:pass@host/a?sig=1")
    said = "".join(capsys.readouterr())
    assert said == f"photo{SHOWN}.jpg of https://***@host/a?sig=***\n"


def test_what_an_output_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a pipe of Windows, in the code page of its language."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written := io.BytesIO(), "cp1252"))
    monkeypatch.setattr(cli, "app", lambda **_: terminal.show("wrote größe 老.png"))
    cli.main()
    sys.stdout.flush()
    assert written.getvalue().decode("cp1252").strip() == r"wrote größe \u8001.png"


def test_names_and_errors_of_a_run_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    entries = (
        Entry(f"a{ESCAPES}\nerror: forged", "failed", error=f"the server said {ESCAPES}"),
        Entry("b", "restored", notes=(ESCAPES,)),
    )
    passed = [{"source": f"c{ESCAPES}", "reason": "not an image"}]
    print_report(Report(entries, {}, {"seconds": 1.0, "passed_over": passed}), f"out{ESCAPES}", table="report.json")
    out, err = capsys.readouterr()
    assert clean(out + err)
    assert SHOWN in out
    assert err.count(SHOWN) == 4
    assert rf"a{SHOWN}\nerror: forged" in err


def test_names_beside_a_progress_bar_are_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "stderr", Console(stderr=True, force_terminal=True, width=200))
    with terminal.progress_bar() as bar:
        bar.add_task(f"photo{ESCAPES}\nx", total=1)
    err = capsys.readouterr().err
    assert rf"photo{SHOWN}\nx" in err
    assert ESCAPES not in err


@pytest.mark.parametrize(("terminal_", "quiet"), [(False, False), (True, True)])
def test_no_bar_goes_into_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal_: bool, quiet: bool
) -> None:
    monkeypatch.setattr(terminal, "stderr", Console(stderr=True, force_terminal=terminal_))
    monkeypatch.setattr(terminal.volume, "quiet", quiet)
    with terminal.progress_bar() as bar:
        bar.add_task("restoring", total=1)
    assert capsys.readouterr().err == ""


def test_warnings_are_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["bfr", "push", str(tmp_path), "hf://owner/name"])
    logger = logging.getLogger("bfr")
    monkeypatch.setattr(logger, "handlers", [])
    with pytest.raises(SystemExit):
        cli.main()
    capsys.readouterr()
    logging.getLogger("bfr.runtime.images.decode").warning("%s is cut off", f"a{ESCAPES}.jpg")
    assert capsys.readouterr().err == f"a{SHOWN}.jpg is cut off\n"
