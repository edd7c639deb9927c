"""An option is written once: a default, a range or a help text that is changed in its place is changed everywhere."""

import json
import re
import shutil
from importlib import import_module
from math import nan
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from interpreter import python
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import bfr.runtime
from bfr.benchmarks.speed.options import BenchOptions
from bfr.export.options import BuildOptions, ExportOptions, TritonOptions, WrapOptions
from bfr.runtime.cli.commands import COMMANDS, load
from bfr.runtime.cluster.bulk.options import BulkOptions, PoolOptions
from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.jobs.options import JobOptions, RestoreOptions
from bfr.runtime.live.options import LiveOptions
from bfr.runtime.options import Options, bounds, choices, describe_range
from bfr.runtime.restore.options import OpenOptions, SamplerOptions
from bfr.runtime.serve.http.page import page
from bfr.runtime.serve.options import ListenOptions, ServeOptions

WRITTEN = (OpenOptions, SamplerOptions, PhotoOptions, JobOptions)  # where shared fields are written
SERVED = (RestoreOptions, BulkOptions, PoolOptions, ServeOptions, ListenOptions)
MODELS = (*WRITTEN, *SERVED, BenchOptions, ExportOptions, WrapOptions, BuildOptions, TritonOptions)
DIFFERENT = {  # fields of one name that mean something else
    (ServeOptions, "batch"),
    (ServeOptions, "max_faces"),
    (RestoreOptions, "bundle"),
    (BulkOptions, "threads"),
    (BulkOptions, "precision"),  # the same on every node
    (BenchOptions, "threads"),
    (BenchOptions, "out"),
    (BenchOptions, "compare"),
    *((model, "precision") for model in (ExportOptions, WrapOptions, BuildOptions)),  # several
    *((TritonOptions, name) for name in ("precision", "batch")),
}


def facts(field: FieldInfo) -> dict[str, Any]:
    return {
        "default": field.get_default(),
        "choices": choices(field),
        "bounds": bounds(field),
        "help": field.description,
    }


OWN = {  # flags of commands that mean something else than the field of their name
    "batch": {"out"},
    "build": {"bundle"},
    "export": {"out"},
    "export_triton": {"bundle", "out"},
    "push": {"bundle"},
    "verify": {"bundle", "preset"},
    "wrap": {"out"},
}
PROBE = """
import json
from typer.testing import CliRunner
import bfr.runtime
from bfr.runtime.cli.main import app
from bfr.runtime.client.clients import RestoreOptions
from bfr.runtime.cluster.bulk.options import BulkOptions
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoEditor
from bfr.runtime.restore.options import OpenOptions
from bfr.runtime.serve.http.api import make_api
from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.http.schemas import describe
from bfr.runtime.serve.http.requests import RestoreQuery
from bfr.runtime.serve.options import ServeOptions

[openapi] = [
    one["schema"] | {"description": one.get("description") or one["schema"]["description"]}
    for one in make_api(lambda: None).openapi()["paths"]["/restore"]["post"]["parameters"]
    if one["name"] == "blend"
]
found = {
    "file": bfr.runtime.__file__,
    "api": {
        "photo": PhotoOptions().blend,
        "editor": PhotoEditor(64).options.blend,
        "query": RestoreQuery().photo().blend,
        "bulk": BulkOptions().photo.blend,
        "client": RestoreOptions().blend,
        "batch": [OpenOptions().batch, BulkOptions().batch],
    },
    "help": {name: CliRunner().invoke(app, [name, "--help"]).output for name in ("restore", "batch")},
    "openapi": openapi,
    "info": describe(Front(ServeOptions())),
}
print(json.dumps(found))
"""


class Some(Options):
    """A model of its own."""


class Needy(Options):
    """A model with a field that has no default."""

    name: str


class TestConstructor:
    @pytest.mark.parametrize(
        ("model", "values", "sentences"),
        [
            (PhotoOptions, {"blend": 2}, ["blend 2 is out of range: choose between 0 and 1"]),
            (PhotoOptions, {"blend": -0.1, "upscale": 3}, ["blend -0.1 is out of range", "choose one of 1, 2, 4"]),
            (PhotoOptions, {"blend": nan, "min_eye_distance": nan}, ["blend nan ", "min_eye_distance nan "]),
            (PhotoOptions, {"faces": "some"}, ["faces 'some' is unknown: choose one of all, largest, centre"]),
            (OpenOptions, {"batch": 0, "device": -1}, ["batch 0 ", "1 or more", "device -1 ", "0 or more"]),
            (ServeOptions, {"timeout": 0}, ["timeout 0 is out of range: choose more than 0"]),
            (LiveOptions, {"max_delay": 0}, ["max_delay 0 is out of range: choose more than 0, at most 60"]),
            (LiveOptions, {"size": "1280*720"}, ["size '1280*720' is not accepted: Size ", "as 1280x720"]),
            (OpenOptions, {"bach": 1}, ["no option 'bach'", "batch"]),
            (Needy, {}, ["name is missing"]),
            (OpenOptions, {"threads": "many"}, ["threads 'many' is not accepted"]),
        ],
    )
    def test_each_wrong_field_is_a_sentence(
        self, model: type[Options], values: dict[str, Any], sentences: list[str]
    ) -> None:
        with pytest.raises(InvalidOption) as refused:
            model(**values)
        for sentence in sentences:
            assert sentence in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_values_may_be_given_in_the_order_of_the_fields(self) -> None:
        assert JobOptions(Path("x"), 7) == JobOptions(out=Path("x"), seed=7)
        with pytest.raises(TypeError):
            PhotoOptions("all", faces="all")
        with pytest.raises(TypeError):
            Some(1)

    def test_a_range_holds_its_ends(self) -> None:
        for end in (0, 1):
            assert PhotoOptions(blend=end, min_eye_distance=0).blend == end

    def test_models_are_frozen(self) -> None:
        with pytest.raises(Exception, match="frozen"):
            PhotoOptions().blend = 0.5  # type: ignore[misc]

    def test_a_format_may_be_given_without_its_dot(self) -> None:
        assert JobOptions(Path(), format="jpg").format == ".jpg"

    def test_a_bulk_run_has_no_network_for_the_background(self) -> None:
        with pytest.raises(InvalidOption, match="background"):
            BulkOptions(photo=PhotoOptions(background=Path("x2"))).settings()


class TestOneDefinition:
    @pytest.mark.parametrize("model", MODELS)
    def test_every_field_has_a_help_text(self, model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert name == "photo" or (field.description or "").endswith("."), name

    @pytest.mark.parametrize("model", [model for model in MODELS if model not in WRITTEN])
    def test_fields_of_one_name_are_the_same(self, model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            for source in WRITTEN:
                if name in source.model_fields and (model, name) not in DIFFERENT:
                    assert facts(field) == facts(source.model_fields[name]), name

    def test_flags_say_what_the_fields_say(self) -> None:
        """Default, choices, range and help of every flag that a field became; no other flag repeats a field."""
        found = set()
        for command in (command for commands in COMMANDS.values() for command in commands):
            name = command.replace("-", "_")
            flags = {parameter.name: parameter for parameter in load(command).params}
            for model, fields in expansions(getattr(import_module(f"bfr.runtime.cli.{name}"), name)):
                for field in fields:
                    flag = flags.pop(field)
                    found.add((name, field))
                    check_flag(flag, model.model_fields[field])
            repeated = {flag for flag in flags for model in WRITTEN if flag in model.model_fields}
            assert repeated == OWN.get(name, set()), name
        assert len(found) > 70

    def test_a_default_that_is_changed_in_its_place_is_changed_everywhere(self, tmp_path: Path) -> None:
        copy = tmp_path / "bfr" / "runtime"
        shutil.copytree(Path(bfr.runtime.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
        for file, before, after in (
            ("faces/options.py", r"(blend: float = Field\(\s*)default=1\.0, ge=0, le=1", r"\1default=0.7, ge=0, le=2"),
            ("faces/options.py", "Strength: 0 leaves", "How strongly: 0 leaves"),
            ("restore/options.py", r"(batch: int = Field\(\s*)default=1,", r"\1default=3,"),
        ):
            text, count = re.subn(before, after, (copy / file).read_text())
            assert count == 1
            (copy / file).write_text(text)
        found = json.loads(python(PROBE, env={"PYTHONPATH": str(tmp_path), "COLUMNS": "200"}).stdout)
        assert found["file"].startswith(str(tmp_path))
        assert found["api"] == {"photo": 0.7, "editor": 0.7, "query": 0.7, "bulk": 0.7, "client": 0.7, "batch": [3, 3]}
        for name in ("restore", "batch"):
            assert "How strongly: 0 leaves" in found["help"][name]
            assert "Between 0 and 2." in found["help"][name]
            assert "[default: 0.7]" in found["help"][name]
            assert "[default: 3]" in found["help"][name]
        for option in (found["openapi"], found["info"]["options"]["blend"]):
            assert option["default"] == 0.7
            assert (option["minimum"], option["maximum"]) == (0, 2)
            assert option["description"].startswith("How strongly")
        assert found["info"]["defaults"]["blend"] == 0.7

    def test_the_page_holds_no_default_and_no_range(self) -> None:
        """It fills its fields from `GET /info`."""
        text = page()[0].decode()
        assert "info.options" in text
        for field in ("blend", "seed", "upscale", "faces", "mode"):
            [element] = re.findall(rf'<(?:input|select) id="{field}"[^>]*>(?:</select>)?', text)
            assert not re.search(" (value|min|max)=", element)


def expansions(command: Any) -> list[tuple[type[BaseModel], list[str]]]:
    """The models of a command, and the fields that became flags."""
    found = []
    original = getattr(command, "__wrapped__", command)
    for hint in get_type_hints(original, include_extras=True).values():
        kind, *more = get_args(hint) or (hint,)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            [flags] = more
            fields = [name for name in kind.model_fields if name not in flags.without]
            found.append((kind, [name for name in fields if not flags.only or name in flags.only]))
    return found


def check_flag(flag: Any, field: FieldInfo) -> None:
    text = (field.description or "").lower()
    assert text in flag.help.lower()
    assert describe_range(field) in flag.help.lower()
    assert all(str(choice).removeprefix(".") in (flag.metavar or flag.help) for choice in choices(field))
    default = field.get_default()
    if flag.help.startswith("Do not"):
        assert (default, flag.default) == (True, False)
    elif isinstance(default, tuple | dict):
        assert flag.default in (",".join(map(str, default)), list(default), default)
    elif not field.is_required():
        assert flag.default == default
