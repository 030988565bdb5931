"""The commands about what is stored: `flows.cli` takes them in."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from flows.as_json import Json, print_json
from flows.server import start_own_server
from tasks.settings import Settings

if TYPE_CHECKING:
    from flows.backfill import Backfilled
    from tasks.collect import Collected

NAMED_AT_MOST = 20
DIGITS = 12
KILO = 1000
WHAT = {
    "version": "registered versions",
    "run": "runs with their reports",
    "model": "stored models",
    "files": "artifacts of no run",
    "checkpoint": "checkpoints",
    "partial": "unfinished files",
    "data": "files of data versions",
    "flow run": "runs on Prefect's page",
}


def gc(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go, and how much it frees.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete what no alias, ledger row or kept record leads to.

    Section `gc` of params.yaml says what is kept besides. Where something cannot be deleted, the
    exit code is 1.
    """
    if not dry_run:
        start_own_server(Settings())
    from flows.collect import collect_once, look

    found = look() if dry_run else collect_once()
    if as_json:
        freed = {kind: {"items": n, "bytes": size} for kind, (n, size) in found.freed.items()}
        plain = found.model_dump(mode="json")
        print_json(plain | {"freed": freed, "bytes": found.size_bytes})
    else:
        typer.echo("\n".join(lines(found)))
    if found.problems:
        raise typer.Exit(1)


def backfill(
    start: Annotated[str, typer.Option("--from", help="First date (2026-01-31) or commit.")],
    end: Annotated[str, typer.Option("--to", help="Last date or commit; it is included.")],
    *,
    promote: Annotated[
        bool, typer.Option("--promote", help="Judge each against the champion.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train on past data versions, with today's code and parameters.

    None is promoted unless asked. Where one fails, the others are made all the same, and the exit
    code is 1.
    """
    start_own_server(Settings())
    from flows.backfill import backfill_once

    found = backfill_once(start, end, promotes=promote)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        typer.echo("\n".join(filled_lines(found)))
    if any(one.failed for one in found.filled):
        raise typer.Exit(1)


COMMANDS = (gc, backfill)


def filled_lines(found: "Backfilled") -> Iterator[str]:
    """A backfill for people, one data version a line, oldest first."""
    yield "date        data          rows  test  edge  accuracy (95%)          outcome"
    for one in found.filled:
        low, high = (one.accuracy or (0, 0, 0))[1:]
        said = f"{one.accuracy[0]:.2%} ({low:.1%}–{high:.1%})" if one.accuracy else "–"
        edge = one.versions.get("edge", "–")
        yield (
            f"{one.date[:10]}  {one.data[:DIGITS]}  {one.rows:>4}  {one.test_rows:>4}  {edge:>4}  "
            f"{said:<22}  {one.outcome}: {one.sentence}"
        )
    yield f"each on its own test rows, with today's code ({found.code[:DIGITS]}) and parameters"


def lines(found: "Collected") -> Iterator[str]:
    """The same for people."""
    for kind, (count, size) in found.freed.items():
        yield f"{said(size):>10}  {count} {WHAT[kind]}"
        names = [item for item in found.items if item.kind == kind]
        for item in names[:NAMED_AT_MOST]:
            yield f"{said(item.size_bytes):>14}  {item.name}"
        if len(names) > NAMED_AT_MOST:
            yield f"{'':>14}  and {len(names) - NAMED_AT_MOST} more, which --json names"
    word = "would be freed" if found.dry_run else "freed"
    yield f"{said(found.size_bytes)} {word}" if found.items else "nothing to collect"
    yield from (f"left: {line}" for line in found.left)
    yield from (f"not deleted: {line}" for line in found.problems)


def said(size_bytes: float) -> str:
    """A size in the unit that reads best, of 1,000 bytes each."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < KILO:
            return f"{size_bytes:.3g} {unit}" if unit != "B" else f"{size_bytes:.0f} B"
        size_bytes /= KILO
    return f"{size_bytes:.3g} GB"
