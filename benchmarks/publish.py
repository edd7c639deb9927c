"""The command line of a benchmark: its options, a JSON file of all figures and a Markdown file of tables."""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bfr.benchmarks.environment import describe_machine
from bfr.runtime.errors import BfrError
from bfr.runtime.files import write_bytes

Findings = tuple[dict[str, Any], str]
"""All figures, and the Markdown of a report that begins with its title."""


class Command(argparse.ArgumentParser):
    """The command line of a benchmark that writes NAME.json and NAME.md into `--out`."""

    def __init__(
        self,
        module: str,
        doc: str | None,
        measure: Callable[[argparse.Namespace], Findings],
        failed: Callable[[dict[str, Any]], bool] = lambda _: False,
    ) -> None:
        """Take the name from the module's.

        Args:
            module: Full name of the module that the command runs, such as `bfr.benchmarks.end_to_end.video`.
            doc: The module's docstring, which `--help` shows.
            measure: Takes the parsed arguments.
            failed: Takes the figures: whether they are a failure.
        """
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.module, self.name = module, module.rpartition(".")[2]
        self.measure, self.failed = measure, failed
        self.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report")

    def number(self, flag: str, default: int | None, text: str = "(%(default)s)") -> None:
        """Add an option that takes an integer."""
        self.add_argument(flag, type=int, default=default, help=text)

    def words(self, args: argparse.Namespace) -> str:
        """Return the command that was run, without defaults and with the last part of every path alone."""
        parts = ["python", "-m", self.module]
        for action in self._actions:
            value = getattr(args, action.dest, action.default)
            if value == action.default:
                continue
            parts += [action.option_strings[0]] if action.option_strings else []
            values = value if isinstance(value, list) else [] if value is True else [value]
            parts += [one.resolve().name if isinstance(one, Path) else str(one) for one in values]
        return shlex.join(parts)

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Parse, measure, write both files and print the Markdown; the exit status.

        An error that the user can fix is one line on stderr.
        """
        args = self.parse_args(arguments)
        try:
            figures, markdown = self.measure(args)
            title, _, rest = markdown.partition("\n")
            command = self.words(args)
            markdown = f"{title}\n\n```\n{command}\n```\n\n{rest.lstrip()}"
            content = {"machine": describe_machine(), "command": command, **figures}
            write_json(args.out / f"{self.name}.json", content)
            write_bytes(args.out / f"{self.name}.md", markdown.encode())
        except BfrError as error:
            say(f"error: {error}")
            return error.exit_code
        except FileNotFoundError as error:
            say(f"error: {error.filename} is not there: run in the folder of the sources, or name another")
            return 2
        print(markdown)
        return int(self.failed(figures))


def say(text: str) -> None:
    """Report progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object, whole or not at all, with null for every float that JSON does not know."""
    write_bytes(path, json.dumps(_finite(content), indent=1, allow_nan=False).encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
