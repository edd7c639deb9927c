"""Reading requests: options, bodies within limits, and the format that the client wants back."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message

from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.images.formats import BY_SUFFIX, FORMATS, WRITTEN
from bfr.runtime.jobs.options import RestoreOptions
from bfr.runtime.serve.http.problems import Problem
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.video.formats import MEDIA_TYPES as VIDEO_TYPES

MEDIA_TYPES = {suffix: one.media_type for suffix, one in BY_SUFFIX.items()} | VIDEO_TYPES
USUAL_SUFFIXES = {media_type: suffix for suffix, media_type in reversed(MEDIA_TYPES.items())}
IMAGES = tuple(one.media_type for one in FORMATS)
ANSWERED = tuple(one.media_type for one in WRITTEN)
VIDEOS = tuple(VIDEO_TYPES.values())
BYTES = "application/octet-stream"
FORM = "multipart/form-data"
FIELD = "image"


class RestoreQuery(RestoreOptions):
    """The options of a request, as query parameters."""

    def photo(self) -> PhotoOptions:
        """What is done with a photograph. Raises Problem where the options exclude each other."""
        options = PhotoOptions(**self.model_dump(include=PhotoOptions.model_fields.keys() & self.model_fields_set))
        if self.mode == "aligned" and options != PhotoOptions():
            raise Problem(
                422,
                "invalid options",
                "mode=aligned takes the image for a face: leave faces, upscale, blend and keep_colour out",
            )
        return options

    def chosen(self, presets: dict[str, object], default: str) -> str:
        """The preset's name. Raises Problem where it is not offered."""
        name = self.preset or default
        if name not in presets:
            raise Problem(422, "invalid options", f"preset {name!r} is not offered: choose one of {', '.join(presets)}")
        return name


def wanted_suffix(accept: str | None) -> str | None:
    """The format that an `Accept` header asks for; None leaves it to the image. Raises Problem 406."""
    if not accept:
        return None
    found: list[tuple[float, str]] = []
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if quality > 0 and (name in ANSWERED or name in ("*/*", "image/*")):
            found.append((quality, name))
    if not found:
        raise Problem(406, "not acceptable", f"images are answered as {', '.join(ANSWERED)}: ask for one with Accept")
    best = max(found, key=lambda one: (one[0], one[1] in ANSWERED))[1]  # the first of equals; a named one before `*/*`
    return USUAL_SUFFIXES.get(best)


def content_type(request: Request) -> str:
    """The body's type without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_image(request: Request, options: ServeOptions) -> bytes:
    """The image of a request: its body, or the field `image` of a form. Raises Problem 408, 413, 415, 422."""
    kind = content_type(request)
    if kind not in (*IMAGES, BYTES, FORM, "image/jpg", ""):
        raise Problem(
            415,
            "media type",
            f"a body of {kind} is not read: send the image itself with its Content-Type ({', '.join(IMAGES)}), "
            f"or a form ({FORM}) with the field {FIELD!r}",
        )
    limited = _Limited(request, options.body_bytes)
    try:
        async with asyncio.timeout(options.body_seconds):
            data = await _form_image(limited) if kind == FORM else await limited.body()
    except TimeoutError:
        raise Problem(
            408, "slow body", f"the image did not arrive within {options.body_seconds:g} s: send it faster, or smaller"
        ) from None
    if not data:
        raise Problem(422, "invalid image", "the request has no body: send an image")
    return data


def job_suffix(request: Request, options: ServeOptions) -> str:
    """The suffix of the file that a job is sent. Raises Problem 413 and 415, before the body is read."""
    kind = content_type(request)
    suffix = USUAL_SUFFIXES.get("image/jpeg" if kind == "image/jpg" else kind)
    if suffix is None:
        raise Problem(
            415,
            "media type",
            f"a body of {kind or 'no type'} is not read: its Content-Type is one of {', '.join((*VIDEOS, *IMAGES))}",
        )
    _check_length(request, options.job_bytes)
    return suffix


async def job_body(request: Request, options: ServeOptions) -> AsyncIterator[bytes]:
    """The body of a job in parts. Raises Problem 408 where nothing arrives for a while, 413, and 422 for no body."""
    total = 0
    chunks = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(chunks, None), options.body_seconds)
        except TimeoutError:
            raise Problem(
                408, "slow body", f"nothing arrived for {options.body_seconds:g} s: send the file again"
            ) from None
        if chunk is None:
            break
        total += len(chunk)
        if total > options.job_bytes:
            raise _too_large(options.job_bytes)
        yield chunk
    if not total:
        raise Problem(422, "invalid image", "the request has no body: send a video or an image")


class _Limited(Request):
    """A request whose body may have so many bytes."""

    def __init__(self, request: Request, most: int) -> None:
        _check_length(request, most)
        self._left, self._most, self._next = most, most, request.receive
        super().__init__(request.scope, self._counted)

    async def _counted(self) -> Message:
        message = await self._next()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise _too_large(self._most)
        return message


def _check_length(request: Request, most: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise _too_large(most)


def _too_large(most: int) -> Problem:
    return Problem(413, "body size", f"the body has more than {most} bytes, the limit here: send a smaller file")


async def _form_image(request: Request) -> bytes:
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get(FIELD)
            if not isinstance(file, UploadFile):
                raise Problem(422, "invalid form", f"the form has no file in the field {FIELD!r}: send one")
            return await file.read()
    except HTTPException as error:  # what the parser makes of a broken form
        raise Problem(
            422, "invalid form", f"the form cannot be read ({error.detail}): send {FORM} with a file"
        ) from error
    except (InvalidOption, KeyError) as error:
        raise Problem(422, "invalid form", f"the form cannot be read ({error}): send {FORM} with a file") from error
