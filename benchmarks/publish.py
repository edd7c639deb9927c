"""How a benchmark ends: a JSON file with all figures, a Markdown file with the tables, an exit status."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bfr.benchmarks.environment import describe_machine
from bfr.runtime.errors import BfrError
from bfr.runtime.files import write_bytes


def publish(out: Path, name: str, command: str, call: Callable[[], tuple[dict[str, Any], str]]) -> int:
    """Call for (figures, Markdown), write `name`.json and `name`.md into `out`, and print the Markdown.

    Returns the exit status; an error that the user can mend is printed as one line.
    """
    try:
        figures, markdown = call()
        content = {"machine": describe_machine(), "command": command, **figures}
        write_bytes(out / f"{name}.json", json.dumps(content, indent=1).encode() + b"\n")
        write_bytes(out / f"{name}.md", markdown.encode())
    except BfrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown)
    return 0
