import json

import pytest
import yaml

from flows.cli import main
from flows.fit_budget import budget_of
from tasks.errors import ParamsError
from tasks.params import load
from tasks.refs import ModelRef
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
        changed.change("budget", {"space": ONE, **budget})
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


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, r"params.yaml has no 'budget'; add what the device can hold"),
        ({"size_kb": 8, "space": {**ONE, "shallower": [9]}}, r"one has to stay; 9 cannot go"),
        ({"trials": 3}, r"a budget needs a limit"),
        ({"size_kb": -1}, r"'budget.size_kb' is -1"),
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
