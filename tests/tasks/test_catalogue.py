import json
import shutil
import subprocess
import sys
from functools import partial
from hashlib import md5

import pytest

from tasks.catalogue import Catalogue
from tasks.errors import DataError
from tasks.lineage.digests import digest_of_file
from tasks.lineage.graph import Held
from tasks.refs import DataRef
from tasks.settings import Settings
from tasks.stage import Run
from tasks.succession import Succession
from tasks.tracking import CONTENT_TAG, RECORD_TAG, REF_TAG, Tracking

NAME = "digits.edge"


@pytest.fixture
def catalogue(bench):
    with Catalogue.of(Settings()) as made:
        yield made


@pytest.fixture
def reads(monkeypatch):
    """Digests of the records that were fetched."""
    seen, read = [], Tracking.read_record

    def spy(self, model_id, run_id, digest):
        seen.append(digest)
        return read(self, model_id, run_id, digest)

    monkeypatch.setattr(Tracking, "read_record", spy)
    return seen


def records_of(catalogue):
    found = catalogue.index.digests()
    return {digest: one.state for digest, one in catalogue.index.artifacts(found).items()}


def test_every_stored_record_is_read_once(bench, toy, catalogue, reads):
    teacher = toy.make(bench, "good")
    student = toy.make(bench, "fair", teacher=teacher)
    edge = toy.make(bench, "lazy", student=student, control=teacher)
    said = []
    assert catalogue.rebuild(said.append) == 3
    assert said == [1, 2, 3]
    assert records_of(catalogue) == dict.fromkeys(
        (teacher.record, student.record, edge.record), "known"
    )
    graph = catalogue.index.ancestors(edge.record)
    assert set(graph.edges) == {
        (edge.record, "student", student.record),
        (edge.record, "control", teacher.record),
        (student.record, "teacher", teacher.record),
    }
    assert graph.artifacts[edge.record].data == bench.run.data
    reads.clear()
    assert catalogue.refresh() == 0
    assert reads == []
    another = toy.make(bench, "good", 1)
    assert catalogue.refresh() == 1
    assert reads == [another.record]


def test_no_page_of_mlflows_is_left_out(bench, toy, catalogue, monkeypatch):
    for salt in range(3):
        version = bench.tracking.register(f"digits.edge{salt}", toy.make(bench, "good", salt), {})
        bench.tracking.set_alias(version, "champion")
    client = catalogue.tracking.client
    for name in ("runs", "model_versions", "registered_models", "experiments"):
        search = getattr(client, f"search_{name}")
        monkeypatch.setattr(client, f"search_{name}", partial(search, max_results=1))
    assert catalogue.rebuild() == 3
    found = catalogue.index.artifacts(catalogue.index.digests()).values()
    assert sorted(one.versions[0].name for one in found) == [
        "digits.edge0",
        "digits.edge1",
        "digits.edge2",
    ]
    assert {one.versions[0].now for one in found} == {("champion",)}


def test_it_is_made_again_from_mlflow_alone(bench, toy, catalogue):
    teacher = toy.make(bench)
    toy.make(bench, "fair", teacher=teacher)
    bench.tracking.register(NAME, teacher, {})
    catalogue.refresh()
    before = records_of(catalogue)
    catalogue.close()
    shutil.rmtree(bench.root / ".stillmark" / "lineage")
    shutil.rmtree(bench.root / "prepared")
    with Catalogue.of(Settings()) as again:
        assert again.refresh() == 2
        assert records_of(again) == before
        (version,) = again.index.artifacts([teacher.record])[teacher.record].versions
        assert version == Held(NAME, 1, (), ())
        assert again.rebuild() == 2


def test_a_reading_that_was_cut_off_is_completed(bench, toy, catalogue, monkeypatch):
    refs = [toy.make(bench, "good", salt) for salt in range(3)]
    read = Tracking.read_record

    def killed(self, model_id, run_id, digest):
        if digest == refs[1].record:
            raise KeyboardInterrupt
        return read(self, model_id, run_id, digest)

    monkeypatch.setattr(Tracking, "read_record", killed)
    monkeypatch.setattr("tasks.catalogue.COPIES_PER_WRITE", 1)
    with pytest.raises(KeyboardInterrupt):
        catalogue.rebuild()
    assert catalogue.index.count() == 1
    monkeypatch.setattr(Tracking, "read_record", read)
    assert catalogue.refresh() == 2


@pytest.mark.parametrize("damage", ["missing", "torn", "flipped", "newer"])
def test_a_record_that_cannot_be_read_is_unknown_until_it_is_mended(bench, toy, catalogue, damage):
    teacher = toy.make(bench)
    student = toy.make(bench, "fair", teacher=teacher)
    path = bench.files(teacher) / "record.json"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(content[:100])
    elif damage == "flipped":
        path.write_bytes(content.replace(b'"role":"edge"', b'"role":"edgy"'))
    else:
        path.write_bytes(content.replace(b"stillmark-record/1", b"stillmark-record/9"))
    assert catalogue.rebuild() == 1
    assert records_of(catalogue) == {teacher.record: "unknown", student.record: "known"}
    (copy,) = catalogue.index.unreadable()
    assert (copy.model_id, copy.run_id, copy.role) == (teacher.model_id, teacher.run_id, "edge")
    assert f"the record of {teacher.model_id}" in copy.reason
    assert len(copy.reason.splitlines()) == 1
    path.write_bytes(content)
    assert catalogue.refresh() == 1
    assert set(records_of(catalogue).values()) == {"known"}


@pytest.mark.parametrize("tag", [REF_TAG, RECORD_TAG])
def test_an_edited_tag_is_unknown_with_its_reason(bench, toy, catalogue, tag):
    teacher = toy.make(bench)
    other = toy.make(bench, "good", 1)
    value = {REF_TAG: other.model_dump_json(), RECORD_TAG: other.record}[tag]
    bench.tracking.client.set_tag(teacher.run_id, tag, value)
    catalogue.rebuild()
    (copy,) = catalogue.index.unreadable()
    assert copy.run_id == teacher.run_id
    assert "one was changed" in copy.reason
    bench.tracking.client.set_tag(teacher.run_id, REF_TAG, "{")
    catalogue.rebuild()
    (copy,) = catalogue.index.unreadable()
    assert "is no reference" in copy.reason


def test_a_parent_whose_run_says_nothing_is_read_through_its_child(bench, toy, catalogue):
    first = toy.make(bench)
    second = toy.make(bench, "good", 1, teacher=first)
    third = toy.make(bench, "good", 2, teacher=second)
    for ref in (first, second):
        for tag in (REF_TAG, RECORD_TAG, CONTENT_TAG):
            bench.tracking.client.delete_tag(ref.run_id, tag)
    assert catalogue.rebuild() == 3
    assert catalogue.index.ancestry([third.record]) == {first.record, second.record, third.record}
    assert catalogue.index.missing() == []


def test_a_parent_that_is_gone_is_missing(bench, toy, catalogue):
    first = toy.make(bench)
    second = toy.make(bench, "good", 1, teacher=first)
    for tag in (REF_TAG, RECORD_TAG, CONTENT_TAG):
        bench.tracking.client.delete_tag(first.run_id, tag)
    shutil.rmtree(bench.files(first))
    assert catalogue.rebuild() == 1
    assert catalogue.index.missing() == [(first.record, first.model_id, "teacher")]
    assert catalogue.index.ancestors(second.record).artifacts[first.record].state == "missing"


def test_a_deleted_run_still_counts(bench, toy, catalogue):
    ref = toy.make(bench)
    bench.tracking.client.delete_run(ref.run_id)
    assert catalogue.rebuild() == 1


def test_a_model_that_only_its_version_names_is_read(bench, toy, catalogue):
    ref = toy.make(bench)
    bench.tracking.register(NAME, ref, {})
    for tag in (REF_TAG, RECORD_TAG, CONTENT_TAG):
        bench.tracking.client.delete_tag(ref.run_id, tag)
    assert catalogue.rebuild() == 1
    (artifact,) = catalogue.index.artifacts([ref.record]).values()
    assert (artifact.state, artifact.versions) == ("known", (Held(NAME, 1, (), ()),))


def test_versions_that_name_no_record_are_kept(bench, toy, catalogue):
    client = bench.tracking.client
    client.create_registered_model("foreign.model")
    client.create_model_version("foreign.model", source=str(bench.root))
    version = bench.tracking.register(NAME, toy.make(bench), {})
    bench.tracking.tag_version(version, {RECORD_TAG: "0" * 64})
    catalogue.rebuild()
    own, foreign = catalogue.index.foreign()
    assert (foreign.name, foreign.digest) == ("foreign.model", "")
    assert "not registered by Stillmark" in foreign.reason
    assert (own.name, own.digest) == (NAME, "0" * 64)
    assert "one was changed" in own.reason


@pytest.fixture
def promoted(bench, toy):
    """Two versions: the first was champion, the second is."""
    succession = Succession.of(Settings())
    versions = [bench.tracking.register(NAME, toy.make(bench, "good", at), {}) for at in (1, 2)]
    for version in versions:
        succession.install(succession.intend(version, "promoted", "a test"), version)
    bench.tracking.set_alias(versions[0], "shadow")
    return versions


def held(catalogue, version):
    (found,) = catalogue.index.artifacts([version.model.record])[version.model.record].versions
    return found.now, found.ever


def test_aliases_now_and_ever(promoted, catalogue):
    catalogue.rebuild()
    first, second = promoted
    assert held(catalogue, first) == (("shadow",), ("champion", "shadow"))
    assert held(catalogue, second) == (("champion",), ("champion",))


def test_witnesses_remember_what_a_lost_ledger_said(bench, promoted):
    (bench.root / "ledger.db").unlink()
    with Catalogue.of(Settings()) as catalogue:
        catalogue.rebuild()
        assert held(catalogue, promoted[0]) == (("shadow",), ("champion", "shadow"))


def test_the_ledger_remembers_a_version_that_was_deleted(bench, promoted, catalogue):
    bench.tracking.client.delete_model_version(NAME, "1")
    catalogue.rebuild()
    assert held(catalogue, promoted[0]) == ((), ("champion",))


def test_todays_manifest_is_read_where_it_lies_and_then_kept(bench, toy, catalogue):
    toy.make(bench)
    catalogue.rebuild()
    ((manifest, rows),) = catalogue.manifests()
    assert manifest == bench.run.data.manifest
    assert len(rows) == 270
    shutil.rmtree(bench.root / "prepared")
    ((_, rows),) = catalogue.manifests()
    assert len(rows) == 270


def test_a_manifest_that_is_nowhere_is_named(bench, toy, catalogue):
    toy.make(bench)
    catalogue.rebuild()
    shutil.rmtree(bench.root / "prepared")
    ((_, reason),) = catalogue.manifests()
    assert isinstance(reason, str)
    assert reason


def test_an_old_manifest_comes_from_dvcs_cache(bench, toy, catalogue, monkeypatch):
    """Laid out as DVC does; the listing names files by their md5."""
    dvc = [sys.executable, "-m", "dvc", "--cd", str(bench.root), "init", "--no-scm", "-q"]
    subprocess.run(dvc, check=True)
    cache = bench.root / ".dvc" / "cache" / "files" / "md5"

    def keep(content, suffix=""):
        digest = md5(content, usedforsecurity=False).hexdigest()
        place = cache / digest[:2] / f"{digest[2:]}{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return f"{digest}{suffix}"

    manifest = bench.root / "prepared" / "manifest.parquet"
    file = keep(manifest.read_bytes())
    listing = json.dumps([{"md5": file, "relpath": "manifest.parquet"}]).encode()
    content = bench.run.data.content
    raw = bench.run.data.raw
    data = DataRef(
        raw=raw,
        prepared=keep(listing, ".dir"),
        manifest=digest_of_file(manifest).sha256,
        content=content,
    )
    toy.stage._run(Run(bench.run.project, bench.run.compute, data), toy.section(quality="good"))
    shutil.rmtree(bench.root / "prepared")
    catalogue.rebuild()
    ((_, rows),) = catalogue.manifests()
    assert len(rows) == 270
    # Cut to other bytes, it is not believed.
    catalogue.row_sets.clear()
    (cache / file[:2] / file[2:]).write_bytes(b"no manifest")
    ((_, reason),) = catalogue.manifests()
    assert f"recorded {data.manifest}" in reason


def test_rows_of_a_file(bench, catalogue):
    (row,) = catalogue.rows_of_file("0/0-000.png")
    report = bench.root / "prepared" / "report.json"
    said = json.loads(report.read_text())
    said["duplicates"] = ["copies/x.png = 0/0-000.png"]
    report.write_text(json.dumps(said))
    assert catalogue.rows_of_file("copies/x.png") == [row]
    assert catalogue.rows_of_file("copies") == [row]
    assert len(catalogue.rows_of_file("")) == 270
    with pytest.raises(DataError, match=r"no row of today's data comes from data/0/none\.png"):
        catalogue.rows_of_file("0/none.png")
    shutil.rmtree(bench.root / "prepared")
    with pytest.raises(DataError, match="has not been prepared"):
        catalogue.rows_of_file("0/0-000.png")
