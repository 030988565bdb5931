import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

import pyarrow.parquet
import pytest

from tasks import documents
from tasks.documents import Manifest, dotted
from tasks.errors import ArtifactError, ParamsError, SetupError
from tasks.versioning import Cache, Versions


def test_the_chain_holds_every_ancestor_once_and_parents_first(story, chain):
    assert [link.name for link in chain.links] == [
        "digits.teacher",
        "digits.student",
        "digits.edge",
    ]
    assert [link.version for link in chain.links] == [1, 1, 1]
    assert [link.digest for link in chain.links] == [
        story.models[role].record for role in ("teacher", "student", "edge")
    ]
    assert chain.subject.record.content == story.version.model.content


def test_times_and_runs_are_mlflows(story, chain):
    for link in chain.links:
        info = story.bench.tracking.client.get_run(link.made.run_id).info
        assert link.made.started == datetime.fromtimestamp(info.start_time / 1000, UTC)
        assert link.made.ended == datetime.fromtimestamp(info.end_time / 1000, UTC)
    assert chain.subject.made.run_id == story.version.model.run_id


def test_the_report_that_it_was_registered_with_belongs_to_it(story, chain):
    assert chain.report.digest == story.report.record
    assert chain.report.model_id is None
    assert chain.evaluation.rows == 40
    assert chain.measured.accuracy == 0.5
    assert chain.control.accuracy == 0.25


def test_rows_are_counted_from_the_manifest(story, chain):
    table = pyarrow.parquet.read_table(story.bench.root / "prepared" / "manifest.parquet")
    rows = table.to_pylist()
    found = chain.manifests[story.bench.run.data.content]
    for split in ("train", "validation", "test"):
        mine = [row for row in rows if row["split"] == split]
        assert found.rows[split] == len(mine)
        assert found.shown.get(split, 0) == sum(row["shown"] for row in mine)
    assert found.classes == ("0", "1", "2")
    assert found.columns == {
        "row": "string",
        "label": "string",
        "split": "string",
        "shown": "bool",
        "source": "string",
    }


def test_a_promotion_is_told_with_what_the_gates_said(chain):
    (promotion,) = chain.promotions
    assert promotion.entry.version == 1
    assert [verdict.gate for verdict in promotion.verdicts] == ["budget", "mlflow"]
    assert promotion.doubt is None


def test_without_a_ledger_no_promotion_is_told(story):
    assert story.gather(ledger=None).promotions == ()


def test_an_ancestor_that_was_changed_stops_it(own):
    path = own.bench.files(own.models["teacher"]) / "data" / "model" / "salt.txt"
    path.write_text("2")
    with pytest.raises(ArtifactError, match=r"salt\.txt has sha256"):
        own.gather()


def test_an_ancestor_that_is_gone_stops_it(own):
    shutil.rmtree(own.bench.files(own.models["student"]))
    with pytest.raises(ArtifactError, match=own.models["student"].model_id):
        own.gather()


def test_a_report_that_is_gone_stops_it(own):
    place = own.bench.tracking.client.get_run(own.report.run_id).info.artifact_uri
    shutil.rmtree(place.removeprefix("file://"))
    with pytest.raises(ArtifactError, match=own.report.run_id):
        own.gather()


def test_a_report_that_nobody_made_stops_it(own):
    client = own.bench.tracking.client
    client.set_model_version_tag("digits.edge", "1", "stillmark.evaluation", "f" * 64)
    with pytest.raises(ArtifactError, match=f"no run of 'digits' left the report .* {'f' * 64}"):
        own.gather()


def test_a_run_that_never_ended_stops_it(own):
    own.bench.tracking.client.update_run(own.models["student"].run_id, status="RUNNING")
    database = own.bench.root / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "UPDATE runs SET end_time = NULL WHERE run_uuid = ?", (own.models["student"].run_id,)
        )
    with pytest.raises(ArtifactError, match="is RUNNING, expected one that has ended"):
        own.gather()


def test_a_manifest_of_other_rows_is_not_taken_for_the_recorded_one(own):
    path = own.bench.root / "prepared" / "manifest.parquet"
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.slice(1), path)
    (found,) = own.gather().manifests.values()
    assert isinstance(found, str)
    assert "'prepared.dir'" in found


class OneVersion(Cache):
    """DVC's cache with one data version in it, which is no longer the prepared one."""

    def __init__(self, dvc, manifest):
        super().__init__(dvc)
        self.manifest = manifest

    def listing(self, directory):
        assert directory == "prepared.dir"
        return {"manifest.parquet": "its md5"}

    def stored(self, md5):
        assert md5 == "its md5"
        return self.manifest


def with_one(root, manifest):
    versions = Versions(root, root)
    versions.cache = OneVersion(versions.dvc, manifest)
    return versions


def test_an_older_manifest_comes_from_dvc(story, tmp_path):
    kept = story.bench.root / "prepared" / "manifest.parquet"
    gather = partial(documents.gather, story.bench.tracking, version=story.version)
    old = gather(versions=with_one(tmp_path, kept))
    assert old.manifests == story.gather().manifests
    other = tmp_path / "other.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(kept).slice(1), other)
    (found,) = gather(versions=with_one(tmp_path, other)).manifests.values()
    assert f"recorded {story.bench.run.data.manifest}" in found


def test_evidence_that_was_changed_does_not_bear_a_promotion_out(own):
    (promotion,) = own.gather().promotions
    folder = own.bench.tracking.report(promotion.entry.evidence_run)
    path = folder / "judgement.json"
    path.write_text(path.read_text().replace("is within", "is far within").replace("KiB", "kiB"))
    (promotion,) = own.gather().promotions
    assert promotion.verdicts == ()
    assert "the ledger says" in promotion.doubt


def test_every_file_of_the_folder_is_a_format():
    assert documents.formats() == {
        "cyclonedx": "ml-bom.cdx.json",
        "model_card": "model-card.md",
        "openlineage": "openlineage.ndjson",
    }


@pytest.mark.parametrize("name", list(documents.formats()))
def test_equal_chains_give_equal_bytes(story, chain, name, tmp_path):
    path = documents.write(name, chain, tmp_path / "new")
    assert path.name == documents.formats()[name]
    assert path.read_bytes() == documents.render(name, story.gather())


def test_an_unknown_format_is_answered_with_the_known_ones(chain):
    with pytest.raises(ParamsError, match=r"'cyclonedy'; did you mean 'cyclonedx'\? \(known: "):
        documents.render("cyclonedy", chain)


def test_a_folder_that_cannot_be_written_is_named(chain, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="cannot be written"):
        documents.write("model_card", chain, tmp_path / "file")


def test_parameters_have_dotted_names():
    tree = {"fit": {"steps": 3, "decay": None}, "name": "x", "losses": [{"name": "a"}]}
    assert list(dotted(tree)) == [
        ("fit.steps", "3"),
        ("fit.decay", "null"),
        ("name", "x"),
        ("losses", '[{"name": "a"}]'),
    ]


def test_a_manifest_is_plain_data(chain):
    assert all(isinstance(found, Manifest) for found in chain.manifests.values())
