"""What a person sees in the terminal."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from flows.compare import Compared, advice
from tasks.compare import Comparison
from tasks.evaluate import Evaluation


def models_table(evaluation: Evaluation) -> Table:
    """Every model of the chain, the control first."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for name in ("accuracy", "95% interval", "parameters", "KiB", "p50 ms", "p95 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in evaluation.models:
        table.add_row(
            found.role,
            f"{found.accuracy:.2%}",
            f"{100 * found.low:.1f}–{found.high:.1%}",
            "–" if found.parameters is None else f"{found.parameters:,}",
            f"{found.size_bytes / 1024:.1f}",
            f"{found.latency_p50_ms:.3f}",
            f"{found.latency_p95_ms:.3f}",
        )
    return table


def arms_table(comparison: Comparison) -> Table:
    """Every arm of a comparison."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("arm")
    for name in ("accuracy", "95% interval", "gain in points", "overfit"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in comparison.arms:
        gain = arm.gain
        table.add_row(
            arm.named.name,
            f"{arm.accuracy.value:.2%}",
            f"{100 * arm.accuracy.low:.1f}–{arm.accuracy.high:.1%}",
            f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
            if gain
            else "–",
            f"{100 * arm.gap:+.1f}",
        )
    return table


def show_comparison(console: Console, compared: Compared) -> None:
    """The table, the picture and the advice."""
    found = compared.comparison
    repeats = "1 repeat" if found.repeats == 1 else f"{found.repeats} repeats"
    console.print(
        Group(
            arms_table(found),
            f"accuracy: on the same {found.rows} test rows, {repeats} (label draws "
            "and seeds); gain: over the labels alone, paired by repeat and row.",
            "overfit: accuracy on the training rows whose labels were shown, minus that on test "
            "rows, in points.",
            f"picture: {compared.plot}",
            "",
            f"[bold]{advice(found)}[/bold]",
            "These figures are the test rows': what is chosen by them, judge on rows collected "
            "later.",
        ),
        soft_wrap=False,
    )


def show(console: Console, evaluation: Evaluation, said: str) -> None:
    """The table, what it means, what came of it and where to look further."""
    console.print(
        Group(
            models_table(evaluation),
            f"accuracy: on {evaluation.rows} test rows, opened once for all models.",
            f"p50, p95: one call at batch 1 on one thread of this host ({evaluation.host}).",
            "control: the student's network on the shown labels alone, as many steps, same views.",
            "",
            f"The edge model makes {_errors(evaluation)} (accuracy "
            f"{evaluation.gain_over_control:+.2%}, p = {evaluation.p_value:.2g})."
            f"{_advice(evaluation)}",
            *_privacy(evaluation),
            f"[bold]{escape(said)}[/bold]",
            "",
            "Look at what was made:",
            f"  {command()} open mlflow     models, versions, metrics",
            f"  {command()} open prefect    the run, its tasks and artifacts",
        ),
        soft_wrap=False,
    )


def _errors(evaluation: Evaluation) -> str:
    """The edge model's errors beside the control's."""
    edge, control = (
        round((1 - evaluation.of(role).accuracy) * evaluation.rows) for role in ("edge", "control")
    )
    if not control:
        return f"{edge} errors, the control none"
    return f"{edge / control:.0%} of the control's errors"


def _advice(evaluation: Evaluation) -> str:
    if evaluation.gain_over_control > 0:
        return ""
    return (
        " The chain does not help here: train the teacher for longer, or deploy the student's "
        "network trained on the labels alone."
    )


def _privacy(evaluation: Evaluation) -> Iterator[str]:
    """What the edge model gives away of its training rows, where that was measured."""
    found = evaluation.of("edge").membership
    if found and (attack := found.strongest):
        yield (
            f"Its answers tell training rows from others with an AUC of {attack.auc:.2f} "
            f"({attack.low:.2f}–{attack.high:.2f}; 0.5 is guessing)."
        )


def command() -> str:
    """How `stillmark` is called from here: by name where the environment is active."""
    script = Path(sys.executable).with_name("stillmark")
    if shutil.which("stillmark") or not script.is_relative_to(Path.cwd()):
        return "stillmark"
    return str(script.relative_to(Path.cwd()))
