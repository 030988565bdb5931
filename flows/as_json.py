"""What commands print for machines."""

import json
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def print_json(value: object) -> None:
    """Prints what JSON can hold."""
    typer.echo(json.dumps(value, indent=2))


def say(found: object) -> None:
    """Prints a text as it is, anything else as JSON."""
    if isinstance(found, str):
        typer.echo(found)
    else:
        print_json(found)
