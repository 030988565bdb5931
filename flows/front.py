"""What a person or a machine is told of a search for a budget."""

import math
from typing import Any

import yaml
from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from flows.fit_budget import Fitted, rows_of, screened_rows, sentence
from flows.tables import command

SHORT = {
    "size_kb": "size",
    "latency_ms": "latency",
    "memory_kb": "memory",
    "max_accuracy_drop": "drop",
}


def candidates_table(fitted: Fitted) -> Table:
    """The reference and every trained candidate, fewest bytes first."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("candidate", overflow="fold")
    for name in ("accuracy", "95% interval", "drop", "KiB", "p50 ms", "95% interval", ""):
        table.add_column(name, justify="right", no_wrap=True)
    chosen = fitted.choice.chosen
    for row in rows_of(fitted.found, fitted.limits):
        inside = "" if row["inside"] else f"over {SHORT[row['binding']]}"
        marks = "chosen" if chosen and row["candidate"] == chosen.name else inside
        table.add_row(
            row["candidate"],
            f"{row['accuracy']:.2%}",
            f"{100 * row['low']:.1f}–{row['high']:.1%}",
            f"{100 * row['drop']:.1f}",
            f"{row['size_bytes'] / 1024:.1f}",
            f"{row['latency_p50_ms']:.3f}",
            _interval_ms(row["latency_low_ms"], row["latency_high_ms"]),
            f"{marks}{' *' if row['on_front'] else ''}",
        )
    return table


def _interval_ms(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.3f}–{high:.3f}"


def show_fitted(console: Console, fitted: Fitted) -> None:
    """The table, the picture, the choice and what to do with it."""
    after: list[str] = []
    if fitted.evaluation:
        edge = fitted.evaluation.of("edge")
        version = fitted.versions["edge"]
        score = f"{edge.accuracy:.2%} ({100 * edge.low:.1f}–{edge.high:.1%})"
        after = [
            f"On {fitted.evaluation.rows} test rows, opened for it alone: {score}.",
            f"It is registered as {version.name} version {version.version}; the gates judge it by:",
            f"  {command()} promote {version.name}:{version.version}",
            *_to_write(fitted),
        ]
    given_up = [f"  {name}: {reason}" for name, reason in fitted.given_up.items()]
    console.print(
        Group(
            candidates_table(fitted),
            f"accuracy, and drop in points: on {fitted.found.rows} labelled validation rows, "
            "against the reference, the dense float student.",
            "p50: one call at batch 1 on one thread, all taking turns; the interval is of this run "
            "of calls.",
            "*: no other candidate is as accurate, as small and as fast.",
            f"picture: {fitted.plot}",
            *(["given up:", *map(escape, given_up)] if given_up else []),
            "",
            f"[bold]{escape(sentence(fitted.choice, fitted.limits))}[/bold]",
            *map(escape, after),
        ),
        soft_wrap=False,
    )


def _to_write(fitted: Fitted) -> list[str]:
    if not fitted.sections:
        return ["params.yaml makes this very candidate already."]
    text = yaml.safe_dump(fitted.sections, sort_keys=False, default_flow_style=None).rstrip()
    return ["To retrain it from now on, write into params.yaml:", "", text]


def fitted_as_json(fitted: Fitted) -> dict[str, Any]:
    """The same for machines."""
    edge = fitted.evaluation.of("edge") if fitted.evaluation else None
    return {
        "limits": fitted.limits.plain(),
        "host": fitted.found.host,
        "candidates": rows_of(fitted.found, fitted.limits),
        "given_up": fitted.given_up,
        "screened": screened_rows(fitted.screened),
        "chosen": fitted.choice.chosen.name if fitted.choice.chosen else None,
        "nearest": fitted.choice.nearest.name,
        "binding": fitted.choice.binding,
        "used": fitted.choice.used if math.isfinite(fitted.choice.used) else None,
        "candidate_versions": {name: ref.version for name, ref in fitted.candidates.items()},
        "versions": {role: ref.version for role, ref in fitted.versions.items()},
        "sections": fitted.sections,
        "test": edge.model_dump() if edge else None,
        "plot": str(fitted.plot),
    }
