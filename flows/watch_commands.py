"""The command that asks the triggers: `flows.cli` takes it in."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.as_json import Json, print_json
from flows.server import start_own_server
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.watch import Look


def watch(
    *,
    run: Annotated[
        bool, typer.Option("--run", help="Start a retraining here where a trigger says so.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask every trigger whether it is time for a retraining.

    Where one cannot look, the exit code is 1, even if another one's retraining went well. For
    example: stillmark watch --run
    """
    from flows.look import look_now

    settings = Settings()
    found = look_now(settings)
    if not as_json:
        typer.echo("\n".join(lines(found)))
    outcome = _run(settings, found) if run else None
    if as_json:
        reason = found.reason
        plain: dict[str, Any] = found.model_dump(mode="json")
        plain |= {"reason": None if reason is None else reason.model_dump(), "outcome": outcome}
        print_json(plain)
    elif outcome is not None:
        typer.echo(f"{outcome['outcome']}: {outcome['sentence']}")
    if found.failures:
        raise typer.Exit(1)


COMMANDS = (watch,)


def lines(found: "Look") -> Iterator[str]:
    """A look for people: a line for each trigger, then what follows."""
    for answer in found.answers:
        word = "failed" if answer.failed else "retrain" if answer.reason else "rests"
        yield f"{answer.trigger:<12} {word:<8} {answer.sentence}"
    if found.note:
        yield found.note
    if found.busy or not found.answers:
        yield found.sentence


def _run(settings: Settings, found: "Look") -> dict[str, Any] | None:
    if found.reason is None:
        return None
    start_own_server(settings)
    from flows.retrain import run_once

    done = run_once(found.reason).retraining
    return {"outcome": done.outcome, "sentence": done.sentence, "run_id": done.run_id}
