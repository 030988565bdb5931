from dataclasses import dataclass

import pytest

from flows.arms import arms
from flows.chain import walk
from tasks.augmentations.none import Unchanged
from tasks.compare import CONTROL, DISTILLED, UNPRETRAINED, CompareParams, Control, Distillation
from tasks.consult import ConsultParams
from tasks.errors import ParamsError
from tasks.estimators.logistic_regression import LogisticRegression
from tasks.losses.hard_labels import HardLabels
from tasks.losses.soft_labels import SoftLabels
from tasks.networks.convnet import ConvNet
from tasks.refs import ModelRef

ALWAYS = {
    CONTROL: "control",
    "labels only without views": "control",
    "self-training": "student",
    "teacher": "teacher",
    DISTILLED: "student",
    UNPRETRAINED: "student",
    "teacher of shuffled labels": "negative",
    "all labels": "oracle",
}
OTHER = ConvNet(widths=(8, 8))


@dataclass(frozen=True)
class Met:
    """One stage as it was met; `inputs` holds what the earlier ones were met with, too."""

    stage: str
    section: object
    inputs: dict


class Walk(list):
    """Meets stages without running them."""

    def __call__(self, stage, section, **inputs):
        self.append(Met(stage.name, section, {role: ref.key for role, ref in inputs.items()}))
        return ModelRef(
            stage=stage.name,
            role=stage.role,
            key=str(len(self) - 1),
            run_id="",
            model_id=None,
            record="",
            content="",
        )

    def met(self, key):
        """One stage, and in place of its inputs' keys these stages themselves."""
        found = self[int(key)]
        inputs = {role: self.met(inner) for role, inner in found.inputs.items()}
        return found.stage, found.section, inputs


def built(params, name):
    """What an arm is: its last stage, with all that this one builds on."""
    meet = Walk()
    found = {arm.named.name: arm for arm in arms(params)}
    return meet.met(found[name].build(meet, params).key)


def chain(params):
    """What each result of the chain is, by role."""
    meet = Walk()
    return {role: meet.met(ref.key) for role, ref in walk(meet, params).items()}


@pytest.fixture
def params(bench):
    return bench.params


@pytest.fixture
def asking(params):
    """The parameters with a section `compare`, and other changes."""

    def change(compare=None, **changes):
        section = CompareParams(**(compare or {}))
        return params.model_copy(update={"compare": section, **changes})

    return change


def teaching(params, **changes):
    (entry,) = params.teach
    return entry.model_copy(update=changes)


def test_every_arm_that_the_section_promises_is_there(params):
    found = [arm.named for arm in arms(params)]
    assert {one.name: one.kind for one in found} == ALWAYS
    assert found[0].name == CONTROL
    assert all(one.sentence for one in found)


def test_the_control_the_teacher_and_the_student_are_the_chains_own(params):
    """The very same stages, so that a comparison takes what a retraining made."""
    own = chain(params)
    assert built(params, CONTROL) == own["control"]
    assert built(params, "teacher") == own["teacher"]
    assert built(params, DISTILLED) == own["student"]
    assert built(params, "teacher of shuffled labels") == own["student"]
    assert built(params, "all labels") == own["control"]


def test_without_views_nothing_else_differs(params):
    stage, section, inputs = built(params, "labels only without views")
    assert (stage, inputs) == ("supervise", {})
    expected = params.supervise.model_copy(update={"augmentation": Unchanged()})
    assert section == expected != params.supervise


def test_self_training_is_the_student_for_as_long_as_the_control(asking):
    params = asking({"confidence": 0.8})
    stage, section, inputs = built(params, "self-training")
    assert (stage, inputs) == ("teach", {})
    assert section.network == params.distill.network
    assert section.augmentation == params.distill.augmentation
    assert section.fit == params.supervise.fit
    assert section.method.plain()["name"] == "pseudo_labels"
    assert section.method.threshold == 0.8


def test_every_teacher_has_its_arm(asking, params):
    consulted = ConsultParams(estimator=LogisticRegression(strength=0.1))
    entries = (teaching(params, members=2), teaching(params, network=OTHER))
    changed = asking(teach=entries, consult=(consulted,))
    own = chain(changed)
    names = ["teacher", "teacher-2", "teacher-3", "teacher-4"]
    found = [arm.named for arm in arms(changed)]
    assert [one.name for one in found if one.kind == "teacher"] == names
    for name in names:
        assert built(changed, name) == own[name]
    assert built(changed, DISTILLED) == own["student"]
    assert list(built(changed, DISTILLED)[2]) == names


def test_without_pretraining_the_teacher_starts_from_scratch(params):
    """All else is equal: also the network, which is the encoder's."""
    stage, section, inputs = built(params, UNPRETRAINED)
    assert (stage, section) == ("distill", params.distill)
    scratch = teaching(params, network=params.pretrain.network)
    assert inputs == {"teacher": ("teach", scratch, {})}
    meet = Walk()
    next(arm for arm in arms(params) if arm.named.name == UNPRETRAINED).build(meet, params)
    assert "pretrain" not in {one.stage for one in meet}


def test_a_body_that_has_learnt_nothing_is_not_frozen(asking, params):
    changed = asking(teach=(teaching(params, freeze_body=True),))
    _, section, _ = built(changed, UNPRETRAINED)[2]["teacher"]
    assert not section.freeze_body
    _, section, _ = built(changed, DISTILLED)[2]["teacher"]
    assert section.freeze_body


def test_only_teachers_that_start_from_the_encoder_start_anew(asking, params):
    changed = asking(teach=(teaching(params), teaching(params, network=OTHER)))
    with_it, without = built(changed, DISTILLED)[2], built(changed, UNPRETRAINED)[2]
    assert with_it["teacher"] != without["teacher"]
    assert with_it["teacher-2"] == without["teacher-2"]


@pytest.mark.parametrize("pretrain", [None, "kept"])
def test_where_no_teacher_starts_from_the_encoder_there_is_nothing_to_leave_out(
    asking, params, pretrain
):
    kept = params.pretrain if pretrain else None
    changed = asking(pretrain=kept, teach=(teaching(params, network=OTHER),))
    assert UNPRETRAINED not in {arm.named.name for arm in arms(changed)}
    assert built(changed, DISTILLED)[2] == {"teacher": ("teach", changed.teach[0], {})}


def test_estimators_alone_can_teach(asking):
    consulted = ConsultParams(estimator=LogisticRegression())
    changed = asking(pretrain=None, teach=(), consult=(consulted,))
    assert built(changed, DISTILLED)[2] == {"teacher": ("consult", consulted, {})}


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": (HardLabels(), SoftLabels(temperature=4.0))},
        {"network": OTHER},
        {"rows_share": 0.5, "l1": 0.01},
    ],
)
def test_another_distillation_differs_as_stated_alone(asking, params, changes):
    changed = asking({"distillations": {"mine": Distillation(**changes)}})
    stage, section, inputs = built(changed, "mine")
    assert stage == "distill"
    assert section == params.distill.model_copy(update=changes) != params.distill
    assert inputs == built(params, DISTILLED)[2]
    kinds = {arm.named.name: arm.named.kind for arm in arms(changed)}
    assert kinds == ALWAYS | {"mine": "student"}


def test_another_control_differs_as_stated_alone(asking, params):
    controls = {
        "bigger": Control(network=OTHER),
        "decayed": Control(weight_decay=0.05),
        "free": Control(weight_decay=0.0),
    }
    changed = asking({"controls": controls})
    own = params.supervise
    expected = {
        "bigger": own.model_copy(update={"network": OTHER}),
        "decayed": own.model_copy(
            update={"fit": own.fit.model_copy(update={"weight_decay": 0.05})}
        ),
        "free": own.model_copy(update={"fit": own.fit.model_copy(update={"weight_decay": 0.0})}),
    }
    for name, section in expected.items():
        assert built(changed, name) == ("supervise", section, {})
        assert section != own
    kinds = {arm.named.name: arm.named.kind for arm in arms(changed)}
    assert kinds == ALWAYS | dict.fromkeys(controls, "control")


def test_scikit_learn_stands_beside_the_networks(asking):
    methods = (LogisticRegression(), LogisticRegression(strength=0.1))
    changed = asking({"baselines": methods})
    names = ["logistic regression", "logistic regression-2"]
    kinds = {arm.named.name: arm.named.kind for arm in arms(changed)}
    assert kinds == ALWAYS | dict.fromkeys(names, "baseline")
    for name, method in zip(names, methods, strict=True):
        assert built(changed, name) == ("consult", ConsultParams(estimator=method), {})


@pytest.mark.parametrize("name", [*ALWAYS, "logistic regression", "twice"])
def test_two_arms_never_have_one_name(asking, name):
    compare = {
        "baselines": (LogisticRegression(),),
        "distillations": {name: Distillation(l1=0.1)},
        "controls": {"twice": Control(weight_decay=0.1)},
    }
    with pytest.raises(ParamsError, match=f"two arms of the comparison are called '{name}'"):
        arms(asking(compare))


def test_mlflow_takes_the_name_of_every_arm(asking, bench):
    """With every character that the section lets through, at the greatest length."""
    longest = "aZ09 _.-" + "x" * 92
    compare = {
        "distillations": {longest: Distillation(l1=0.1)},
        "baselines": (LogisticRegression(),),
    }
    figures = {f"{arm.named.name}.accuracy": 0.5 for arm in arms(asking(compare))}
    run_id = bench.tracking.start("digits", "assess", "0" * 64, bench.run.data)
    bench.tracking.log_metrics(run_id, figures)
    (run,) = bench.runs(stage="assess")
    assert run.data.metrics == figures
