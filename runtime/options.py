"""An option is written once: a field of a frozen model, with its default, its range, its unit and its help text.

The Python API, the command line, HTTP, the client, jobs on disk and the page read them from there.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from bfr.runtime.errors import InvalidOption

COMMAS = BeforeValidator(lambda value: tuple(filter(None, value.split(","))) if isinstance(value, str) else value)
"""For fields that hold several values: as text they are separated by commas."""


LIMITS = ("ge", "gt", "le", "lt")  # as pydantic names them
_NEEDED = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number is needed"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number is needed"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false is needed"),
    "finite_number": "a finite number is needed",
    "path_type": "a path is needed, as text",
    "string_type": "text is needed",
    "tuple_type": "a list is needed",
}  # by pydantic's names of errors


class Options(BaseModel):
    """A frozen model of options. Its constructor raises InvalidOption, with a sentence for each wrong field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _take_paths(cls, values: Any) -> Any:
        """Take any os.PathLike, such as DirEntry: pydantic takes pathlib's alone."""
        if not isinstance(values, dict):
            return values
        return {name: Path(value) if isinstance(value, PathLike) else value for name, value in values.items()}

    if not TYPE_CHECKING:  # type checkers derive the keywords of the constructor from the fields

        def __init__(self, /, *values: Any, **named: Any) -> None:
            """Take values by name, or in the order of the fields."""
            fields = type(self).model_fields
            if len(values) > len(fields):
                raise TypeError(f"{type(self).__name__} has {len(fields)} fields, {len(values)} values were given")
            try:
                super().__init__(**dict(zip(fields, values, strict=False)), **named)
            except ValidationError as error:
                raise InvalidOption(explain(error.errors(), fields)) from None

        __init__.__pydantic_base_init__ = True  # `model_validate` raises pydantic's own error, as FastAPI needs


def field_of(model: type[BaseModel], name: str, **changes: Any) -> Any:
    """Return a field of another model, for a model that has it too: the same default, range and help text.

    Args:
        model: The model that the field is written in.
        name: Name of the field.
        changes: Attributes that differ, as `default`.
    """
    field = copy(model.model_fields[name])
    for attribute, value in changes.items():
        setattr(field, attribute, value)
    return field


def explain(errors: Sequence[Mapping[str, Any]], fields: Mapping[str, FieldInfo]) -> str:
    """Say what is wrong with each field: its name, what was found, and what is allowed.

    Args:
        errors: What `errors()` of pydantic's exception returns; each `loc` begins with the field.
        fields: The fields of the model.
    """
    first = {str(one["loc"][:1]): dict(one) for one in reversed(errors)}
    return "; ".join(_sentence(one, fields) for one in reversed(first.values()))


def _sentence(error: dict[str, Any], fields: Mapping[str, FieldInfo]) -> str:
    name, found = ".".join(map(str, error["loc"])), error["input"]
    if error["type"] == "extra_forbidden":
        return f"there is no option {name!r}: choose among {', '.join(fields)}"
    field = fields.get(str(error["loc"][0])) if error["loc"] else None
    if error["type"] == "missing":
        return f"{name} is missing: {'give it a value' if len(error['loc']) == 1 or not field else field.description}"
    if field and choices(field) and error["type"] == "literal_error":
        return f"{name} {found!r} is unknown: choose one of {', '.join(map(str, choices(field)))}"
    if field and describe_range(field) and error["type"].startswith(("greater_than", "less_than", "finite_number")):
        return f"{name} {found} is out of range: choose {describe_range(field)}"
    if field and error["type"] == "string_pattern_mismatch":
        return f"{name} {found!r} is not accepted: {field.description}"
    limits = {key: value for key, value in error.get("ctx", {}).items() if key in LIMITS}
    needed = _NEEDED.get(error["type"]) or (f"choose {_range(limits)}" if limits else None)
    shown = ",".join(found) if isinstance(found, list | tuple) and all(isinstance(one, str) for one in found) else found
    return f"{name} {shown!r} is not accepted: {needed or str(error['msg']).removeprefix('Value error, ')}"


def choices(field: FieldInfo) -> tuple[Any, ...]:
    """Return the values of a field that offers some, else nothing."""
    return _literals(field.annotation)


def _literals(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for part in get_args(annotation) for value in _literals(part))


def bounds(field: FieldInfo) -> dict[str, Any]:
    """Return the limits of a number by the names that pydantic gives them: ge, gt, le, lt."""
    found = [(name, getattr(rule, name, None)) for rule in field.metadata for name in LIMITS]
    return {name: limit for name, limit in found if limit is not None}


def describe_range(field: FieldInfo) -> str:
    """Say which numbers a field takes: `between 0 and 1`, `1 or more`; nothing if every number will do."""
    return _range(bounds(field))


def _range(limits: Mapping[str, Any]) -> str:
    if limits.keys() == {"ge", "le"}:
        return f"between {limits['ge']} and {limits['le']}"
    words = {"ge": "{} or more", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
    return ", ".join(words[name].format(limits[name]) for name in words if name in limits)
