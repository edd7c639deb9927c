"""The layers of docs/design.md: a folder imports only what is below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bfr.runtime", "bfr.models", "bfr.export", "bfr.benchmarks")
# A layer a row, the lowest first: what it holds, and what it may import beside itself.
BASE = {"runtime.errors", "runtime.files", "runtime.install", "runtime.options", "runtime.text", "runtime.timeouts"}
MATHEMATICS = {"runtime.diffusion"}
BUNDLE = {"runtime.bundle"}
CORE = MATHEMATICS | BUNDLE | {"runtime.backends", "runtime.images", "runtime.restore"}
PICTURES = CORE | {"runtime.faces", "runtime.video"}
WORK = PICTURES | {"runtime.jobs"}
FRONTS = WORK | {"runtime.serve", "runtime.client", "runtime.cluster", "runtime.live", "runtime.api"}
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(BASE, BASE),
    "runtime.diffusion": BASE,
    "runtime.bundle": BASE | MATHEMATICS,
    "runtime.backends": BASE | MATHEMATICS | BUNDLE,
    "runtime.restore": BASE | CORE,
    "runtime.images": BASE,
    "runtime.faces": BASE | CORE,
    "runtime.video": BASE | PICTURES,
    "runtime.jobs": BASE | PICTURES,
    "runtime.api": BASE | WORK,  # runtime/__init__.py
    "runtime.serve": BASE | WORK,
    "runtime.client": BASE | WORK,
    "runtime.cluster": BASE | WORK | {"runtime.serve"},
    "runtime.live": BASE | PICTURES | {"runtime.serve"},
    "runtime.cli": BASE | FRONTS,
    "models": BASE | MATHEMATICS | BUNDLE,
    "export": BASE | FRONTS | {"runtime.cli", "models"},
    "benchmarks": BASE | FRONTS | {"runtime.cli", "models", "export"},
}
LAZILY = {"runtime.cli": {"models", "export", "benchmarks"}}  # inside the function of a command that needs it


def layer(module: str) -> str:
    """The row of MAY_IMPORT that a module belongs to."""
    _, top, *rest = module.split(".")
    if top != "runtime":
        return top
    return f"runtime.{rest[0]}" if rest else "runtime.api"


def upward(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    """The imports that no row allows."""
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            here, there = layer(importer), layer(imported)
            if here != there and there not in MAY_IMPORT[here] | LAZILY.get(here, set()):
                yield importer, imported


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def test_no_import_points_up(graph: grimp.ImportGraph) -> None:
    assert len(graph.modules) > 150
    assert list(upward(graph)) == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("bfr.runtime.diffusion.noise", "bfr.runtime.backends.device"),
        ("bfr.runtime.images.decode", "bfr.runtime.restore.inputs"),
        ("bfr.runtime.jobs.run", "bfr.runtime.cli.main"),
        ("bfr.runtime.backends.registry", "bfr.export.pytorch.compiled"),
        ("bfr.models.systems.system", "bfr.runtime.restore.restorer"),
        ("bfr.export.bundle", "bfr.benchmarks.speed.bench"),
        ("bfr.runtime.faces.photo", "bfr.runtime"),
    ],
)
def test_an_import_that_points_up_is_found(graph: grimp.ImportGraph, importer: str, imported: str) -> None:
    assert {importer, imported} <= graph.modules
    graph.add_import(importer=importer, imported=imported)
    try:
        assert list(upward(graph)) == [(importer, imported)]
    finally:
        graph.remove_import(importer=importer, imported=imported)


def test_no_modules_import_each_other() -> None:
    graph = grimp.build_graph(
        "bfr.runtime", "bfr.models", "bfr.export", "bfr.benchmarks", cache_dir=None, exclude_type_checking_imports=True
    )
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            assert not graph.find_shortest_chain(importer=imported, imported=module), f"{module} and {imported}"


def test_commands_import_export_and_benchmarks_when_they_run() -> None:
    outside = ("bfr.models", "bfr.export", "bfr.benchmarks")
    for path in (ROOT / "runtime").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            upper = [name for name in names if name and name.startswith(outside)]
            assert all(name.endswith(".options") for name in upper), path  # a command's help needs its options
