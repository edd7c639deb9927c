"""`bfr push`."""

from pathlib import Path
from typing import Annotated

import typer

from bfr.runtime.cli.options import AS_JSON, expanded
from bfr.runtime.cli.terminal import conclude_with


@expanded
def push(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    address: Annotated[str, typer.Argument(help="Destination: hf://owner/name, or hf://owner/name@branch.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    as_json: AS_JSON = False,
) -> None:
    """Upload a bundle to the Hugging Face Hub.

    Every command accepts its address as a bundle.
    """
    from bfr.runtime.bundle import hub
    from bfr.runtime.bundle.bundle import Bundle

    pushed = hub.push(Bundle.open(bundle), address, private=not public)
    conclude_with({"address": pushed}, f"pushed; others run it with --bundle {pushed}", as_json=as_json)
