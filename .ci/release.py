"""Build wheel and sdist as they are published, and check them with twine.

    python .ci/release.py https://github.com/OWNER/NAME [--ref v0.1.0] [--out dist]

The project's address is not written in it: nobody could take the name of an address that is not there yet, and have it
installed (`runtime/install.py` names it to users). It comes from where the release is made. In a copy of the last
commit, README's links and pictures become absolute, as the package index needs them, and pyproject.toml gets
[project.urls].
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[1]
_RELATIVE = r"\((?!https?:|mailto:|#)([^)\s]+)\)"
_PICTURE, _LINK = re.compile(r"(!\[[^\]]*\])" + _RELATIVE), re.compile(r"(\])" + _RELATIVE)


def absolute(markdown: str, address: str, ref: str) -> str:
    """Markdown whose relative links lead to the files at `address` as of `ref`, and whose pictures come from it."""
    shown = _PICTURE.sub(rf"\1({address}/raw/{ref}/\2)", markdown)
    return _LINK.sub(rf"\1({address}/blob/{ref}/\2)", shown)


def with_urls(pyproject: str, address: str, ref: str) -> str:
    """pyproject.toml with [project.urls]. Raises ValueError where it has some."""
    if "[project.urls]" in pyproject:
        raise ValueError("pyproject.toml has [project.urls] already: leave them to .ci/release.py")
    urls = {
        "Repository": address,
        "Documentation": f"{address}/tree/{ref}/docs",
        "Changelog": f"{address}/blob/{ref}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
    table = "\n".join(f'{name} = "{url}"' for name, url in urls.items())
    return pyproject.replace("[project.scripts]", f"[project.urls]\n{table}\n\n[project.scripts]")


def main() -> int:
    """Build and check; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("address", help="Of the repository, as https://github.com/OWNER/NAME.")
    parser.add_argument("--ref", default="main", help="Tag or branch that links lead to.")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="Folder of wheel and sdist.")
    asked = parser.parse_args()
    address, out = asked.address.rstrip("/"), asked.out.absolute()
    if not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+", address):
        parser.error(f"{asked.address} is no https:// address of a repository")
    with tempfile.TemporaryDirectory() as copy:
        packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)  # noqa: S607
        with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
            archive.extractall(copy, filter="data")
        readme, pyproject = Path(copy, "README.md"), Path(copy, "pyproject.toml")
        readme.write_text(absolute(readme.read_text("utf-8"), address, asked.ref), "utf-8")
        pyproject.write_text(with_urls(pyproject.read_text("utf-8"), address, asked.ref), "utf-8")
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), copy]
        if (status := subprocess.run(build, check=False).returncode) != 0:  # noqa: S603
            return status
    made = sorted(map(str, [*out.glob("*.whl"), *out.glob("*.tar.gz")]))
    return subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *made], check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
