"""The commands by task. The module of a command is imported when the command is called, not when all are listed."""

import os
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from bfr.runtime.cli.help import USAGE_ERROR, Command, by_word, examples, write
from bfr.runtime.errors import InputNotFound, InvalidOption

COMMANDS = {
    "Restore": {
        "restore": "Restore the faces of photographs and videos.",
        "inpaint": "Inpaint the masked parts of aligned faces.",
        "live": "Restore the faces of a live camera or stream.",
    },
    "Serve and scale": {
        "serve": "Serve a bundle over HTTP, with a test page.",
        "batch": "Restore many photographs, here or on a Ray cluster.",
    },
    "Export and build": {
        "fetch": "Download published weights.",
        "export": "Export a system to ONNX, and verify it against PyTorch.",
        "wrap": "Make a bundle of any single-network ONNX restorer.",
        "build": "Build TensorRT engines for this GPU, and verify them.",
        "verify": "Compare a bundle with eager float32 PyTorch.",
        "export-triton": "Write a model repository for NVIDIA's Triton server.",
        "push": "Upload a bundle to the Hugging Face Hub.",
    },
    "Measure": {"bench": "Measure latency, throughput, memory and drift of backends."},
    "Inspect": {
        "info": "Show a bundle, and what its presets cost on this machine.",
        "doctor": "Show what works on this machine, and how to fix the rest.",
    },
}
"""Task -> command -> the first line of its help. The command `a-b` is the function `a_b` of the module `a_b`."""
HABITS = by_word(
    ("help commands list ls", "-h"),
    ("version", "--version"),
    ("run predict enhance upscale process image images photo video videos", "restore"),
    ("stream camera webcam", "live"),
    ("start server api", "serve"),
    ("download", "fetch"),
    ("convert onnx", "export"),
    ("engine tensorrt compile", "build"),
    ("test compare", "verify"),
    ("benchmark measure", "bench"),
    ("upload", "push"),
    ("show presets", "info"),
    ("check env environment", "doctor"),
)
"""Words from other programs -> bfr's command or option."""


HELP_FLAGS = {"help_option_names": ["-h", "--help"]}


@cache
def load(name: str) -> Any:
    """Import a command."""
    word = name.replace("-", "_")
    function = getattr(import_module(f"bfr.runtime.cli.{word}"), word)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, cls=Command, context_settings=HELP_FLAGS)(function)
    return get_command(alone)


class Group(TyperGroup):
    """`bfr`, and its commands below the headings of their tasks; each is imported on demand."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of the help."""
        del ctx
        return [name for group in COMMANDS.values() for name in group]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; None if there is none of this name."""
        return load(cmd_name) if cmd_name in self.list_commands(ctx) else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command. Raises InvalidOption if no command has this name."""
        try:
            return super().resolve_command(ctx, args)
        except USAGE_ERROR:
            names = self.list_commands(ctx)
            if meant := HABITS.get(args[0].lower()):
                raise InvalidOption(f"there is no command {args[0]}: did you mean `bfr {meant}`?") from None
            near = get_close_matches(args[0].lower(), names, 1)
            if os.path.exists(args[0]) or Path(args[0]).suffix:  # noqa: PTH110  (a name may be too long)
                raise InputNotFound(f"{args[0]} is no command: did you mean `bfr restore {args[0]}`?") from None
            remedy = f"did you mean `bfr {near[0]}`?" if near else f"choose one of {', '.join(names)}"
            raise InvalidOption(f"there is no command {args[0]}: {remedy}") from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before the command. Raises InvalidOption for an unknown option."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            if not given:
                raise  # it prints the help
            option = getattr(error, "option_name", given[0])
            near = get_close_matches(option, [flag for one in self.get_params(ctx) for flag in one.opts], 1, 0.7)
            meant = f"did you mean {near[0]}? Other options stand" if near else "options stand"
            raise InvalidOption(
                f"bfr has no option {option}: {meant} behind the command, as `bfr restore old.jpg --quiet`; "
                "`bfr -h` lists the commands"
            ) from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands with their summaries."""
        del ctx
        write(formatter, ((heading, row) for heading, group in COMMANDS.items() for row in group.items()))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the first examples."""
        del ctx
        with formatter.section("Examples"):
            for name in ("restore", "serve", "bench", "doctor"):
                formatter.write(f"  {examples(name)[0]}\n")
