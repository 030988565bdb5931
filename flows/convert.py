"""The command that writes a model for another runtime: `flows.cli` takes it in."""
# ruff: noqa: PLC0415 - --help must not wait for torch

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.as_json import Json, say
from tasks.errors import ParamsError
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.exporters import Exporter


def convert(
    model: Annotated[
        str, typer.Argument(help="MODEL, MODEL@ALIAS or MODEL:VERSION; champion by default.")
    ],
    form: Annotated[str, typer.Option("--to", help="onnx, executorch or litert.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    *,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="As for params.yaml: precision=int8."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model for another runtime, checked on real rows.

    For example: stillmark convert digits.edge --to executorch --set precision=int8 --out edge.pte
    """
    from flows.naming import version_named
    from tasks.convert import convert as converted_by
    from tasks.rows import Rows
    from tasks.tracking import Tracking
    from tasks.versioning import PREPARED

    settings = Settings()
    exporter = exporter_of(form, given or [], settings.litert_python)
    settings.writable_home()
    tracking = Tracking(settings.tracking_uri, settings.home)
    version = version_named(tracking, model)
    found = converted_by(tracking, version, exporter, Rows(settings.root / PREPARED), out)
    say(found.model_dump(mode="json") if as_json else found.sentence)


COMMANDS = (convert,)


def exporter_of(form: str, given: list[str], litert_python: Path | None = None) -> "Exporter":
    """The exporter that words of a command line ask for.

    Args:
        form: Its name.
        given: Its fields as NAME=VALUE; values as JSON, or as plain words.
        litert_python: Python of the environment that LiteRT's converter lives in.

    Raises:
        ParamsError: There is no such exporter, or one of its fields is unknown or wrong.
    """
    from tasks.exporters import EXPORTERS

    fields = dict(_field(text) for text in given)
    method = EXPORTERS.methods.get(form)
    if litert_python is not None and method is not None and "python" in method.model_fields:
        fields = {"python": str(litert_python), **fields}
    try:
        return EXPORTERS.parse({**fields, "name": form})
    except ParamsError as error:
        raise ParamsError(str(error).replace("params.yaml: ", "--set: ")) from None


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ParamsError(f"--set '{text}' is no NAME=VALUE, such as precision=int8")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
