"""What a server logs, and where to."""

import json
import subprocess
import sys

from interpreter import python

SETS_UP = "import logging, socket; from bfr.runtime.serve.logs import log_as_json; log_as_json(); "


def test_a_process_whose_standard_files_are_closed_logs_nowhere() -> None:
    """As some programs start daemons: what it opens must not become its standard output."""
    code = f"{SETS_UP}logging.getLogger('bfr').error('lost'); raise SystemExit(socket.socket().fileno())"
    closed = ["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    assert subprocess.run(closed, check=False).returncode > 2  # noqa: S603


def test_what_a_form_lacks_is_not_logged() -> None:
    code = f"{SETS_UP}[logging.getLogger(name).warning('odd') for name in ('python_multipart.multipart', 'uvicorn')]"
    done = python(code)
    (line,) = done.stdout.splitlines()
    assert (json.loads(line)["logger"], done.stderr) == ("uvicorn", "")
