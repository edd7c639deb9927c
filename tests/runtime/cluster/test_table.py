"""The table of a bulk run, as a spreadsheet and the next run read it."""

import csv
import io
from pathlib import Path

import pytest

from bfr.runtime.cluster.bulk.table import FAILURES, RESULTS, NodeEntry, read_entries, write_table
from bfr.runtime.jobs.store import Store

NAMES = [
    *("=cmd|' /C calc'!A0.jpg", "+1.png", "-1.png", "@SUM(A1).jpg", "\t=1.png"),
    *("'quoted.jpg", "a=b.jpg", "'=1.jpg", "a\rb.jpg", "a\nb.jpg"),
]


def test_no_cell_is_a_formula_and_all_come_back(tmp_path: Path) -> None:
    """Security 12."""
    store = Store(tmp_path)
    rows = [NodeEntry(name, "failed", error=f"={name}", notes=(f"@{name}",)) for name in NAMES]
    write_table(store, rows)
    for file in (RESULTS, FAILURES):
        cells = [cell for line in csv.reader(io.StringIO((tmp_path / file).read_bytes().decode())) for cell in line]
        assert len(cells) > 3 * len(NAMES)
        assert not [cell for cell in cells if cell[:1] in {"=", "+", "-", "@", "\t", "\r"}]
    assert [*read_entries(store, [RESULTS]).values()] == rows


@pytest.mark.parametrize("url", ["https://user:pass@host/a.jpg?X-Amz-Signature=beef", "https://host/a.jpg?token=beef"])
def test_items_are_called_by_addresses_without_secrets(url: str) -> None:
    """Security, low: tables, reports and errors call an item by its key."""
    from bfr.runtime.jobs.sources import Item

    item = Item(url, "a")
    assert item.source == url
    assert "pass" not in item.key
    assert "beef" not in item.key
    assert item.key.startswith("https://")
    assert Item(Path("a b.jpg"), "a").key == "a b.jpg"


def test_an_object_without_a_size_is_read_to_a_limit() -> None:
    """Security, low: what a server sends has no end."""
    import fsspec

    from bfr.runtime.errors import InvalidImage
    from bfr.runtime.jobs.store import read_bytes

    fsspec.filesystem("memory").pipe_file("/endless.jpg", bytes(1000))
    assert len(read_bytes("memory://endless.jpg", 1000)) == 1000
    with pytest.raises(InvalidImage, match="more than 999 bytes"):
        read_bytes("memory://endless.jpg", 999)
