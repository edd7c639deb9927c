"""Make harmless, where it is shown or written, what comes from outside: names of files, a server's words, addresses.

And make long lists short.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from urllib.parse import parse_qsl, urlsplit

# Control characters but tab and line feed, what turns the direction of writing or is not seen, and half characters.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_BREAKS = re.compile("[\t\n]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s<>]*[^\s<>\"'`.,:;)]")
_SECRET = re.compile(r"sig|key|token|secret|passw|pwd|cred|auth|policy|session|jwt|code|access", re.IGNORECASE)
_LONG = 16  # characters of a value in a query that may be a secret, whatever its name
_FORMULA = re.compile(r"[=+\-@\t\r\n]|[\uff1d\uff0b\uff0d\uff20]")
_MASK = "***"


def printable(text: str, *, lines: bool = True) -> str:
    r"""Escape control and invisible characters for a terminal, as `\x1b`.

    Args:
        text: What is shown.
        lines: Whether line feeds and tabs stay. A single name has none of its own.
    """
    text = _UNSHOWN.sub(_escape, text)
    return text if lines else _BREAKS.sub(_escape, text)


def without_secrets(text: str) -> str:
    """Mask the user, the password and the signature of every address in a text.

    Of a query the values with telling names (`X-Amz-Signature`, `token`) and long values are masked. A long one keeps 8
    digits of its sha256, so that two addresses stay two.
    """
    return _URL.sub(lambda found: _masked(found[0]), text) if "://" in text else text


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names of many, and how many more there are: `a, b and 3 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def csv_cell(value: object) -> object:
    """Keep a spreadsheet from taking a text for a formula: an apostrophe before `=`, `+`, `-`, `@` and what hides them.

    A text that begins with an apostrophe gets one more, so that `from_csv_cell` gives back every text.
    """
    if isinstance(value, str) and (_FORMULA.match(value) or value.startswith("'")):
        return f"'{value}"
    return value


def from_csv_cell(text: str) -> str:
    """Undo `csv_cell`."""
    return text[1:] if text.startswith("'") and (_FORMULA.match(text[1:]) or text.startswith("''")) else text


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _masked(url: str) -> str:
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:  # no address after all; what could be in it is not known
        return f"{url.partition('://')[0]}://{_MASK}"
    place = parts.netloc + parts.path
    # In the second the password has a slash.
    user = re.match(r"[^/]*@|[^/@]*:(?!\d+/)[^/]*/.*@", place) if "@" in place else None
    masked = f"{parts.scheme}://{place if user is None else f'{_MASK}@{place[user.end() :]}'}"
    if parts.query:
        masked += "?" + "&".join(f"{name}={_value(name, value)}" for name, value in query)
    return masked + (f"#{_MASK}" if parts.fragment else "")


def _value(name: str, value: str) -> str:
    if len(value) >= _LONG:
        return _MASK + sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return _MASK if _SECRET.search(name) else value
