"""The commands that decide who is champion: `flows.cli` takes them in."""

from typing import Annotated

import typer

from flows.as_json import Json, print_json
from flows.server import start_own_server
from tasks.errors import RegistryError
from tasks.settings import Settings

Reason = Annotated[str, typer.Option("--reason", help="Why; it stands in the ledger.")]
Model = Annotated[str, typer.Argument(help="MODEL or MODEL:VERSION; the newest by default.")]
RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="As the promotion named it.")]


def promote(
    model: Model,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the gates say.")
    ] = False,
    again: Annotated[
        str | None,
        typer.Option("--again", metavar="REASON", help="Judge a version that was rolled back."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a version against the champion; promote it if it passes.

    A rejected challenger is a normal outcome: the command ends with 0 and says why.
    """
    name, version = _name_and_version(model)
    start_own_server(Settings())
    from flows.promote import in_project, said
    from flows.promote import promote as flow

    again = None if again is None else said(again, "--again")
    decision = in_project(flow, name, version, again=again, dry_run=dry_run)
    if as_json:
        print_json(decision.model_dump())
        return
    for found in decision.verdicts:
        typer.echo(f"{'pass' if found.passed else 'FAIL'}  {found.gate:<12} {found.sentence}")
    typer.echo(f"{'dry run: ' if dry_run else ''}{decision.sentence}")


def rollback(
    model: Annotated[str, typer.Argument(help="Registered name, for example digits.edge.")],
    reason: Reason,
    to: Annotated[
        int | None, typer.Option("--to", help="Version; by default the champion before.")
    ] = None,
) -> None:
    """Make an earlier version champion again.

    The version that was rolled back stays out until somebody promotes it with --again.
    """
    start_own_server(Settings())
    from flows.promote import in_project, said
    from flows.promote import rollback as flow

    entry = in_project(flow, model, said(reason, "--reason"), to)
    typer.echo(f"{model} champion: version {entry.version} (ledger row {entry.sequence})")


def approve(request: RequestId, reason: Reason) -> None:
    """Promote what waits for a person's approval."""
    _settle(request, reason, approved=True)


def reject(request: RequestId, reason: Reason) -> None:
    """Turn down what waits for a person's approval."""
    _settle(request, reason, approved=False)


def history(
    model: Annotated[str, typer.Argument(help="Registered name, for example digits.edge.")],
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Verify rows, links and alias; 1 where one is wrong.")
    ] = False,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Judge all kept evidence again; 1 where it differs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say who was champion, when, by whom and why."""
    from flows.history import history as found_history
    from flows.history import lines, rechecked
    from tasks.succession import Succession

    succession = Succession.of(Settings())
    problems = succession.check(model) if check else []
    if recheck:
        problems += rechecked(succession, model)
    if as_json:
        found = {**found_history(succession, model), "problems": problems}
        print_json(found)
    elif problems:
        for problem in problems:
            typer.echo(f"stillmark: {problem}", err=True)
    else:
        typer.echo("\n".join(lines(found_history(succession, model))))
        asked = [*["rows, links and alias"] * check, *["evidence"] * recheck]
        if asked:
            typer.echo(f"verified: {', '.join(asked)}")
    if problems:
        raise typer.Exit(1)


COMMANDS = (promote, rollback, approve, reject, history)


def _settle(request: str, reason: str, *, approved: bool) -> None:
    start_own_server(Settings())
    from flows.promote import in_project, said, settle

    found = in_project(settle, request, said(reason, "--reason"), approved=approved)
    typer.echo(f"{found.model} version {found.version}: {found.state} by {found.settled_by}")


def _name_and_version(model: str) -> tuple[str, int | None]:
    """MODEL or MODEL:VERSION in its parts."""
    name, colon, version = model.partition(":")
    if colon and not (version.isdecimal() and int(version)):
        raise RegistryError(f"'{model}' names no version; expected a number: {name}:1")
    return name, int(version) if colon else None
