"""params.yaml as one frozen, strict, typed tree; every stage declares its own section."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tasks.collect import GcParams
from tasks.compare import CompareParams
from tasks.compute import ComputeParams
from tasks.consult import ConsultParams
from tasks.distill import DistillParams
from tasks.errors import ParamsError
from tasks.evaluate import EvaluateParams
from tasks.factorize import FactorizeParams
from tasks.mutual import MutualParams
from tasks.prepare import PrepareParams
from tasks.pretrain import PretrainParams
from tasks.promote import PromoteParams
from tasks.prune import PruneParams
from tasks.quantize import QuantizeParams
from tasks.sections import Section, parse, read_tree
from tasks.settings import PARAMS_FILE
from tasks.supervise import SuperviseParams
from tasks.teach import TeachParams
from tasks.watch import ScheduleParams
from tasks.weigh import BudgetParams


class Params(Section):
    """All of params.yaml.

    Attributes:
        project: Names the models in the registry.
        pretrain: null leaves pretraining out.
        teach: Teachers that are networks.
        consult: Teachers that are scikit-learn's. The student hears all teachers there are.
        mutual: A student that learns beside an auxiliary network; null leaves `distill` its place.
        prune: null leaves pruning out.
        factorize: null leaves low-rank factors out.
        budget: What the device can hold, for `stillmark fit-budget`.
        schedule: What starts a retraining by itself.
        gc: What `stillmark gc` keeps though nothing leads to it.
    """

    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    compute: ComputeParams
    prepare: PrepareParams
    pretrain: PretrainParams | None
    teach: tuple[TeachParams, ...]
    consult: tuple[ConsultParams, ...] = ()
    distill: DistillParams
    mutual: MutualParams | None = None
    prune: PruneParams | None
    factorize: FactorizeParams | None = None
    quantize: QuantizeParams
    supervise: SuperviseParams
    evaluate: EvaluateParams
    compare: CompareParams = CompareParams()
    promote: PromoteParams
    budget: BudgetParams | None = None
    schedule: ScheduleParams = ScheduleParams()
    gc: GcParams = GcParams()


def load(root: Path) -> Params:
    """Reads a project's params.yaml.

    Raises:
        ParamsError: The file is missing, is no YAML, or holds a mistake; one line for each.
    """
    params = parse(Params, read_tree(root / PARAMS_FILE))
    mistakes = [*_teaching(params), *_misplaced(params, params.prepare.modality.plain()["name"])]
    if mistakes:
        raise ParamsError("\n".join(f"params.yaml: {mistake}" for mistake in mistakes))
    return params


def _teaching(params: Params) -> Iterator[str]:
    """Mistakes between sections that no section sees alone."""
    if not params.teach and not params.consult:
        yield "there is no teacher; add an entry to 'teach' or 'consult'"
    for at, entry in enumerate(params.teach):
        if entry.network is None and params.pretrain is None:
            yield (
                f"'teach[{at}].network' is null, which fine-tunes the encoder, but 'pretrain' is "
                "null; name a network there, or pretrain one"
            )
        if entry.freeze_body and entry.network is not None:
            yield (
                f"'teach[{at}].freeze_body' is true, but a network of its own has learnt nothing "
                "yet; set 'network' to null, which takes the encoder"
            )


def _misplaced(value: object, modality: str, path: str = "") -> Iterator[str]:
    """Methods that are made for another modality than the data's."""
    if isinstance(value, tuple):
        for at, item in enumerate(value):
            yield from _misplaced(item, modality, f"{path}[{at}]")
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _misplaced(item, modality, f"{path}.{name}")
    if not isinstance(value, Section):
        return
    takes = getattr(value, "takes", None)
    if takes not in {None, modality}:
        yield (
            f"'{path}' is '{value.plain()['name']}', which takes {takes}; the data is {modality} "
            "(prepare.modality)"
        )
    for name in type(value).model_fields:
        yield from _misplaced(getattr(value, name), modality, f"{path}.{name}" if path else name)
