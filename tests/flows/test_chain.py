from dataclasses import dataclass

import pytest

from flows.chain import plan, walk
from tasks.consult import ConsultParams
from tasks.errors import ParamsError
from tasks.estimators.logistic_regression import LogisticRegression
from tasks.params import load
from tasks.refs import ModelRef

ORDER = ["pretrain", "teach", "distill", "prune", "quantize", "supervise", "evaluate"]


@dataclass(frozen=True)
class Met:
    """One stage as the chain met it: with what section, and whose results it was given."""

    stage: str
    section: object
    inputs: dict


@pytest.fixture
def walked():
    """Walks the chain without running it; a result is named `teach`, a second one `teach-2`."""

    def go(params):
        met = []

        def meet(stage, section, **inputs):
            again = sum(one.stage == stage.name for one in met) + 1
            name = stage.name if again == 1 else f"{stage.name}-{again}"
            met.append(Met(stage.name, section, {role: ref.key for role, ref in inputs.items()}))
            return ModelRef(
                stage=stage.name,
                role=stage.role,
                key=name,
                run_id="",
                model_id=None,
                record="",
                content="",
            )

        results = walk(meet, params)
        return met, {role: ref.key for role, ref in results.items()}

    return go


@pytest.fixture
def consulted(bench):
    """Parameters with three teachers: two members of one kind, and one of scikit-learn's."""
    (entry,) = bench.params.teach
    return bench.params.model_copy(
        update={
            "teach": (entry.model_copy(update={"members": 2}),),
            "consult": (ConsultParams(estimator=LogisticRegression()),),
        }
    )


def inputs_of(met):
    return {one.stage: one.inputs for one in met}


def test_each_stage_gets_what_it_builds_on(bench, walked):
    met, results = walked(bench.params)
    assert [one.stage for one in met] == ORDER
    inputs = inputs_of(met)
    assert inputs["teach"] == {"encoder": "pretrain"}
    assert inputs["distill"] == {"teacher": "teach"}
    assert inputs["prune"] == {"student": "distill", "teacher": "teach"}
    assert inputs["quantize"] == {"dense": "prune"}
    assert inputs["pretrain"] == inputs["supervise"] == {}
    stages = {
        "control": "supervise",
        "teacher": "teach",
        "student": "distill",
        "pruned": "prune",
        "edge": "quantize",
    }
    assert inputs["evaluate"] == stages
    assert list(inputs["evaluate"]) == list(stages)
    assert results == {"encoder": "pretrain", **stages, "evaluation": "evaluate"}


def test_each_stage_gets_its_own_section(bench, walked):
    met, _ = walked(bench.params)
    for one in met:
        if one.stage == "teach":
            assert one.section == bench.params.teach[0]
        else:
            assert one.section is getattr(bench.params, one.stage)


def test_a_teacher_with_its_own_network_needs_no_encoder(bench, walked):
    (entry,) = bench.params.teach
    own = entry.model_copy(update={"network": bench.params.distill.network})
    met, _ = walked(bench.params.model_copy(update={"teach": (own, entry)}))
    assert [one.inputs for one in met if one.stage == "teach"] == [{}, {"encoder": "pretrain"}]


def test_the_student_hears_every_teacher(consulted, walked):
    met, results = walked(consulted)
    teachers = {"teacher": "teach", "teacher-2": "teach-2", "teacher-3": "consult"}
    inputs = inputs_of(met)
    assert inputs["distill"] == teachers
    assert inputs["prune"] == {"student": "distill", **teachers}
    assert inputs["consult"] == {}
    roles = ["control", *teachers, "student", "pruned", "edge"]
    assert list(inputs["evaluate"]) == roles
    assert list(results) == ["encoder", *roles, "evaluation"]
    assert {role: results[role] for role in teachers} == teachers


def test_members_differ_in_their_number_alone(consulted, walked):
    met, _ = walked(consulted)
    sections = [one.section for one in met if one.stage == "teach"]
    assert [section.member for section in sections] == [0, 1]
    (entry,) = consulted.teach
    for section in sections:
        assert section.model_copy(update={"members": 2, "member": 0}) == entry


def test_the_first_member_is_the_teacher_alone(bench, walked, consulted):
    """So that its result is reused when members are added."""
    alone, _ = walked(bench.params)
    several, _ = walked(consulted)
    first = [next(one for one in met if one.stage == "teach") for met in (alone, several)]
    assert first[0] == first[1]


def test_estimators_alone_can_teach(bench, walked, consulted):
    met, results = walked(consulted.model_copy(update={"teach": ()}))
    assert inputs_of(met)["distill"] == {"teacher": "consult"}
    assert results["teacher"] == "consult"


def test_pretraining_can_be_left_out(bench, walked):
    (entry,) = bench.params.teach
    own = entry.model_copy(update={"network": bench.params.distill.network})
    met, results = walked(bench.params.model_copy(update={"pretrain": None, "teach": (own,)}))
    assert [one.stage for one in met] == ORDER[1:]
    assert "encoder" not in results
    assert inputs_of(met)["teach"] == {}


def test_pruning_can_be_left_out(bench, walked):
    met, results = walked(bench.params.model_copy(update={"prune": None}))
    assert [one.stage for one in met] == [stage for stage in ORDER if stage != "prune"]
    assert inputs_of(met)["quantize"] == {"dense": "distill"}
    assert "pruned" not in inputs_of(met)["evaluate"]
    assert "pruned" not in results
    assert results["edge"] == "quantize"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("teach", [], "there is no teacher; add an entry to 'teach' or 'consult'"),
        ("pretrain", None, "'teach[0].network' is null, .* but 'pretrain' is null"),
    ],
)
def test_a_chain_without_a_beginning_is_refused(untrained, path, value, message):
    untrained.change(path, value)
    with pytest.raises(ParamsError, match=message.replace("[", r"\[")):
        load(untrained.root)


def test_an_empty_store_means_that_all_will_run(bench):
    found = plan(bench.tracking, bench.run, bench.params)
    assert found == dict.fromkeys(ORDER, False)
    assert list(found) == ORDER
    assert bench.runs() == []


def test_the_plan_numbers_stages_that_come_again(bench, consulted):
    found = plan(bench.tracking, bench.run, consulted)
    assert list(found) == ["pretrain", "teach", "teach-2", "consult", *ORDER[2:]]


def test_the_flow_and_the_plan_walk_the_same_parameters(bench):
    assert load(bench.root) == bench.params
