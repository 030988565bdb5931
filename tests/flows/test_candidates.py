import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.candidates import REDUCTION, beats, refusal
from tasks.measure import Cost
from tasks.statistics import Gain, Share
from tasks.weigh import Weighed


def screened(name, accuracy, size=1000, ratio=(0.9, 1.0, 1.1)):
    low, middle, high = ratio
    cost = Cost(
        size_bytes=size,
        parameters=1,
        macs=1,
        latency_p50_ms=1.0,
        latency_p95_ms=1.0,
        throughput_rows_per_second=1.0,
        peak_memory_kib=1.0,
        latency_ratio=middle,
        latency_ratio_low=low,
        latency_ratio_high=high,
    )
    share = Share(accuracy, accuracy, accuracy, 100)
    return Weighed(name=name, cost=cost, accuracy=share, drop=Gain(0, 0, 0), agreement=None)


def test_a_candidate_beats_what_is_less_accurate_and_costs_no_less():
    one = screened("one", 0.8)
    assert beats(one, screened("same costs", 0.7))
    assert beats(one, screened("larger", 0.7, size=1001))
    assert not beats(one, screened("smaller", 0.7, size=999))
    assert not beats(one, screened("as accurate", 0.8, size=2000))
    assert not beats(one, one)


def test_noise_alone_makes_nothing_slower():
    one = screened("one", 0.8, ratio=(0.9, 1.0, 1.1))
    assert beats(one, screened("slower", 0.7, ratio=(1.2, 1.3, 1.4)))
    assert beats(one, screened("faster, perhaps", 0.7, ratio=(0.8, 0.9, 0.95)))
    assert not beats(one, screened("faster", 0.7, ratio=(0.7, 0.8, 0.89)))
    assert beats(one, screened("never measured so", 0.7, ratio=(None, None, None)))


def test_a_hopeless_candidate_is_told_who_beats_it():
    rivals = [screened("good", 0.8), screened("better", 0.9), screened("small", 0.1, size=10)]
    reason = refusal(screened("bad", 0.5), rivals)
    assert "50.0% of the validation rows where 'better', neither larger nor slower, has 90.0%" in (
        reason
    )
    assert refusal(screened("bad, but tiny", 0.05, size=9), rivals) is None
    assert refusal(screened("the first", 0.0), []) is None


def by_optuna(values):
    """Which of a search with one objective its own pruner would train on."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    kept = []
    for value in values:
        trial = study.ask()
        trial.report(value, step=1)
        kept.append(not trial.should_prune())
        study.tell(trial, value)
    return kept


@pytest.fixture(scope="module", autouse=True)
def quiet():
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(level)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=10))
def test_where_all_cost_the_same_the_rule_is_that_of_optunas_pruner(values):
    ones = [screened(str(at), value / 30) for at, value in enumerate(values)]
    kept = [refusal(one, ones[:at]) is None for at, one in enumerate(ones)]
    assert kept == by_optuna([value / 30 for value in values])
