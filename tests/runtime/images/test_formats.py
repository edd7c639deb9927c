"""A format is one row: with another one, files of it are found, read, written, sent and answered."""

from pathlib import Path

from interpreter import python

import bfr.runtime

ROW = 'Format("PPM", "image/x-portable-pixmap", (".ppm",), rb"P6", {}),\n'
SCRIPT = """
import sys, types
from pathlib import Path

name = "bfr.runtime.images.formats"
text = Path(sys.argv[1]).read_text().replace("FORMATS = (", "FORMATS = (" + sys.argv[2], 1)
import bfr.runtime.images
module = sys.modules[name] = types.ModuleType(name)
exec(compile(text, name, "exec"), module.__dict__)

import numpy as np
from PIL import Image as Pillow
from bfr.runtime.client.calls import asked, image_file
from bfr.runtime.images.decode import read_image
from bfr.runtime.images.encode import write_image
from bfr.runtime.images.headers import header_size
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.sources import choose_outputs, find_images
from bfr.runtime.jobs.store import Store
from bfr.runtime.serve.http.requests import IMAGES, wanted_suffix

folder = Path(sys.argv[3])
pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
Pillow.fromarray(pixels).save(folder / "a.ppm")
(item,) = find_images([folder])
assert header_size(item.path) == (6, 4)
image = read_image(item.path)
assert (image.pixels == pixels).all()
(output,) = choose_outputs([item], Store(folder / "out"), JobOptions(out=folder, format="same").format)[0].values()
write_image(folder / "out" / output, image.pixels, like=image)
assert Pillow.open(folder / "out" / "a.ppm").format == "PPM"
assert JobOptions(out=folder, format=".ppm").format == ".ppm"
assert image_file(item.path)[1] in IMAGES
assert wanted_suffix(asked({"format": ".ppm"})[1]["Accept"]) == ".ppm"
"""


def test_a_format_is_one_row(tmp_path: Path) -> None:
    formats = Path(str(bfr.runtime.__file__)).parent / "images" / "formats.py"
    python(SCRIPT, formats, ROW, tmp_path)
