"""The contract, and what holds of every gate."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from tasks.errors import ArtifactError
from tasks.gates import GATES, Verdict

# The least that each gate has to be told.
NEEDED = {
    "agreement": {"at_least": 0.5},
    "budget": {"size_kib": 100.0},
    "freshness": {"days": 1.0},
}


def gate(name):
    return GATES.parse({"name": name} | NEEDED.get(name, {}))


def test_these_are_the_gates():
    assert set(GATES.methods) == {
        "agreement",
        "budget",
        "calibration",
        "export",
        "freshness",
        "fusion",
        "lineage",
        "membership",
        "quality",
        "size",
        "slices",
    }


@pytest.mark.parametrize("name", sorted(GATES.methods))
def test_the_same_evidence_gives_the_same_verdict(name, side, collect):
    ours, theirs = side("aab" * 20, pool="ab"), side("abb" * 20, pool="aa")
    evidence = collect(ours, theirs, "aab" * 20)
    found = gate(name).judge(evidence)
    assert found == gate(name).judge(evidence)
    assert found.gate == name
    assert "\n" not in found.sentence
    assert Verdict.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("name", sorted(GATES.methods))
def test_a_first_version_that_is_right_passes(name, side, collect):
    metrics = {"fused_agreement": 1.0, "size_ratio": 0.3, "export_difference": 0.0}
    found = side("aab" * 20, pool="ab", membership=(0.5, 0.4, 0.6), metrics=metrics)
    assert gate(name).judge(collect(found, labels="aab" * 20)).passed


def test_a_figure_is_a_number():
    with pytest.raises(ValidationError):
        Verdict(gate="quality", passed=True, sentence="", figures={"gain": float("nan")})


@pytest.mark.parametrize(
    ("misfit", "reason"),
    [
        (lambda e: {"rows": e.rows[:0]}, "there is no test row"),
        (lambda e: {"labels": e.labels[1:]}, r"labels has shape \(2,\), the rows have \(3,\)"),
        (lambda e: {"labels": np.asarray(list("aax"))}, "label 'x' is none of the classes"),
        (lambda e: {"control": e.labels[1:]}, "control has shape"),
        (lambda e: {"columns": {"source": e.labels[1:]}}, "source has shape"),
        (lambda e: {"teacher": e.rows}, r"teacher has shape \(3,\), the pool has \(0,\)"),
        (lambda e: {"pool": e.rows}, "challenger's pool_labels has shape"),
        (lambda e: {"classes": ("a", "b", "c")}, r"probabilities has shape \(3, 2\), expected"),
        (lambda e: {"data_age_days": float("nan")}, "data_age_days is nan"),
    ],
)
def test_evidence_that_does_not_fit_together_is_refused(side, collect, misfit, reason):
    evidence = collect(side("aab"), side("aab"))
    with pytest.raises(ArtifactError, match=reason):
        replace(evidence, **misfit(evidence))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"latency_ms": np.asarray([1.0])}, "champion's latency_ms has shape"),
        ({"latency_ms": np.asarray([1.0, 0.0, 1.0])}, "no positive number"),
        ({"latency_ms": np.asarray([1.0, np.inf, 1.0])}, "no positive number"),
        ({"size_bytes": 0}, "size is 0 bytes"),
        ({"probabilities": np.zeros((3, 2))}, "float64, expected float32"),
    ],
)
def test_a_side_that_does_not_fit_is_refused(side, collect, facts, reason):
    with pytest.raises(ArtifactError, match=reason):
        collect(side("aab"), side("aab", **facts))
