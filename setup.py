"""Maps the four top-level folders into the namespace package `bfr`; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("export", "runtime", "models", "benchmarks")
folders = [name for folder in FOLDERS for name in (folder, *(f"{folder}.{sub}" for sub in find_packages(folder)))]
setup(
    package_dir={"bfr": "runtime/cli/as_module", **{f"bfr.{folder}": folder for folder in FOLDERS}},
    packages=[f"bfr.{f}" for f in folders],
    py_modules=["bfr.__main__"],
)
