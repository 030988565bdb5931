"""The chain as one function, walked in two ways: to run it, and to see what a run would do."""

from typing import Protocol, TypeVar

from tasks.distill import distill
from tasks.evaluate import evaluate
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
    """Walks data → encoder → teacher → student → pruned → edge, and the control beside them.

    Args:
        meet: What is done at each stage.
        params: The parameter tree.

    Returns:
        The results by role; `evaluation` is the report, all others are models.
    """
    encoder = meet(pretrain, params.pretrain)
    start = {"encoder": encoder} if params.teach.network is None else {}
    teacher = meet(teach, params.teach, **start)
    student = meet(distill, params.distill, teacher=teacher)
    pruned = meet(prune, params.prune, student=student, teacher=teacher)
    edge = meet(quantize, params.quantize, pruned=pruned)
    control = meet(supervise, params.supervise)
    classifiers = {
        "control": control,
        "teacher": teacher,
        "student": student,
        "pruned": pruned,
        "edge": edge,
    }
    evaluation = meet(evaluate, params.evaluate, **classifiers)
    return {"encoder": encoder, **classifiers, "evaluation": evaluation}


def plan(tracking: Tracking, run: Run, params: Params) -> dict[str, bool]:
    """Which stages a run would reuse (True) and which it would run (False), by name, in order."""
    found: dict[str, bool] = {}
    absent = ModelRef(
        stage="", role="", key="", run_id="", model_id=None, record="absent", content="absent"
    )

    def meet(stage: Stage[P], section: P, **inputs: ModelRef) -> ModelRef:
        ref = None
        if absent not in inputs.values():
            ref = stage.find(tracking, run, section, **inputs)
        found[stage.name] = ref is not None
        return ref or absent

    walk(meet, params)
    return found
