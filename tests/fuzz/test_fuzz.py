"""Readers of strangers' files, given damaged ones. `python tests/fuzz/run.py --seconds 3600` goes on for an hour."""

import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mutate import mutated
from targets import TARGETS, Target

from bfr.runtime.errors import BfrError

FILES = {"header": 400, "image": 400, "chunks": 400, "blocks": 60, "metadata": 600, "manifest": 60, "graph": 200}
FILES |= {"report": 60, "video": 25}


@pytest.mark.parametrize("target", [one for one in TARGETS if one.name in FILES], ids=lambda one: one.name)
def test_damaged_files_raise_nothing_but_our_errors(target: Target) -> None:
    """A few seconds of it, of the same files each time."""
    if target.needs and find_spec(target.needs) is None:
        pytest.skip(f"{target.needs} is not installed")
    seeds = target.seeds()
    for seed in seeds:
        target.read(seed) if target.name != "manifest" else None  # its files are not there
    for number in range(FILES[target.name]):
        data = mutated(seeds, target.words, f"{target.name} 0 {number}")
        try:
            target.read(data)
        except BfrError:
            pass
        except Exception as error:  # a finding says how to have it again
            raise AssertionError(f"python tests/fuzz/run.py --target {target.name} --seed 0 --only {number}") from error


# What was found by hand and mended: a row of a table that ends early, a stream that begins late, a name in a zip that
# is no text, a zip of several disks, a shape of words, an entry without a source.
FOUND = [
    ("report", 0, 1),
    ("report", 6, 289),
    ("manifest", 4, 860),
    ("video", 3, 1360),
    pytest.param("checkpoint", 3, 39, marks=pytest.mark.slow),
    pytest.param("checkpoint", 4, 124, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "seed", "number"), FOUND)
def test_what_was_found_is_mended(name: str, seed: int, number: int) -> None:
    (target,) = (one for one in TARGETS if one.name == name)
    if target.needs and find_spec(target.needs) is None:
        pytest.skip(f"{target.needs} is not installed")
    with suppress(BfrError):
        target.read(mutated(target.seeds(), target.words, f"{name} {seed} {number}"))


def test_damage_is_the_same_each_time() -> None:
    files = [mutated([b"seed" * 99], [b"word"], f"x 0 {n}") for n in range(50)]
    assert files == [mutated([b"seed" * 99], [b"word"], f"x 0 {n}") for n in range(50)]
    assert len(set(files)) > 40


@pytest.mark.slow
def test_the_command_finds_and_repeats_a_finding(tmp_path: Path) -> None:
    """With a reader that fails, hangs and dies."""
    (tmp_path / "targets.py").write_text(
        "import os, time\n"
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('real', {str(Path(__file__).parent / 'targets.py')!r})\n"
        "real = module_from_spec(spec); sys.modules['real'] = real; spec.loader.exec_module(real)\n"
        "def bad(data):\n"
        "    if data[:1] == b'f': raise KeyError('x')\n"
        "def dead(data):\n"
        "    if data[:1] != b'd': os.abort()\n"
        "TARGETS = (real.Target('bad', bad, lambda: [b'fine', b'good']),"
        " real.Target('dead', dead, lambda: [b'dine'*9]))\n"
    )
    run = Path(__file__).parent / "run.py"
    command = [sys.executable, str(run), "--targets", str(tmp_path / "targets.py"), "--out", str(tmp_path / "out")]
    ended = subprocess.run([*command, "--files", "60"], capture_output=True, text=True, check=False)  # noqa: S603
    assert ended.returncode == 1, ended.stderr
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {name.split("-")[0] for name in found} == {"bad", "dead"}
    number = found[0].split("-")[2].removesuffix(".bin")
    again = subprocess.run(  # noqa: S603
        [*command, "--target", "bad", "--only", number], capture_output=True, text=True, check=False
    )
    assert "KeyError" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("target", [one.name for one in TARGETS])
def test_a_minute_of_each(target: str, tmp_path: Path) -> None:
    run = Path(__file__).parent / "run.py"
    command = [sys.executable, str(run), "--target", target, "--seconds", "60", "--seed", "1", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert ended.returncode == 0, ended.stdout
