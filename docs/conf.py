"""The documentation's site: `sphinx-build -W -b html docs build/docs`, strict; extra `docs`."""

import os
import re
from importlib.metadata import version as installed
from inspect import isclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bfr.runtime.options import choices, describe_range

DOCS = Path(__file__).parent
ROOT = DOCS.parent
# Pages of the site whose text is a file outside docs/.
ELSEWHERE = {
    "project/changelog": "CHANGELOG.md",
    "project/contributing": "CONTRIBUTING.md",
    "project/security": "SECURITY.md",
    "systems/mini": "models/systems/mini/README.md",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")

project = "bfr"
author = "the bfr developers"
release = version = installed("bfr-runtime")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["deploy/**"]
html_theme = "furo"
html_title = f"bfr {release}"
html_show_sourcelink = html_copy_source = False
pygments_style = "tango"

myst_heading_anchors = 4
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80
default_role = "code"


def _read(app: Any, docname: str, source: list[str]) -> None:
    """Give a page its text from outside docs/, and lead links out of docs/ to pages of the site or to downloads."""
    page = DOCS / f"{docname}.md"
    origin = ROOT / ELSEWHERE[docname] if docname in ELSEWHERE else page
    pages = {ROOT / file: DOCS / f"{name}.md" for name, file in ELSEWHERE.items()} | {
        ROOT / "README.md": DOCS / "index.md"
    }

    def lead(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(origin.parent / match[1]))
        if not target.exists():
            return match[0]  # Sphinx reports it
        target = pages.get(target, target)
        relative = os.path.relpath(target, page.parent)
        return relative if target.is_relative_to(DOCS) or target.suffix != ".md" else f"path:{relative}"

    app.env.note_dependency(str(origin))
    source[0] = LINK.sub(lead, origin.read_text(encoding="utf-8"))


def _fields(_app: Any, _kind: str, _name: str, model: Any, _options: Any, lines: list[str]) -> None:
    """List the fields of a model of options, from the one place where they are written."""
    if not (isclass(model) and issubclass(model, BaseModel)):
        return
    for name, field in model.model_fields.items():
        values = f"one of {', '.join(map(str, choices(field)))}" if choices(field) else describe_range(field)
        allowed = f" Allowed: {values}." if values else ""
        default = "" if field.is_required() or field.default is None else f" Default: ``{field.default!r}``."
        lines += ["", f":param {name}: {field.description or ''}{allowed}{default}"]


def _signature(_app: Any, _kind: str, _name: str, model: Any, *_: Any) -> tuple[str, None] | None:
    """Leave out the signature of a model, whose constructor takes the fields."""
    return ("", None) if isclass(model) and issubclass(model, BaseModel) else None


def setup(app: Any) -> dict[str, bool]:
    """Register the hooks above; Sphinx calls this."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _fields, priority=800)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True}
