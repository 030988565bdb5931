"""params.yaml as one frozen, strict, typed tree; every stage declares its own section."""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from tasks.compute import ComputeParams
from tasks.distill import DistillParams
from tasks.errors import ParamsError
from tasks.evaluate import EvaluateParams
from tasks.prepare import PrepareParams
from tasks.pretrain import PretrainParams
from tasks.promote import PromoteParams
from tasks.prune import PruneParams
from tasks.quantize import QuantizeParams
from tasks.sections import Section, parse
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
    path = root / PARAMS_FILE
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing; take it from the repository again") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"params.yaml is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ParamsError(f"params.yaml holds {type(tree).__name__}, expected sections by name")
    return parse(Params, tree)
