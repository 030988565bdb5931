import hashlib
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError, SetupError
from tasks.lineage import store
from tasks.lineage.graph import Copy, Held, Holding, Version
from tasks.lineage.index import Index
from tasks.lineage.record import Code, Parent, Record
from tasks.refs import DataRef


def sha(word):
    return hashlib.sha256(str(word).encode()).hexdigest()


def data_of(word):
    raw, prepared = (sha((word, kind))[:32] for kind in ("raw", "prepared"))
    return DataRef(
        raw=f"{raw}.dir", prepared=f"{prepared}.dir", manifest=sha(("m", word)), content=sha(word)
    )


def record_of(salt, parents=(), data="one", commit="a" * 40):
    """Parents are records; a model's id follows from its record."""
    return Record(
        stage="distill",
        role="student",
        key=sha(("key", salt)),
        data=data_of(data),
        code=Code(digest=sha("code"), commit=commit, clean=True),
        parameters={"salt": str(salt)},
        environment={"machine": "x86_64", "packages": {"numpy": "2"}},
        parents=tuple(
            Parent(role=f"parent{at}", record=one.digest, model_id=f"m-{one.digest[:32]}")
            for at, one in enumerate(parents)
        ),
        files={},
        content=sha(("content", salt)),
        metrics={"accuracy": 0.5},
    )


def copy_of(record, run_id=None, is_model=True):
    digest = record.digest
    return Copy(
        stage=record.stage,
        role=record.role,
        run_id=run_id or digest[32:],
        model_id=f"m-{digest[:32]}" if is_model else None,
        digest=digest,
        record=record,
    )


@pytest.fixture
def index(tmp_path):
    made = Index(tmp_path / "lineage" / "index.db")
    yield made
    made.close()


def chain():
    """Two encoders; teacher and student of the first; a student of both."""
    first, second = record_of("first"), record_of("second", data="two", commit="b" * 40)
    teacher = record_of("teacher", [first])
    student = record_of("student", [teacher, first])
    both = record_of("both", [student, second])
    return first, second, teacher, student, both


def test_ancestors_and_descendants(index):
    first, second, teacher, student, both = records = chain()
    index.add(map(copy_of, records))
    graph = index.ancestors(student.digest)
    assert set(graph.artifacts) == {one.digest for one in (student, teacher, first)}
    assert set(graph.edges) == {
        (student.digest, "parent0", teacher.digest),
        (student.digest, "parent1", first.digest),
        (teacher.digest, "parent0", first.digest),
    }
    assert index.descendants([teacher.digest]) == {one.digest for one in (teacher, student, both)}
    assert index.ancestry([both.digest]) == {one.digest for one in records}
    assert index.parents([both.digest]) == {student.digest, second.digest}
    assert index.count() == 5


@settings(max_examples=40, deadline=None)
@given(
    links=st.lists(st.sets(st.integers(0, 11), max_size=4), min_size=1, max_size=12), data=st.data()
)
def test_reach_agrees_with_a_plain_walk(links, data, tmp_path_factory):
    """Item k of the list names parents of record k among those before it."""
    records = []
    for at, parents in enumerate(links):
        records.append(record_of(at, [records[one] for one in sorted(parents) if one < at]))
    index = Index(tmp_path_factory.mktemp("index") / "index.db")
    index.add(map(copy_of, records))
    start = data.draw(st.sampled_from(records)).digest
    above = {one.digest: {parent.record for parent in one.parents} for one in records}
    up, down = {start}, {start}
    for _ in records:
        up |= {parent for child in up for parent in above[child]}
        down |= {child for child, parents in above.items() if parents & down}
    assert index.ancestry([start]) == up
    assert index.descendants([start]) == down
    index.close()


def test_what_a_record_says_is_kept(index):
    first, *_ = chain()
    index.add([copy_of(first)])
    (artifact,) = index.artifacts([first.digest]).values()
    assert (artifact.state, artifact.stage, artifact.role) == ("known", "distill", "student")
    assert artifact.data == first.data
    assert artifact.metrics == first.metrics
    assert index.document(artifact.facts["parameters"]) == first.parameters
    assert index.document(artifact.facts["environment"]) == first.environment
    assert artifact.facts["code_commit"] == "a" * 40
    assert artifact.run_ids == (first.digest[32:],)
    assert artifact.model_ids == (f"m-{first.digest[:32]}",)
    assert index.data() == [first.data]


def test_one_record_may_lie_in_two_places(index):
    first, *_ = chain()
    index.add([copy_of(first), copy_of(first, run_id="again")])
    (artifact,) = index.artifacts([first.digest]).values()
    assert set(artifact.run_ids) == {first.digest[32:], "again"}
    assert index.count() == 1
    assert index.runs() == {first.digest[32:], "again"}


def test_a_parent_without_a_record_stays_as_missing(index):
    first, _, teacher, *_ = chain()
    index.add([copy_of(teacher)])
    assert index.missing() == [(first.digest, f"m-{first.digest[:32]}", "parent0")]
    graph = index.ancestors(teacher.digest)
    missing = graph.artifacts[first.digest]
    assert (missing.state, missing.role) == ("missing", "parent0")
    assert missing.data is None
    assert index.descendants([first.digest]) == {first.digest, teacher.digest}
    other = Index(index.path)
    other.add([copy_of(first)])
    other.close()
    assert index.missing() == []
    assert index.ancestors(teacher.digest).artifacts[first.digest].state == "known"


def test_an_unreadable_record_stays_with_its_reason_until_it_is_read(index):
    first, _, teacher, *_ = chain()
    bad = Copy("pretrain", "encoder", "run", "m-1", first.digest, None, "it is half written")
    index.add([bad, copy_of(teacher)])
    found = index.ancestors(teacher.digest).artifacts[first.digest]
    assert (found.state, found.reason, found.role) == ("unknown", "it is half written", "encoder")
    assert index.unreadable() == [bad]
    assert index.missing() == []
    assert "run" not in index.runs()
    index.add([copy_of(first, run_id="run")])
    assert index.unreadable() == []
    assert index.ancestors(teacher.digest).artifacts[first.digest].state == "known"


def test_seeds(index):
    first, second, teacher, student, both = records = chain()
    index.add(map(copy_of, records))
    ours = {first.digest, teacher.digest, student.digest, both.digest}
    for digest in first.data.model_dump().values():
        assert index.of_data(digest) == ours
    assert index.of_manifests([second.data.manifest]) == {second.digest}
    assert index.of_manifests([]) == set()
    assert index.of_code("b" * 40) == {second.digest}
    assert index.of_model(f"m-{teacher.digest[:32]}") == {teacher.digest}


def test_beginnings_of_digests(index):
    first, second, *_ = records = chain()
    index.add(map(copy_of, records))
    for digest in first.data.model_dump().values():
        assert index.data_digest(digest) == digest
        assert index.data_digest(digest[:8]) == digest
    assert index.record(second.digest[:10]) == second.digest
    assert index.commit("b" * 8) == "b" * 40
    assert index.commit("c" * 8) is None
    index.add([copy_of(record_of("third", commit="b" * 39 + "c"))])
    with pytest.raises(DataError, match=r"'bbbbbbbb' is ambiguous: b{40}, b{39}c; give more"):
        index.commit("b" * 8)
    assert index.commit("b" * 40) == "b" * 40
    for short in ("b" * 7, "", "%", "main-branch"):
        with pytest.raises(DataError, match="is no digest"):
            index.commit(short)


def test_versions_and_aliases_are_as_they_are_now(index):
    first, _, teacher, *_ = chain()
    index.add([copy_of(first), copy_of(teacher)])
    versions = [Version("p.edge", 1, first.digest), Version("p.edge", 2, first.digest)]
    index.register(
        [*versions, Version("q.edge", 1, "", "it was not registered by Stillmark")],
        [Holding("p.edge", 2, "champion", True), Holding("p.edge", 1, "champion", False)],
    )
    (artifact,) = index.artifacts([first.digest]).values()
    assert artifact.versions == (
        Held("p.edge", 1, (), ("champion",)),
        Held("p.edge", 2, ("champion",), ("champion",)),
    )
    assert [one.name for one in index.foreign()] == ["q.edge"]
    assert index.held("p.edge", 1) == artifact.versions[0]
    index.register(versions[1:], [])
    (artifact,) = index.artifacts([first.digest]).values()
    assert artifact.versions == (Held("p.edge", 2, (), ()),)
    assert index.foreign() == []


def reopened(index):
    index.close()
    return Index(index.path)


def test_it_is_kept_and_may_be_cleared(index):
    first, *_ = chain()
    index.add([copy_of(first)])
    index.note("seen", "5")
    again = reopened(index)
    assert (again.count(), again.noted("seen"), again.noted("other")) == (1, "5", None)
    again.clear()
    assert (again.count(), again.noted("seen")) == (0, None)
    again.close()


@pytest.mark.parametrize("damage", ["torn", "foreign", "empty", "flipped", "other schema"])
def test_a_file_that_is_not_whole_is_begun_again(index, damage, monkeypatch):
    index.add(map(copy_of, chain()))
    index.close()
    path = index.path
    content = path.read_bytes()
    if damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "foreign":
        path.write_text("this is no database, whatever its name says" * 100)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        page = 4096
        path.write_bytes(content[:page] + b"\xff" * 64 + content[page + 64 :])
    else:
        monkeypatch.setattr(store, "SCHEMA_VERSION", store.SCHEMA_VERSION + 1)
    again = Index(path)
    assert again.count() == 0
    again.add([copy_of(chain()[0])])
    assert again.count() == 1
    again.close()


def test_who_holds_the_file_is_to_end(index, monkeypatch):
    monkeypatch.setattr(store, "PATIENCE_SECONDS", 0.1)
    again = reopened(index)
    other = sqlite3.Connection(index.path)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(SetupError, match=r"index\.db cannot be used \(database is locked\)"):
            again.clear()
    finally:
        other.close()
        again.close()
    with pytest.raises(SetupError, match="cannot be used"):
        Index(index.path / "below a file" / "index.db")


def test_all_or_nothing(index):
    def copies():
        yield copy_of(chain()[0])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        index.add(copies())
    assert index.count() == 0
