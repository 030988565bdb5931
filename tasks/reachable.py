"""What can be reached: everything that an alias, a ledger row or a kept record leads to.

The store is a graph of versions, runs, models, records and data versions. A node needs what
`verify`, `replay`, `history --recheck` or the reuse of a stage would ask of it; from the roots on,
all that is needed is kept, and the rest is garbage. A version whose model is kept for another's
sake stays as a label of it, without the evaluation that it was registered with: else each model
would keep all that was ever evaluated beside it, back to the first.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from tasks.errors import ArtifactError

Kind = Literal["version", "label", "run", "model", "record", "data"]

# Runs that say what was judged, and what was forgotten, beside those that made something.
EVIDENCE, JOURNAL, KEPT_STAGES = "promote", "retrain", frozenset({"forget"})
RUNNING = frozenset({"RUNNING", "SCHEDULED"})
# The journal never asks for more of the past.
JOURNAL_ENTRIES = 200


class Node(NamedTuple):
    """Something in the store; `name` is unique among its kind."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version.

    Attributes:
        created: When it was registered, in UTC.
        run_id: Run that made its model, or None where nobody says.
        model_id: Its logged model, or None.
        record: sha256 of its lineage record, or None.
        evaluation: sha256 of the record of the report that it was registered with, or None.
        key: Stage key of its model, or None.
        is_ours: Whether this project registered it.
        is_held: Whether an alias points at it, or a ledger's witness names it.
        is_backfilled: Whether a backfill made it, from past data.
    """

    name: str
    number: int
    created: datetime
    run_id: str | None = None
    model_id: str | None = None
    record: str | None = None
    evaluation: str | None = None
    key: str | None = None
    is_ours: bool = True
    is_held: bool = False
    is_backfilled: bool = False

    @property
    def node(self) -> Node:
        """Its place in the graph."""
        return version_node(self.name, self.number)

    @property
    def label(self) -> Node:
        """It as the name of a model that is kept anyway."""
        return Node("label", self.node.name)


@dataclass(frozen=True, slots=True)
class Run:
    """An MLflow run of the project.

    Attributes:
        status: MLflow's word for how it stands.
        touched: When it ended, or began where it has not ended, in UTC.
        record: sha256 of the record of what it made, or None.
        model_id: The model that it made, or None of a report.
        parent: Run that it was started for, or None.
    """

    run_id: str
    stage: str
    status: str
    touched: datetime
    record: str | None = None
    model_id: str | None = None
    key: str | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A logged model; `run_id` made it."""

    model_id: str
    run_id: str | None
    created: datetime


@dataclass(frozen=True, slots=True)
class Facts:
    """What a store holds of a project."""

    versions: tuple[Version, ...] = ()
    runs: tuple[Run, ...] = ()
    models: tuple[Model, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """What a record says that something was made from.

    Attributes:
        parents: Record and model of each parent; a report has no model.
        data: Digests of the data version, as DVC names its folders.
    """

    parents: tuple[tuple[str, str | None], ...]
    data: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What is kept though nothing names it.

    Attributes:
        keep_last: So many of the newest versions of each model, and of its backfilled ones.
        since: Whatever is from then on, in UTC.
    """

    keep_last: int
    since: datetime


# A record by its digest, model and run; None where nothing of it is stored any more. It raises an
# ArtifactError where something is stored that cannot be read.
Read = Callable[[str, str | None, str], Made | None]


def version_node(name: str, number: int) -> Node:
    """The node of a registered version."""
    return Node("version", f"{name}:{number}")


def roots(facts: Facts, rules: Rules) -> set[Node]:
    """What is kept for its own sake: held, new, unfinished or not ours."""
    found = {one.node for one in facts.versions if one.is_held or not one.is_ours}
    found |= {one.node for one in facts.versions if one.created >= rules.since}
    for versions in _lines(facts.versions):
        newest = sorted(versions, key=lambda one: one.number, reverse=True)
        found |= {one.node for one in newest[: rules.keep_last]}
    found |= {
        Node("run", one.run_id)
        for one in facts.runs
        if one.status in RUNNING or one.stage in KEPT_STAGES or one.touched >= rules.since
    }
    found |= {Node("run", one.run_id) for one in _last_retraining(facts.runs)}
    found |= {Node("model", one.model_id) for one in facts.models if one.created >= rules.since}
    return found


def _lines(versions: Iterable[Version]) -> Iterable[list[Version]]:
    """Versions of each model; those of past data count alone, as their numbers seem new."""
    found: dict[tuple[str, bool], list[Version]] = defaultdict(list)
    for one in versions:
        found[one.name, one.is_backfilled].append(one)
    return found.values()


def _last_retraining(runs: Iterable[Run]) -> Iterator[Run]:
    """The newest entries of the journal, and the runs of the last one."""
    runs = list(runs)
    entries = [one for one in runs if one.stage == JOURNAL]
    entries.sort(key=lambda one: one.touched, reverse=True)
    yield from entries[:JOURNAL_ENTRIES]
    if entries:
        yield from (one for one in runs if one.parent == entries[0].run_id)


@dataclass
class Reach:
    """A walk from the roots to all that they need.

    Attributes:
        facts: The store.
        read: Reads records.
        nodes: What was reached so far.
        unreadable: Why a stored record could not be read, by its digest: what it descends from is
            not known.
    """

    facts: Facts
    read: Read
    nodes: set[Node] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._versions = {one.node: one for one in self.facts.versions}
        self._runs = {one.run_id: one for one in self.facts.runs}
        self._models = {one.model_id: one for one in self.facts.models}
        self._together: dict[str, list[Version]] = defaultdict(list)
        self._evidence: dict[str, list[str]] = defaultdict(list)
        self._made: dict[str, list[str]] = defaultdict(list)
        self._places: dict[str, dict[tuple[str | None, str], None]] = defaultdict(dict)
        self._records: dict[str, list[str]] = defaultdict(list)
        self._labels: dict[str, list[Node]] = defaultdict(list)
        for version in self.facts.versions:
            self._note_version(version)
        for run in self.facts.runs:
            self._note_run(run)
        for model in self.facts.models:
            self._made[model.run_id or ""].append(model.model_id)

    def _note_version(self, version: Version) -> None:
        if version.evaluation is not None:
            self._together[version.evaluation].append(version)
        if version.model_id is not None:
            self._labels[version.model_id].append(version.label)
        if version.record is not None and version.model_id is not None:
            self._places[version.record][version.model_id, version.run_id or ""] = None
            self._records[version.model_id].append(version.record)

    def _note_run(self, run: Run) -> None:
        if run.stage == EVIDENCE and run.key is not None:
            self._evidence[run.key].append(run.run_id)
        if run.record is not None:
            self._places[run.record][run.model_id, run.run_id] = None
            if run.model_id is not None:
                self._records[run.model_id].append(run.record)

    def extend(self, wanted: Iterable[Node]) -> None:
        """Reaches nodes and all that they need."""
        waiting = list(wanted)
        while waiting:
            node = waiting.pop()
            if node not in self.nodes:
                self.nodes.add(node)
                waiting += self.needs(node)

    def needs(self, node: Node) -> Iterator[Node]:
        """What a node needs, itself no more."""
        if node.kind == "version" and node in self._versions:
            yield from self._of_version(self._versions[node])
        elif node.kind == "run":
            yield from self._of_run(node.name)
        elif node.kind == "model":
            yield from self._of_model(node.name)
        elif node.kind == "record":
            yield from self._of_record(node.name)

    def _of_version(self, version: Version) -> Iterator[Node]:
        if version.run_id:
            yield Node("run", version.run_id)
        if version.model_id:
            yield Node("model", version.model_id)
        if version.record:
            yield Node("record", version.record)
        if version.evaluation:
            yield Node("record", version.evaluation)
            for other in self._together[version.evaluation]:
                yield other.node  # gates ask what the control beside it says
        yield from (Node("run", run_id) for run_id in self._evidence[version.key or ""])

    def _of_run(self, run_id: str) -> Iterator[Node]:
        yield from (Node("model", model_id) for model_id in self._made[run_id])
        run = self._runs.get(run_id)
        if run is None:
            return
        if run.record is not None:
            yield Node("record", run.record)
        if run.model_id is not None:
            yield Node("model", run.model_id)

    def _of_model(self, model_id: str) -> Iterator[Node]:
        known = self._models.get(model_id)
        if known is not None and known.run_id:
            yield Node("run", known.run_id)
        yield from (Node("record", record) for record in self._records[model_id])
        yield from self._labels[model_id]

    def _of_record(self, digest: str) -> Iterator[Node]:
        for model_id, run_id in self._places[digest]:  # all copies: each may be asked for
            yield Node("run", run_id) if model_id is None else Node("model", model_id)
        made = self._read(digest)
        if made is None:
            return
        yield from (Node("data", name) for name in made.data)
        for record, model_id in made.parents:
            if model_id is not None:
                self._places[record][model_id, ""] = None
                yield Node("model", model_id)
            yield Node("record", record)

    def _read(self, digest: str) -> Made | None:
        reason = None
        for model_id, run_id in list(self._places[digest]):
            try:
                made = self.read(digest, model_id, run_id)
            except ArtifactError as error:
                reason = str(error)
            else:
                if made is not None:
                    return made
        if reason is not None:
            self.unreadable[digest] = reason
        return None

    def keep_all_results(self) -> None:
        """Reaches whatever may be an ancestor: every result there is."""
        self.extend(Node("run", one.run_id) for one in self.facts.runs if one.record)
        self.extend(Node("model", one.model_id) for one in self.facts.models)


def unevaluated(facts: Facts, reached: set[Node]) -> tuple[Version, ...]:
    """Versions that stay as labels, and whose evaluation goes."""
    return tuple(
        one
        for one in facts.versions
        if one.label in reached
        and one.evaluation is not None
        and Node("record", one.evaluation) not in reached
    )


def garbage(facts: Facts, reached: set[Node]) -> Facts:
    """What nothing leads to."""
    return Facts(
        versions=tuple(one for one in facts.versions if reached.isdisjoint({one.node, one.label})),
        runs=tuple(one for one in facts.runs if Node("run", one.run_id) not in reached),
        models=tuple(one for one in facts.models if Node("model", one.model_id) not in reached),
    )
