"""`python -m bfr`. `setup.py` installs this file as `bfr/__main__.py`: `bfr` is a namespace package without files."""

from bfr.runtime.cli.main import main

main()
