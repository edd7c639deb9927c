"""API keys with their priorities and rate limits. The file of keys is read again when it changes."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from bfr.runtime.errors import BfrError, InputNotFound, InvalidOption
from bfr.runtime.jobs.store import identity_of, version_of

KEY_VARIABLE = "BFR_API_KEY"
LEAST_KEY = 16  # characters
LOOK = 2.0  # seconds between two looks at the file
_log = logging.getLogger("bfr.serve")


@dataclass(slots=True)
class Key:
    """An API key: a line `SECRET name=NAME priority=2 rate=60`, in options with the secret's sha256 instead.

    Attributes:
        digest: sha256 of the secret, hexadecimal. Secrets are long and random, so that no salt helps.
        name: Whose it is: it owns jobs, so that a new secret of the same name finds them again.
        priority: Turns of its faces in relation to those of other keys.
        rate: Requests a minute, the same number at once after a pause; None for any.
        tokens: Requests that may be sent at once now, at `moment` of `time.monotonic()`.
    """

    digest: str
    name: str
    priority: float = 1.0
    rate: float | None = None
    tokens: float = field(default=-1.0, compare=False)
    moment: float = field(default=0.0, compare=False)

    @classmethod
    def parse(cls, line: str, where: str, *, hashed: bool = False) -> "Key":
        """Read a line. Raises InvalidOption, without the secret."""
        secret, *words = line.split()
        if not hashed:
            if len(secret) < LEAST_KEY or not secret.isascii():
                raise InvalidOption(
                    f"{where}: an API key has {LEAST_KEY} ASCII characters or more: `openssl rand -hex 24` makes one"
                )
            secret = hash_key(secret)
        named = dict(word.partition("=")[::2] for word in words)
        try:
            if unknown := named.keys() - {"name", "priority", "rate"}:
                raise ValueError(f"there is no {sorted(unknown)[0]!r}")
            numbers = {name: float(named[name]) for name in ("priority", "rate") if name in named}
            if not all(0 < number < float("inf") for number in numbers.values()):
                raise ValueError("a number is not above 0")
        except ValueError as error:
            raise InvalidOption(
                f"{where}: {error}: an API key may be followed by name=NAME, priority=2 and rate=60 (requests a minute)"
            ) from None
        return cls(secret, named.get("name") or secret[:16], **numbers)

    def line(self) -> str:
        """The line as `ServeOptions.keys` has it."""
        rate = "" if self.rate is None else f" rate={self.rate:g}"
        return f"{self.digest} name={self.name} priority={self.priority:g}{rate}"

    def spend(self) -> float:
        """Count a request; 0, or the seconds until one is allowed again."""
        if self.rate is None:
            return 0.0
        now = time.monotonic()
        full = max(1.0, self.rate)
        gained = (now - self.moment) * self.rate / 60
        self.tokens = full if self.tokens < 0 else min(full, self.tokens + gained)
        self.moment = now
        if self.tokens < 1:
            return (1 - self.tokens) * 60 / self.rate
        self.tokens -= 1
        return 0.0


class Keys:
    """The API keys of a server. Without any, requests need none."""

    def __init__(self, keys: Sequence[Key] = (), *, file: Path | None = None) -> None:
        """Read the file.

        Args:
            keys: Keys of other sources, which stay.
            file: File of further keys, read again when it changes.

        Raises:
            InputNotFound: The file cannot be read.
            InvalidOption: A key could be guessed, or the file has none.
        """
        self._fixed, self._file, self._looked = list(keys), file, 0.0
        self._version = file and (version_of(file), identity_of(file))
        self._known = [*self._fixed, *(read_file(file) if file else ())]

    @classmethod
    def read(cls, file: Path | None, environment: Mapping[str, str]) -> "Keys":
        """Read the keys of a file, one a line, and the environment's BFR_API_KEY. Raises as `Keys` does."""
        given = environment.get(KEY_VARIABLE)
        return cls([Key.parse(given, KEY_VARIABLE)] if given and given.strip() else [], file=file)

    def __bool__(self) -> bool:
        return bool(self._known)

    def lines(self) -> tuple[str, ...]:
        """For `ServeOptions.keys`: the hashes, not the secrets."""
        return tuple(key.line() for key in self._known)

    def find(self, secret: str | None) -> Key | None:
        """The key of a secret; all are compared, in constant time."""
        self._look()
        digest, found = hash_key(secret or ""), None
        for key in self._known:
            if compare_digest(digest, key.digest):
                found = key
        return found

    def _look(self) -> None:
        """Read the file again where it has changed; a wrong one is logged, and the old keys stay."""
        if self._file is None or time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        if (version := (version_of(self._file), identity_of(self._file))) == self._version:
            return
        self._version = version
        try:
            known = {key.digest: key for key in self._known}
            new = [*self._fixed, *read_file(self._file)]
            self._known = [known[key.digest] if known.get(key.digest) == key else key for key in new]
            _log.info("API keys: %s was read again, %d keys", self._file, len(self._known))
        except BfrError as error:
            _log.error("API keys: %s; the old ones stay", error)


def read_file(file: Path) -> list[Key]:
    """The keys of a file; lines that begin with `#` are comments. Raises InputNotFound and InvalidOption."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputNotFound(f"{file} cannot be read ({reason}): it holds the API keys, one a line") from None
    keys = [
        Key.parse(line, f"{file}, line {number}")
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]
    if not keys:
        raise InvalidOption(f"{file} holds no API key: write one a line, for example from `openssl rand -hex 24`")
    return list({key.digest: key for key in keys}.values())


def hash_key(key: str) -> str:
    """The sha256 of an API key: keys themselves are passed nowhere."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
