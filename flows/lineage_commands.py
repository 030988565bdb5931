"""The commands about lineage: `flows.cli` takes them in."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from flows.as_json import Json, say
from flows.server import start_own_server
from tasks.errors import StillmarkError
from tasks.settings import Settings

Model = Annotated[
    str, typer.Argument(help="MODEL, MODEL@ALIAS or MODEL:VERSION; champion by default.")
]


def trace(
    model: Model,
    *,
    picture: Annotated[
        Path | None, typer.Option("--svg", help="Also draw it into this file, for a browser.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say where a model comes from, back to the raw data.

    For example: stillmark trace digits.edge --svg lineage.svg
    """
    from flows.naming import version_named
    from tasks.catalogue import Catalogue
    from tasks.trace import svg, tree
    from tasks.trace import trace as trace_of

    with Catalogue.of(Settings()) as catalogue:
        found = trace_of(catalogue, version_named(catalogue.tracking, model))
    if picture is not None:
        _write(picture, svg(found).encode())
    say(found.model_dump(mode="json") if as_json else tree(found))


def verify(
    model: Annotated[
        str | None, typer.Argument(help="As for trace; or --all in its place.")
    ] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Every version that holds an alias.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key that it must be signed with.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hash a model and all behind it again; 1 where one differs.

    For example: stillmark verify digits.edge, stillmark verify --all
    """
    if (model is None) != everything:
        raise StillmarkError("verify needs a MODEL or --all, and not both")
    start_own_server(Settings())
    from flows.audit import verify as flow
    from flows.once import in_process

    found, _ = in_process(flow, model, None if key is None else str(key.resolve()))
    if as_json:
        say(found.model_dump(mode="json") | {"passed": found.passed})
    else:
        for line in found.lines():
            typer.echo(line)
        for problem in found.problems():
            typer.echo(f"stillmark: {problem}", err=True)
    if not found.passed:
        raise typer.Exit(1)


def replay(
    model: Model,
    *,
    stage: Annotated[
        str | None, typer.Option("--stage", help="Only this one, from its recorded parents.")
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option("--scratch", help="Empty folder to make it in, and keep; a temporary one."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Of weights, where the machine is another one; 0.0001.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a model again and compare; 1 where it differs.

    For example: stillmark replay digits.edge, stillmark replay digits.edge --stage quantize
    """
    start_own_server(Settings())
    from flows.audit import replay as flow
    from flows.once import in_process

    given = {} if tolerance is None else {"tolerance": tolerance}
    with tempfile.TemporaryDirectory() as temporary:
        place = scratch or Path(temporary) / "replay"
        found, _ = in_process(flow, model, str(place.resolve()), stage, **given)
    if as_json:
        say(found.model_dump(mode="json") | {"passed": found.passed})
    else:
        for one in found.remade:
            typer.echo(f"{one.status:<16} {one.role} ({one.stage}){_because(one.reasons)}")
    if not found.passed:
        raise typer.Exit(1)


def forget(
    rows: Annotated[list[str], typer.Argument(metavar="ROW...", help="Digests of rows.")],
    *,
    retrain: Annotated[
        bool, typer.Option("--retrain/--no-retrain", help="Run the chain on what is left.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Remove rows, retrain, and say what still knows them.

    For example: stillmark forget 3f8a12bc
    """
    start_own_server(Settings())
    from flows.audit import forget as flow
    from flows.audit import forgotten_lines
    from flows.once import in_process
    from flows.retrain import run_once

    found, _ = in_process(flow, rows)
    decision = run_once().decision if retrain else None
    if as_json:
        made = None if decision is None else decision.model_dump(mode="json")
        say({"forgotten": found.model_dump(mode="json"), "decision": made})
        return
    typer.echo("\n".join(forgotten_lines(found)))
    if decision is not None:
        typer.echo(decision.sentence)


def impact(
    row: Annotated[str | None, typer.Option(help="Digest of a row, or its beginning.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A file in data/, or a data version's digest.")
    ] = None,
    code: Annotated[str | None, typer.Option(help="A commit.")] = None,
    model: Annotated[str | None, typer.Option(help="As for trace.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Say which models descend from a row, data, code or model.

    For example: stillmark impact --data data/7/seven.png
    """
    from flows.naming import version_named
    from tasks.catalogue import Catalogue
    from tasks.impact import impact as impact_of
    from tasks.impact import lines

    with Catalogue.of(Settings()) as catalogue:
        version = None if model is None else version_named(catalogue.tracking, model)
        found = impact_of(catalogue, row=row, data=data, code=code, model=version)
    say(found.model_dump(mode="json") if as_json else "\n".join(lines(found)))


def export(
    model: Model,
    form: Annotated[str, typer.Option("--format", help="openlineage, cyclonedx or model_card.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write it into; printed by default.")
    ] = None,
) -> None:
    """Write a model's lineage in a standard's form.

    For example: stillmark export digits.edge --format cyclonedx --out documents
    """
    from flows.naming import version_named
    from tasks import documents
    from tasks.succession import Succession
    from tasks.versioning import Versions

    settings = Settings()
    succession = Succession.of(settings)
    version = version_named(succession.tracking, model)
    versions = Versions.of(settings)
    chain = documents.gather(succession.tracking, versions, version, succession.ledger)
    if out is None:
        typer.echo(documents.render(form, chain).decode(), nl=False)
    else:
        typer.echo(documents.write(form, chain, out))


def index(
    *,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Throw it away and read every record again.")
    ] = False,
) -> None:
    """Bring the lineage index up to date with MLflow."""
    from tasks.catalogue import Catalogue

    with Catalogue.of(Settings()) as catalogue:
        if rebuild:
            typer.echo(f"{catalogue.rebuild()} records are known")
        else:
            typer.echo(f"{catalogue.refresh()} records are new")


COMMANDS = (trace, verify, replay, impact, forget, export, index)


def _because(reasons: tuple[str, ...]) -> str:
    return f": {'; '.join(reasons)}" if reasons else ""


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StillmarkError(f"{path} cannot be written: {error.strerror}") from None
