import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from tasks import networks
from tasks.consult import ConsultParams, consult
from tasks.errors import ArtifactError, SetupError, StillmarkError, TimeLimitError
from tasks.estimators import answers
from tasks.estimators.logistic_regression import LogisticRegression
from tasks.exporters import MODEL_FILE
from tasks.fit import FitParams
from tasks.lineage import origin
from tasks.lineage.digests import canonical, digest_of_file
from tasks.lineage.record import Code, Record
from tasks.rows import Rows
from tasks.stage import stage
from tasks.supervise import supervise
from tasks.tracking import Tracking, payload_of

LIMIT = {"time_limit_minutes": 0.5 / 60}
SHORT = FitParams(steps=3, learning_rate=1e-3)


def flip(path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_result_is_stored_whole_and_found_again(bench, toy):
    ref = toy.make(bench)
    assert (ref.stage, ref.role) == ("guess", "edge")
    assert toy.find(bench) == ref
    stored = bench.tracking.fetch(ref).folder
    files = {path.name for path in payload_of(stored).iterdir()}
    assert files == {"model.onnx", "schema.json", "salt.txt"}
    (run,) = bench.runs(stage="guess")
    assert run.info.run_id == ref.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["guess.quality"] == "good"
    assert run.data.params["compute.threads"] == "1"
    assert run.data.metrics["weight"] > 0


def test_the_second_time_nothing_runs(bench, toy):
    assert toy.make(bench) == toy.make(bench)
    assert toy.calls == ["good"]
    assert len(bench.runs()) == 1


def test_a_new_process_finds_it_too(bench, toy):
    ref = toy.make(bench)
    elsewhere = Tracking(f"sqlite:///{bench.root / 'mlflow.db'}", bench.root / ".stillmark")
    assert elsewhere.find(bench.run.project, ref.key).ref == ref


def test_the_record_is_canonical_and_named_by_its_digest(bench, toy):
    parent = toy.make(bench, "lazy")
    ref = toy.make(bench, "good", teacher=parent)
    folder = bench.tracking.fetch(ref).folder
    text = (folder / "record.json").read_bytes()
    assert text == canonical(json.loads(text))
    assert hashlib.sha256(text).hexdigest() == ref.record
    (run,) = bench.runs(key=ref.key)
    assert run.data.tags["stillmark.record"] == ref.record
    assert run.data.tags["stillmark.content"] == ref.content
    record = Record.read(folder)
    assert record.key == ref.key
    assert record.data == bench.run.data
    assert record.code == origin.code()
    assert record.parameters == {"quality": "good", "salt": 0}
    assert record.environment["threads"] == 1
    assert "torch" in record.environment["packages"]
    (named,) = record.parents
    assert (named.role, named.record, named.model_id) == ("teacher", parent.record, parent.model_id)
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    # MLflow leaves a note of its own where it fetches a model.
    assert set(record.files) == present - {"record.json", "registered_model_meta"}
    for name, digest in record.files.items():
        assert digest_of_file(folder / name) == digest


def test_the_same_bytes_get_the_same_content_digest(bench, toy):
    """The key says what went in, the content what came out; later stages depend on the latter."""
    alone = toy.make(bench)
    with_parent = toy.make(bench, teacher=toy.make(bench, "lazy"))
    assert alone.key != with_parent.key
    assert alone.content == with_parent.content
    assert alone.record != with_parent.record


def test_the_key_follows_from_all_that_decides_the_result(bench, toy, monkeypatch):
    run, section = bench.run, toy.section(quality="good")
    parent = toy.make(bench, "lazy")

    def key(run=run, section=section, **inputs):
        return toy.stage.key(run, section, inputs)

    other_data = run.data.model_copy(update={"content": "0" * 64})
    other_seed = run.compute.model_copy(update={"seed": 1})
    other_parent = parent.model_copy(update={"content": "0" * 64})
    budget = Rows(bench.root / "prepared").budget
    keys = [
        key(),
        key(section=toy.section(quality="lazy")),
        key(run=replace(run, data=other_data)),
        key(run=replace(run, compute=other_seed)),
        key(run=replace(run, redraw=budget.redraw(draw=1))),
        key(run=replace(run, redraw=budget.redraw(draw=2))),
        key(run=replace(run, redraw=budget.redraw(draw=1, shuffled=True))),
        key(run=replace(run, redraw=budget.redraw(labels_per_class=None))),
        key(teacher=parent),
        key(student=parent),
        key(teacher=other_parent),
    ]
    monkeypatch.setattr(origin, "code", lambda: Code(digest="0" * 64, commit=None, clean=False))
    keys.append(key())
    monkeypatch.undo()
    monkeypatch.setattr(origin, "packages", lambda: {"torch": "0.1"})
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_the_key_ignores_what_does_not(bench, toy, monkeypatch):
    run, section = bench.run, toy.section(quality="good")
    parent = toy.make(bench, "lazy")
    key = toy.stage.key(run, section, {"teacher": parent})
    moved = parent.model_copy(update={"run_id": "other", "model_id": "m-other"})
    assert toy.stage.key(run, section, {"teacher": moved}) == key
    same = origin.code().model_copy(update={"commit": "0" * 40, "clean": False})
    monkeypatch.setattr(origin, "code", lambda: same)
    assert toy.stage.key(run, section, {"teacher": parent}) == key


@pytest.mark.parametrize("name", ["model.onnx", "schema.json", "record.json"])
@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink()], ids=["flipped", "deleted"])
def test_damaged_files_are_made_again(bench, toy, name, damage):
    first = toy.make(bench)
    (path,) = bench.files(first).rglob(name)
    damage(path)
    assert toy.find(bench) is None
    with pytest.raises(ArtifactError):
        bench.tracking.fetch(first)
    second = toy.make(bench)
    assert toy.calls == ["good", "good"]
    assert second.run_id != first.run_id
    assert second.content == first.content
    assert toy.find(bench) == second


def test_the_same_inputs_give_the_same_record(bench, toy):
    """It holds no time of day, whatever MLflow writes beside the model."""
    first = toy.make(bench)
    bench.tracking.client.update_run(first.run_id, status="FAILED")
    assert toy.make(bench).record == first.record


def test_a_stage_does_not_go_on_from_damaged_files(bench, toy):
    parent = toy.make(bench, "lazy")
    (path,) = bench.files(parent).rglob("model.onnx")
    flip(path)

    def uses(work, params, teacher):
        return {"size": float(work.files(teacher).stat().st_size)}

    with pytest.raises(ArtifactError, match=r"model.onnx has sha256 \w+, recorded \w+"):
        stage("student")(uses)._run(bench.run, toy.section(quality="good"), teacher=parent)


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED", "SCHEDULED"])
def test_a_run_that_did_not_finish_is_never_reused(bench, toy, status):
    ref = toy.make(bench)
    bench.tracking.client.update_run(ref.run_id, status=status)
    assert toy.find(bench) is None
    assert toy.make(bench).run_id != ref.run_id


def test_a_finished_run_without_a_reference_is_passed_over(bench, toy):
    key = toy.stage.key(bench.run, toy.section(quality="good"), {})
    run_id = bench.tracking.start(bench.run.project, "guess", key, bench.run.data)
    bench.tracking.end(run_id)
    assert toy.find(bench) is None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (StillmarkError("no luck"), "FAILED", "StillmarkError: no luck"),
        (ValueError("bug"), "FAILED", "ValueError: bug"),
        (KeyboardInterrupt(), "KILLED", "ended by SIGINT"),
        (SystemExit(128 + signal.SIGTERM), "KILLED", "ended by SIGTERM"),
    ],
)
def test_a_failure_ends_the_run_with_its_reason(bench, toy, error, status, reason):
    def stumble(work, params):
        (work.folder / "half.bin").write_bytes(b"half")
        raise error

    broken = stage("edge")(stumble)
    with pytest.raises(type(error)):
        broken._run(bench.run, toy.section(quality="good"))
    (run,) = bench.runs(stage="stumble")
    assert run.info.status == status
    assert run.data.tags["stillmark.reason"] == reason
    assert broken.find(bench.tracking, bench.run, toy.section(quality="good")) is None
    assert bench.tracking.client.search_logged_models([run.info.experiment_id]) == []


def test_an_error_is_told_even_if_mlflow_cannot_be(bench, toy, monkeypatch, caplog):
    def stumble(work, params):
        monkeypatch.setattr(Tracking, "fail", lambda *_: 1 / 0)
        raise StillmarkError("no luck")

    with pytest.raises(StillmarkError, match="no luck"):
        stage("edge")(stumble)._run(bench.run, toy.section(quality="good"))
    (line,) = caplog.messages
    assert (
        line == "MLflow cannot be told that stumble ended (division by zero): the next start does"
    )


def test_a_stage_that_takes_too_long_is_stopped_and_goes_on_where_it_was(bench, toy):
    """The limit is no part of what the result follows from."""
    run = replace(bench.run, compute=bench.run.compute.model_copy(update=LIMIT))
    section = toy.section(quality="good")
    assert toy.stage.key(run, section, {}) == toy.stage.key(bench.run, section, {})

    def hang(work, params):
        time.sleep(60)

    with pytest.raises(TimeLimitError, match=r"^stage hang took longer than compute\.time_limit"):
        stage("edge")(hang)._run(run, section)
    (made,) = bench.runs(stage="hang")
    assert made.info.status == "FAILED"
    assert made.data.tags["stillmark.reason"].startswith("TimeLimitError: stage hang")


def test_a_full_disk_is_one_line_and_leaves_nothing_half_made(bench, toy, linear, monkeypatch):
    """It fills while the files are uploaded, here by a limit that the kernel sets on their size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    upload = MlflowClient.log_model_artifacts

    def fill(client, model_id, folder):
        (Path(folder) / "large.bin").write_bytes(bytes(2**20))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
        try:
            upload(client, model_id, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", fill)
    with pytest.raises(SetupError, match=r"^no space is left on the disk of \S+ for the result of"):
        toy.make(bench)
    assert toy.find(bench) is None
    (run,) = bench.runs(stage="guess")
    assert run.info.status == "FAILED"
    (model,) = bench.tracking.models(bench.run.project)
    assert model.status == LoggedModelStatus.FAILED
    monkeypatch.undo()
    monkeypatch.setenv("STILLMARK_PROJECT", str(bench.root))
    assert toy.make(bench) == toy.find(bench)


def test_a_clock_that_goes_back_makes_no_negative_time(bench, toy, monkeypatch):
    """A day is set back while the stage runs."""
    now = time.time_ns

    def guess(work, params):
        monkeypatch.setattr(time, "time_ns", lambda: now() - 86400 * 10**9)
        return {}

    ref = stage("report", is_model=False)(guess)._run(bench.run, toy.section(quality="good"))
    made = bench.tracking.made(ref.run_id)
    assert made.ended == made.started
    (run,) = bench.runs(stage="guess")
    assert run.info.end_time == run.info.start_time


def test_figures_arrive_though_nobody_waits_for_them(bench, toy):
    def train(work, params):
        for at in range(1, 41):
            work.watch.progress(at, 40, {"loss": 1 / at})
        return {}

    ref = stage("report", is_model=False)(train)._run(bench.run, toy.section(quality="good"))
    history = bench.tracking.client.get_metric_history(ref.run_id, "loss")
    assert sorted((one.step, one.value) for one in history) == [(n, 1 / n) for n in range(1, 41)]


def test_a_report_is_no_model(bench, toy):
    def tell(work, params):
        (work.folder / "report.json").write_text("{}")
        return {}

    report = stage("report", is_model=False)(tell)
    ref = report._run(bench.run, toy.section(quality="good"))
    assert ref.model_id is None
    assert (payload_of(bench.tracking.fetch(ref).folder) / "report.json").read_text() == "{}"
    assert report._run(bench.run, toy.section(quality="good")) == ref


def test_prepared_rows_that_changed_under_the_run_are_refused(bench, toy):
    flip(bench.root / "prepared" / "rows.npy")
    with pytest.raises(ArtifactError, match=r"prepared has changed under the run"):
        toy.make(bench)
    assert toy.calls == []
    assert [run.info.status for run in bench.runs()] in ([], ["FAILED"])


def test_a_stage_sees_the_labels_of_its_draw(bench, toy):
    seen = []

    def look(work, params):
        known = work.rows.train.labelled
        seen.append(dict(zip(known.names.tolist(), known.labels.tolist(), strict=True)))
        (work.folder / "report.json").write_text("{}")
        return {}

    report = stage("report", is_model=False)(look)
    prepared = Rows(bench.root / "prepared")
    changes = ({"draw": 1}, {"labels_per_class": None}, {"shuffled": True})
    redraws = [None, *(prepared.budget.redraw(**change) for change in changes)]
    refs = [
        report._run(replace(bench.run, redraw=redraw), toy.section(quality="good"))
        for redraw in redraws
    ]
    assert len({ref.key for ref in refs}) == len({ref.run_id for ref in refs}) == 4
    for redraw, found in zip(redraws, seen, strict=True):
        known = Rows(prepared.folder, redraw).train.labelled
        assert found == dict(zip(known.names.tolist(), known.labels.tolist(), strict=True))
    own, drawn, every, shuffled = seen
    assert own.keys() != drawn.keys()
    assert own.keys() < every.keys()
    assert own.keys() == shuffled.keys()
    assert own != shuffled


def test_a_teacher_is_asked_whatever_it_is(bench, toy):
    """A network looks at the views; an estimator has said all it knows of each row."""
    said = {}
    rows = torch.tensor([3, 0, 5])

    def ask(work, params, **teachers):
        stored = torch.from_numpy(work.rows.train.inputs[rows.numpy()].copy())
        inputs = work.compute.place(torch.nn.Identity())(work.rows.modality.to_network(stored))
        with torch.no_grad():
            for name, ref in teachers.items():
                said[name] = work.answering(ref)(inputs, rows).logits.numpy(), work.files(ref)
                said[f"{name} of nothing"] = work.answering(ref)(inputs * 0, rows).logits.numpy()
        (work.folder / "report.json").write_text("{}")
        return {}

    network = supervise._run(bench.run, bench.params.supervise.model_copy(update={"fit": SHORT}))
    section = ConsultParams(estimator=LogisticRegression())
    teachers = {"network": network, "estimator": consult._run(bench.run, section)}
    stage("report", is_model=False)(ask)._run(bench.run, toy.section(quality="good"), **teachers)

    logits, folder = said["estimator"]
    np.testing.assert_array_equal(logits, answers(folder)[rows.numpy()])
    np.testing.assert_array_equal(said["estimator of nothing"], logits)
    logits, folder = said["network"]
    session = onnxruntime.InferenceSession(folder / MODEL_FILE)
    stored = Rows(bench.root / "prepared").train.inputs[rows.numpy()]
    inputs = stored.transpose(0, 3, 1, 2).astype(np.float32) / 255
    (expected,) = session.run(None, {session.get_inputs()[0].name: inputs})
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert np.abs(said["network of nothing"] - logits).max() > 1e-3


def test_checkpoints_go_when_the_stage_is_done(bench, toy):
    key = toy.stage.key(bench.run, toy.section(quality="good"), {})
    folder = bench.root / ".stillmark" / "checkpoints"
    folder.mkdir()
    for name in (f"{key}.pt", f"{key}-second.pt", "another.pt"):
        (folder / name).touch()
    toy.make(bench)
    assert [path.name for path in folder.iterdir()] == ["another.pt"]


def test_prefect_knows_the_stage_by_name(toy):
    assert toy.stage.run.name == toy.stage.name == "guess"
    assert supervise.run.description.startswith("Trains on the shown labels alone")
    assert not supervise.run.persist_result


TRAIN_WITH_A_CHECKPOINT_PER_STEP = """
import flows
from pathlib import Path
from tasks import stage
from tasks.params import load
from tasks.refs import DataRef
from tasks.supervise import supervise
params = load(Path.cwd())
run = stage.Run(params.project, params.compute, DataRef.model_validate_json({data!r}))
supervise._run(run, params.supervise)
"""


@pytest.fixture
def killed(bench, tmp_path):
    """A bench on which `supervise` was killed (SIGKILL) while it trained; and its checkpoint."""
    script = TRAIN_WITH_A_CHECKPOINT_PER_STEP.format(data=bench.run.data.model_dump_json())
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=bench.root,
            env=os.environ | {"STILLMARK_CHECKPOINT_SECONDS": "0"},
            stderr=log,
            start_new_session=True,
        )
    key = supervise.key(bench.run, bench.params.supervise, {})
    checkpoint = bench.root / ".stillmark" / "checkpoints" / f"{key}.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    return bench, checkpoint


def test_killed_and_started_again_it_ends_with_the_same_bits(killed, finished):
    """Twice in fresh processes, one of them interrupted: bit-equal weights and the same files."""
    bench, checkpoint = killed
    params = bench.params.supervise
    (run,) = bench.runs(stage="supervise")
    assert run.info.status == "RUNNING"
    assert supervise.find(bench.tracking, bench.run, params) is None
    done = torch.load(checkpoint, weights_only=True)["at"]
    assert 0 < done < params.fit.steps

    ref = supervise._run(bench.run, params)
    assert not checkpoint.exists()
    steps = [m.step for m in bench.tracking.client.get_metric_history(ref.run_id, "loss")]
    assert min(steps) > done  # it went on, it did not start anew
    assert max(steps) == params.fit.steps

    mine = bench.tracking.fetch(ref).folder  # first: MLflow fetches from the store opened last
    store = Tracking(finished.project.uri, finished.project.root / ".stillmark")
    (uninterrupted,) = store.versions(f"{bench.run.project}.control")
    expected = store.ref_of(uninterrupted)
    other = store.fetch(expected).folder
    weights = payload_of(mine) / networks.WEIGHTS_FILE
    assert weights.read_bytes() == (payload_of(other) / networks.WEIGHTS_FILE).read_bytes()
    assert ref.content == expected.content
