"""What tags and notes say of a model beside its record, each of which anyone can edit."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from tasks.checks import Finding
from tasks.lineage.record import Record
from tasks.refs import ModelRef
from tasks.tracking import CONTENT_TAG, KEY_TAG, RECORD_TAG, REF_TAG, STAGE_TAG

REF_FIELDS = ("record", "content", "key", "role", "stage", "model_id", "run_id")


@dataclass(frozen=True, slots=True)
class Claim:
    """What one place says of a model: the value of a field, and whose word it is."""

    field: str
    place: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Node:
    """A model in the lineage, and what is said of it elsewhere.

    Attributes:
        edge: How it is called.
        model_id: MLflow's logged model.
        trusted: sha256 that the verified record of its child names; None for the version itself.
        claims: What tags say.
    """

    edge: str
    model_id: str
    trusted: str | None
    claims: tuple[Claim, ...]

    def hearing(self, claims: Iterable[Claim]) -> "Node":
        """The same with more claims."""
        return replace(self, claims=(*self.claims, *claims))

    def agreed(self, field: str) -> str | None:
        """What most places say; the first of those that say as much as others."""
        if field == "record" and self.trusted is not None:
            return self.trusted
        said = Counter(one.value for one in self.claims if one.field == field and one.value)
        return said.most_common(1)[0][0] if said else None


def of_version(noted: Any) -> Iterator[Claim]:  # noqa: ANN401 - MLflow's ModelVersion
    """What a registered version says of its model."""
    where = f"{noted.name} version {noted.version}"
    yield from _of_tags(noted.tags, where)
    source = str(noted.source).removeprefix("models:/")
    yield Claim("model_id", f"MLflow's source of {where}", source)
    yield Claim("run_id", f"MLflow's run of {where}", noted.run_id)
    if noted.model_id is not None:
        yield Claim("model_id", f"MLflow's model of {where}", noted.model_id)


def of_model(about: Any) -> Iterator[Claim]:  # noqa: ANN401 - MLflow's LoggedModel
    """What the logged model says."""
    yield Claim("key", f"tag {KEY_TAG} of the logged model", about.tags.get(KEY_TAG))
    yield Claim("role", "type of the logged model", about.model_type)
    yield Claim("run_id", "run of the logged model", about.source_run_id)


def of_run(tags: dict[str, str]) -> Iterator[Claim]:
    """What the tags of the run that made a model say."""
    yield from _of_tags(tags, "the run")
    yield Claim("key", f"tag {KEY_TAG} of the run", tags.get(KEY_TAG))
    yield Claim("stage", f"tag {STAGE_TAG} of the run", tags.get(STAGE_TAG))


def _of_tags(tags: dict[str, str], where: str) -> Iterator[Claim]:
    """What the tags that a run and a version share say."""
    place = f"tag {REF_TAG} of {where}"
    text = tags.get(REF_TAG)
    try:
        ref = ModelRef.model_validate_json(text or "")
    except ValidationError:
        yield Claim("reference", place, text)
    else:
        for field in REF_FIELDS:
            yield Claim(field, f"{field} in {place}", getattr(ref, field))
    yield Claim("record", f"tag {RECORD_TAG} of {where}", tags.get(RECORD_TAG))
    yield Claim("content", f"tag {CONTENT_TAG} of {where}", tags.get(CONTENT_TAG))


def check_tags(node: Node, record: Record | None) -> Iterator[Finding]:
    """What is said of a model elsewhere, against its record where that is the recorded one."""
    known = {field: node.agreed(field) for field in REF_FIELDS} | {"model_id": node.model_id}
    if record is not None:
        known |= {name: getattr(record, name) for name in ("content", "key", "role", "stage")}
    wrong = [
        claim
        for claim in node.claims
        if claim.value is None or claim.value != known.get(claim.field)
    ]
    for claim in wrong:
        status, what = "mismatch", "it was changed"
        if claim.value is None:
            status, what = "missing", "it is gone"
        facts = {"expected": known.get(claim.field), "found": claim.value}
        yield Finding.of(node.edge, claim.place, "tag", status, what, **facts)
    if len(wrong) < len(node.claims):
        what = f"{len(node.claims) - len(wrong)} tags and notes"
        yield Finding.of(node.edge, what, "tag", "verified")
