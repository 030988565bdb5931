"""Self-supervised pretraining: an encoder from every training row, without labels."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

from tasks import networks
from tasks.augmentations import AUGMENTATIONS, Augmentation
from tasks.errors import ArtifactError, RegistryError
from tasks.fit import FitParams, fit
from tasks.keep import SCHEMA_FILE, keep_schema
from tasks.lineage.record import Record
from tasks.networks import NETWORKS, Network
from tasks.objectives import OBJECTIVES, Objective
from tasks.probe import linear_probe
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.stage import Run, Work, stage
from tasks.tracking import BACKFILL_TAG, Tracking, payload_of
from tasks.views import Views

ROLE = "encoder"
# What the rows' labels say is nothing that an encoder has learnt.
OF_LABELS = frozenset({"classes", "budget"})


class PretrainParams(Section):
    """Section `pretrain` of params.yaml.

    Attributes:
        network: Body of the encoder, and of a teacher that is fine-tuned from it.
        objective: What is learnt without labels.
        augmentation: Makes the views.
        fit: Steps, rate and averaging.
        warm_start: Whether the encoder starts from the last registered one that was made on other
            data, with the same network, objective and encoding; from fresh weights where there is
            none. A comparison of arms always starts from fresh ones.
    """

    network: Annotated[Network, NETWORKS]
    objective: Annotated[Objective, OBJECTIVES]
    augmentation: Annotated[Augmentation, AUGMENTATIONS]
    fit: FitParams
    warm_start: bool = False


@stage(ROLE)
def pretrain(
    work: Work, params: PretrainParams, *, previous: ModelRef | None = None
) -> dict[str, float]:
    """Trains an encoder on all training rows; no label is used.

    Args:
        work: Rows, compute, folder, progress.
        params: Section `pretrain`.
        previous: Encoder to start from; fresh weights without one.
    """
    spec, encoder = work.fresh(params.network, outputs=0)
    if previous is not None:
        encoder.load_state_dict(work.network(previous)[1].state_dict())
    heads = work.compute.place(params.objective.heads(spec.width, work.rows.encoding))
    pool = Views(work.rows.train, params.augmentation, work.compute)
    fit(
        encoder,
        lambda _at, generator: params.objective.loss(encoder, heads, pool, generator),
        params.fit,
        work.compute,
        work.watch,
        beside=heads,
    )
    networks.save(work.folder, spec, encoder)
    keep_schema(work.folder, work.rows)
    return linear_probe(encoder, work.rows, work.compute)


def previous_encoder(
    tracking: Tracking, run: Run, params: PretrainParams, schema: dict[str, Any]
) -> ModelRef | None:
    """The encoder that a warm start begins with: the newest registered one that fits.

    It was made on another data version than this run's, so that the same run, done again, finds
    the same one.

    Args:
        tracking: Where encoders are registered.
        run: What the stages of the run share.
        params: Section `pretrain`.
        schema: What the rows of the run look like (`schema.json`).

    Returns:
        None where no registered encoder fits, or none that does is whole.
    """
    wanted = _essence(params.network, params.objective, schema)
    for ref in _registered(tracking, run.project):
        try:
            folder = tracking.fetch(ref).folder
            record = Record.read(folder)
            found = json.loads((payload_of(folder) / SCHEMA_FILE).read_text(encoding="utf-8"))
        except (ArtifactError, FileNotFoundError):
            continue  # damaged, or made before encoders said what their rows looked like
        learnt = record.parameters
        other = record.data.content != run.data.content
        if other and _essence(learnt["network"], learnt["objective"], found) == wanted:
            return ref
    return None


def _registered(tracking: Tracking, project: str) -> Iterator[ModelRef]:
    """Every encoder of a project that can be referred to, the newest first, no backfill's."""
    for version in tracking.versions(f"{project}.{ROLE}"):
        if BACKFILL_TAG in version.tags:
            continue
        try:
            yield tracking.ref_of(version)
        except RegistryError:
            continue  # somebody else's, or its tag was changed: `verify` says so


def _essence(network: object, objective: object, schema: dict[str, Any]) -> tuple[Any, ...]:
    """What has to be equal for the weights to mean the same."""
    plain = (one.plain() if isinstance(one, Section) else one for one in (network, objective))
    encoding = {name: value for name, value in schema.items() if name not in OF_LABELS}
    return (*plain, _unscaled(encoding))


def _unscaled(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The same without fractions: columns are scaled by what the rows happen to be."""
    if isinstance(value, dict):
        return {name: _unscaled(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_unscaled(inner) for inner in value]
    return None if isinstance(value, float) else value
