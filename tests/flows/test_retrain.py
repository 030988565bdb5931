import base64
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.chain import plan, walk
from flows.cli import main
from tasks.data import data
from tasks.journal import Journal
from tasks.lineage import origin
from tasks.lineage.record import Code
from tasks.params import load
from tasks.refs import DataRef
from tasks.settings import Settings
from tasks.stage import Run
from tasks.succession import Succession
from tasks.tracking import Tracking
from tasks.versioning import Versions

ROLES = ["encoder", "control", "teacher", "student", "pruned", "edge"]
STAGES = ["pretrain", "teach", "distill", "prune", "quantize", "supervise", "evaluate"]


def store(project):
    return Tracking(project.uri, project.root / ".stillmark")


def prefect(project, query):
    path = project.root / ".stillmark" / "prefect" / "prefect.db"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def stages_run(project):
    runs = store(project).last_runs("digits", 99)
    stages = [run.data.tags["stillmark.stage"] for run in runs]
    return sorted(stage for stage in stages if stage != "retrain")


def journal(project):
    return Journal(store(project), "digits")


def test_the_first_run_is_promoted(finished):
    outcome = finished.outcome
    assert outcome["outcome"] == "promoted"
    assert "first version" in outcome["reason"]
    assert outcome["versions"] == dict.fromkeys(ROLES, 1)
    found = store(finished.project)
    assert found.registered() == sorted(f"digits.{role}" for role in ROLES)
    assert found.holder("digits.edge", "champion").version == 1
    for role in ROLES:
        (version,) = found.versions(f"digits.{role}")
        assert version.status == "READY"
        model = found.client.get_logged_model(found.ref_of(version).model_id)
        assert model.status == "READY"


def test_stages_say_on_stderr_how_they_went(finished):
    for stage in STAGES:
        assert f"{stage:<9} done in" in finished.progress
    assert "Traceback" not in finished.progress


def test_the_record_chain_leads_from_edge_to_encoder(finished):
    found = store(finished.project)
    refs = {role: found.ref_of(found.versions(f"digits.{role}")[0]) for role in ROLES}
    parents = {}
    for role, ref in refs.items():
        record = json.loads((found.fetch(ref).folder / "record.json").read_bytes())
        assert record["data"] == finished.outcome["data"]
        assert record["code"]["clean"] is True
        assert record["code"]["digest"] == origin.code().digest
        parents[role] = {parent["role"]: parent["record"] for parent in record["parents"]}
    digest = {role: ref.record for role, ref in refs.items()}
    assert parents == {
        "encoder": {},
        "control": {},
        "teacher": {"encoder": digest["encoder"]},
        "student": {"teacher": digest["teacher"]},
        "pruned": {"student": digest["student"], "teacher": digest["teacher"]},
        "edge": {"dense": digest["pruned"]},
    }


def test_prefect_knows_that_all_has_ended(finished):
    project = finished.project
    assert prefect(project, "SELECT state_type FROM flow_run") == [("COMPLETED",)]
    tasks = prefect(project, "SELECT name, state_type FROM task_run")
    assert {state for _, state in tasks} == {"COMPLETED"}
    names = {name.partition("-")[0] for name, _ in tasks}
    assert names == {"data", *STAGES, "register", "promote", "document"}


def test_its_documents_lie_beside_the_champion(finished):
    found = store(finished.project)
    champion = found.holder("digits.edge", "champion")
    folder = found.report(champion.model.run_id) / "documents"
    names = {path.name for path in folder.iterdir()}
    assert names == {"openlineage.ndjson", "ml-bom.cdx.json", "model-card.md"}
    assert "digits.edge" in (folder / "model-card.md").read_text()


def test_prefect_shows_progress_and_the_table(finished):
    found = prefect(finished.project, "SELECT key, type, data FROM artifact")
    kinds = {key: kind for key, kind, _ in found}
    shown = {"models": "table", "outcome": "markdown", "trade-off": "image"}
    assert kinds == {f"progress-{stage}": "progress" for stage in STAGES} | shown
    table = next(text for key, _, text in found if key == "models")
    assert all(role in table for role in ROLES[1:])
    for _, kind, value in found:
        if kind == "progress":
            assert float(value) == 100.0
    picture = next(text for key, _, text in found if key == "trade-off")
    assert base64.b64decode(picture.partition("base64,")[2]).startswith(b"\x89PNG")


def test_the_journal_says_why_and_what_came_of_it(finished):
    (entry,) = [one for one in journal(finished.project).newest(9) if one.trained]
    assert entry.sequence == 1
    assert (entry.reason.trigger, entry.outcome) == ("hand", "promoted")
    assert entry.trained == len(STAGES)
    assert 0 < entry.training_seconds < (entry.ended - entry.started).total_seconds()
    data_ref = finished.outcome["data"]
    assert (entry.raw, entry.content) == (data_ref["raw"], data_ref["content"])
    below = store(finished.project).last_runs(
        "digits", 99, f"tags.`mlflow.parentRunId` = '{entry.run_id}'"
    )
    made = sorted([*STAGES, "promote"])
    assert sorted(run.data.tags["stillmark.stage"] for run in below) == made


PLAIN_MLFLOW = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tasks", "flows", "torch", "prefect", "dvc"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/digits.edge@champion")
found = model.predict([open(path, "rb").read() for path in sys.argv[2:]])
print(found.to_json(orient="records"))
"""


def test_the_champion_needs_nothing_but_mlflow(finished, tmp_path):
    pictures = sorted((finished.project.root / "data").glob("[012]/*.png"))[::6]
    environment = finished.project.environment
    del environment["PYTHONPATH"]
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # others verify this store, file by file
    command = [sys.executable, "-c", PLAIN_MLFLOW, finished.project.uri, *pictures]
    done = finished.project.command(*command, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(pictures)
    right = [row["label"] == path.parent.name for row, path in zip(found, pictures, strict=True)]
    assert sum(right) / len(right) > 0.5  # three classes, few steps
    for row in found:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == max(row["probabilities"])
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_trains_nothing(finished):
    """By the other door, `python -m flows.retrain`; it adds its entry in the journal alone."""
    project = finished.project
    before = stages_run(project)
    why = ["--reason", "to see that nothing happens"]
    done = project.command(sys.executable, "-m", "flows.retrain", "--json", *why)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["outcome"] == "unchanged"
    assert outcome["versions"] == finished.outcome["versions"]
    assert outcome["evaluation"] == finished.outcome["evaluation"]
    assert stages_run(project) == before
    entry = journal(project).newest(1)[0]
    assert (entry.outcome, entry.trained, entry.training_seconds) == ("unchanged", 0, 0)
    assert entry.reason.sentence == "to see that nothing happens"
    assert entry.sections == journal(project).newest(2)[1].sections
    for stage in STAGES:
        assert f"{stage:<9} reused" in done.stderr
    query = "SELECT state_type FROM flow_run UNION SELECT state_type FROM task_run"
    assert prefect(project, query) == [("COMPLETED",)]


def test_check_plans_to_reuse_all(changed, capsys):
    assert main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == dict.fromkeys(["data", *STAGES], "reuse")


@pytest.mark.parametrize(
    ("path", "value", "rerun"),
    [
        ("evaluate.latency_calls", 21, {"evaluate"}),
        ("supervise.batch_size", 64, {"supervise", "evaluate"}),
        ("prune.method.keep_ratio", 0.75, {"prune", "quantize", "evaluate"}),
        ("teach.0.fit.steps", 61, {"teach", "distill", "prune", "quantize", "evaluate"}),
        ("pretrain.fit.steps", 11, set(STAGES) - {"supervise"}),
        ("compute.seed", 1, set(STAGES)),
        ("promote.gates", [{"name": "quality", "alpha": 0.01}], set()),
        ("project", "other", set(STAGES)),
    ],
)
def test_a_change_plans_what_depends_on_it(changed, path, value, rerun):
    if "." in path:
        changed.change(path, value)
    else:
        tree = changed.params | {path: value}
        (changed.root / "params.yaml").write_text(yaml.safe_dump(tree))
    params = load(changed.root)
    run = Run(params.project, params.compute, reference(changed))
    found = plan(store(changed), run, params)
    # What lies past a stage that will run is not known yet, and counts as run.
    assert {name for name, reused in found.items() if not reused} == rerun


def reference(project):
    return Versions(project.root, project.root / ".stillmark").current()


def test_a_late_change_runs_the_late_stages_alone(changed, capsys):
    changed.change("quantize.method.per_channel", False)
    assert main(["check", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    late = {"quantize", "evaluate"}
    assert {name for name, what in planned.items() if what == "run"} == late
    before = stages_run(changed)
    params = load(changed.root)
    run = Run(params.project, params.compute, data.fn(params.compute))
    results = walk(lambda stage, section, **inputs: stage._run(run, section, **inputs), params)
    assert stages_run(changed) == sorted([*before, *late])
    assert set(plan(store(changed), run, params).values()) == {True}
    first = store(changed).ref_of(store(changed).versions("digits.edge")[0])
    assert results["edge"].content != first.content


def test_changed_code_makes_all_stages_run(changed, monkeypatch):
    params = load(changed.root)
    run = Run(params.project, params.compute, reference(changed))
    other = Code(digest="0" * 64, commit=None, clean=False)
    monkeypatch.setattr(origin, "code", lambda: other)
    assert set(plan(store(changed), run, params).values()) == {False}


def test_changed_rows_make_all_stages_run(changed):
    params = load(changed.root)
    data_ref = DataRef(**(reference(changed).model_dump() | {"content": "0" * 64}))
    assert set(plan(store(changed), Run("digits", params.compute, data_ref), params).values()) == {
        False
    }


def test_a_retraining_that_wants_approval_says_what_to_type(
    changed, as_before, capsys, monkeypatch
):
    """In this process; nothing is trained anew, and nobody was champion before."""
    (changed.root / "ledger.db").unlink()
    store(changed).client.delete_registered_model_alias("digits.edge", "champion")
    changed.change("promote", {"gates": [{"name": "budget", "size_kib": 1000}], "approval": True})
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["retrain"]) == 0
    (request,) = Succession.of(Settings()).ledger.requests("digits.edge", "open")
    assert f"`stillmark approve {request.id} --reason …` promotes it" in capsys.readouterr().out
    assert store(changed).holder("digits.edge", "champion") is None


def test_check_says_that_the_rows_have_to_be_prepared(changed, capsys):
    changed.change("prepare.draw", 1)
    assert main(["check"]) == 0
    text = capsys.readouterr().out
    assert "  run    data\n" in text
    assert "whatever depends on them" in text
    assert main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == "run"


def test_a_corrupt_image_is_one_line_and_no_traceback(untrained, inside, as_before, capsys):
    picture = untrained.root / "data" / "2" / "2-007.png"
    picture.unlink()
    picture.write_bytes(b"\x89PNG and then nothing")
    inside(untrained.root)
    assert main(["retrain"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stillmark: unreadable: data/2/2-007.png: not a readable image")
    with get_client(sync_client=True) as client:
        (newest,) = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    assert newest.state_type == StateType.FAILED


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_retraining_leaves_no_server_behind(untrained, number):
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "retrain"],
        cwd=untrained.root,
        env=untrained.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_metrics(untrained, child, "pretrain")
        assert len(at_work_in(untrained.root)) == 2  # the command and its server
        child.send_signal(number)
        child.wait(60)
        time.sleep(10)
        assert at_work_in(untrained.root) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def at_work_in(folder):
    """Command lines of processes that run there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder):
                found.append(process.cmdline())
    return found


def wait_for_metrics(project, child, stage):
    """Waits until a stage has logged its first figure, so that it is in the middle of training."""
    query = (
        "SELECT count(*) FROM runs JOIN tags ON runs.run_uuid = tags.run_uuid JOIN metrics ON"
        " runs.run_uuid = metrics.run_uuid WHERE status = 'RUNNING' AND tags.value = ?"
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and child.poll() is None:
        connection = sqlite3.connect(project.root / "mlflow.db", timeout=5)
        with contextlib.closing(connection), contextlib.suppress(sqlite3.OperationalError):
            if connection.execute(query, [stage]).fetchone()[0]:
                return
        time.sleep(0.05)
    pytest.fail(f"{stage} was not seen at work")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["teach", "prune"])
def test_a_killed_retraining_ends_the_same_when_started_again(untrained, finished, stage):
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "retrain"],
        cwd=untrained.root,
        env=untrained.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for_metrics(untrained, child, stage)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    killed = store(untrained)
    runs = [run for run in killed.last_runs("digits", 50) if run.info.status == "RUNNING"]
    at_work = {run.data.tags["stillmark.stage"]: run for run in runs}
    assert set(at_work) == {"retrain", stage}
    assert killed.find("digits", at_work[stage].data.tags["stillmark.key"]) is None
    assert killed.registered() == []

    done = untrained.stillmark("retrain", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "promoted"
    reference_store = store(finished.project)
    for role in ROLES:
        contents = [
            found.ref_of(found.versions(f"digits.{role}")[0]).content
            for found in (killed, reference_store)
        ]
        assert contents[0] == contents[1], role
