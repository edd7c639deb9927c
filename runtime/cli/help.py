"""`--help` in groups by task, with examples and without truncation; and the errors for unknown options."""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from textwrap import wrap
from typing import Any

import typer
from typer.core import TyperCommand

from bfr.runtime.errors import InvalidOption

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # typer names none of its parents
VIDEO = ("codec", "crf", "key_frames")
BRIEF = ("Limits", "Jobs")  # of these `-h` names the flags, and `--help` explains them
BRIEFLY = "bfr.brief"  # in a context's `meta`: whether the user may have given `-h`


@cache
def panels() -> dict[str, tuple[str, ...]]:
    """Headings in the order of the help -> the parameters below them, in theirs. The first that has a name counts."""
    from bfr.runtime.faces.options import PhotoOptions
    from bfr.runtime.jobs.options import JobOptions
    from bfr.runtime.restore.options import OpenOptions, SamplerOptions
    from bfr.runtime.serve.options import ListenOptions, ServeOptions

    output = (name for name in JobOptions.model_fields if name not in ("seed", *VIDEO))
    return {
        "Basics": ("out", "overwrite", "bundle", "bundles", "preset", "presets", "resume", "estimate"),
        "Faces": ("aligned", *PhotoOptions.model_fields, "reference", "mask"),
        "Output": (*output, "quiet", "verbose", "as_json"),
        "Speed": tuple(OpenOptions.model_fields),
        "Sampler": (*SamplerOptions.model_fields, "seed"),
        "Video": VIDEO,
        "Server": ("server", *ListenOptions.model_fields),
        "Limits": tuple(name for name in ServeOptions.model_fields if "job" not in name),
        "Jobs": (*(name for name in ServeOptions.model_fields if "job" in name), "no_jobs"),
    }


EXAMPLES = {
    "restore": """
        bfr restore old.jpg                            # -> restored/old.jpg
        bfr restore old.jpg -o new.jpg --upscale 2
        bfr restore album/ -o out --html               # a page of before and after
        bfr restore old.jpg --preset fast,reference --html
        bfr restore album/ --estimate                  # how long it would take""",
    "inpaint": "bfr inpaint face.png --mask mask.png --bundle bundles/difface-inpainting",
    "live": "bfr live /dev/video0                           # a page with the camera",
    "serve": """
        bfr serve                                      # http://127.0.0.1:8000
        bfr serve bundles/difface --precision fp16 --batch 8""",
    "batch": "bfr batch 's3://bucket/photos/**/*.jpg' -o s3://bucket/restored",
    "fetch": "bfr fetch difface --accept-license",
    "export": "bfr export difface -o bundles/difface --precision fp16",
    "wrap": "bfr wrap gfpgan.onnx -o bundles/gfpgan",
    "build": "bfr build bundles/difface --precision fp16",
    "verify": "bfr verify bundles/difface --record",
    "export-triton": "bfr export-triton bundles/difface -o repository",
    "push": "bfr push bundles/difface hf://owner/name",
    "bench": """
        bfr bench                                      # all backends that work here
        bfr bench bundles/difface --backends eager-cuda,tensorrt:fp16 --batches 1,8
        bfr bench --quick --no-cold --backends onnxruntime-cpu --json
        bfr bench --compare old/bench.json             # what became faster or slower""",
    "info": "bfr info bundles/difface",
    "doctor": "bfr doctor --json",
}


def by_word(*rows: tuple[str, str]) -> dict[str, str]:
    """Rows of words, separated by spaces, and what they mean -> the meaning of each word."""
    return {word: meant for words, meant in rows for word in words.split()}


# Options of ultralytics, ffmpeg, rembg, HandBrakeCLI or facefusion -> bfr's.
HABITS = by_word(
    ("-i -s -t --input --input_path --source --target", "inputs are named without a flag"),
    ("-y --force --replace --exist-ok", "--overwrite replaces results"),
    ("--output --output-path --output_path --project", "-o names the output"),
    ("-m --model --weights", "--bundle names the system"),
    ("--scale --outscale -u", "--upscale enlarges"),
    ("--gpu --gpu-id --cuda", "--device is the number of the GPU, --backend the backend"),
    ("--cpu", "--backend onnxruntime-cpu is for the CPU"),
    ("--fp16 --half", "--precision fp16 is for half precision"),
    ("-w --fidelity --fidelity-weight --fidelity_weight", "--weight is the fidelity weight"),
    ("--mask", "`bfr inpaint` takes masks"),
    ("--batch-size --bs", "--batch is the batch size"),
    ("--execution-providers --provider --engine", "--backend names the backend"),
    ("--only-center-face --only_center_face", "--faces centre is for the face in the middle"),
    ("--bg-upsampler --bg_upsampler --bg", "--background is for the rest of the picture"),
    ("--detector", "YuNet is the only detector"),
    ("--json", "its log is always JSON lines"),
)


# Words of pydantic's messages -> what is needed.
_NEEDED = {"valid integer": "a whole number", "valid number": "a number", "valid boolean": "true or false"}


class Command(TyperCommand):
    """A command whose flags are listed below the headings of their panels."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the command line. Raises InvalidOption for what cannot be."""
        ctx.meta[BRIEFLY] = "--help" not in args
        args = list(map(_as_meant, args))
        self._refuse_empty(ctx, args)
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            raise InvalidOption(self._explain(error, ctx, given)) from None

    def _refuse_empty(self, ctx: Any, args: list[str]) -> None:
        """Raise InvalidOption for an empty path, which would be the current folder: a shell's variable was not set."""
        records = ((one, one.get_help_record(ctx)) for one in self.params)
        paths = {flag for one, record in records if record and record[0].endswith("<path>") for flag in one.opts}
        for before, word in pairwise(["", *args]):
            flag = word.removesuffix("=") if word.endswith("=") else before if not word else ""
            if flag in paths or (not word and not before.startswith("-")):
                what = flag if flag.startswith("-") else "an input"
                raise InvalidOption(f"{what} is empty: name a file or folder; a variable of the shell may not be set")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        known = panels()
        places = {name: (row, heading) for heading, names in reversed(known.items()) for row, name in enumerate(names)}
        headings, rows = ["Arguments", *known], list[tuple[int, bool, int, str, Any]]()
        brief: dict[str, list[str]] = {}
        for parameter in self.get_params(ctx):
            argument = parameter.param_type_name == "argument"
            row, panel = places.get(parameter.name, (len(rows), "Options"))
            heading = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else panel)
            if heading in BRIEF and ctx.meta.get(BRIEFLY):
                value = "" if parameter.default in (None, False) else f" {parameter.default}"
                brief.setdefault(heading, []).append(f"{parameter.opts[-1]}{value}")
            elif record := parameter.get_help_record(ctx):
                order = headings.index(heading) if heading in headings else len(headings)
                kinds = r" <list\[\w+\]>" if argument else r"(?<=<)list\[(\w+)\](?=>)"
                names = re.sub(kinds, "" if argument else r"\1", record[0])
                rows.append((order, heading == "Options", row, heading, (names, record[1])))
        rows.sort(key=lambda one: one[:3])
        write(formatter, [(heading, record) for *_, heading, record in rows if heading != "Options"])
        for heading, flags in brief.items():
            with formatter.section(f"{heading}, explained by `bfr {ctx.info_name} --help`"):
                for line in wrap(", ".join(flags), formatter.width - 2, break_on_hyphens=False):
                    formatter.write(f"  {line}\n")
        write(formatter, [(heading, record) for *_, heading, record in rows if heading == "Options"])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        if lines := examples(ctx.info_name):
            with formatter.section("Examples"):
                for line in lines:
                    formatter.write(f"  {line}\n")

    def _explain(self, error: Any, ctx: Any, given: list[str]) -> str:
        """What cannot be understood, in one sentence with a remedy."""
        name, more = ctx.info_name, f"`bfr {ctx.info_name} -h` lists what there is"
        parameter = getattr(error, "param", None)
        if getattr(error, "option_name", None):
            return self._explain_option(error, ctx, given) or f"{_flag(error)} needs a value: {more}"
        if parameter is None:
            extra = re.findall(r"\(([^()]+)\)\.?$", error.format_message())
            return f"{name} does not take {extra[0] if extra else 'this'}: leave it out, {more}"
        flag = (parameter.metavar or parameter.name) if parameter.param_type_name == "argument" else parameter.opts[-1]
        written = {word.partition("=")[0] for word in given}
        if os.environ.get(parameter.envvar or "") and written.isdisjoint(parameter.opts):
            flag = parameter.envvar
        if type(error).__name__ == "MissingParameter":
            return f"{flag} is missing: write it as in `{examples(name)[0].partition('  ')[0]}`"
        needed = next((text for word, text in _NEEDED.items() if word in error.message), None)
        if needed is None:
            return f"{flag}: {error.message.removeprefix('Value error, ').rstrip('.')}; {more}"
        example = "" if parameter.default in (None, ()) else f", as {parameter.default}"
        return f"{flag} needs {needed}{example}: {more}"

    def _explain_option(self, error: Any, ctx: Any, given: list[str]) -> str | None:
        flag = _flag(error)
        if "does not take a value" in error.message:
            return f"{flag} takes no value: write {flag} alone, or leave it out"
        if not hasattr(error, "possibilities"):
            return None
        file = next((word for word in given if word.startswith(flag) and os.path.exists(word)), None)  # noqa: PTH110
        meant = f"write ./{file} for the file" if file else self._instead(flag, ctx)
        return f"{ctx.info_name} has no option {flag}: {meant or f'`bfr {ctx.info_name} -h` lists what there is'}"

    def _instead(self, flag: str, ctx: Any) -> str | None:
        """Guess which option an unknown one means."""
        known = {flag for one in self.get_params(ctx) for flag in one.opts if flag.startswith("-")}
        habit = HABITS.get(flag)
        if habit and {*re.findall(r"-o\b|--[a-z-]+", habit)} <= known:
            return habit
        near = sorted(one for one in known if one.startswith(flag)) or get_close_matches(flag, sorted(known), 1, 0.7)
        return f"did you mean {near[0]}?" if near else None


def _as_meant(word: str) -> str:
    """`-o=x` as `-ox`; and the home folder for the `~/` of `--flag=~/x` and of quoted words, which shells leave."""
    word = re.sub(r"\A(-[A-Za-z])=", r"\1", word)
    return re.sub(r"\A(--[a-z-]+=|-[A-Za-z])?~/", lambda found: (found[1] or "") + os.path.expanduser("~/"), word)  # noqa: PTH111


def _flag(error: Any) -> str:
    return error.option_name if error.option_name.startswith("-") else f"--{error.option_name}"


def examples(name: str) -> list[str]:
    """The examples of a command, one a line."""
    return [line.strip() for line in EXAMPLES.get(name, "").strip().splitlines()]


def write(formatter: Any, rows: Iterable[tuple[str, tuple[str, str]]]) -> None:
    """Write rows, each a heading and its two columns, below their headings."""
    found: dict[str, list[tuple[str, str]]] = {}
    for heading, row in rows:
        found.setdefault(heading, []).append(row)
    for heading, group in found.items():
        with formatter.section(heading):
            formatter.write_dl(group)
