"""The chain as one function, walked in two ways: to run it, and to see what a run would do."""

from collections import Counter
from typing import Protocol, TypeVar

from tasks.consult import consult
from tasks.distill import distill
from tasks.evaluate import evaluate
from tasks.mutual import mutual
from tasks.params import Params
from tasks.pretrain import pretrain
from tasks.prune import prune
from tasks.quantize import quantize
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.stage import Run, Stage
from tasks.supervise import supervise
from tasks.teach import teach
from tasks.tracking import Tracking

P = TypeVar("P", bound=Section)


class Walker(Protocol):
    """Meets the stages in order."""

    def __call__(self, stage: Stage[P], section: P, **inputs: ModelRef) -> ModelRef:
        """Has a stage's result, by whatever means."""
        ...


def walk(meet: Walker, params: Params) -> dict[str, ModelRef]:
    """Walks data → encoder → teachers → student → pruned → edge, and the control beside them.

    Args:
        meet: What is done at each stage.
        params: The parameter tree.

    Returns:
        The results by role, teachers after the first as `teacher-2` …; `evaluation` is the report,
        all others are models.
    """
    found: dict[str, ModelRef] = {}
    if params.pretrain is not None:
        found["encoder"] = meet(pretrain, params.pretrain)
    teachers = teach_all(meet, params, found.get("encoder"))
    if params.mutual is None:
        student = meet(distill, params.distill, **teachers)
    else:
        student = meet(mutual, params.mutual, **teachers)
    small = {"student": student}
    if params.prune is not None:
        small["pruned"] = meet(prune, params.prune, student=student, **teachers)
    small["edge"] = meet(quantize, params.quantize, dense=small.get("pruned", student))
    classifiers = {"control": meet(supervise, params.supervise), **teachers, **small}
    evaluation = meet(evaluate, params.evaluate, **classifiers)
    return {**found, **classifiers, "evaluation": evaluation}


def teach_all(meet: Walker, params: Params, encoder: ModelRef | None) -> dict[str, ModelRef]:
    """Every teacher that the parameters ask for, as `teacher`, `teacher-2` and so on."""
    found: list[ModelRef] = []
    for entry in params.teach:
        start = {"encoder": encoder} if encoder and entry.network is None else {}
        found += [meet(teach, member, **start) for member in entry.each()]
    found += [meet(consult, entry) for entry in params.consult]
    names = ["teacher", *(f"teacher-{number}" for number in range(2, len(found) + 1))]
    return dict(zip(names, found, strict=True))


def plan(tracking: Tracking, run: Run, params: Params) -> dict[str, bool]:
    """Which stages a run would reuse (True) and which it would run (False), by name, in order.

    Stages that are met again are named `teach-2` …
    """
    found: dict[str, bool] = {}
    met: Counter[str] = Counter()
    absent = ModelRef(
        stage="", role="", key="", run_id="", model_id=None, record="absent", content="absent"
    )

    def meet(stage: Stage[P], section: P, **inputs: ModelRef) -> ModelRef:
        ref = None
        if absent not in inputs.values():
            ref = stage.find(tracking, run, section, **inputs)
        met[stage.name] += 1
        name = stage.name if met[stage.name] == 1 else f"{stage.name}-{met[stage.name]}"
        found[name] = ref is not None
        return ref or absent

    walk(meet, params)
    return found
