"""The chain as one function, walked in two ways: to run it, and to see what a run would do."""

import logging
from collections import Counter
from typing import Protocol, TypeVar

from tasks.consult import consult
from tasks.distill import distill
from tasks.evaluate import evaluate
from tasks.factorize import factorize
from tasks.mutual import mutual
from tasks.params import Params
from tasks.pretrain import pretrain, previous_encoder
from tasks.prune import prune
from tasks.quantize import quantize
from tasks.refs import ModelRef
from tasks.rows import Rows
from tasks.sections import Section
from tasks.settings import Settings
from tasks.stage import Run, Stage
from tasks.supervise import supervise
from tasks.teach import teach
from tasks.tracking import Tracking
from tasks.versioning import PREPARED

log = logging.getLogger("stillmark")

P = TypeVar("P", bound=Section)


class Walker(Protocol):
    """Meets the stages in order."""

    def __call__(self, stage: Stage[P], section: P, **inputs: ModelRef) -> ModelRef:
        """Has a stage's result, by whatever means."""
        ...


def warmed(meet: Walker, tracking: Tracking, run: Run, params: Params) -> Walker:
    """The same walker; its pretraining starts from the last encoder, if the parameters say so.

    Says on the log where there is no encoder to start from.

    Args:
        meet: What is done at each stage.
        tracking: Where encoders are registered.
        run: What the stages share; its rows are prepared in the project's folder.
        params: The parameter tree.
    """
    if params.pretrain is None or not params.pretrain.warm_start:
        return meet
    schema = Rows(Settings().root / PREPARED).schema
    previous = previous_encoder(tracking, run, params.pretrain, schema)
    if previous is None:
        log.warning("pretraining starts fresh: no registered encoder of other data fits")
        return meet

    def begin(stage: Stage[P], section: P, **inputs: ModelRef) -> ModelRef:
        more = {"previous": previous} if stage.name == pretrain.name else {}
        return meet(stage, section, **inputs, **more)

    return begin


def walk(meet: Walker, params: Params) -> dict[str, ModelRef]:
    """Walks data → encoder → teachers → student → pruned → factored → edge, and the control.

    Args:
        meet: What is done at each stage.
        params: The parameter tree.

    Returns:
        The results by role, teachers after the first as `teacher-2` …; `evaluation` is the report,
        all others are models.
    """
    encoder = pretrained(meet, params)
    found = {} if encoder is None else {"encoder": encoder}
    teachers = teach_all(meet, params, encoder)
    small = shrink(meet, params, teachers)
    classifiers = {"control": meet(supervise, params.supervise), **teachers, **small}
    evaluation = meet(evaluate, params.evaluate, **classifiers)
    return {**found, **classifiers, "evaluation": evaluation}


def pretrained(meet: Walker, params: Params) -> ModelRef | None:
    """The encoder, where the parameters ask for one."""
    return None if params.pretrain is None else meet(pretrain, params.pretrain)


def shrink(meet: Walker, params: Params, teachers: dict[str, ModelRef]) -> dict[str, ModelRef]:
    """The student and all that is made of it, by role, the edge model last."""
    if params.mutual is None:
        dense = meet(distill, params.distill, **teachers)
    else:
        dense = meet(mutual, params.mutual, **teachers)
    found = {"student": dense}
    if params.prune is not None:
        dense = found["pruned"] = meet(prune, params.prune, student=dense, **teachers)
    if params.factorize is not None:
        learns = params.factorize.recovery is not None
        more = teachers if learns else {}
        dense = found["factored"] = meet(factorize, params.factorize, dense=dense, **more)
    more = {} if params.quantize.finetune is None else teachers
    found["edge"] = meet(quantize, params.quantize, dense=dense, **more)
    return found


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
    return {name: ref is not None for name, ref in planned(tracking, run, params).items()}


def planned(tracking: Tracking, run: Run, params: Params) -> dict[str, ModelRef | None]:
    """What each stage of a run would take as it is, or None where it would run, as `plan`."""
    found: dict[str, ModelRef | None] = {}
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
        found[name] = ref
        return ref or absent

    walk(warmed(meet, tracking, run, params), params)
    return found
