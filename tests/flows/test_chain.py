import pytest

from flows.chain import plan, walk
from tasks.params import load
from tasks.refs import ModelRef

ORDER = ["pretrain", "teach", "distill", "prune", "quantize", "supervise", "evaluate"]


@pytest.fixture
def walked(bench):
    """Walks the chain without running it: what each stage was given."""

    def go(params):
        met = {}

        def meet(stage, section, **inputs):
            met[stage.name] = {name: ref.role for name, ref in inputs.items()}
            assert section is getattr(params, stage.name)
            return ModelRef(
                stage=stage.name,
                role=stage.role,
                key="",
                run_id="",
                model_id=None,
                record="",
                content="",
            )

        return met, walk(meet, params)

    return go


def test_each_stage_gets_what_it_builds_on(bench, walked):
    met, results = walked(bench.params)
    assert list(met) == ORDER
    assert met["teach"] == {"encoder": "encoder"}
    assert met["distill"] == {"teacher": "teacher"}
    assert met["prune"] == {"student": "student", "teacher": "teacher"}
    assert met["quantize"] == {"pruned": "pruned"}
    assert met["pretrain"] == met["supervise"] == {}
    roles = ["control", "teacher", "student", "pruned", "edge"]
    assert met["evaluate"] == {role: role for role in roles}
    assert {name: ref.role for name, ref in results.items()} == {
        role: role for role in ["encoder", *roles, "evaluation"]
    }


def test_a_teacher_with_its_own_network_needs_no_encoder(bench, walked):
    own = bench.params.teach.model_copy(update={"network": bench.params.distill.network})
    met, _ = walked(bench.params.model_copy(update={"teach": own}))
    assert met["teach"] == {}


def test_an_empty_store_means_that_all_will_run(bench):
    found = plan(bench.tracking, bench.run, bench.params)
    assert found == dict.fromkeys(ORDER, False)
    assert bench.runs() == []


def test_the_flow_and_the_plan_walk_the_same_parameters(bench):
    assert load(bench.root) == bench.params
