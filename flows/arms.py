"""The arms of a comparison: ways to learn, and the controls that they have to beat."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from flows.chain import Walker, pretrained, teach_all
from tasks.augmentations.none import Unchanged
from tasks.compare import CONTROL, DISTILLED, UNPRETRAINED, Kind, Named
from tasks.consult import ConsultParams, consult
from tasks.distill import distill
from tasks.errors import ParamsError
from tasks.params import Params
from tasks.refs import ModelRef
from tasks.supervise import supervise
from tasks.teach import TeachParams, teach
from tasks.teachers.pseudo_labels import PseudoLabels

Build = Callable[[Walker, Params], ModelRef]


@dataclass(frozen=True)
class Arm:
    """One way to learn.

    Attributes:
        named: What it is.
        build: Makes the model, stage by stage.
    """

    named: Named
    build: Build


def _arm(name: str, kind: Kind, sentence: str, build: Build) -> Arm:
    return Arm(Named(name=name, kind=kind, sentence=sentence), build)


def arms(params: Params) -> list[Arm]:
    """Every arm that the parameters ask for, the control first.

    Raises:
        ParamsError: Two arms have the same name.
    """
    found = list(_arms(params))
    met = Counter(arm.named.name for arm in found)
    if doubled := [name for name, count in met.items() if count > 1]:
        raise ParamsError(
            f"params.yaml: two arms of the comparison are called '{doubled[0]}'; rename the one in "
            "'compare.distillations' or 'compare.controls'"
        )
    return found


def _arms(params: Params) -> Iterator[Arm]:
    yield from _controls(params)
    sentence = "the student is its own teacher: certain guesses on the pool"
    yield _arm("self-training", "student", sentence, _self_train)
    yield from _teachers(params)
    yield from _students(params)
    yield from _baselines(params)
    sentence = "the student's network on every label there is: what labels could buy"
    yield _arm("all labels", "oracle", sentence, _supervised({}))


def _controls(params: Params) -> Iterator[Arm]:
    sentence = "the student's network on the shown labels, with the chain's views and steps"
    yield _arm(CONTROL, "control", sentence, _supervised({}))
    bare = _supervised({"augmentation": Unchanged()})
    yield _arm("labels only without views", "control", "the same on the rows as they are", bare)
    for name, control in params.compare.controls.items():
        changes: dict[str, object] = {} if control.network is None else {"network": control.network}
        if control.weight_decay is not None:
            update = {"weight_decay": control.weight_decay}
            changes["fit"] = params.supervise.fit.model_copy(update=update)
        yield _arm(name, "control", "the control, changed as stated", _supervised(changes))


def _supervised(changes: dict[str, object]) -> Build:
    def build(meet: Walker, params: Params) -> ModelRef:
        return meet(supervise, params.supervise.model_copy(update=changes))

    return build


def _self_train(meet: Walker, params: Params) -> ModelRef:
    section = TeachParams(
        network=params.distill.network,
        method=PseudoLabels(threshold=params.compare.confidence),
        augmentation=params.distill.augmentation,
        fit=params.supervise.fit,
    )
    return meet(teach, section)


def teachers_of(meet: Walker, params: Params) -> dict[str, ModelRef]:
    """The chain's teachers."""
    return teach_all(meet, params, pretrained(meet, params))


def _teachers(params: Params) -> Iterator[Arm]:
    count = sum(entry.members for entry in params.teach) + len(params.consult)
    for at in range(count):
        name = f"teacher-{at + 1}" if at else "teacher"
        yield _arm(name, "teacher", "a teacher of the chain", partial(_teacher, at))


def _teacher(at: int, meet: Walker, params: Params) -> ModelRef:
    return list(teachers_of(meet, params).values())[at]


def _students(params: Params) -> Iterator[Arm]:
    yield _arm(DISTILLED, "student", "the chain's student", _distilled({}))
    for name, distillation in params.compare.distillations.items():
        build = _distilled(distillation.changes())
        yield _arm(name, "student", "the student, distilled as stated", build)
    if any(entry.network is None for entry in params.teach):
        sentence = "the chain's student; its teacher starts from scratch"
        yield _arm(UNPRETRAINED, "student", sentence, _unpretrained)
    sentence = "the chain's student, where the labels are dealt out to the wrong rows"
    yield _arm("teacher of shuffled labels", "negative", sentence, _distilled({}))


def _distilled(changes: dict[str, object]) -> Build:
    def build(meet: Walker, params: Params) -> ModelRef:
        teachers = teachers_of(meet, params)
        return meet(distill, params.distill.model_copy(update=changes), **teachers)

    return build


def _unpretrained(meet: Walker, params: Params) -> ModelRef:
    network = params.pretrain.network if params.pretrain else None
    scratch = {"network": network, "freeze_body": False}
    entries = tuple(
        entry if entry.network else entry.model_copy(update=scratch) for entry in params.teach
    )
    changed = params.model_copy(update={"teach": entries, "pretrain": None})
    return _distilled({})(meet, changed)


def _baselines(params: Params) -> Iterator[Arm]:
    met: Counter[str] = Counter()
    for method in params.compare.baselines:
        name = method.plain()["name"].replace("_", " ")
        met[name] += 1
        name = name if met[name] == 1 else f"{name}-{met[name]}"
        build = partial(_consulted, ConsultParams(estimator=method))
        yield _arm(name, "baseline", "scikit-learn, on the same labels", build)


def _consulted(section: ConsultParams, meet: Walker, _params: Params) -> ModelRef:
    return meet(consult, section)
