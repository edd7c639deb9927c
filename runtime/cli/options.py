"""Flags of commands, made of the models that options are written in.

A command names a model as the type of a parameter. `@expanded` gives it a flag for each field, with the field's
default, choices, range and help text, and hands the command the frozen model:

    @app.command()
    @expanded
    def verify(*, opened: Annotated[OpenOptions, Flags(only=("backend", "device"))]) -> None: ...
"""

import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from bfr.runtime.cli.terminal import say_warnings, volume
from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.options import Options, choices, describe_range

SYSTEMS = (
    "mini", "difface", "difface-identity", "difface-inpainting", "pgdiff", "pgdiff-reference", "osdface", "dr2",
    "diffbfr", "diffmac", "clr-face",
)  # fmt: skip
OUT = {"out": ("-o", "--out")}
STRIP = {"metadata": "--strip-metadata"}
WIDEST = 22  # characters of the choices beside a flag; more of them are named in its text
OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace existing results. Inputs never change.")]
AS_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
VOLUME = {
    "quiet": typer.Option("--quiet", "-q", callback=volume.set_quiet, help="Print only warnings and errors."),
    "verbose": typer.Option(
        "--verbose", "-v", callback=volume.set_verbose, help="Also print each input, and each step with its time."
    ),
}
"""Flags of every command. They set how much `terminal` prints, and are not passed to the command."""


@dataclass(frozen=True, slots=True)
class Flags:
    """How the fields of a model become flags.

    Attributes:
        only: The fields that do; all where it is empty.
        without: Fields that do not.
        panel: Heading of their group in the help.
        argument: A field that is given by its place, without a flag.
        names: Field -> its flags, where these are not `--field-name`.
        negative: Field -> the flag that turns it off.
        environment: Prefix of the environment variables that give the same values; none if it is empty.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    panel: str | None = None
    argument: str | None = None
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    negative: dict[str, str] = field(default_factory=dict)
    environment: str = ""


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter whose type is a model of options by flags, one a field; add those of VOLUME."""
    groups: dict[str, tuple[type[Options], Flags, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        model, flags = _split(parameter.annotation)
        if model is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        fields = [
            name for name in model.model_fields if name not in flags.without and (not flags.only or name in flags.only)
        ]
        groups[parameter.name] = model, flags, fields
        parameters += [_parameter(name, model.model_fields[name], flags) for name in fields]
    for name, option in VOLUME.items():
        kind = Annotated[bool, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind))

    @wraps(command)
    def run(**values: Any) -> None:
        say_warnings()
        for name in VOLUME:
            del values[name]
        for name, (model, flags, fields) in groups.items():
            given = {field: value for field in fields if (value := values.pop(field)) is not None}
            try:
                values[name] = model(**given | {field: not given[field] for field in flags.negative})
            except InvalidOption as error:
                raise InvalidOption(_with_flags(str(error), fields, flags)) from None
        command(**values)

    run.__annotations__ = {}  # the parameters are in the signature
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _with_flags(text: str, fields: Sequence[str], flags: Flags) -> str:
    """A message of a model, its fields called by their flags."""
    for name in fields:
        flag = name if name == flags.argument else _spelled(name, flags)[-1].partition("/")[0]
        if flags.environment and os.environ.get(variable := f"{flags.environment}{name.upper()}"):
            flag = f"{flag}, or {variable},"
        text = re.sub(rf"(^|; ){name}(\.\d+)?(?= )", rf"\g<1>{flag}", text)
    return text


def _spelled(name: str, flags: Flags) -> tuple[str, ...]:
    return flags.names.get(name, (flags.negative.get(name) or f"--{name.replace('_', '-')}",))


def _split(annotation: Any) -> tuple[type[Options] | None, Flags]:
    """The model of a parameter's type and its Flags; no model for other types."""
    kind, *more = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not (isinstance(kind, type) and issubclass(kind, Options)):
        return None, Flags()
    return kind, next((one for one in more if isinstance(one, Flags)), Flags())


def _parameter(name: str, of: FieldInfo, flags: Flags) -> inspect.Parameter:
    kind, default = _kind(of), of.get_default(call_default_factory=True)
    if isinstance(default, tuple | dict):
        default = ",".join(map(str, default)) if kind is str else list(default)
    variable = f"{flags.environment}{name.upper()}" if flags.environment else None
    offered = [str(choice).removeprefix(".") for choice in choices(of)]
    negative = name in flags.negative
    default = False if negative else default
    common: dict[str, Any] = {
        "help": _help(of, negative=negative),
        "envvar": variable,
        "show_envvar": name == flags.argument or _spelled(name, flags)[-1] != f"--{name.replace('_', '-')}",
        "metavar": "|".join(offered) if 0 < len("|".join(offered)) <= WIDEST else None,
        "autocompletion": (lambda: offered) if offered else None,
        "rich_help_panel": flags.panel,
        "show_default": default not in (None, "", []),
    }
    info: Any = typer.Argument(**common) if name == flags.argument else typer.Option(*_spelled(name, flags), **common)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if of.is_required() else default,
        annotation=Annotated[kind, info],
    )


def _kind(of: FieldInfo) -> Any:
    """The type that typer reads text as; the model checks what it means."""
    kind = of.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not NoneType)
        return _simple(kind, of) | None
    return _simple(kind, of)


def _simple(kind: Any, of: FieldInfo) -> Any:
    if get_origin(kind) is Literal:
        return type(get_args(kind)[0])
    if get_origin(kind) is tuple and any(isinstance(rule, BeforeValidator) for rule in of.metadata):
        return str  # the model takes several values out of one text
    return list[str] if get_origin(kind) in (tuple, dict) else kind


def _help(of: FieldInfo, *, negative: bool) -> str:
    """The field's help text, and its range."""
    text, allowed = of.description or "", describe_range(of)
    if negative:
        return f"Do not {text[:1].lower()}{text[1:]}"
    offered = [str(choice).removeprefix(".") for choice in choices(of)]
    if len("|".join(offered)) > WIDEST and not all(choice in text for choice in offered):
        allowed = f"one of {', '.join(offered)}"
    return f"{text} {allowed[:1].upper()}{allowed[1:]}." if allowed else text


def check_system(name: str) -> None:
    """Raise InvalidOption for a system that no module of `bfr.models.systems` names, without importing PyTorch."""
    found = find_spec("bfr.models")
    folders = found.submodule_search_locations or () if found else ()
    sources = [path for folder in folders for path in Path(folder, "systems").rglob("*.py")]
    if not any(f'"{name}"' in path.read_text("utf-8") for path in sources):
        raise InvalidOption(f"system {name!r} is unknown: choose one of {', '.join(SYSTEMS)}")


def check_aligned(photo: PhotoOptions, **further: bool) -> None:
    """Raise InvalidOption for options of photographs where the images are aligned faces. further: more, by name."""
    usual = PhotoOptions()
    given = [name for name, value in photo if value != getattr(usual, name)]
    if given := given + [name for name, value in further.items() if value]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InvalidOption(f"--aligned treats each image as one face: leave out {flags}, or --aligned")
