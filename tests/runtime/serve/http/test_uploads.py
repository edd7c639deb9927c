"""The budget of bodies in memory, and forms."""

import tempfile
import time
from typing import Any

import pytest

from bfr.runtime.serve.http.problems import Problem
from bfr.runtime.serve.http.requests import form_image
from bfr.runtime.serve.http.uploads import LEAST_RATE, Uploads

KIND = "multipart/form-data; boundary=x"


NAMED, UNNAMED = (f"Content-Disposition: form-data; {one}\r\n" for one in ('name="image"', 'filename="a.png"'))


def part(*heads: str) -> bytes:
    return b"".join(b"--x\r\n" + head.encode() + b"\r\n1\r\n" for head in heads)


def form(*parts: tuple[str, bytes]) -> bytes:
    text = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%b"; filename="a.png"\r\n\r\n%b\r\n' % (name.encode(), data)
        for name, data in parts
    )
    return text + b"--x--\r\n"


def test_a_body_that_does_not_fit_is_refused_before_it_is_read() -> None:
    uploads = Uploads(1000)
    with uploads.admit(0) as first:
        uploads.add(first, 600)
        with pytest.raises(Problem) as found, uploads.admit(500):
            raise AssertionError("it was let in")
        assert (found.value.status, found.value.retry_after) == (503, 2)
        with uploads.admit(0) as second:  # it does not say how long it is
            uploads.add(second, 400)
            with pytest.raises(Problem, match="limit"):
                uploads.add(second, 1)
    assert uploads.taken == 0
    with uploads.admit(1000):
        pass


def test_slow_uploads_give_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    uploads = Uploads(10 * LEAST_RATE)
    with uploads.admit(0) as slow, uploads.admit(0) as quick, uploads.admit(0) as complete:
        uploads.add(slow, LEAST_RATE)
        uploads.add(complete, LEAST_RATE)
        complete.ended = True
        slow.parts.append(b"s")
        now = 4.0
        uploads.add(quick, 8 * LEAST_RATE)
        with uploads.admit(LEAST_RATE) as another:
            uploads.add(another, LEAST_RATE)
            with pytest.raises(Problem) as found:
                uploads.add(slow, 1)
            assert found.value.status == 408
            assert slow.parts == []  # its memory is free at once
            assert not complete.given_up
            with pytest.raises(Problem) as refused:
                uploads.add(another, 1)
            assert refused.value.status == 503
    assert uploads.taken == 0


def test_the_field_of_a_form_is_read_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", None)  # for files over 1 MiB, unless the parser is told
    data = bytes(range(256)) * 9 * 1024 + b"\r\n--y\r\n--"
    assert form_image(form(("image", data)), KIND) == data
    assert form_image(form(("image", b"")), KIND) == b""
    for more in ("", '; filename="../../a.png"'):
        assert form_image(part(f'Content-Disposition: form-data; name="image"{more}\r\n') + b"--x--\r\n", KIND) == b"1"


@pytest.mark.parametrize(
    ("body", "kind", "word"),
    [
        (form(("photo", b"1")), KIND, "'photo'"),
        (form(("image", b"1"), ("upscale", b"2")), KIND, "'upscale'"),
        (form(("image", b"1"), ("image", b"2")), KIND, "twice"),
        (form(), KIND, "no file"),
        *((part(*heads) + b"--x--\r\n", KIND, "form") for heads in ([""], [NAMED, ""], ["", NAMED], [UNNAMED])),
        (form(("image", b"12345"))[:-9], KIND, "no file"),
        (b"", KIND, "no file"),
        (b"nonsense", KIND, "form"),
        (form(("image", b"1")), "multipart/form-data", "form"),
        (form(("image", b"\r\n--x-" * 1001)), KIND, "too many parts"),  # each costs the parser, in Python
        (b'--x\r\nContent-Disposition: form-data; name="' + b"a" * 100_000 + b'"\r\n\r\n1\r\n--x--', KIND, "form"),
    ],
)
def test_a_form_that_is_not_understood_is_refused(body: bytes, kind: str, word: Any) -> None:
    with pytest.raises(Problem, match=word) as found:
        form_image(body, kind)
    assert found.value.status == 422
