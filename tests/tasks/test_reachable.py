"""Reachability against networkx, which knows nothing of stores, on random lineage graphs."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import ArtifactError
from tasks.reachable import (
    Facts,
    Made,
    Model,
    Node,
    Reach,
    Rules,
    Run,
    Version,
    garbage,
    roots,
    unevaluated,
    version_node,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def on(day):
    return START + timedelta(days=day)


@dataclass(frozen=True)
class Result:
    """A model or report that a stage made, on a day, from earlier ones and a data version."""

    parents: tuple
    is_report: bool
    data: int
    day: int
    journal: int | None


@dataclass(frozen=True)
class Registered:
    name: int
    result: int
    evaluation: int | None
    day: int
    is_held: bool
    is_ours: bool
    is_backfilled: bool


@dataclass(frozen=True)
class Other:
    """A run that made nothing: evidence, an entry of the journal, or one that died."""

    stage: str
    day: int
    status: str
    about: int | None


@dataclass(frozen=True)
class World:
    results: tuple
    registered: tuple
    others: tuple
    ledger: frozenset
    keep_last: int
    since: int


@st.composite
def worlds(draw):
    days = st.integers(0, 20)
    results = []
    for at in range(draw(st.integers(1, 9))):
        models = [number for number in range(at) if not results[number].is_report]
        parents = draw(st.sets(st.sampled_from(models), max_size=3)) if models else set()
        results.append(
            Result(
                tuple(sorted(parents)),
                draw(st.booleans()),
                draw(st.integers(0, 3)),
                draw(days),
                draw(st.none() | st.integers(0, 1)),
            )
        )
    models = [at for at, one in enumerate(results) if not one.is_report]
    reports = [at for at, one in enumerate(results) if one.is_report] or [None]
    registered = tuple(
        Registered(
            draw(st.integers(0, 2)),
            draw(st.sampled_from(models)),
            draw(st.sampled_from(reports)),
            draw(days),
            draw(st.integers(0, 5)) == 0,
            draw(st.integers(0, 5)) > 0,
            draw(st.booleans()),
        )
        for _ in range(draw(st.integers(0, 6)) if models else 0)
    )
    others = tuple(
        Other(
            draw(st.sampled_from(["promote", "retrain", "teach", "forget", "verify"])),
            draw(days),
            draw(st.sampled_from(["FINISHED", "FAILED", "KILLED", "RUNNING"])),
            draw(st.none() | st.sampled_from(range(len(results)))),
        )
        for _ in range(draw(st.integers(0, 5)))
    )
    ledger = draw(st.frozensets(st.integers(0, 6), max_size=2))
    keep_last, since = draw(st.integers(1, 3)), draw(st.integers(0, 22))
    return World(tuple(results), registered, others, ledger, keep_last, since)


def facts_of(world):
    """The world as a store shows it."""
    runs = [
        Run(
            f"run-{at}",
            "stage",
            "FINISHED",
            on(one.day),
            record=f"record-{at}",
            model_id=None if one.is_report else f"m-{at}",
            key=f"key-{at}",
            parent=None if one.journal is None else f"other-{one.journal}",
        )
        for at, one in enumerate(world.results)
    ]
    runs += [
        Run(f"other-{at}", one.stage, one.status, on(one.day), key=f"key-{one.about}")
        for at, one in enumerate(world.others)
    ]
    models = [
        Model(f"m-{at}", f"run-{at}", on(one.day))
        for at, one in enumerate(world.results)
        if not one.is_report
    ]
    versions = [
        Version(
            f"p.{one.name}",
            at,
            on(one.day),
            run_id=f"run-{one.result}",
            model_id=f"m-{one.result}",
            record=f"record-{one.result}",
            evaluation=None if one.evaluation is None else f"record-{one.evaluation}",
            key=f"key-{one.result}",
            is_ours=one.is_ours,
            is_held=one.is_held,
            is_backfilled=one.is_backfilled,
        )
        for at, one in enumerate(world.registered)
    ]
    return Facts(tuple(versions), tuple(runs), tuple(models))


def read_from(world):
    def read(digest, model_id, run_id):
        one = world.results[int(digest.partition("-")[2])]
        parents = tuple((f"record-{at}", f"m-{at}") for at in one.parents)
        return Made(parents, (f"data-{one.data}",))

    return read


def expected(world):
    """What is kept, by networkx, as names: v0 …, r0 … (a result), o0 … (another run), d0 …"""
    edges = [*edges_of(world), *(("root", name) for name in roots_of(world))]
    return networkx.descendants(networkx.DiGraph([("root", "root"), *edges]), "root")


def edges_of(world):
    for at, one in enumerate(world.results):
        yield f"r{at}", f"d{one.data}"
        yield from ((f"r{at}", f"r{parent}") for parent in one.parents)
    for at, one in enumerate(world.registered):
        yield f"v{at}", f"r{one.result}"
        yield f"r{one.result}", f"label{at}"
        if one.evaluation is not None:
            yield f"v{at}", f"r{one.evaluation}"
        for beside, other in enumerate(world.registered):
            if one.evaluation is not None and other.evaluation == one.evaluation:
                yield f"v{at}", f"v{beside}"
        for number, other in enumerate(world.others):
            if other.stage == "promote" and other.about == one.result:
                yield f"v{at}", f"o{number}"


def roots_of(world):
    yield from (f"v{at}" for at in world.ledger if at < len(world.registered))
    for at, one in enumerate(world.registered):
        newer = sum(
            (other.name, other.is_backfilled) == (one.name, one.is_backfilled)
            for other in world.registered[at + 1 :]
        )
        if one.is_held or not one.is_ours or newer < world.keep_last or one.day >= world.since:
            yield f"v{at}"
    for at, one in enumerate(world.others):
        is_kept = one.status == "RUNNING" or one.stage in {"forget", "retrain"}
        if is_kept or one.day >= world.since:
            yield f"o{at}"
    days = {at: one.day for at, one in enumerate(world.others) if one.stage == "retrain"}
    last = max(days, key=lambda at: days[at], default=-1)
    for at, one in enumerate(world.results):
        if one.day >= world.since or one.journal == last:
            yield f"r{at}"


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_just_what_is_reachable_is_kept(world):
    facts = facts_of(world)
    reach = Reach(facts, read_from(world))
    reach.extend(roots(facts, Rules(world.keep_last, on(world.since))))
    reach.extend(facts.versions[at].node for at in world.ledger if at < len(world.registered))
    gone, kept = garbage(facts, reach.nodes), expected(world)
    assert {one.number for one in gone.versions} == {
        at for at in range(len(world.registered)) if kept.isdisjoint({f"v{at}", f"label{at}"})
    }
    assert {one.number for one in unevaluated(facts, reach.nodes)} == {
        at
        for at, one in enumerate(world.registered)
        if f"label{at}" in kept and one.evaluation is not None and f"r{one.evaluation}" not in kept
    }
    assert {one.run_id for one in gone.runs} == {
        *(f"run-{at}" for at in range(len(world.results)) if f"r{at}" not in kept),
        *(f"other-{at}" for at in range(len(world.others)) if f"o{at}" not in kept),
    }
    assert {one.model_id for one in gone.models} == {
        f"m-{at}"
        for at, one in enumerate(world.results)
        if f"r{at}" not in kept and not one.is_report
    }
    data = {node.name for node in reach.nodes if node.kind == "data"}
    assert data == {f"data-{one.data}" for one in world.results if f"d{one.data}" in kept}


def line(*days, held=()):
    """Models that each descend from the one before, all registered under one name."""
    runs, models, versions = [], [], []
    for at, day in enumerate(days):
        record, model = f"record-{at}", f"m-{at}"
        runs.append(Run(f"run-{at}", "stage", "FINISHED", on(day), record=record, model_id=model))
        models.append(Model(model, f"run-{at}", on(day)))
        versions.append(
            Version("p.edge", at, on(day), f"run-{at}", model, record, is_held=at in held)
        )
    return Facts(tuple(versions), tuple(runs), tuple(models))


def alone_from(broken=()):
    def read(digest, model_id, run_id):
        if digest in broken:
            raise ArtifactError(f"{digest} was cut")
        return Made((), ())

    return read


def test_a_record_that_cannot_be_read_keeps_every_result():
    facts = line(1, 2, 3)
    reach = Reach(facts, alone_from({"record-2"}))
    reach.extend(roots(facts, Rules(1, on(10))))
    assert reach.unreadable == {"record-2": "record-2 was cut"}
    assert {one.number for one in garbage(facts, reach.nodes).versions} == {0, 1}
    reach.keep_all_results()
    gone = garbage(facts, reach.nodes)
    assert gone.runs == gone.models == ()


def test_a_copy_that_can_be_read_is_enough():
    facts = line(1)
    twin = Run("run-9", "stage", "FINISHED", on(1), record="record-0", model_id="m-9")
    facts = Facts(facts.versions, (*facts.runs, twin), facts.models)

    def read(digest, model_id, run_id):
        if model_id == "m-0":
            raise ArtifactError("cut")
        return Made((), ("data",))

    reach = Reach(facts, read)
    reach.extend([version_node("p.edge", 0)])
    assert reach.unreadable == {}
    assert Node("data", "data") in reach.nodes


def test_a_record_of_which_nothing_is_stored_leads_nowhere():
    reach = Reach(Facts(), lambda digest, model_id, run_id: pytest.fail("nothing to read"))
    reach.extend([Node("record", "gone"), version_node("p.edge", 4)])
    assert reach.unreadable == {}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_versions_stay(keep):
    facts = line(1, 2, 3, held={0})
    reach = Reach(facts, alone_from())
    reach.extend(roots(facts, Rules(keep, on(10))))
    kept = {one.number for one in facts.versions if one.node in reach.nodes}
    assert kept == {0, *range(3 - keep, 3)}
