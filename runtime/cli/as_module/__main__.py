"""The command `bfr`, and `python -m bfr`. It imports nothing outside of `main`, so that Ctrl-C never shows a traceback.

`setup.py` installs this file as `bfr/__main__.py`: `bfr` is a namespace package without files.
"""

import sys


def main() -> None:
    """Run the command line, see `bfr.runtime.cli.main`."""
    try:
        from bfr.runtime.cli.main import main as run

        run()
    except KeyboardInterrupt:  # while typer and the rest are loaded; later ones are typer's
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # bfr.runtime.cli.main.INTERRUPTED


if __name__ == "__main__":
    main()
