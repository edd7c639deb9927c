"""`bfr push`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bfr.runtime.cli.options import AS_JSON, expanded
from bfr.runtime.cli.terminal import conclude


@expanded
def push(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    address: Annotated[str, typer.Argument(help="Where to: hf://owner/name, or hf://owner/name@branch.")],
    public: Annotated[bool, typer.Option("--public", help="Of a new repository: everybody may read it.")] = False,
    as_json: AS_JSON = False,
) -> None:
    """Upload a bundle to the Hugging Face Hub.

    Every command opens it by its address.
    """
    from bfr.runtime.bundle import hub
    from bfr.runtime.bundle.bundle import Bundle

    pushed = hub.push(Bundle.open(bundle), address, private=not public)
    if as_json:
        print(json.dumps({"address": pushed}))
    else:
        conclude(f"pushed; others run it with --bundle {pushed}")
