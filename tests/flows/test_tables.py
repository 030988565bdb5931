import io

import pytest
from rich.console import Console

from flows.retrain import Outcome
from flows.tables import models_table, show
from tasks.evaluate import Evaluation, Measured
from tasks.promote import Decision
from tasks.refs import ModelRef, VersionRef


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
    ref = ModelRef(stage="", role="", key="", run_id="", model_id=None, record="", content="")
    version = VersionRef(name="digits.edge", version=3, model=ref)
    decision = Decision(outcome="unchanged", challenger=version, champion=version, verdicts=())
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    show(console, Outcome(None, {}, evaluation, decision, ""))
    text = " ".join(stream.getvalue().split())
    assert "makes 50% of the control's errors (accuracy +5.00%, p = 0.00012)" in text
    assert "digits.edge version 3 is the champion already" in text
    assert "500 test rows" in text
    assert "stillmark open mlflow" in text
    assert max(len(line) for line in stream.getvalue().splitlines()) <= width


def test_a_control_without_errors_is_no_division_by_zero(evaluation):
    perfect = evaluation.model_copy(
        update={"models": (measured("control", 1.0, 1), measured("edge", 1.0, 1))}
    )
    ref = ModelRef(stage="", role="", key="", run_id="", model_id=None, record="", content="")
    version = VersionRef(name="digits.edge", version=1, model=ref)
    decision = Decision(outcome="unchanged", challenger=version, champion=version, verdicts=())
    stream = io.StringIO()
    show(Console(file=stream), Outcome(None, {}, perfect, decision, ""))
    assert "0% of the control's errors" in stream.getvalue()


def test_a_chain_that_does_not_help_is_said_not_to(evaluation):
    ref = ModelRef(stage="", role="", key="", run_id="", model_id=None, record="", content="")
    version = VersionRef(name="digits.edge", version=3, model=ref)
    decision = Decision(outcome="unchanged", challenger=version, champion=version, verdicts=())
    for gain, said in ((0.05, False), (-0.05, True)):
        stream = io.StringIO()
        found = evaluation.model_copy(update={"gain_over_control": gain})
        show(Console(file=stream, width=200), Outcome(None, {}, found, decision, ""))
        assert ("does not help here" in stream.getvalue()) is said
