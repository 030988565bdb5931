"""Does it help on my data? Every arm, label draw and seed, and what came of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.arms import Arm, arms
from flows.chain import P
from flows.once import NOTED, alone, flow_run_id, preflight, wait_for_task_states
from tasks.budget import LabelBudget
from tasks.compare import CONTROL, PLOT_FILE, AssessParams, Comparison, assess, cell
from tasks.compare import Arm as Measured
from tasks.data import data
from tasks.params import Params, load
from tasks.refs import ModelRef
from tasks.rows import Rows
from tasks.settings import Settings
from tasks.stage import Run, Stage
from tasks.statistics import Gain
from tasks.tracking import Tracking, payload_of
from tasks.versioning import PREPARED


@dataclass(frozen=True)
class Compared:
    """What a comparison made.

    Attributes:
        comparison: The figures.
        plot: The picture.
        flow_run_id: Prefect's id of the run.
    """

    comparison: Comparison
    plot: Path
    flow_run_id: str


@task(name="cell", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def make(name: str, arm: Arm, run: Run, params: Params) -> ModelRef:  # noqa: ARG001 - names the task
    """Trains one repeat of one arm, or takes what is there."""

    def execute(stage: Stage[P], section: P, **inputs: ModelRef) -> ModelRef:
        return stage.run(run, section, **inputs)

    return arm.build(execute, params)


@flow(name="compare", validate_parameters=False, **NOTED)
def compare() -> Compared:
    """Compares ways to learn on the project in the working directory."""
    settings = Settings()
    params = load(settings.root)
    run = Run(params.project, params.compute, data(params.compute))
    prepared = Rows(settings.root / PREPARED).budget
    # One at a time, as training sets torch's global seed; in this thread, which signals can stop.
    cells = cells_of(run, params, prepared)
    found = {name: make(name, arm, own, params) for name, (arm, own) in cells.items()}
    section = AssessParams(arms=tuple(arm.named for arm in arms(params)))
    report = assess.run(run, section, **found)
    tracking = Tracking(settings.tracking_uri, settings.home)
    folder = payload_of(tracking.fetch(report).folder)
    comparison = Comparison.read(folder)
    create_table_artifact(rows_of(comparison), key="comparison", description=advice(comparison))
    plot = settings.home / PLOT_FILE
    plot.write_bytes((folder / PLOT_FILE).read_bytes())
    return Compared(comparison, plot, flow_run_id())


def cells_of(run: Run, params: Params, prepared: LabelBudget) -> dict[str, tuple[Arm, Run]]:
    """Every repeat of every arm, by name, and what its stages share.

    Args:
        run: What the chain's own stages share.
        params: The parameter tree.
        prepared: The labels that the rows were prepared with.
    """
    return {
        cell(arm.named.name, draw, seed): (arm, _run(run, arm, prepared, draw, seed))
        for arm in arms(params)
        for draw in params.compare.draws
        for seed in params.compare.seeds
    }


def _run(run: Run, arm: Arm, prepared: LabelBudget, draw: int, seed: int) -> Run:
    """What the stages of one cell share; the prepared labels themselves need no redraw."""
    redraw = prepared.redraw(draw=draw, shuffled=arm.named.kind == "negative")
    if arm.named.kind == "oracle":
        redraw = prepared.redraw(
            labels_per_class=None, validation_labels_per_class=None, unseen_classes=()
        )
    same = redraw == prepared.redraw()
    compute = run.compute.model_copy(update={"seed": run.compute.seed + seed})
    return Run(run.project, compute, run.data, None if same else redraw)


def compare_once() -> Compared:
    """Checks, then runs the flow in this process; the door that the command line uses.

    Raises:
        StillmarkError: Whatever stood in the way, in one line.
    """
    settings = Settings()
    arms(preflight(settings))  # refuses equal names
    with alone(settings):
        compared = compare()
        wait_for_task_states(compared.flow_run_id)
    return compared


def rows_of(found: Comparison) -> list[dict[str, Any]]:
    """The table, as plain data."""
    return [
        {
            "arm": arm.named.name,
            "accuracy": arm.accuracy.value,
            "low": arm.accuracy.low,
            "high": arm.accuracy.high,
            "gain": arm.gain and arm.gain.value,
            "gain_low": arm.gain and arm.gain.low,
            "gain_high": arm.gain and arm.gain.high,
            "train_test_gap": arm.gap,
            "what": arm.named.sentence,
        }
        for arm in found.arms
    ]


def advice(found: Comparison) -> str:
    """What the figures say, in one or a few sentences."""
    students = [arm for arm in found.arms if arm.named.kind == "student"]
    best = max(students, key=lambda arm: (_helps(arm), arm.accuracy.value))
    lines = [
        _of_best(found, best),
        _of_pretraining(found),
        _of_negative(found, best),
        _of_baselines(found),
    ]
    return " ".join(line for line in lines if line)


def _helps(arm: Measured) -> bool:
    return arm.gain is not None and arm.gain.low > 0


def _of_best(found: Comparison, best: Measured) -> str:
    errors = 1 - found.of(CONTROL).accuracy.value
    change = f"from {errors:.1%} to {1 - best.accuracy.value:.1%} (accuracy {interval(best.gain)})"
    if _helps(best):
        return f"'{best.named.name}' cuts the error {change}."
    return (
        f"No way to use the pool is shown to help here: the best, '{best.named.name}', changes the "
        f"error {change}; the student trained on the labels alone may do as well."
    )


def _of_pretraining(found: Comparison) -> str:
    if found.pretraining is None:
        return ""
    if found.pretraining.low > 0:
        return f"Pretraining helps ({interval(found.pretraining)}): keep it."
    return f"Pretraining adds nothing here ({interval(found.pretraining)}): leave it out."


def _of_negative(found: Comparison, best: Measured) -> str:
    for arm in found.arms:
        if arm.named.kind == "negative" and arm.accuracy.high >= best.accuracy.low:
            return (
                f"'{arm.named.name}' does as well, so what helps is not what the teacher knows: "
                "look for a mistake in the data."
            )
    return ""


def _of_baselines(found: Comparison) -> str:
    baselines = [arm for arm in found.arms if arm.named.kind == "baseline"]
    networks = [arm for arm in found.arms if arm.named.kind in {"control", "student"}]
    best = max(baselines, key=lambda arm: arm.accuracy.value, default=None)
    if best is None or best.accuracy.value <= max(arm.accuracy.value for arm in networks):
        return ""
    return (
        f"'{best.named.name}' of scikit-learn reaches {best.accuracy.value:.1%}, more than any "
        "student or control."
    )


def interval(gain: Gain | None) -> str:
    """A difference of accuracies with its interval, in points."""
    if gain is None:
        return ""
    low, high = 100 * gain.low, 100 * gain.high
    return f"{100 * gain.value:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}"
