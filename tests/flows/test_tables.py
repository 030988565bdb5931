import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.compare import Compared, advice
from flows.tables import arms_table, models_table, show, show_comparison
from tasks.compare import Arm, Comparison, Named
from tasks.evaluate import Evaluation, Measured
from tasks.membership import Attack, Membership
from tasks.statistics import Gain

SAID = "digits.edge version 3 is the champion already"


def measured(role, accuracy, size):
    return Measured(
        role=role,
        accuracy=accuracy,
        low=accuracy - 0.02,
        high=accuracy + 0.02,
        parameters=12345,
        macs=1,
        size_bytes=size,
        latency_p50_ms=0.0123,
        latency_p95_ms=0.0456,
    )


@pytest.fixture
def evaluation():
    return Evaluation(
        rows=500,
        majority_share=0.1,
        host="a processor",
        models=(measured("control", 0.90, 59392), measured("edge", 0.95, 10240)),
        gain_over_control=0.05,
        p_value=0.00012,
    )


def printed(*things, width=120):
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    for thing in things:
        console.print(thing)
    return stream.getvalue()


def test_every_model_has_its_line(evaluation):
    text = printed(models_table(evaluation))
    edge = next(line for line in text.splitlines() if "edge" in line)
    for figure in ("95.00%", "93.0", "97.0", "12,345", "10.0", "0.012", "0.046"):
        assert figure in edge


@pytest.mark.parametrize("width", [80, 120])
def test_the_outcome_says_what_it_means_and_where_to_look(evaluation, width):
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    show(console, evaluation, SAID)
    text = " ".join(stream.getvalue().split())
    assert "makes 50% of the control's errors (accuracy +5.00%, p = 0.00012)" in text
    assert SAID in text
    assert "500 test rows" in text
    assert "stillmark open mlflow" in text
    assert max(len(line) for line in stream.getvalue().splitlines()) <= width


def test_a_control_without_errors_is_no_division_by_zero(evaluation):
    perfect = evaluation.model_copy(
        update={"models": (measured("control", 1.0, 1), measured("edge", 1.0, 1))}
    )
    stream = io.StringIO()
    show(Console(file=stream), perfect, SAID)
    assert "makes 0 errors, the control none" in " ".join(stream.getvalue().split())


def test_what_the_model_gives_away_is_said(evaluation):
    weak = Attack(auc=0.52, low=0.4, high=0.6, members=80, held_out=90)
    strong = Attack(auc=0.613, low=0.55, high=0.67, members=80, held_out=90)
    control, edge = evaluation.models
    attacked = edge.model_copy(update={"membership": Membership(labelled=weak, pool=strong)})
    found = evaluation.model_copy(update={"models": (control, attacked)})
    stream = io.StringIO()
    show(Console(file=stream, width=200), found, SAID)
    assert "with an AUC of 0.61 (0.55–0.67; 0.5 is guessing)" in stream.getvalue()


def test_a_chain_that_does_not_help_is_said_not_to(evaluation):
    for gain, said in ((0.05, False), (-0.05, True)):
        stream = io.StringIO()
        found = evaluation.model_copy(update={"gain_over_control": gain})
        show(Console(file=stream, width=200), found, SAID)
        assert ("does not help here" in stream.getvalue()) is said


def arm(name, kind, accuracy, gain):
    return Arm(
        named=Named(name=name, kind=kind, sentence=f"what {name} is"),
        accuracy=accuracy,
        gain=gain,
        train_accuracy=0.99,
    )


@pytest.fixture
def comparison():
    control = arm("labels only", "control", Gain(0.7, 0.65, 0.75), None)
    student = arm("distilled", "student", Gain(0.8125, 0.771, 0.856), Gain(0.1125, 0.06, 0.166))
    worse = arm("a name of many words", "student", Gain(0.6, 0.5, 0.7), Gain(-0.1, -0.2, 0.0))
    arms = (control, student, worse)
    return Comparison(rows=500, repeats=3, arms=arms, pretraining=Gain(0.01, -0.01, 0.03))


def test_every_arm_has_its_line(comparison):
    lines = printed(arms_table(comparison)).splitlines()
    control, student, worse = (
        next(line for line in lines if one.named.name in line) for one in comparison.arms
    )
    for figure in ("81.25%", "77.1–85.6%", "+11.2 (+6.0 to +16.6)", "+17.8"):
        assert figure in student
    for figure in ("70.00%", "65.0–75.0%", " – ", "+29.0"):
        assert figure in control
    assert "-10.0 (-20.0 to +0.0)" in worse


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("repeats", [1, 3])
def test_a_comparison_says_what_it_means(comparison, width, repeats):
    found = comparison.model_copy(update={"repeats": repeats})
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    show_comparison(console, Compared(found, Path("/home/comparison.png"), ""))
    text = " ".join(stream.getvalue().split())
    assert "on the same 500 test rows" in text
    assert ("1 repeat (" in text) is (repeats == 1)
    assert ("3 repeats (" in text) is (repeats == 3)
    assert "/home/comparison.png" in text
    assert advice(found) in text
    assert "judge on rows collected later" in text
    assert max(len(line) for line in stream.getvalue().splitlines()) <= width
