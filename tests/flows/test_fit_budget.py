import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import yaml

from flows.candidates import Project
from flows.cli import main
from flows.fit_budget import budget_of
from tasks.errors import ParamsError
from tasks.params import load
from tasks.refs import ModelRef
from tasks.statistics import Share
from tasks.tracking import Tracking

ONE = {
    "widths": [1.0],
    "keep_ratios": [0.5],
    "precisions": [{"name": "static_int8"}, {"name": "float32"}],
}


@pytest.fixture
def project(changed, as_before):
    """A copy of a project whose own chain is one of the candidates."""

    def within(**budget):
        changed.change("budget", {"space": ONE, "screening_share": 0.0, **budget})
        return changed

    return within


def store(project):
    return Tracking(project.uri, project.root / ".stillmark")


def test_the_cheapest_inside_is_registered_and_evaluated(project, capsys):
    inside = project(max_accuracy_drop=0.9, size_kb=1000.0)
    params = (inside.root / "params.yaml").read_bytes()
    before = {name: len(store(inside).versions(name)) for name in store(inside).registered()}
    assert main(["fit-budget", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    names = [row["candidate"] for row in found["candidates"]]
    assert sorted(names) == ["reference", "w1 k0.5 float32", "w1 k0.5 static_int8"]
    sizes = {row["candidate"]: row["size_bytes"] for row in found["candidates"]}
    assert found["chosen"] == min(names, key=sizes.get) == "w1 k0.5 static_int8"
    assert found["binding"] in {"max_accuracy_drop", "size_kb"}
    assert 0 <= found["used"] <= 1
    for row in found["candidates"]:
        assert row["latency_low_ms"] <= row["latency_p50_ms"] <= row["latency_high_ms"]
        assert row["latency_ratio_low"] <= row["latency_ratio"] <= row["latency_ratio_high"]
    assert found["screened"] == []
    assert found["sections"] == {}  # the project's own chain it is
    # All that was there is reused, down to the version of the edge model.
    assert found["versions"] == dict.fromkeys(found["versions"], 1)
    versions = store(inside).versions("digits.candidate")
    assert {found.tags["stillmark.candidate"] for found in versions} == set(names) - {"reference"}
    assert found["candidate_versions"].keys() == set(names) - {"reference"}
    after = {name: len(store(inside).versions(name)) for name in before}
    assert after == before
    assert found["test"]["role"] == "edge"
    assert (inside.root / "params.yaml").read_bytes() == params

    # Again, it knows what it tried.
    assert main(["fit-budget"]) == 0
    caught = capsys.readouterr()
    assert caught.out.count("95% interval") == 2
    assert "'w1 k0.5 static_int8' is the cheapest candidate within the budget" in caught.out
    assert "params.yaml makes this very candidate already." in caught.out
    assert "done in" not in caught.err


def test_what_no_training_can_mend_is_not_trained(project, capsys):
    outside = project(size_kb=0.5)
    assert main(["fit-budget"]) == 2
    caught = capsys.readouterr()
    (line,) = [line for line in caught.err.splitlines() if line.startswith("stillmark: ")]
    assert "none of 2 candidates is within the budget; the nearest, 'w1 k0.5 static_int8'" in line
    assert "times size_kb before any training" in line
    runs = store(outside).last_runs("digits", 100)
    refs = [run.data.tags.get("stillmark.ref") for run in runs]
    students = [ModelRef.model_validate_json(ref) for ref in refs if ref and '"student"' in ref]
    assert len({ref.key for ref in students}) == 2  # the chain's, and one of a single step


TWO = {"widths": [0.5, 0.75], "keep_ratios": [None], "precisions": [{"name": "static_int8"}]}
SHORT = {"space": TWO, "screening_share": 0.15, "max_accuracy_drop": 0.99}


def trained(project):
    """(widths, steps) of every student that was trained."""
    runs = store(project).last_runs("digits", 200)
    found = [run.data.params for run in runs if run.data.tags["stillmark.stage"] == "distill"]
    return {(one["distill.network.widths"], int(one["distill.fit.steps"])) for one in found}


@pytest.fixture
def worse(monkeypatch):
    """Every candidate of a width seems to get no row right."""

    def make(width):
        def lowered(project, candidates):
            found = weigh(project, candidates)
            nothing = {"accuracy": Share(0.0, 0.0, 0.1, found.rows)}
            ones = [
                one.model_copy(update=nothing) if one.name.startswith(width) else one
                for one in found.candidates
            ]
            return found.model_copy(update={"candidates": tuple(ones)})

        weigh = Project.weigh
        monkeypatch.setattr(Project, "weigh", lowered)

    return make


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_hopeless_candidate_is_not_trained_in_full(project, worse, capsys, times):
    worse("w0.75")
    screened = project(**SHORT)
    before = trained(screened)
    for _ in range(times):  # again, it knows what it gave up
        assert main(["fit-budget", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        names = [row["candidate"] for row in found["candidates"]]
        assert names == ["reference", "w0.5 static_int8"]
        assert [row["candidate"] for row in found["screened"]] == [
            "w0.5 static_int8",
            "w0.75 static_int8",
        ]
        (reason,) = found["given_up"].values()
        assert found["given_up"].keys() == {"w0.75 static_int8"}
        assert reason.startswith("0.0% of the validation rows where 'w0.5 static_int8'")
        assert reason.endswith("after 15% of the training")
    half, most = "[8, 16, 16]", "[16, 24, 24]"
    assert trained(screened) - before == {(half, 12), (half, 80), (most, 12)}


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_and_does_nothing_twice(project):
    screened = project(**SHORT)
    command = [sys.executable, "-m", "flows.cli", "fit-budget", "--json"]
    environment = screened.environment
    with (screened.root / "said").open("w") as said:
        child = subprocess.Popen(
            command, cwd=screened.root, env=environment, stdout=said, stderr=said
        )
        until = time.monotonic() + screened.patience_seconds
        while not finished_weighings(screened) and child.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, (screened.root / "said").read_text()
    known = finished_weighings(screened)
    done = screened.command(*command)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["candidate"] for row in found["screened"]] == [
        "w0.5 static_int8",
        "w0.75 static_int8",
    ]
    assert found["chosen"] == "w0.5 static_int8"
    after = finished_weighings(screened)
    assert known
    assert set(known) < set(after)
    assert len(set(after)) == len(after)


def finished_weighings(project):
    """The keys of the reports that are there."""
    query = (
        "SELECT k.value FROM runs r JOIN tags s ON r.run_uuid = s.run_uuid"
        " JOIN tags k ON r.run_uuid = k.run_uuid WHERE r.status = 'FINISHED'"
        " AND s.key = 'stillmark.stage' AND s.value = 'weigh' AND k.key = 'stillmark.key'"
    )
    file = f"file:{project.root / 'mlflow.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(file, uri=True, timeout=5)) as connection:
        return [key for (key,) in connection.execute(query)]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, r"params.yaml has no 'budget'; add what the device can hold"),
        ({"size_kb": 8, "space": {**ONE, "shallower": [9]}}, r"one has to stay; 9 cannot go"),
        ({"trials": 3}, r"a budget needs a limit"),
        ({"size_kb": -1}, r"'budget.size_kb' is -1"),
        ({"size_kb": 8, "screening_share": 1.0}, r"'budget.screening_share' is 1.0"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line_before_anything_starts(
    changed, refused, section, message
):
    changed.change("budget", section)
    assert message in refused("fit-budget")


def test_a_student_of_a_pair_is_refused(tmp_path, plain_params):
    tree = {**plain_params, "budget": {"size_kb": 8.0}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    params = load(tmp_path).model_copy(update={"mutual": object()})
    with pytest.raises(ParamsError, match="set mutual to null"):
        budget_of(params)
