"""Reading requests: options, bodies within limits, and the format of the answer."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.images.formats import FORMATS, WRITTEN
from bfr.runtime.jobs.options import RestoreOptions
from bfr.runtime.jobs.sources import MEDIA_TYPES
from bfr.runtime.serve.http.problems import Problem
from bfr.runtime.serve.http.uploads import LEAST_RATE, Upload, Uploads, collect, too_large
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Group
from bfr.runtime.serve.systems import System
from bfr.runtime.timeouts import timeout
from bfr.runtime.video.formats import MEDIA_TYPES as VIDEO_TYPES

USUAL_SUFFIXES = {media_type: suffix for suffix, media_type in reversed(MEDIA_TYPES.items())}
IMAGES = tuple(one.media_type for one in FORMATS)
ANSWERED = tuple(one.media_type for one in WRITTEN)
VIDEOS = tuple(dict.fromkeys(VIDEO_TYPES.values()))
BYTES = "application/octet-stream"
FORM = "multipart/form-data"
FIELD = "image"
_PIECE = 1 << 18  # bytes of a form that are parsed at once; between them the event loop runs
MOST_BOUNDARIES = 1000  # in a form, whose one part needs two: the parser takes a microsecond for each


class RestoreQuery(RestoreOptions):
    """The options of a request, as query parameters."""

    def photo(self) -> PhotoOptions:
        """What is done with a photograph. Raises Problem where the options exclude each other."""
        options = PhotoOptions(**self.model_dump(include=PhotoOptions.model_fields.keys() & self.model_fields_set))
        if self.mode == "aligned" and options != PhotoOptions():
            raise _invalid_options(
                "mode=aligned treats the image as one face: leave out faces, upscale, blend, keep_colour, restore_sharp"
            )
        return options

    def system(self, systems: Mapping[str, System]) -> System:
        """The system of the option `bundle`. Raises Problem if it is not offered."""
        name = self.bundle or next(iter(systems))
        if name not in systems:
            raise _invalid_options(f"bundle {name!r} is not offered: choose one of {', '.join(systems)}")
        return systems[name]

    def group(self, systems: Mapping[str, System]) -> Group:
        """The bundle, the preset and the seed. Raises Problem if one is not offered."""
        system = self.system(systems)
        name = self.preset or system.default_preset
        if name not in system.presets:
            raise _invalid_options(f"preset {name!r} is not offered: choose one of {', '.join(system.presets)}")
        return Group(system.name, name, self.seed)


def wanted_suffix(accept: str | None) -> str | None:
    """Choose the suffix of an answer by the header `Accept`; None is the image's own. Raises Problem 406."""
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


async def read_image(request: Request, options: ServeOptions, uploads: Uploads, upload: Upload) -> bytes:
    """Read the image of a request: its body, or the field `image` of a form.

    Args:
        request: Whose body is not read yet.
        options: The limits.
        uploads: The budget of all bodies.
        upload: This body's part of it.

    Raises:
        Problem: 408, 413, 422 or 503.
    """
    try:
        async with timeout(options.body_seconds):
            data = await collect(request.stream(), uploads, upload, options.body_bytes)
    except asyncio.TimeoutError:
        raise Problem(
            408, "slow body", f"the image did not arrive within {options.body_seconds:g} s: send it faster, or smaller"
        ) from None
    if content_type(request) == FORM:
        data = await asyncio.to_thread(form_image, data, request.headers["content-type"])
    if not data:
        raise Problem(422, "invalid image", "the request has no body: send an image")
    return data


def check_image_type(request: Request, options: ServeOptions) -> int:
    """The bytes that a body says to have, 0 if it does not. Raises Problem 413 and 415, before it is read."""
    kind = content_type(request)
    if kind not in (*IMAGES, BYTES, FORM, "image/jpg", ""):
        raise Problem(
            415,
            "media type",
            f"a body of {kind} is not read: send the image itself with its Content-Type ({', '.join(IMAGES)}), "
            f"or a form ({FORM}) with the field {FIELD!r}",
        )
    return announced(request, options.body_bytes)


def job_suffix(request: Request) -> str:
    """The suffix of the file that a job is sent. Raises Problem 415, before the body is read."""
    kind = content_type(request)
    suffix = USUAL_SUFFIXES.get("image/jpeg" if kind == "image/jpg" else kind)
    if suffix is None:
        raise Problem(
            415,
            "media type",
            f"a body of {kind or 'no type'} is not read: its Content-Type is one of {', '.join((*VIDEOS, *IMAGES))}",
        )
    return suffix


async def job_body(request: Request, options: ServeOptions) -> AsyncIterator[bytes]:
    """The body of a job in parts. Raises Problem 408 where it is too slow, 413, and 422 for no body.

    It may take `body_seconds`, and a second more for each LEAST_RATE bytes that have arrived.
    """
    total, begin = 0, time.monotonic()
    chunks = request.stream()
    while True:
        left = begin + options.body_seconds + total / LEAST_RATE - time.monotonic()
        try:
            async with timeout(max(0.0, min(left, options.body_seconds))):
                chunk = await anext(chunks, None)
        except asyncio.TimeoutError:
            raise Problem(
                408, "slow body", f"the file arrives too slowly: {LEAST_RATE} bytes a second are needed"
            ) from None
        if chunk is None:
            break
        total += len(chunk)
        if total > options.job_bytes:
            raise too_large(options.job_bytes)
        yield chunk
    if not total:
        raise Problem(422, "invalid image", "the request has no body: send a video or an image")


def announced(request: Request, most: int) -> int:
    """The bytes that a body says to have, 0 if it does not. Raises Problem 413, and 415 for a compressed one."""
    if (coding := request.headers.get("content-encoding", "identity").lower()) not in ("", "identity"):
        raise Problem(415, "content encoding", f"a body in Content-Encoding {coding} is not read: send it as it is")
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdecimal()):
        return 0
    if (count := int(length[:20])) > most:
        raise too_large(most)
    return count


def check_query(request: Request) -> None:
    """Raise Problem 422 where an option is given twice."""
    names = Counter(name for name, _ in request.query_params.multi_items())
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise _invalid_options(f"{', '.join(twice)} is given more than once: give each option once")


def _invalid_options(detail: str) -> Problem:
    return Problem(422, "invalid options", detail)


def _invalid_form(detail: str) -> Problem:
    return Problem(422, "invalid form", detail)


def form_image(body: bytes, kind: str) -> bytes:
    """The file in the field `image` of a form, which has no other field. Raises Problem 422."""
    boundary = parse_options_header(kind)[1].get(b"boundary", b"")
    if body.count(b"\n--" + boundary) > MOST_BOUNDARIES:
        raise _invalid_form(f"the form has too many parts: its one field is {FIELD!r}")
    images: list[bytes] = []
    complete = False

    def take(part: Field | File) -> None:
        name = (part.field_name or b"").decode(errors="replace")
        if name != FIELD:
            raise _invalid_form(
                f"the form has the field {name!r}: its one field is {FIELD!r}, options are parts of the address"
            )
        if images:
            raise _invalid_form(f"the form has the field {FIELD!r} twice: send one image")
        if isinstance(part, File):
            part.file_object.seek(0)
            images.append(part.file_object.read())
        else:
            images.append(part.value or b"")

    def end() -> None:
        nonlocal complete
        complete = True

    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body)}  # larger files would go to disk
    try:
        parser = FormParser(FORM, take, take, end, boundary, config=in_memory)
        for begin in range(0, len(body), _PIECE):
            parser.write(body[begin : begin + _PIECE])
        parser.finalize()
    except FormParserError as error:
        raise _invalid_form(f"the form cannot be read ({error}): send {FORM} with a file in {FIELD!r}") from None
    if not complete or not images:
        raise _invalid_form(f"the form has no file in the field {FIELD!r}: send one")
    return images[0]
