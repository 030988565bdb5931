import re
import shutil

import pyarrow.parquet
import pytest

from tasks.catalogue import Catalogue
from tasks.errors import DataError, ParamsError, RegistryError
from tasks.impact import impact, lines
from tasks.lineage.digests import digest_of_file, digest_of_files, digests_of_folder
from tasks.lineage.origin import code
from tasks.refs import DataRef
from tasks.sections import Section
from tasks.settings import Settings
from tasks.stage import Run, stage
from tasks.succession import Succession

NAME = "digits.edge"


class Nothing(Section):
    pass


@pytest.fixture
def catalogue(bench):
    with Catalogue.of(Settings()) as made:
        yield made


@pytest.fixture
def report():
    """A stage that judges models and writes no model."""

    def evaluation(work, params, **inputs):
        (work.folder / "report.json").write_text("{}")
        return {"accuracy": 1.0}

    made = stage("evaluation", is_model=False)(evaluation)
    return lambda bench, **inputs: made._run(bench.run, Nothing(), **inputs)


@pytest.fixture
def family(bench, toy, report):
    """Teacher → student → edge, judged; and a model that nobody made anything of."""
    teacher = toy.make(bench, "good", 1)
    student = toy.make(bench, "good", 2, teacher=teacher)
    edge = toy.make(bench, "good", 3, student=student)
    judged = report(bench, edge=edge)
    alone = toy.make(bench, "lazy", 4)
    return teacher, student, edge, judged, alone


def records(found):
    return {one.record for one in found}


def refs(*found):
    return {one.record for one in found}


def row_of(bench, split, manifest="prepared/manifest.parquet"):
    table = pyarrow.parquet.read_table(bench.root / manifest).to_pylist()
    return next(row for row in table if row["split"] == split)


def test_all_that_descends_from_a_model(bench, family, catalogue):
    teacher, student, edge, judged, _ = family
    version = bench.tracking.register("digits.teacher", teacher, {})
    for asked in (version, teacher.record, teacher.record[:8], teacher.model_id):
        found = impact(catalogue, model=asked)
        assert records(found.models) == refs(teacher, student, edge)
        assert {one.record: one.how for one in found.models} == {
            teacher.record: "itself",
            student.record: "through its ancestors",
            edge.record: "through its ancestors",
        }
        assert records(found.reports) == refs(judged)
        assert (found.judged, found.unknown, found.rows) == ((), (), ())
    assert records(impact(catalogue, model=edge.record).models) == refs(edge)


def test_versions_with_aliases_now_and_ever(bench, family, catalogue):
    teacher, student, edge, *_ = family
    succession = Succession.of(Settings())
    versions = [bench.tracking.register(NAME, one, {}) for one in (student, edge)]
    for version in versions:
        succession.install(succession.intend(version, "promoted", "a test"), version)
    found = impact(catalogue, model=teacher.model_id)
    by_record = {one.record: one.versions for one in found.models}
    assert by_record[teacher.record] == ()
    (old,), (new,) = by_record[student.record], by_record[edge.record]
    assert (old.name, old.version, old.now, old.ever) == (NAME, 1, (), ("champion",))
    assert (new.now, new.ever) == (("champion",), ("champion",))
    assert found.holders == (new,)
    said = "\n".join(lines(found))
    assert f"{NAME} version 1 (was @champion)" in said
    assert f"{NAME} version 2 @champion" in said


def test_all_that_was_made_by_a_commit(family, catalogue):
    commit = code().commit
    if commit is None:
        pytest.skip("outside git there is no commit")
    found = impact(catalogue, code=commit[:10])
    assert records(found.models) == refs(*(one for one in family if one.model_id))
    assert {one.how for one in found.models} == {"directly"}
    with pytest.raises(DataError, match="no record names a commit that starts with '00000000'"):
        impact(catalogue, code="00000000")


@pytest.fixture
def elsewhere(bench, toy, family, tmp_path):
    """The family on data of its own, and another model on data without the first training row.

    The test rows of the first data are training rows there.
    """
    path = bench.root / "prepared" / "manifest.parquet"
    table = pyarrow.parquet.read_table(path)
    kept = [row for row in table.to_pylist() if row != row_of(bench, "train")]
    swapped = {"test": "train", "train": "test", "validation": "validation"}
    kept = [row | {"split": swapped[row["split"]]} for row in kept]
    shutil.copy(path, tmp_path / "first.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(kept, table.schema), path)
    data = DataRef(
        raw="other.dir",
        prepared="other prepared.dir",
        manifest=digest_of_file(path).sha256,
        content=digest_of_files(digests_of_folder(path.parent)),
    )
    run = Run(bench.run.project, bench.run.compute, data)
    other = toy.stage._run(run, toy.section(quality="good", salt=9))
    return other, tmp_path / "first.parquet", path


@pytest.fixture
def both(catalogue, elsewhere):
    """Rows of both data versions are known."""
    _, first, second = elsewhere
    kept = second.read_bytes()
    catalogue.refresh()
    shutil.copy(first, second)
    list(catalogue.manifests())
    second.write_bytes(kept)
    list(catalogue.manifests())


def test_all_that_was_trained_on_a_data_version(bench, family, elsewhere, catalogue):
    other, *_ = elsewhere
    for digest in bench.run.data.model_dump().values():
        found = impact(catalogue, data=digest)
        assert records(found.models) == refs(*(one for one in family if one.model_id))
        assert records(found.reports) == refs(family[3])
    assert records(impact(catalogue, data="other.dir").models) == refs(other)


def test_a_row_and_how_it_was_used(bench, family, elsewhere, both, catalogue):
    teacher, student, edge, judged, alone = family
    other, first, _ = elsewhere
    makers = refs(teacher, student, edge, alone)

    gone = row_of(bench, "train", first)["row"]
    found = impact(catalogue, row=gone)
    assert records(found.models) == makers
    assert {one.how for one in found.models} == {"trained on"}
    assert found.rows == (gone,)
    assert (found.judged, found.unknown) == ((), ())
    assert records(found.reports) == refs(judged)
    assert impact(catalogue, data=gone) == found
    assert impact(catalogue, data=gone[:16]) == found

    tested = row_of(bench, "test", first)["row"]
    found = impact(catalogue, row=tested)
    assert records(found.models) == refs(other)
    assert records(found.judged) == refs(edge)
    assert {one.how for one in found.judged} == {"judged on"}
    assert records(found.reports) == refs(judged)

    chosen = row_of(bench, "validation", first)["row"]
    found = impact(catalogue, row=chosen)
    assert records(found.models) == makers | refs(other)
    assert {one.how for one in found.models} == {"chosen by"}


def test_descendants_of_what_was_trained_on_a_row(bench, toy, family, elsewhere, both, catalogue):
    """Data without the row does not clean a model whose teacher saw it."""
    other, first, _ = elsewhere
    run = Run(
        bench.run.project,
        bench.run.compute,
        bench.tracking.record_of(other.model_id, other.record).data,
    )
    child = toy.stage._run(run, toy.section(quality="good", salt=10), teacher=family[0])
    gone = row_of(bench, "train", first)["row"]
    how = {one.record: one.how for one in impact(catalogue, row=gone).models}
    assert how[child.record] == "through its ancestors"
    assert other.record not in how


def test_a_file_is_its_rows(bench, family, catalogue, raw):
    shutil.copytree(raw, bench.root / "data")
    row = row_of(bench, "train")
    found = impact(catalogue, data=f"data/{row['source']}")
    assert found.rows == (row["row"],)
    assert found.asked == f"data/{row['source']}"
    assert impact(catalogue, data=row["source"]) == found
    assert impact(catalogue, data=str(bench.root / "data" / row["source"])) == found
    assert records(found.models) == refs(*(one for one in family if one.model_id))
    folder = impact(catalogue, data="data/0")
    assert len(folder.rows) == 60
    assert {one.how for one in folder.models} == {"trained on, chosen by"}
    assert folder.judged == ()
    shutil.rmtree(bench.root / "data")
    assert impact(catalogue, data=row["source"]) == found
    for wrong in ("data/none.png", "main"):
        with pytest.raises(DataError, match="no row of today's data comes from data/"):
            impact(catalogue, data=wrong)
    with pytest.raises(DataError, match="does not lie in"):
        impact(catalogue, data="../../../elsewhere.png")


def test_a_manifest_that_cannot_be_read_makes_its_models_unknown(bench, family, catalogue):
    teacher, *_ = family
    version = bench.tracking.register(NAME, teacher, {})
    bench.tracking.set_alias(version, "champion")
    row = row_of(bench, "train")["row"]
    shutil.rmtree(bench.root / "prepared")
    found = impact(catalogue, row=row)
    assert found.models == ()
    assert records(found.unknown) == refs(*family)
    assert all("the rows of its data cannot be read: " in one.reason for one in found.unknown)
    (touched,) = (one for one in found.unknown if one.record == teacher.record)
    assert [one.now for one in touched.versions] == [("champion",)]
    with pytest.raises(DataError, match=r"1 row manifests cannot be read; give the whole"):
        impact(catalogue, row=row[:8])
    # The version itself is known, with or without its rows.
    assert impact(catalogue, data=bench.run.data.manifest).unknown == ()


def test_a_record_that_cannot_be_read_is_unknown_and_so_is_what_descends_from_it(
    bench, toy, family, catalogue
):
    teacher, student, edge, judged, alone = family
    (bench.files(student) / "record.json").write_text("{")
    found = impact(catalogue, model=alone.record)
    assert records(found.models) == refs(alone)
    unknown = {one.record: one.reason for one in found.unknown}
    assert unknown.keys() == refs(student, edge, judged)
    assert unknown[student.record].startswith("its record cannot be read: the record of m-")
    assert unknown[edge.record].startswith(f"it descends from record {student.record[:12]}: ")
    # No model was made of its own descendants; but of a row the same cannot be said.
    assert impact(catalogue, model=edge.record).unknown == ()
    by_data = impact(catalogue, data=bench.run.data.raw)
    assert records(by_data.models) == refs(teacher, edge, alone)
    assert records(by_data.unknown) == refs(student)


def test_a_missing_parent_is_unknown(bench, toy, family, catalogue):
    _, student, edge, judged, alone = family
    for tag in ("ref", "record", "content"):
        bench.tracking.client.delete_tag(student.run_id, f"stillmark.{tag}")
    shutil.rmtree(bench.files(student))
    found = impact(catalogue, model=alone.record)
    assert records(found.unknown) == refs(student, edge, judged)
    (lost,) = (one for one in found.unknown if one.record == student.record)
    assert lost.reason == "no record of it is stored"


def test_a_damaged_copy_of_a_known_record_is_named_without_its_descendants(
    bench, toy, family, catalogue
):
    """Made again, the same inputs give the same record."""
    teacher, *_, alone = family
    (bench.files(teacher) / "model" / "salt.txt").unlink(missing_ok=True)
    (bench.files(teacher) / "record.json").unlink()
    again = toy.make(bench, "good", 1)
    assert again.record == teacher.record
    assert again.model_id != teacher.model_id
    (unknown,) = impact(catalogue, model=alone.record).unknown
    assert unknown.models == (teacher.model_id,)
    assert unknown.runs == (teacher.run_id,)
    found = impact(catalogue, model=teacher.record)
    assert found.unknown == ()
    (touched,) = (one for one in found.models if one.how == "itself")
    assert set(touched.models) == {teacher.model_id, again.model_id}


def test_a_version_of_unknown_origin_is_unknown(bench, family, catalogue):
    client = bench.tracking.client
    client.create_registered_model("foreign.model")
    client.create_model_version("foreign.model", source=str(bench.root))
    client.set_registered_model_alias("foreign.model", "champion", "1")
    (unknown,) = impact(catalogue, model=family[-1].record).unknown
    (version,) = unknown.versions
    assert (version.name, version.version, version.now) == ("foreign.model", 1, ("champion",))
    assert "not registered by Stillmark" in unknown.reason
    said = list(lines(impact(catalogue, model=family[-1].record)))
    assert said[-2] == "unknown, and so perhaps touched: 1"
    assert said[-1].startswith("  model · no record · foreign.model version 1 @champion · it was")


def test_a_row_that_nobody_knows_touched_nothing(family, catalogue):
    found = impact(catalogue, row="0" * 64)
    assert (found.models, found.judged, found.reports, found.unknown) == ((), (), (), ())


@pytest.mark.parametrize(
    ("question", "error", "message"),
    [
        ({}, ParamsError, "exactly one"),
        ({"row": "0" * 64, "code": "0" * 40}, ParamsError, "exactly one"),
        ({"row": "00000000"}, DataError, "no row or data version that is known starts with"),
        ({"row": "1234567"}, DataError, "is no row's digest"),
        ({"row": f"{'0' * 32}.dir"}, DataError, "is no row's digest"),
        ({"data": "0" * 8}, DataError, "no row or data version that is known starts with"),
        ({"code": "main"}, DataError, "'main' is no digest"),
        ({"model": "m-none"}, RegistryError, "no record or MLflow model is known by 'm-none'"),
        ({"model": "0" * 64}, RegistryError, "no record or MLflow model is known"),
    ],
)
def test_a_question_without_an_answer_is_one_line(catalogue, question, error, message):
    with pytest.raises(error, match=message) as caught:
        impact(catalogue, **question)
    assert len(str(caught.value).splitlines()) == 1


def test_two_rows_that_begin_alike_are_named(bench, toy, catalogue, monkeypatch):
    toy.make(bench)
    anything = re.compile("[0-9a-f]{1,64}")
    monkeypatch.setattr("tasks.lineage.index.PREFIX", anything)
    monkeypatch.setattr("tasks.impact.PREFIX", anything)
    with pytest.raises(DataError, match=r"is ambiguous: .*give more digits"):
        impact(catalogue, row=row_of(bench, "train")["row"][:1])
