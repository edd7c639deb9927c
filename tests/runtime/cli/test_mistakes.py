"""Mistakes that people make: each is answered by one error with a remedy, status 2, without PyTorch and a network.

One process tries them all, one after the other; networks are loaded by none.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

# The command -> words of the answer, the remedy among them.
MISTAKES: Mapping[str, str] = {
    # inputs
    "restore": "write it as in `bfr restore old.jpg`",
    "restore empty": "PNG, JPEG, WEBP, BMP, TIFF and videos are looked for",
    "restore words": "notes.txt: not an image",
    "restore '*.gif'": "matches no image: check the pattern",
    "restore https://example.org/a.jpg": "download it first",
    "restore HTTP://example.org/a.jpg": "download it first",
    "restore s3://bucket/a.jpg": "`bfr batch` reads object stores",
    "restore -": "pipe in the bytes of an image file",
    "restore - old.jpg": "leave out the other inputs",
    "restore old.jgp": "did you mean old.jpg?",
    "restore nowhere/to/be.png": "check the name",
    "restore old.jpg new.jpg": "-o new.jpg",
    "restore source=old.jpg": "`bfr restore old.jpg`",
    "restore notes.txt": "is not an image of PNG, JPEG, WEBP, BMP, TIFF, nor a video of .mp4",
    "restore broken.jpg": "damaged",
    "restore old.jpg --max-pixels 10": "make it smaller, or raise the limit",
    # commands and flags of other programs
    "restor old.jpg": "did you mean `bfr restore`?",
    "old.jpg": "did you mean `bfr restore old.jpg`?",
    "frobnicate": "choose one of restore",
    "--nosuch": "`bfr -h` lists the commands",
    "restore -i old.jpg": "inputs are named without a flag",
    "restore old.jpg -y": "--overwrite",
    "restore old.jpg --output new.jpg": "-o names the output",
    "restore old.jpg --model mini": "--bundle",
    "restore old.jpg --scale 2": "--upscale",
    "restore old.jpg --gpu 0": "--device",
    "restore old.jpg --cpu": "--backend onnxruntime-cpu",
    "restore old.jpg --fp16": "--precision fp16",
    "restore old.jpg --mask notes.txt": "`bfr inpaint`",
    "restore old.jpg --upscal 2": "did you mean --upscale?",
    "restore old.jpg --over": "did you mean --overwrite?",
    "info mini mini": "does not take mini: leave it out",
    # values
    "restore old.jpg --blend": "needs a value",
    "restore old.jpg --blend half": "--blend needs a number, as 1.0",
    "restore old.jpg --blend 2": "--blend 2.0 is out of range: choose between 0 and 1",
    "restore old.jpg --upscale 3": "choose one of 1, 2, 4",
    "restore old.jpg --seed abc": "--seed needs a whole number",
    "restore old.jpg --seed 4294967296": "choose between 0 and 4294967295",
    "restore old.jpg --max-faces 0": "--max-faces 0 is out of range",
    "restore old.jpg --min-eye-distance -1": "choose 0 or more",
    "restore old.jpg --quality 0": "choose between 1 and 100",
    "restore old.jpg --quality 101": "choose between 1 and 100",
    "restore old.jpg --crf -3": "choose between 0 and 63",
    "restore old.jpg --crf 64": "choose between 0 and 63",
    "restore old.jpg --max-pixels 0": "choose 1 or more",
    "restore old.jpg --batch 0": "--batch 0 is out of range: choose 1 or more",
    "restore old.jpg --format gif": "choose one of same, .png, .jpg, .webp",
    "restore old.jpg --faces two": "choose one of all, largest, centre",
    "restore old.jpg --codec h265": "choose one of h264, hevc, vp9",
    "restore old.jpg --detector yolo": "YuNet is the only detector",
    "restore old.jpg --solver euler": "unipc-2",
    "restore old.jpg --spacing linear": "spacing 'linear' is unknown: choose time, log-snr, quadratic, or a respacing",
    "restore old.jpg --spacing ddim250": "also give start",
    "restore old.jpg --preset reference --spacing ddim3 --start 9": "from 1 to 3",
    "restore old.jpg --preset reference --spacing ddim250 --start 251": "allows whole numbers from 1 to 250",
    "restore old.jpg --eta 1.5": "choose between 0 and 1",
    "restore old.jpg --start 5000": "start 5000",
    "restore old.jpg --backend cuda": "choose one of auto, onnxruntime-cpu",
    "restore old.jpg --precision half": "choose one of auto, fp32",
    "restore old.jpg --precision fp16": "`bfr export mini --precision fp16",
    "restore old.jpg --compiler fast": "choose one of max_autotune",
    "restore old.jpg --threads 99999": "choose between 1 and",
    "restore old.jpg --device 3": "leave --device out",
    "restore old.jpg --preset fastest": "mini has adaptive, balanced, fast, reference",
    "restore old.jpg --preset fast,nosuch --html": "mini has adaptive, balanced, fast, reference",
    "restore old.jpg --preset fast,fast": "fast,reference",
    "restore old.jpg --preset fast,": "fast,reference",
    # what does not go together
    "restore old.jpg --guidance 1": "leave it out",
    "restore old.jpg --weight 0.5": "leave it out",
    "restore old.jpg --reference nowhere.jpg": "takes the image alone",
    "restore old.jpg --aligned --upscale 2": "leave out --upscale, or --aligned",
    "restore old.jpg --quiet --verbose": "leave one out",
    "restore old.jpg --json -o -": "leave out --json",
    "restore old.jpg --html -o new.jpg": "name a folder with -o",
    "restore old.jpg --html --compare -o new.jpg": "--compare, --html needs a folder",
    "restore old.jpg --resume -o new.jpg": "--resume needs a folder",
    "restore old.jpg --preset fast,reference -o new.jpg": "a folder with -o",
    "restore old.jpg --server localhost:8000": "http://localhost:8000",
    "restore old.jpg --server http://localhost:1 --backend tensorrt": "leave it out",
    "restore old.jpg --server http://localhost:1 --preset a,b": "name one with --preset",
    "restore old.jpg --server http://localhost:1 --estimate": "leave it out",
    "restore old.jpg --api-key-file notes.txt": "--server",
    # outputs
    "restore old.jpg -o old.jpg": "choose another name",
    "restore old.jpg -o .": "choose another output folder",
    "restore old.jpg -o out.gif": "choose one of them",
    "restore old.jpg -o out.bmp": "images are written as .png, .jpg, .webp, not .bmp",
    "restore old.jpg -o out.mp4": "not .mp4",
    "restore old.jpg -o out.txt": "choose one of them",
    "restore old.jpg -o plain": "name a folder with -o",
    "restore old.jpg faces -o one.jpg": "name a folder",
    "restore old.jpg faces -o -": "cannot go into one output: name a folder",
    "restore old.jpg -o s3://bucket/x": "s3://bucket/x is an address: name a folder",
    "restore old.jpg -o old.png --format jpg": "leave out --format",
    # bundles and systems
    "restore old.jpg --bundle difface": "`bfr export SYSTEM -o difface`",
    "restore old.jpg --bundle empty": "`bfr export SYSTEM -o FOLDER`",
    "restore old.jpg --background empty": "it has no manifest.json",
    "restore old.jpg --background nowhere": "there is no folder nowhere",
    "info difface": "make one by `bfr export SYSTEM",
    "batch faces -o out --bundle difface": "make one by `bfr export SYSTEM",
    "info old.jpg": "bundle's folder",
    "inpaint old.jpg": "`bfr export difface-inpainting`",
    "bench nowhere": "name a bundle",
    "bench --backends cuda": "choose among eager-cpu",
    "bench --backends onnxruntime-cpu:fp8": "only fp32",
    "bench --batches 0": "--batches '0'",
    "bench --batches two": "a whole number is needed",
    "bench --preset nosuch": "mini has adaptive",
    "bench --compare nowhere.json": "name a bench.json",
    "bench --compare notes.txt": "name a bench.json",
    "bench mini mini --compare notes.txt": "leave out the others",
    "export mini": "write it as in `bfr export",
    "export mini -o words": "replace it with --replace",
    "export mini -o faces --replace": "has no manifest.json",
    "export mini -o x --opset 19": "choose one of 18, 20, 21, 23",
    "export difface -o x --weights nowhere": "--weights",
    "export difface -o x --seeded --weights faces": "leave out --weights, or --seeded",
    "build nowhere --dry-run": "name a bundle",
    "build --library trt": "choose one of auto, tensorrt, tensorrt-rtx",
    "build --for nano": "jetson",
    "verify": "write it as in `bfr verify",
    "serve --port 99999": "choose between 0 and 65535",
    "serve --host 0.0.0.0": "give an API key",
    "serve --config nowhere.toml": "check --config",
    "serve nowhere": "name a bundle",
    "serve --preset nosuch": "mini has adaptive",
    "batch old.jpg": "-o s3://bucket/restored",
    "batch empty -o out": "are looked for",
    "wrap nowhere.onnx -o x": "name an ONNX file",
    "wrap notes.txt -o x --input-range 5": "-1..1",
    "wrap notes.txt -o x --colour grey": "choose one of rgb, bgr",
    "wrap notes.txt -o x --set w": "w=0.5",
    "push mini somewhere": "hf://owner/name",
    "push empty hf://a/b": "is no bundle",
    "export-triton empty -o x": "is no bundle",
    "export-triton mini -o x --precision int4": "fp16",
    "doctor now": "leave it out",
    # what a shell makes of names, and names that are none
    "restore ''": "an input is empty",
    "restore old.jpg -o ''": "a variable of the shell may not be set",
    "restore old.jpg --bundle=": "--bundle is empty",
    "export mini -o ''": "-o is empty",
    "batch faces -o ''": "-o is empty",
    "restore -dash.jpg": "write ./-dash.jpg",
    "restore lost.webp": "is a link to nowhere",
    "restore zero.jpg": "is empty: copy or download it again",
    "restore faces.jpg": "no image was found in faces.jpg",
    "restore /dev/null": "name an image file",
    f"restore {'x' * 300}.jpg": "check the name",
    f"restore old.jpg -o {'x' * 300}": "File name too long",
    f"info {'x' * 300}": "File name too long",
    "restore 'grüße 😀.jpeg'": "did you mean grüße 😀.jpg?",
    "restore old.jpg -o=plain": "plain is a file",
    "restore '[.jpg'": "matches no image",
    "restore old.jpg -o plain/x": "plain/x cannot be made",
    "restore old.jpg -o /proc/x.jpg": "choose another folder",
    "restore old.jpg -o /proc/x": "choose another",
    "batch faces -o plain": "is no folder",
    "fetch yunet": "choose one of mini, difface,",
    "fetch difface --folder plain/x": "name another one with --folder",
    "export mini -o plain/x": "is no folder",
    "serve --api-key-file old.jpg": "not UTF-8",
    # commands and flags that are almost right
    "RESTORE old.jpg": "did you mean `bfr restore`?",
    "help restore": "did you mean `bfr -h`?",
    "version": "did you mean `bfr --version`?",
    "--verison": "did you mean --version?",
    "--quiet restore old.jpg": "behind the command, as `bfr restore old.jpg --quiet`",
    "restore old.jpg --json=1": "--json takes no value",
    "restore old.jpg --keep-color": "did you mean --keep-colour?",
    "serve --json": "always JSON lines",
    "doctor --verbos": "did you mean --verbose?",
    "restore old.jpg --preset fast reference": "reference does not exist",
    # numbers that are none
    "restore old.jpg --blend nan": "--blend nan is out of range",
    "restore old.jpg --start nan": "a finite number is needed",
    "restore old.jpg --start -5": "start -5 is out of range",
    "restore old.jpg --steps 999999": "steps 999999 is not accepted: choose at most 10000",
    "restore old.jpg --seed -1": "choose between 0 and 4294967295",
    "build --batches 0 --dry-run": "--batches '0' is not accepted: choose 1 or more",
    "wrap notes.txt -o x --input-range nan..1": "a finite number is needed",
    "wrap notes.txt -o x --set w=abc": "--set 'w=abc' is not accepted",
    # the environment, and files of options
    "BFR_SERVE_QUEUE=abc serve": "BFR_SERVE_QUEUE needs a whole number, as 64",
    "BFR_SERVE_PORT=-1 serve": "--port, or BFR_SERVE_PORT, -1 is out of range",
    "BFR_SERVE_NO_JOBS=maybe serve": "BFR_SERVE_NO_JOBS needs true or false",
    "BFR_SERVE_PRESET=fast serve": "there is no option 'preset': choose among host, ",
    "BFR_SERVE_CONFIG=nowhere serve": "check --config",
    "serve --config broken.jpg": "is not TOML",
    "serve --config list.toml": "port [1, 2] is not accepted: a whole number is needed",
    "serve --config nan.toml": "timeout nan is out of range",
    "serve --config faces": "Is a directory",
    # cameras and systems
    "live /dev/video99": "`ls /dev/video*` lists the cameras",
    "live rtsp://host:99999/x": "or the port is none",
    "live old.jpg": "`bfr restore` takes files",
    "fetch nosuch": "choose one of mini, difface",
    "export nosuch -o x": "choose one of mini, difface",
    "verify mini --preset nosuch": "mini has adaptive",
}
TRY = """
import contextlib, io, json, os, pathlib, shlex, socket, sys

def refuse(*_a, **_k):
    raise AssertionError("a socket was opened")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from rich.console import Console
from bfr.runtime.cli import main as cli, terminal
from bfr.runtime.restore import restorer

restorer.load_networks = refuse
answered, answers = sys.argv[1], {}
for command in json.load(sys.stdin):
    words = shlex.split(command)
    variable, _, value = words[0].partition("=") if words and words[0].startswith("BFR_") else ("BFR_NONE", "", "")
    os.environ[variable] = value
    sys.argv = ["bfr", *words[bool(value) :]]
    out, err = io.StringIO(), io.StringIO()
    terminal.stderr = Console(file=err, soft_wrap=True, highlight=False)
    sys.stdin = io.TextIOWrapper(io.BytesIO())
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        status = repr(error)
    del os.environ[variable]
    answers[command] = [status, out.getvalue(), err.getvalue(), "torch" in sys.modules]
pathlib.Path(answered).write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str, str, bool]]:
    """Command -> status, standard output, standard error, and whether PyTorch had been imported by then."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("empty", "words", "faces", "faces.jpg"):
        (folder / name).mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for name in ("old.jpg", "faces/a.png", "-dash.jpg", "grüße 😀.jpg"):
        noise.save(folder / name)
    for name in ("notes.txt", "words/notes.txt", "plain"):
        (folder / name).write_text("words")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff junk")
    (folder / "zero.jpg").touch()
    (folder / "lost.webp").symlink_to("nowhere")
    (folder / "list.toml").write_text("port = [1, 2]")
    (folder / "nan.toml").write_text("timeout = nan")
    before = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    answered = tmp_path_factory.mktemp("answers") / "answers.json"
    subprocess.run(  # noqa: S603
        [sys.executable, "-c", TRY, str(answered)],
        input=json.dumps(list(MISTAKES)),
        text=True,
        check=True,
        cwd=folder,
        env={"BFR_HOME": str(folder / "home"), "COLUMNS": "80", "PATH": "", "HOME": str(folder)},
    )
    found: dict[str, tuple[Any, str, str, bool]] = json.loads(answered.read_text())
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*")} - before
    assert {name for name in written if not name.startswith(("home", ".cache"))} == {"restored", "restored/report.json"}
    return found


@pytest.mark.parametrize("command", list(MISTAKES))
def test_a_mistake_is_answered(command: str, answers: dict[str, tuple[Any, str, str, bool]]) -> None:
    status, out, err, torch = answers[command]
    assert status == 2, err
    assert out == ""
    assert MISTAKES[command] in err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert not torch
