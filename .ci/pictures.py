"""Draw what the help prints, at 80 columns, into docs/images: `python .ci/pictures.py`. A test compares the words."""

import io
import re
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text
from typer.testing import CliRunner

from bfr.runtime.cli.main import app

PICTURES = {"help.svg": ["--help"], "help_restore.svg": ["restore", "--help"]}
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace("{lines}", "")
"""Rich's, without fonts from the network, and without a frame around each line."""


def draw(words: list[str], file: Path) -> None:
    """Draw the help that a command prints: headings in bold, flags and commands in a colour."""
    printed = CliRunner().invoke(app, words, prog_name="bfr", terminal_width=80).output
    text = Text(f"$ bfr {' '.join(words)}\n{printed.rstrip()}")
    text.highlight_regex(r"(?m)^(\$ .*|\w[\w ]*:)", "bold")
    text.highlight_regex(r"(?m)^  ((-\w, )?--[\w-]+|[a-z-]+(?=  ))", "cyan")
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(text)
    drawn = console.export_svg(title="", code_format=FORMAT, unique_id="bfr")
    file.write_text(re.sub(r' clip-path="url\(#bfr-line-\d+\)"|<text [^>]*>\n</text>', "", drawn), "utf-8")


if __name__ == "__main__":
    for name, words in PICTURES.items():
        draw(words, Path(__file__).parents[1] / "docs" / "images" / name)
