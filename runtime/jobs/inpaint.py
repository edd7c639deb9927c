"""Inpainting of files: pictures of aligned faces, and masks that say what is to be made up."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bfr.runtime.errors import InputNotFound, InvalidImage, InvalidOption
from bfr.runtime.images.decode import MAX_PIXELS, read_image
from bfr.runtime.images.encode import write_image
from bfr.runtime.jobs.report import Entry, Report, describe_run, describe_settings, write_report
from bfr.runtime.jobs.sources import Item, choose_targets
from bfr.runtime.restore.inputs import read_mask
from bfr.runtime.restore.restorer import DEFAULT_SEED, Restorer

Progress = Callable[[float, str], None]


def inpaint_files(
    restorer: Restorer,
    items: Sequence[Item],
    masks: Path | None,
    out: Path,
    *,
    seed: int = DEFAULT_SEED,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = lambda _done, _name: None,
) -> Report:
    """Make up the holes of pictures, write the results as PNG into `out`, and `report.json` beside them.

    masks: one mask for all pictures, or a folder with a mask of each picture's name, white where it is to be made up;
    None: the hole of each picture is where it is 0 in all channels, as published. Known pixels come back untouched.
    A picture that fails is an entry of the report. Raises InvalidOption where the system takes no mask, or a result
    would replace its source, InputNotFound where a mask is missing, WriteFailed.
    """
    if "mask" not in restorer.inputs.others:
        raise InvalidOption(
            f"{restorer.bundle.manifest.system} does not inpaint: name a bundle that does with --bundle, as "
            "`bfr export difface-inpainting` makes it"
        )
    chosen = [_mask_path(item, masks) for item in items]
    targets, refused = choose_targets(items, out, lambda _: ".png")
    settings = {**describe_settings(restorer, {"seed": seed}), "masks": str(masks) if masks else None}
    entries, begin = [], time.perf_counter()
    for done, (item, mask) in enumerate(zip(items, chosen, strict=True)):
        progress(done, item.name)
        if item.source in refused:
            entries.append(Entry(str(item.source), "failed", error=refused[item.source]))
            continue
        try:
            entries.append(_inpaint(restorer, item, mask, targets[item.source], out, seed, max_pixels))
        except (InvalidImage, InputNotFound, InvalidOption) as error:
            entries.append(Entry(str(item.source), "failed", error=str(error)))
    facts = {**describe_run(restorer), "seconds": round(time.perf_counter() - begin, 3)}
    report = Report(tuple(entries), settings, facts)
    write_report(report, out)
    return report


def _inpaint(
    restorer: Restorer, item: Item, mask: Path | None, target: Path, out: Path, seed: int, max_pixels: int
) -> Entry:
    image = read_image(item.source, max_pixels=max_pixels)
    hole = None if mask is None else read_mask(read_image(mask, max_pixels=max_pixels).pixels)
    result = restorer.run([image.pixels], seed=seed, inputs={"mask": [hole]})[0]
    if result.pixels is None:
        return Entry(str(item.source), "failed", error=result.error)
    write_image(target, result.pixels, like=image)
    height, width = result.pixels.shape[:2]
    return Entry(
        str(item.source),
        "restored",
        target.relative_to(out).as_posix(),
        width=width,
        height=height,
        faces=1,
        seconds={stage: round(seconds, 4) for stage, seconds in result.seconds.items()},
        precision=result.precision,
    )


def _mask_path(item: Item, masks: Path | None) -> Path | None:
    if masks is None:
        return None
    if masks.is_file():
        return masks
    if not masks.is_dir():
        raise InputNotFound(f"{masks} does not exist: name a mask image, or a folder of masks, with --mask")
    found = sorted(path for path in masks.iterdir() if path.stem == Path(item.name).stem and path.is_file())
    if len(found) != 1:
        problem = "no mask" if not found else f"{len(found)} masks"
        raise InputNotFound(f"{masks} has {problem} named {Path(item.name).stem}: give each picture one of its name")
    return found[0]
