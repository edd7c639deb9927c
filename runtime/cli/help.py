"""`--help` in groups: of commands by what they are for, of flags by what they set. Nothing is cut off."""

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

WHOLE = 10_000  # characters of a summary, which is wrapped


class Command(TyperCommand):
    """A command whose flags are listed below the headings of their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        rows = []
        for parameter in self.get_params(ctx):
            heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if record := parameter.get_help_record(ctx):
                rows.append((getattr(parameter, "rich_help_panel", None) or heading, record))
        _write(formatter, rows)


class Group(TyperGroup):
    """The commands below the headings of their panels."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands with their whole summaries."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (getattr(command, "rich_help_panel", None) or "Commands", (name, command.get_short_help_str(WHOLE)))
            for name, command in commands
            if command is not None
        ]
        _write(formatter, rows)


def _write(formatter: Any, rows: Iterable[tuple[str, tuple[str, str]]]) -> None:
    found: dict[str, list[tuple[str, str]]] = {}
    for heading, row in sorted(rows, key=lambda one: one[0] != "Arguments"):
        found.setdefault(heading, []).append(row)
    for heading, group in found.items():
        with formatter.section(heading):
            formatter.write_dl(group)
