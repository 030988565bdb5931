"""params.yaml as one frozen, strict, typed tree; every stage declares its own section."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from tasks.compute import ComputeParams
from tasks.distill import DistillParams
from tasks.evaluate import EvaluateParams
from tasks.prepare import PrepareParams
from tasks.pretrain import PretrainParams
from tasks.promote import PromoteParams
from tasks.prune import PruneParams
from tasks.quantize import QuantizeParams
from tasks.sections import Section, parse, read_tree
from tasks.settings import PARAMS_FILE
from tasks.supervise import SuperviseParams
from tasks.teach import TeachParams


class Params(Section):
    """All of params.yaml; `project` names the models in the registry."""

    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    compute: ComputeParams
    prepare: PrepareParams
    pretrain: PretrainParams
    teach: TeachParams
    distill: DistillParams
    prune: PruneParams
    quantize: QuantizeParams
    supervise: SuperviseParams
    evaluate: EvaluateParams
    promote: PromoteParams


def load(root: Path) -> Params:
    """Reads a project's params.yaml.

    Raises:
        ParamsError: The file is missing, is no YAML, or holds a mistake; one line for each.
    """
    return parse(Params, read_tree(root / PARAMS_FILE))
