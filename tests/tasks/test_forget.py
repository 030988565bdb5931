import json
import shutil
from hashlib import md5
from pathlib import Path

import pyarrow.parquet
import pytest

from tasks.errors import DataError
from tasks.forget import forget
from tasks.lineage.record import Code, Record
from tasks.refs import ModelRef
from tasks.settings import Settings
from tasks.tracking import Tracking
from tasks.versioning import Cache, Places, Versions


def manifest_of(root):
    return pyarrow.parquet.read_table(root / "prepared" / "manifest.parquet").to_pylist()


def a_training_row(root):
    return next(row for row in manifest_of(root) if row["split"] == "train")


def files_of(root):
    return {path.relative_to(root).as_posix() for path in (root / "data").rglob("*.png")}


def train(settings, data):
    """A registered model that says it was made from a data version."""
    tracking = Tracking(settings.tracking_uri, settings.home)
    record = Record(
        stage="distill",
        role="student",
        key="0" * 64,
        data=data,
        code=Code(digest="0" * 64, commit=None, clean=False),
        parameters={},
        environment={},
        parents=(),
        files={},
        content="1" * 64,
        metrics={},
    )
    folder = settings.home / "made"
    folder.mkdir(parents=True)
    record.write(folder)
    run_id = tracking.start("digits", "distill", record.key, data)
    model_id = tracking.new_model("digits", run_id, "student", record.key)
    tracking.store_model(model_id, folder)
    ref = ModelRef(
        stage="distill",
        role="student",
        key=record.key,
        run_id=run_id,
        model_id=model_id,
        record=record.digest,
        content=record.content,
    )
    tracking.finish(run_id, ref)
    tracking.set_alias(tracking.register("digits.student", ref, {}), "champion")
    return ref


@pytest.mark.slow
def test_a_row_leaves_the_data_and_what_knows_it_is_listed(untrained, monkeypatch):
    for name, value in untrained.environment.items():
        monkeypatch.setenv(name, value)
    root = untrained.root
    versions = Versions(root, root / ".stillmark")
    (source,) = (root / "data" / "1").glob("1-003.png")
    shutil.copy(source, root / "data" / "1" / "again.png")
    old = versions.add()
    settings = Settings(project=root)
    data = versions.prepare()
    ref = train(settings, data)
    (row,) = (row for row in manifest_of(root) if row["source"].startswith("1/1-003"))
    before = files_of(root)

    found = forget(settings, [row["row"][:12]])
    assert found.rows == (row["row"],)
    assert set(found.files) == {"data/1/1-003.png", "data/1/again.png"}
    assert files_of(root) == before - set(found.files)
    assert (found.before, found.after) == (old, versions.raw())
    assert found.after != old
    (copy,) = map(Path, found.copies)
    assert copy.is_file()
    (tainted,) = found.tainted.models
    assert tainted.record == ref.record
    assert tainted.versions[0].now == ("champion",)
    assert list((root / ".stillmark").glob("forget-*")) == []

    # The next preparation does not hold it, and asking again finds the models still.
    assert not versions.is_current()
    versions.prepare()
    assert row["row"] not in {row["row"] for row in manifest_of(root)}
    again = forget(settings, [row["row"]])
    assert (again.files, again.absent, again.copies) == ((), (row["row"],), ())
    assert again.after == again.before == found.after
    assert [one.record for one in again.tainted.models] == [ref.record]


@pytest.fixture
def project(bench, raw, monkeypatch):
    """Prepared data beside its raw files; DVC says that all is as it was."""
    shutil.copytree(raw, bench.root / "data")
    monkeypatch.setattr(Versions, "is_current", lambda self: True)
    monkeypatch.setattr(Versions, "raw", lambda self: "raw.dir")
    return bench.root


def test_files_of_their_own_are_removed_and_copies_named(project, bench, toy, monkeypatch):
    model = toy.make(bench)
    row, other = [row for row in manifest_of(project) if row["split"] == "train"][:2]
    content = (project / "data" / row["source"]).read_bytes()
    (project / "data" / "0" / "twin.png").write_bytes(content)
    report = project / "prepared" / "report.json"
    said = json.loads(report.read_text())
    report.write_text(json.dumps(said | {"duplicates": [f"0/twin.png = {row['source']}"]}))
    cache = project / "cache"
    digest = md5(content, usedforsecurity=False).hexdigest()
    kept = cache / "files" / "md5" / digest[:2] / digest[2:]
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    monkeypatch.setattr(Cache, "places", Places(cache, None, None))
    monkeypatch.setattr(Versions, "add", lambda self: "new.dir")
    before = files_of(project)
    found = forget(Settings(), [row["row"]])
    assert before - files_of(project) == {f"data/{row['source']}", "data/0/twin.png"}
    assert set(found.files) == before - files_of(project)
    assert found.copies == (str(kept),)
    assert [one.record for one in found.tainted.models] == [model.record]
    assert other["row"] not in found.rows


def test_what_dvc_refuses_removes_nothing(project, monkeypatch):
    def refuse(self):
        assert len(files_of(project)) == count - 2
        raise DataError("the disk is full")

    before = {name: (project / name).read_bytes() for name in files_of(project)}
    count = len(before)
    monkeypatch.setattr(Versions, "add", refuse)
    rows = [row["row"] for row in manifest_of(project)[:2]]
    with pytest.raises(DataError, match="the disk is full"):
        forget(Settings(), rows)
    assert {name: (project / name).read_bytes() for name in files_of(project)} == before


def test_data_that_changed_since_is_left_alone(project, monkeypatch):
    monkeypatch.setattr(Versions, "is_current", lambda self: False)
    before = files_of(project)
    with pytest.raises(DataError, match="has changed since the rows were prepared"):
        forget(Settings(), [a_training_row(project)["row"]])
    assert files_of(project) == before


@pytest.fixture
def tables(project, monkeypatch):
    """The first three rows lie in two tables, says the manifest; gives their digests."""
    (project / "data" / "rows.csv").write_text("text,label\nfirst,1\nsecond,2\nthird,3\n")
    (project / "data" / "only.csv").write_text("text,label\nalone,1\n")
    path = project / "prepared" / "manifest.parquet"
    table = pyarrow.parquet.read_table(path)
    rows = table.to_pylist()
    for row, source in zip(rows, ["rows.csv#0", "rows.csv#2", "only.csv#0"], strict=False):
        row["source"] = source
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, table.schema), path)
    monkeypatch.setattr(Cache, "places", Places(project / "cache", None, None))
    monkeypatch.setattr(Versions, "add", lambda self: "new.dir")
    return [row["row"] for row in rows[:3]]


def test_rows_of_a_table_leave_it_and_the_others_stay(project, tables):
    found = forget(Settings(), tables)
    assert found.files == ("data/only.csv", "data/rows.csv")
    assert (project / "data" / "rows.csv").read_text() == "text,label\nsecond,2\n"
    assert not (project / "data" / "only.csv").exists()


def test_a_table_that_dvc_refuses_is_as_it_was(project, tables, monkeypatch):
    def refuse(self):
        raise DataError("the disk is full")

    before = (project / "data" / "rows.csv").read_bytes()
    monkeypatch.setattr(Versions, "add", refuse)
    with pytest.raises(DataError, match="the disk is full"):
        forget(Settings(), tables)
    assert (project / "data" / "rows.csv").read_bytes() == before
    assert (project / "data" / "only.csv").exists()


def test_a_row_of_a_file_that_is_gone_is_refused_with_all_asked_beside_it(project, tables):
    (project / "data" / "only.csv").unlink()
    before = files_of(project), (project / "data" / "rows.csv").read_bytes()
    with pytest.raises(DataError, match=r"data/only\.csv#0, where nothing is that can be taken"):
        forget(Settings(), tables)
    assert (files_of(project), (project / "data" / "rows.csv").read_bytes()) == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("00000000", "0 rows of today's data start with '00000000'"),
        ("cat.png", "'cat.png' is no row's digest"),
        (f"{'0' * 32}.dir", "is no row's digest"),
    ],
)
def test_a_row_that_is_not_known_is_one_line(project, row, message):
    with pytest.raises(DataError, match=message):
        forget(Settings(), [row])


def test_a_report_of_other_rows_is_not_believed(project):
    report = project / "prepared" / "report.json"
    said = json.loads(report.read_text())
    report.write_text(json.dumps(said | {"duplicates": ["a.png = gone.png"]}))
    with pytest.raises(DataError, match="names no row of the manifest"):
        forget(Settings(), [a_training_row(project)["row"]])
    shutil.rmtree(project / "prepared")
    with pytest.raises(DataError, match="has not been prepared"):
        forget(Settings(), ["0" * 64])
