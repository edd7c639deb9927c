"""`restore_image`: one image in, whatever it is held in, and its result."""

from dataclasses import replace
from typing import Any

import numpy as np

from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import InvalidOption, RestorationFailed
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.paste import to_grey
from bfr.runtime.faces.photo import PhotoRestorer, RestoredPhoto
from bfr.runtime.images.decode import MAX_PIXELS, Image
from bfr.runtime.images.given import as_image
from bfr.runtime.restore.options import OpenOptions
from bfr.runtime.restore.restorer import DEFAULT_SEED, Restorer


def restore_image(
    image: Any,
    *,
    aligned: bool = False,
    restorer: Restorer | None = None,
    photo: PhotoOptions | None = None,
    seed: int = DEFAULT_SEED,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> RestoredPhoto:
    """Restore one image: all faces of a photograph, or with `aligned` one aligned face.

    Args:
        image: What `as_image` takes: a path, bytes, a PIL image, an array or a tensor.
        aligned: Treat the image as one aligned face.
        restorer: An open Restorer, for many images; without it, one is opened for this image.
        photo: How faces of a photograph are detected and pasted; `options` may hold fields of `PhotoOptions` instead.
        seed: Seed of the noise, 0 .. 2**32 - 1.
        max_pixels: Larger images are refused.
        options: Fields of `Restorer.open`: bundle, preset, backend, precision, steps and so on. Fields of
            `PhotoOptions`: upscale, faces, blend and so on.

    Returns:
        The result, as large as the image times `upscale`. It has the methods `save`, `compare` and `to_pil`.

    Raises:
        BfrError: Its text says how to fix it.
    """
    known = (*PhotoOptions.model_fields, *OpenOptions.model_fields, *Preset.model_fields)
    if unknown := sorted(options.keys() - set(known)):
        raise InvalidOption(f"there is no option {', '.join(unknown)}: choose among {', '.join(known)}")
    given = {name: options.pop(name) for name in PhotoOptions.model_fields.keys() & options.keys()}
    if not isinstance(restorer, Restorer | None):
        raise InvalidOption(f"restorer {restorer!r} is no Restorer: give an open one, or name a bundle with bundle=")
    if restorer is not None and options:
        raise InvalidOption(f"the restorer is open already: give {', '.join(options)} to Restorer.open")
    if aligned and (photo is not None or given):
        names = ", ".join(given) or "photo"
        raise InvalidOption(f"{names} is for photographs, the image is an aligned face: leave out {names} or aligned")
    photo = PhotoOptions(**{**dict(photo or PhotoOptions()), **given})
    source = as_image(image, max_pixels=max_pixels)
    if restorer is None:
        with Restorer.open(**options) as opened:
            made = _restored(opened, source, photo, seed, aligned=aligned)
    else:
        made = _restored(restorer, source, photo, seed, aligned=aligned)
    if "float" in str(getattr(image, "dtype", "")):
        made = replace(made, pixels=made.pixels.astype(np.float32) / np.float32(65535))
    return made


def _restored(restorer: Restorer, image: Image, photo: PhotoOptions, seed: int, *, aligned: bool) -> RestoredPhoto:
    if aligned:
        (result,) = restorer.run([image.pixels], seed=seed)
        if result.pixels is None:
            raise RestorationFailed(f"the face could not be restored: {result.error}")
        pixels = to_grey(result.pixels) if image.colourless else result.pixels
        return RestoredPhoto(pixels, (), (), (), result.seconds, image)
    made = PhotoRestorer(restorer, photo).restore(image, seed=seed)
    if made.errors:
        count = len(made.errors) + len(made.faces)
        raise RestorationFailed(f"{len(made.errors)} of {count} faces failed: {made.errors[0]}")
    return made
