"""`bfr push`."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    address: Annotated[str, typer.Argument(help="Where to: hf://owner/name, or hf://owner/name@branch.")],
    public: Annotated[bool, typer.Option("--public", help="Of a new repository: everybody may read it.")] = False,
) -> None:
    """Upload a bundle to the Hugging Face Hub; every command opens it by its address."""
    from bfr.runtime.bundle import hub
    from bfr.runtime.bundle.bundle import Bundle

    print(f"pushed; others run it with --bundle {hub.push(Bundle.open(bundle), address, private=not public)}")
