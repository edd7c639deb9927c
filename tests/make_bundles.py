"""Export the small bundles of `tests/bundles` anew: `python tests/make_bundles.py [NAME...]`.

Their weights are functions of the parameters' names; most are zero, so that the packed files stay small.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from bundles import FOLDER
from systems import MAKERS, export_tiny


def pack(bundle: Path, archive: Path) -> None:
    """Write the files of a bundle as a ZIP archive whose bytes depend on nothing but theirs."""
    archive.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(bundle.iterdir()):
            packed.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    for name in sys.argv[1:] or MAKERS:
        with tempfile.TemporaryDirectory() as folder:
            pack(export_tiny(name, Path(folder)).folder, FOLDER / f"{name}.zip")
        print(f"{name}: {(FOLDER / f'{name}.zip').stat().st_size} bytes")
