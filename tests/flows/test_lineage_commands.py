"""The lineage commands, in this process, on copies of a project that was retrained once."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from flows.cli import main
from tasks.tracking import Tracking

NAME = "digits.edge"
CHAIN = ["edge", "pruned", "student", "teacher", "encoder"]


@pytest.fixture
def says(changed, as_before, capsys):
    """Runs a command; gives what it said."""

    def run(*words, code=0):
        assert main([str(word) for word in words]) == code
        return capsys.readouterr()

    return run


@pytest.fixture
def store(changed):
    return Tracking(changed.uri, changed.root / ".stillmark")


def test_trace_leads_from_the_edge_to_the_raw_data(says, tmp_path):
    text = says("trace", NAME, "--svg", tmp_path / "lineage.svg").out
    places = [text.index(f"digits.{role} version 1") for role in CHAIN]
    assert places == sorted(places)
    assert "raw data" in text
    assert (tmp_path / "lineage.svg").read_text().startswith("<svg")
    found = json.loads(says("trace", f"{NAME}@champion", "--json").out)
    assert found["version"]["version"] == 1
    assert {node["kind"] for node in found["nodes"]} >= {"model", "code", "parameters"}


def test_all_that_a_first_run_made_is_verified_and_the_report_kept(says, store):
    found = json.loads(says("verify", "--all", "--json").out)
    assert found["passed"] is True
    (report,) = found["reports"]
    assert (report["name"], report["version"]) == (NAME, 1)
    assert {one["status"] for one in report["findings"]} <= {"verified", "declared"}
    newest = store.last_runs("digits", 1)[0]
    assert newest.data.tags["stillmark.stage"] == "verify"
    kept = json.loads((store.report(newest.info.run_id) / "report.json").read_text())
    assert kept["reports"] == found["reports"]


def test_a_changed_byte_is_named_and_the_exit_code_is_1(says, changed):
    """In the copy's own DVC cache: the models' files are shared with other tests."""
    cache = changed.root / ".dvc" / "cache" / "files" / "md5"
    file = max(path for path in cache.glob("*/*") if path.suffix != ".dir")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    caught = says("verify", NAME, code=1)
    (line,) = caught.err.splitlines()
    assert line.startswith("stillmark: ")
    named = line.partition(" in the cache: mismatch: ")[0].rpartition(" ")[2]
    content = (changed.root / "data" / named).read_bytes()
    assert hashlib.md5(content).hexdigest() == file.parent.name + file.name  # noqa: S324


def test_a_stage_that_is_made_again_is_equal_bit_for_bit(says, tmp_path):
    found = json.loads(
        says("replay", NAME, "--stage", "quantize", "--scratch", tmp_path / "again", "--json").out
    )
    assert found["passed"] is True
    assert [(one["stage"], one["status"]) for one in found["remade"]] == [("quantize", "equal")]
    full = says("replay", NAME, "--scratch", tmp_path / "again", code=2).err
    assert full.startswith("stillmark: ")
    assert len(full.splitlines()) == 1


def test_impact_of_a_file_of_a_row_of_a_model_and_of_code(says, changed):
    manifest = pyarrow.parquet.read_table(changed.root / "prepared" / "manifest.parquet")
    rows = manifest.to_pylist()
    row = next(one for one in rows if one["split"] == "train")
    by_row = json.loads(says("impact", "--row", row["row"], "--json").out)
    by_file = json.loads(says("impact", "--data", row["source"], "--json").out)
    assert by_row["models"] == by_file["models"]
    roles = {model["role"] for model in by_row["models"]}
    assert roles == {*CHAIN, "control"}
    held = [v for model in by_row["models"] for v in model["versions"] if v["now"]]
    assert [(one["name"], one["now"]) for one in held] == [(NAME, ["champion"])]
    encoder = json.loads(says("impact", "--model", "digits.encoder:1", "--json").out)
    assert {model["role"] for model in encoder["models"]} == set(CHAIN)
    commit = changed.command("git", "rev-parse", "HEAD").stdout.strip()
    assert f"commit {commit}" in says("impact", "--code", commit[:10]).out
    tested = next(one for one in rows if one["split"] == "test" and one["label"])
    judged = json.loads(says("impact", "--row", tested["row"], "--json").out)
    assert judged["models"] == []


def trained_on(project):
    manifest = pyarrow.parquet.read_table(project.root / "prepared" / "manifest.parquet")
    return next(one for one in manifest.to_pylist() if one["split"] == "train")


def test_a_forgotten_row_leaves_the_data_and_what_knows_it_is_listed(says, changed):
    row = trained_on(changed)
    file = changed.root / "data" / row["source"]
    pointer = (changed.root / "data.dvc").read_text()
    text = says("forget", row["row"][:12], "--no-retrain").out
    assert not file.exists()
    assert (changed.root / "data.dvc").read_text() != pointer
    assert f"data/{row['source']}" in text
    assert f"{NAME} version 1 @champion" in text


@pytest.mark.slow
def test_after_a_row_was_forgotten_a_retraining_does_without_it(says, changed):
    row = trained_on(changed)
    found = json.loads(says("forget", row["row"], "--json").out)
    assert found["decision"]["challenger"]["version"] == 2
    new = json.loads(says("impact", "--row", row["row"], "--json").out)
    versions = {(v["name"], v["version"]) for one in new["models"] for v in one["versions"]}
    assert (NAME, 1) in versions
    assert (NAME, 2) not in versions


def test_the_index_can_be_thrown_away(says, changed):
    before = says("trace", NAME).out
    assert "records are known" in says("index", "--rebuild").out
    assert says("trace", NAME).out == before
    (changed.root / ".stillmark" / "lineage" / "index.db").write_bytes(b"nothing of the kind")
    assert says("trace", NAME).out == before
    assert says("index").out == "0 records are new\n"


@pytest.mark.parametrize("form", ["openlineage", "cyclonedx", "model_card"])
def test_every_format_is_written(says, form, tmp_path):
    printed = says("export", NAME, "--format", form).out
    (path,) = says("export", NAME, "--format", form, "--out", tmp_path / "out").out.splitlines()
    assert Path(path).read_text() == printed
    assert NAME in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trace", "digits.edg"], "no model 'digits.edg'; did you mean 'digits.edge'?"),
        (["trace", f"{NAME}:9"], "'digits.edge' has no version '9'"),
        (["trace", f"{NAME}@gone"], "'digits.edge' has no alias 'gone'"),
        (["verify"], "verify needs a MODEL or --all, and not both"),
        (["verify", NAME, "--all"], "verify needs a MODEL or --all, and not both"),
        (["verify", "digits.edg"], "no model 'digits.edg'"),
        (["replay", "digits.edg"], "no model 'digits.edg'"),
        (["replay", NAME, "--stage", "quantise"], "no stage 'quantise' made digits.edge version 1"),
        (["impact"], "impact needs exactly one of"),
        (["impact", "--row", "00"], ""),
        (["impact", "--data", "data/9/none.png"], ""),
        (["impact", "--code", "0123456789"], ""),
        (["export", NAME, "--format", "cyclondx"], "unknown format 'cyclondx'; did you mean"),
        (["trace", NAME, "--svg", "/nowhere/at/all.svg"], "/nowhere/at/all.svg cannot be written"),
    ],
)
def test_what_cannot_be_answered_is_one_line(says, words, message):
    caught = says(*words, code=2)
    (line,) = caught.err.splitlines()
    assert line.startswith(f"stillmark: {message}")
    assert caught.out == ""
