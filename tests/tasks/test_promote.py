import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from tasks.errors import ArtifactError
from tasks.gates.quality import Quality
from tasks.promote import CHAMPION, PromoteParams, promote
from tasks.rows import Rows
from tasks.statistics import paired

NAME = "digits.edge"
ONE_GATE = PromoteParams(gates=(Quality(),))


@pytest.fixture
def challenge(bench, toy):
    """Registers a toy model of a quality and lets it ask for the alias."""

    def ask(quality, params=ONE_GATE):
        version = bench.tracking.register(NAME, toy.make(bench, quality), {})
        return promote.fn(bench.run, params, version)

    return ask


@pytest.fixture
def stored(bench):
    """The decision and the evidence that the newest promotion run stored."""

    def read():
        run = bench.runs(stage="promote")[0]
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        decision = json.loads((folder / "decision.json").read_text())
        return decision, pyarrow.parquet.read_table(folder / "predictions.parquet").to_pydict()

    return read


def champion(bench):
    holder = bench.tracking.holder(NAME, CHAMPION)
    return holder and holder.version


def tags(bench, version):
    return bench.tracking.client.get_model_version(NAME, str(version)).tags


def test_the_first_version_is_measured_against_the_floor(bench, challenge, stored):
    decision = challenge("good")
    assert decision.outcome == "promoted"
    assert decision.champion is None
    assert champion(bench) == 1
    assert "first version" in decision.sentence
    _, evidence = stored()
    assert "champion" not in evidence


def test_a_first_version_that_knows_nothing_is_rejected(bench, challenge):
    decision = challenge("lazy")
    assert decision.outcome == "rejected"
    assert "not clearly above" in decision.sentence
    assert champion(bench) is None
    assert tags(bench, 1)["stillmark.decision"] == "rejected"
    assert challenge("good").outcome == "promoted"
    assert champion(bench) == 2


def test_a_worse_challenger_leaves_the_alias_where_it_is(bench, challenge):
    challenge("good")
    decision = challenge("lazy")
    assert decision.outcome == "rejected"
    assert (decision.challenger.version, decision.champion.version) == (2, 1)
    assert "not shown to be better" in decision.sentence
    assert champion(bench) == 1
    assert tags(bench, 2)["stillmark.decision"] == "rejected"
    assert tags(bench, 2)["stillmark.reason"] == decision.sentence
    assert tags(bench, 1)["stillmark.decision"] == "promoted"


def test_a_better_challenger_takes_over(bench, toy, challenge):
    lazy = bench.tracking.register(NAME, toy.make(bench, "lazy"), {})
    bench.tracking.set_alias(lazy, CHAMPION)
    decision = challenge("good")
    assert decision.outcome == "promoted"
    assert decision.champion.version == 1
    assert decision.sentence.startswith("digits.edge version 2 promoted: better than the champion")
    assert champion(bench) == 2


def test_the_champion_itself_has_nothing_to_prove(bench, challenge):
    challenge("good")
    runs = len(bench.runs())
    decision = challenge("good")
    assert decision.outcome == "unchanged"
    assert decision.verdicts == ()
    assert "champion already" in decision.sentence
    assert champion(bench) == 1
    assert len(bench.runs()) == runs


def test_every_gate_has_to_let_it_pass(bench, toy, challenge):
    strict = PromoteParams(gates=(Quality(), Quality(margin=0.99)))
    bench.tracking.set_alias(bench.tracking.register(NAME, toy.make(bench, "lazy"), {}), CHAMPION)
    decision = challenge("good", strict)
    assert [verdict.passed for verdict in decision.verdicts] == [True, False]
    assert decision.outcome == "rejected"
    assert decision.sentence.count("champion on the same") == 1  # the reason, not the praise
    assert "99.00%" in decision.sentence
    assert champion(bench) == 1


def test_the_evidence_says_row_by_row_why(bench, challenge, stored):
    challenge("good")
    decision = challenge("lazy")
    kept, evidence = stored()
    assert kept == json.loads(decision.model_dump_json())
    rows = Rows(bench.root / "prepared")
    test = rows.open_test()
    assert evidence["row"] == test.names.tolist()
    assert evidence["label"] == [rows.classes[label] for label in test.labels]
    assert set(evidence["challenger"]) == {rows.classes[0]}
    labels = np.asarray(evidence["label"])
    found = paired(
        np.asarray(evidence["challenger"]) == labels, np.asarray(evidence["champion"]) == labels
    )
    (verdict,) = decision.verdicts
    assert verdict.figures["gain"] == pytest.approx(found.gain)
    assert verdict.figures["only_champion"] == found.only_second
    run = bench.runs(stage="promote")[0]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["quality.p_value"] == pytest.approx(found.p_value)


@pytest.mark.parametrize("whose", ["challenger", "champion"])
def test_damaged_files_are_never_judged(bench, toy, challenge, whose):
    first, second = ("lazy", "good") if whose == "challenger" else ("good", "lazy")
    challenge(first)
    asking = toy.make(bench, second)
    version = bench.tracking.register(NAME, asking, {})
    holder = bench.tracking.holder(NAME, CHAMPION)
    damaged = holder.model if whose == "champion" else asking
    (path,) = bench.files(damaged).rglob("model.onnx")
    path.write_bytes(path.read_bytes()[:-1])
    before = champion(bench)
    with pytest.raises(ArtifactError, match=r"model\.onnx has sha256"):
        promote.fn(bench.run, ONE_GATE, version)
    assert champion(bench) == before


def test_a_decision_that_cannot_be_kept_moves_no_alias(bench, challenge, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("tasks.tracking.Tracking.store_report", full)
    with pytest.raises(OSError, match="No space"):
        challenge("good")
    assert champion(bench) is None
