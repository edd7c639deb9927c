"""Words from outside: what terminals, tables and readers of logs are spared."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bfr.runtime.errors import DownloadFailed, InputNotFound, RequestRefused
from bfr.runtime.text import csv_cell, from_csv_cell, printable, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b]0;owned\x07b", r"a\x1b]0;owned\x07b"),
        ("a\x9b2Jb", r"a\x9b2Jb"),  # CSI in one character
        ("a\rb\x08\x7f", r"a\rb\x08\x7f"),
        ("gpj.\u202egnp", r"gpj.\u202egnp"),
        ("a\u2028b\ufeff\u200b", r"a\u2028b\ufeff\u200b"),
        ("\udcff.png", r"\udcff.png"),
        ("Jürgen 写真\n\tb", "Jürgen 写真\n\tb"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_name_has_one_line() -> None:
    assert printable("a\nerror: all is lost\t", lines=False) == r"a\nerror: all is lost\t"


@given(st.text(st.characters(), max_size=20))
def test_what_is_printable_can_be_written_anywhere(text: str) -> None:
    shown = printable(text, lines=False)
    assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in shown)
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host/a.jpg: 404", "https://***@host/a.jpg: 404"),
        ("(sftp://me@host:22/a)", "(sftp://***@host:22/a)"),
        ("https://h/a?X-Amz-Signature=beef&id=7", "https://h/a?X-Amz-Signature=***&id=7"),
        ("https://h/a?sig=x&se=2026#access_token=1", "https://h/a?sig=***&se=2026#***"),
        ("s3://key:secret/word@bucket/a b", "s3://***@bucket/a b"),
        ("https://u:pa'ss@h/a'", "https://***@h/a'"),
        ("s3://bucket/a@2x.png", "s3://bucket/a@2x.png"),
        ("http://host:80/a@2x.png, http://[::1]:80/", "http://host:80/a@2x.png, http://[::1]:80/"),
        ("ftp://u:p@[::1/x", "ftp://***"),
        ("C:\\photos and a://b", "C:\\photos and a://b"),
    ],
)
def test_addresses_lose_passwords_and_signatures(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize("text", ["http://a " + "x" * 300_000, "http://" + ":" * 300_000 + "/"])
def test_long_texts_take_no_longer_than_they_are_long(text: str) -> None:
    """A server's answer of some megabytes; each of these took a time of the square of its length: hours."""
    assert without_secrets(text) == text
    assert without_secrets(text + " https://a:b@c/") == text + " https://***@c/"


def test_two_addresses_stay_two() -> None:
    one, two = (without_secrets(f"https://h/a?id={letter * 40}") for letter in "ab")
    assert one != two
    assert "a" * 40 not in one


@pytest.mark.parametrize("kind", [DownloadFailed, InputNotFound, RequestRefused])
def test_errors_have_addresses_without_secrets(kind: type[Exception]) -> None:
    error = kind("https://user:pass@host/a?token=abc: gone")
    assert str(error) == "https://***@host/a?token=***: gone"
    assert "pass" not in f"{error}"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\t=1", "\r=1", "\n=1", "\uff1d1", "'=1"])
def test_a_cell_is_no_formula(text: str) -> None:
    assert str(csv_cell(text)).startswith("'")
    assert csv_cell("a=1") == "a=1"
    assert csv_cell(-1) == -1
    assert csv_cell(None) is None


@given(st.text(max_size=8) | st.sampled_from(["'", "''", "'=", "''=", "=", "'a"]))
def test_cells_come_back(text: str) -> None:
    cell = str(csv_cell(text))
    table = io.StringIO(newline="")
    csv.writer(table).writerow([cell])
    assert from_csv_cell(cell) == text
