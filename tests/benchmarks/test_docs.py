from pathlib import Path

import pytest

from bfr.benchmarks.docs import main, render
from bfr.runtime.errors import InputNotFound

SOURCE = "# Title\nfirst\n\n## Speed\nfast\n\n## Memory\nsmall\n"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    (tmp_path / "source.md").write_text(SOURCE)
    path = tmp_path / "doc.md"
    path.write_text("before\n<!-- include: source.md#Speed -->\nold\n<!-- end -->\nafter\n")
    return path


def test_a_block_is_filled_anew(document: Path) -> None:
    assert main([str(document), "--check"]) == 1
    assert "old" in document.read_text()
    assert main([str(document)]) == 0
    assert document.read_text() == "before\n<!-- include: source.md#Speed -->\nfast\n<!-- end -->\nafter\n"
    assert main([str(document), "--check"]) == 0


def test_a_whole_file_comes_without_its_title(document: Path) -> None:
    document.write_text("<!-- include: source.md -->\n<!-- end -->\n")
    assert render(document) == (
        "<!-- include: source.md -->\nfirst\n\n**Speed**\n\nfast\n\n**Memory**\n\nsmall\n<!-- end -->\n"
    )


def test_a_source_or_heading_that_is_not_there(document: Path) -> None:
    for source in ("gone.md", "source.md#Colour"):
        document.write_text(f"<!-- include: {source} -->\n<!-- end -->\n")
        with pytest.raises(InputNotFound):
            render(document)


def test_columns_of_a_table(document: Path) -> None:
    table = "| a | b | c |\n| --- | ---: | --- |\n| 1 | 2 | |\n| 4 | 5 | 6 |\n"
    (document.parent / "source.md").write_text(f"# Title\n## Speed\nwords\n\n{table}more\n\n| d |\n")
    block = "<!-- include: source.md#Speed | c; a -->\n{}<!-- end -->\n"
    document.write_text(block.format("old\n"))
    assert render(document) == block.format("| c | a |\n| --- | --- |\n|  | 1 |\n| 6 | 4 |\n")
    document.write_text("<!-- include: source.md#Speed | c; gone -->\n<!-- end -->\n")
    with pytest.raises(InputNotFound, match="gone"):
        render(document)


def test_an_optional_block_waits_for_its_source(document: Path) -> None:
    text = "<!-- include?: gpu/bench.md#Speed -->\nnot measured\n<!-- end -->\n"
    document.write_text(text)
    assert render(document) == text
    (document.parent / "gpu").mkdir()
    (document.parent / "gpu/bench.md").write_text(SOURCE)
    assert render(document) == "<!-- include?: gpu/bench.md#Speed -->\nfast\n<!-- end -->\n"


def test_the_projects_own_documents_are_up_to_date() -> None:
    root = Path(__file__).parents[2]
    documents = [root / "README.md", *(root / "docs").rglob("*.md"), root / "models/systems/mini/README.md"]
    with_blocks = [str(path) for path in documents if "<!-- include" in path.read_text()]
    assert len(with_blocks) > 3
    assert main([*with_blocks, "--check"]) == 0
