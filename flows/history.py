"""What `stillmark history` says: who was champion, when, by whom, why, on which evidence."""

from collections.abc import Iterator
from typing import Any

from tasks.errors import ArtifactError, RegistryError
from tasks.judge import recheck
from tasks.ledger import Entry
from tasks.sections import hint
from tasks.succession import CHAMPION, Succession

DIGITS = 12


def history(succession: Succession, name: str) -> dict[str, Any]:
    """The ledger rows of a model, oldest first, and the requests that wait for a person.

    Raises:
        RegistryError: The ledger and the registry know no such model.
    """
    entries = succession.ledger.entries(name, CHAMPION)
    known = succession.tracking.registered()
    if not entries and name not in known:
        raise RegistryError(
            f"no model '{name}'{hint(name, known) or '; run `stillmark retrain` first'}"
        )
    waiting = succession.ledger.requests(name, "open")
    return {
        "model": name,
        "entries": [entry.model_dump() for entry in entries],
        "requests": [request.model_dump() for request in waiting],
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    if not found["entries"]:
        yield f"{found['model']} never had a champion"
    for entry in found["entries"]:
        before = entry["previous_version"]
        since = f", after version {before}" if before else ""
        evidence = entry["evidence"][:DIGITS] if entry["evidence"] else "none"
        yield (
            f"{entry['sequence']:>4}  {entry['time'][:19]}Z  {entry['action'].replace('_', ' ')}: "
            f"version {entry['version']}{since}, by {entry['actor']}, evidence {evidence}"
        )
        yield f"      {entry['reason']}"
    for request in found["requests"]:
        yield (
            f"waiting: version {request['version']}, asked {request['asked'][:19]}Z; "
            f"`stillmark approve {request['id']} --reason …`"
        )


def rechecked(succession: Succession, name: str) -> Iterator[str]:
    """Judges the kept evidence of every promotion again; says where that gives another answer."""
    for entry in succession.ledger.entries(name, CHAMPION):
        for problem in _recheck(succession, entry):
            yield f"row {entry.sequence} of {name}@{CHAMPION}: {problem}"


def _recheck(succession: Succession, entry: Entry) -> Iterator[str]:
    if entry.evidence is None or entry.evidence_run is None:
        if entry.action == "promoted":
            yield "it was promoted without evidence"
        return
    try:
        folder = succession.tracking.report(entry.evidence_run)
    except ArtifactError as error:
        yield str(error)
        return
    yield from recheck(folder, entry.evidence)
