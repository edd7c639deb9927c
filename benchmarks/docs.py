"""Puts measured tables into the documentation: `python -m bfr.benchmarks.docs FILE...`.

The command writes into each document what its blocks name, between the opening comment and `<!-- end -->`:

    <!-- include: PATH -->                          the Markdown file PATH, relative to the document, without its title
    <!-- include: PATH#Heading -->                  the section under that heading
    <!-- include: PATH#Heading | column; column --> these columns of the section's first table
    <!-- include?: PATH -->                         the same, and the block keeps its text while PATH does not exist

`--check` changes nothing and fails where a document is not up to date.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from bfr.runtime.errors import InputNotFound
from bfr.runtime.files import write_bytes

BLOCK = re.compile(
    r"(<!-- include(?P<optional>\??): (?P<source>[^#\s]+)(?:#(?P<heading>[^>|]+?))?(?: \| (?P<columns>[^>]+?))? -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def render(document: Path) -> str:
    """Return the text of a document with its blocks refilled. Raises InputNotFound for what is not there."""

    def fill(match: re.Match[str]) -> str:
        source = document.parent / match["source"]
        if match["optional"] and not source.exists():
            return match[0]
        if not source.is_file():
            raise InputNotFound(f"{document} includes {source}, which does not exist: run the benchmark that writes it")
        text = section(source, match["heading"])
        if match["columns"]:
            text = choose_columns(text, [name.strip() for name in match["columns"].split(";")], source)
        return match[1] + text + match["end"]

    return BLOCK.sub(fill, document.read_text())


def section(source: Path, heading: str | None) -> str:
    """A Markdown file without its title, or the text under one of its headings."""
    text = re.sub(r"^!\[.*\n", "", source.read_text(), flags=re.MULTILINE)  # pictures are named relative to the source
    parts = re.split(r"^#+ (.+)\n", text, flags=re.MULTILINE)
    sections = list(zip(parts[1::2], parts[2::2], strict=True))
    if heading is None:
        (_, first), *others = sections
        # The headings of an included file are bold text in the document, whose own levels they would upset.
        texts = [first.strip("\n"), *(f"**{title}**\n\n{text.strip()}" for title, text in others)]
        return "\n\n".join(text for text in texts if text) + "\n"
    for title, text in sections:
        if title.strip() == heading.strip():
            return text.strip("\n") + "\n"
    raise InputNotFound(f"{source} has no heading {heading!r}: it has {', '.join(title for title, _ in sections)}")


def choose_columns(text: str, names: Sequence[str], source: Path) -> str:
    """Return the named columns of the first table in a Markdown text.

    Args:
        text: Markdown with at least one table.
        names: Titles of the columns, in the order that they get.
        source: The file that the text is of, for the error.

    Raises:
        InputNotFound: There is no table, or it has no such column.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("|")), len(lines))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in takewhile(lambda line: line.startswith("|"), lines[start:])
    ]
    header = rows[0] if rows else []
    missing = [name for name in names if name not in header]
    if missing:
        raise InputNotFound(f"{source} has no column {', '.join(missing)}: its table has {', '.join(header) or 'none'}")
    places = [header.index(name) for name in names]
    return "".join(f"| {' | '.join(row[place] for place in places)} |\n" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where something would change")
    args = parser.parse_args(arguments)
    stale = [path for path in args.documents if render(path) != path.read_text()]
    for path in stale:
        print(f"{path}: {'out of date' if args.check else 'updated'}")
        if not args.check:
            write_bytes(path, render(path).encode())
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
