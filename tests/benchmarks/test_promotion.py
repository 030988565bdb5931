"""The marks of `promotion`."""

import pytest

from tasks.gates import GATES
from tasks.judge import judge
from tasks.ledger import Ledger
from tests.benchmarks import promotion


def test_what_is_measured_is_a_promotion_that_every_gate_lets_pass(tmp_path):
    evidence, ledger = promotion.random_evidence(), Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    entry = promotion.decide(evidence, ledger, tmp_path)
    assert entry.evidence is not None
    assert ledger.check() == []
    assert ledger.open_intents() == []
    assert evidence.champion is not None
    champion, challenger = map(promotion.version_of, (evidence.champion, evidence.challenger))
    judgement = judge(evidence, promotion.GATES, challenger, champion)
    assert judgement.passed, judgement.verdicts
    drawer = {gate.plain()["name"] for gate in promotion.GATES}
    assert drawer == set(GATES.methods)


def test_filled_rows_are_a_whole_chain(tmp_path):
    address = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger(address)
    promotion.fill(address, 10)
    assert len(ledger.entries()) == 10
    assert ledger.check() == []


@pytest.mark.benchmark
@pytest.mark.parametrize("measurement", promotion.MEASUREMENTS, ids=lambda one: one.__name__)
def test_the_mark_is_met(measurement, tmp_path):
    finding = measurement(tmp_path)
    assert finding.met, finding.plain()
