import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import tasks
from flows import cli, compare, retrain
from flows.cli import main
from tasks.errors import StillmarkError

COMMANDS = {
    "retrain": "Run the whole chain",
    "compare": "Say whether the chain helps",
    "fit-budget": "Find the cheapest model",
    "check": "Validate everything",
    "methods": "List every method",
    "predict": "Label raw files",
    "promote": "Judge a version against the champion",
    "rollback": "Make an earlier version champion again",
    "approve": "Promote what waits for a person's approval",
    "reject": "Turn down what waits for a person's approval",
    "history": "Say who was champion",
    "trace": "Say where a model comes from",
    "verify": "Hash a model and all behind it again",
    "replay": "Make a model again and compare",
    "impact": "Say which models descend from",
    "forget": "Remove rows, retrain",
    "export": "Write a model's lineage",
    "index": "Bring the lineage index up to date",
    "convert": "Write a model for another runtime",
    "up": "Run the servers and the schedule",
    "watch": "Ask every trigger",
    "gc": "Delete what no alias",
    "backfill": "Train on past data versions",
    "status": "Say what is champion",
    "open": "Serve MLflow's or Prefect's page",
}
OPTIONS = {
    "open": "--port",
    "convert": "--to",
    "export": "--format",
    "index": "--rebuild",
} | dict.fromkeys(["rollback", "approve", "reject"], "--reason")


@pytest.fixture
def refused(refused, monkeypatch):
    """Runs a command that has to be refused before Prefect is started; returns its one line."""

    def never():
        pytest.fail("the flow was started")

    monkeypatch.setattr(retrain, "retrain", never)
    monkeypatch.setattr(compare, "compare", never)

    return refused


@pytest.fixture
def project(untrained, inside):
    """An untrained project that this process stands in."""
    inside(untrained.root)
    return untrained


def test_a_misspelt_parameter_stops_a_real_process_before_anything_starts(untrained):
    text = (untrained.root / "params.yaml").read_text()
    (untrained.root / "params.yaml").write_text(text.replace("ema_decay:", "ema_decai:"))
    done = untrained.stillmark("retrain")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        "stillmark: params.yaml: unknown parameter 'teach[0].fit.ema_decai'; did you mean "
        "'ema_decay'?"
    )
    assert len(done.stderr.splitlines()) == 1
    assert not (untrained.root / "mlflow.db").exists()
    with sqlite3.connect(untrained.root / ".stillmark" / "prefect" / "prefect.db") as database:
        assert database.execute("SELECT count(*) FROM flow_run").fetchone() == (0,)


@pytest.mark.parametrize("command", ["retrain", "check"])
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("distill.fit.steps", "many", "params.yaml: 'distill.fit.steps' is \"many\": "),
        ("teach.0.method.name", "mixmtch", "'teach[0].method' has the unknown name 'mixmtch'; did"),
        ("prune.recovery.fit.stepz", 1, "'prune.recovery.fit.stepz'; did you mean 'steps'?"),
        ("distil", {}, "unknown parameter 'distil'; did you mean 'distill'?"),
        pytest.param(
            "compute.device",
            "cuda",
            "torch finds no CUDA device",
            marks=pytest.mark.skipif("__import__('torch').cuda.is_available()"),
        ),
        ("teach.0.fit.learning_rate", float("inf"), "teach[0].fit.learning_rate"),
    ],
)
def test_parameters_are_checked_first(project, refused, command, path, value, message):
    project.change(path, value)
    assert message in refused(command)


def test_two_mistakes_are_two_lines(project, capsys):
    project.change("compute.sed", 1)
    project.change("teach.0.fit.stepz", 1)
    assert main(["retrain"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" '")[0] for line in lines] == [
        "stillmark: params.yaml: unknown parameter"
    ] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "params.yaml is not YAML: "), ("", "params.yaml holds NoneType")],
)
def test_a_file_that_is_no_tree_of_parameters(project, refused, text, message):
    (project.root / "params.yaml").write_text(text)
    assert refused("retrain").startswith(message)


def test_a_missing_section(project, capsys):
    lines = (project.root / "params.yaml").read_text().split("evaluate:")[0]
    (project.root / "params.yaml").write_text(lines)
    assert main(["check"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "stillmark: params.yaml: 'evaluate' is missing",
        "stillmark: params.yaml: 'promote' is missing",
    ]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"distillations": {"a+b": {}}},
            "'compare.distillations.a+b.[key]' is \"a+b\": String sho",
        ),
        ({"controls": {"50%": {}}}, "'compare.controls.50%.[key]' is \"50%\": String should match"),
        ({"controls": {"x" * 101: {}}}, "String should have at most 100 characters"),
        ({"distillations": {"dist": {"lossess": []}}}, "dist.lossess'; did you mean 'losses'?"),
        ({"draws": []}, "'compare.draws' is []: "),
        (
            {"draws": [0, 1, 0]},
            "'compare.draws' is [0, 1, 0]: Value error, expected one or more num",
        ),
        ({"seeds": [-1]}, "'compare.seeds[0]' is -1: Input should be greater than or equal to 0"),
        (
            {"controls": {"distilled": {}}},
            "two arms of the comparison are called 'distilled'; renam",
        ),
    ],
)
def test_a_comparison_that_cannot_end_well_is_not_begun(project, refused, section, message):
    project.change("compare", section)
    line = refused("compare")
    assert line.startswith("params.yaml: ")
    assert message in line


@pytest.mark.parametrize("command", ["retrain", "compare", "check"])
def test_data_that_are_not_there(project, refused, command):
    shutil.rmtree(project.root / "data")
    assert refused(command).startswith("data/ is missing; run `dvc pull`")
    (project.root / "data").mkdir()
    assert refused(command).startswith("data/ is empty; ")


def test_a_folder_that_is_no_project(refused, tmp_path, monkeypatch):
    monkeypatch.delenv("STILLMARK_PROJECT")
    monkeypatch.chdir(tmp_path)
    for command in (["retrain"], ["check"], ["status"], ["predict", "digits.edge", sys.executable]):
        assert refused(*command).startswith(f"no params.yaml in {tmp_path} or above it")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["retrain", "check", "status"])
def test_a_store_that_another_process_holds(project, refused, monkeypatch, command):
    path = project.root / "mlflow.db"
    holder = sqlite3.connect(path)
    holder.execute("CREATE TABLE any (thing)")
    holder.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **_: connect(path, timeout=0.1))
    try:
        assert f"{path} cannot be written (database is locked)" in refused(command)
    finally:
        holder.close()


@pytest.mark.parametrize("command", ["retrain", "status"])
def test_a_store_that_is_no_database(project, refused, command):
    (project.root / "mlflow.db").write_bytes(b"no database at all" * 99)
    assert "mlflow.db is no MLflow database" in refused(command)


@pytest.mark.parametrize("command", ["retrain", "check", "status"])
def test_a_home_that_cannot_be_written(project, refused, command):
    shutil.rmtree(project.root / ".stillmark", ignore_errors=True)
    (project.root / ".stillmark").write_text("in the way")
    assert f"cannot write to {project.root / '.stillmark'}" in refused(command)


def test_a_home_that_cannot_be_written_in_a_process_of_its_own(untrained):
    """Prefect, too, wants that folder, while it is imported."""
    shutil.rmtree(untrained.root / ".stillmark", ignore_errors=True)
    (untrained.root / ".stillmark").write_text("in the way")
    done = untrained.stillmark("retrain")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"stillmark: cannot write to {untrained.root / '.stillmark'}")


@pytest.mark.parametrize("command", ["retrain", "compare"])
def test_two_runs_at_once(project, refused, command):
    """Whichever of the two commands the other run is of."""
    (project.root / ".stillmark").mkdir(exist_ok=True)
    with FileLock(project.root / ".stillmark" / "retrain.lock"):
        assert refused(command).startswith(f"another run of {project.root} is going on; wait until")


@pytest.mark.parametrize("page", ["mlflow", "prefect"])
def test_a_taken_port(project, refused, monkeypatch, page):
    monkeypatch.setattr(os, "execv", lambda *command: pytest.fail("was started"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = refused("open", page, "--port", port)
    assert line.startswith(f"port {port} is taken (Address already in use); choose another")


@pytest.mark.parametrize("page", ["mlflow", "prefect"])
def test_open_serves_on_loopback(project, monkeypatch, capsys, page):
    started = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append((path, command)))
    monkeypatch.setattr(os, "chdir", lambda path: None)
    for name in ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "PREFECT_SERVER_UI_API_URL"):
        monkeypatch.setenv(name, "")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["open", page, "--port", str(port)]) == 0
    ((path, command),) = started
    assert path.exists()
    assert command[0] == page
    assert command[-4:] == ["--host", "127.0.0.1", "--port", str(port)]
    assert f"http://127.0.0.1:{port}" in capsys.readouterr().out
    if page == "mlflow":
        assert f"sqlite:///{project.root / 'mlflow.db'}" in command
    else:
        assert os.environ["PREFECT_SERVER_UI_API_URL"] == f"http://127.0.0.1:{port}/api"


def test_an_unknown_page_or_command_is_no_traceback(capsys):
    assert main(["open", "grafana"]) == 2
    assert "mlflow" in capsys.readouterr().err
    assert main(["retrian"]) == 2
    assert "Did you mean 'retrain'" in capsys.readouterr().err


@pytest.fixture
def trained(finished, inside):
    """The finished project, for commands that only read."""
    inside(finished.project.root)
    return finished.project


def test_predict_labels_files(trained, capsys):
    pictures = [str(trained.root / "data" / label / f"{label}-030.png") for label in "012"]
    assert main(["predict", "digits.edge", *pictures]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [path for path, _, _ in lines] == pictures
    assert {label for _, label, _ in lines} <= set("012")
    assert all(1 / 3 <= float(chance) <= 1 for _, _, chance in lines)


@pytest.mark.parametrize("model", ["digits.edge", "digits.edge@champion", "digits.edge:1"])
def test_predict_takes_a_version_or_an_alias(trained, capsys, model):
    picture = str(trained.root / "data" / "0" / "0-030.png")
    assert main(["predict", model, picture, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["input"] == picture
    assert row["label"] in {"0", "1", "2"}
    assert len(row["probabilities"]) == 3


def test_predict_says_what_is_wrong(trained, refused, tmp_path):
    picture = trained.root / "data" / "0" / "0-030.png"
    words = tmp_path / "words.png"
    words.write_text("not a picture")
    line = refused("predict", "digits.edg", picture)
    assert line.startswith("no model 'digits.edg'; did you mean 'digits.edge'? (known: digits.con")
    line = refused("predict", "digits.edge:7", picture)
    assert line.startswith("'digits.edge' has no version '7'")
    assert refused("predict", "digits.edge@gold", picture).startswith(
        "'digits.edge' has no alias 'gold'"
    )
    assert refused("predict", "digits.teacher", picture).startswith(
        "'digits.teacher' has no alias 'champion'; name a version: digits.teacher:1"
    )
    missing = tmp_path / "missing.png"
    assert refused("predict", "digits.edge", missing) == (
        f"{missing} cannot be read: No such file or directory"
    )
    assert refused("predict", "digits.edge", tmp_path).endswith("cannot be read: Is a directory")
    line = refused("predict", "digits.edge", picture, words)
    assert line.startswith(f"{words}: not a readable image")
    assert "0x" not in line


@pytest.mark.parametrize(
    ("text", "loader", "found"),
    [
        ("wake me", "stillmark_text", "wake me"),
        ('{"age": 3}', "stillmark_tables", '{"age": 3}'),
        ("words.txt", "stillmark_text", "wake me"),
        ("words.txt", "stillmark_images", b"\xef\xbb\xbfwake me"),
    ],
)
def test_predict_takes_texts_and_rows_as_they_stand(tmp_path, monkeypatch, text, loader, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbfwake me")
    assert cli._content(text, loader) == found


def test_predict_wants_texts_in_utf_8(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(StillmarkError, match=r"words.txt is not text in UTF-8"):
        cli._content(str(path), "stillmark_text")


def test_predict_by_an_encoder_is_one_line(trained, refused):
    """It is a registered model, but none that predicts."""
    picture = trained.root / "data" / "0" / "0-030.png"
    assert "digits.encoder" in refused("predict", "digits.encoder:1", picture)


def test_predict_before_the_first_run(project, refused):
    picture = project.root / "data" / "0" / "0-030.png"
    line = refused("predict", "digits.edge", picture)
    assert line == "no model 'digits.edge'; run `stillmark retrain` first"


def test_status_names_champion_and_reason(trained, capsys):
    assert main(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["project"] == "digits"
    models = {model["model"]: model for model in found["models"]}
    assert models["digits.edge"]["champion"] == 1
    assert "first version" in models["digits.edge"]["reason"]
    assert models["digits.teacher"]["champion"] is None
    assert {run["status"] for run in found["runs"]} == {"FINISHED"}
    assert found["runs"][0]["stage"] == "promote"
    assert main(["status"]) == 0
    text = capsys.readouterr().out
    assert "digits.edge" in text
    assert "champion: version 1" in text
    assert "FINISHED  promote" in text


def test_status_before_the_first_run(project, capsys):
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "no servers run here; `stillmark up` starts them",
        "watch looks every 5 minutes while `stillmark up` runs: data",
        "'digits' has no models yet; run `stillmark retrain`",
    ]


def test_methods_lists_what_params_yaml_can_name(capsys):
    assert main(["methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    files = (path for path in Path(tasks.__file__).parent.glob("*/[a-z]*.py"))
    drawers = {path.parent.name for path in files} - {
        "lineage",
        "ledger",
        "runtimes",
        "documents",
        "tracking",
        "versioning",
    }
    assert set(found) == drawers
    for drawer, methods in found.items():
        assert set(methods) == {
            path.stem for path in Path(tasks.__file__).parent.glob(f"{drawer}/[a-z]*.py")
        }
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for methods in found.values() for name in methods)


def test_methods_says_all_about_one(capsys, refused):
    for name in ("soft_labels", "losses.soft_labels"):
        assert main(["methods", name]) == 0
        text = capsys.readouterr().out
        assert "Hinton" in text
        assert "temperature: " in text
    assert main(["methods", "taylor"]) == 0
    assert "keep_macs: " in capsys.readouterr().out  # of what it extends
    assert refused("methods", "soft_label").startswith(
        "there is no method 'soft_label'; did you mean 'soft_labels'? (known: "
    )
    assert "there is no method 'teachers.soft_labels'" in refused("methods", "teachers.soft_labels")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert COMMANDS[name] in text
    assert "--help" in text
    assert OPTIONS.get(name, "--json") in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_the_commands_are_these(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    lines = text.partition("Commands:")[2].strip().splitlines()
    listed = [line.split()[0] for line in lines]
    assert listed == list(COMMANDS)
    assert set(cli.PORTS) == set(cli.Page)


def test_the_list_of_commands_is_not_cut_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_help_is_quick_and_imports_nothing_heavy(fresh):
    script = (
        "import sys; from flows.cli import main; code = main(['--help'])\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'onnxruntime', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(code or sorted(heavy) or 0)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = fresh.command(sys.executable, "-c", script)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 1.0


def test_the_flows_module_is_the_command(fresh):
    done = fresh.command(sys.executable, "-m", "flows.retrain", "--help")
    assert done.returncode == 0, done.stderr
    assert "Run the whole chain" in done.stdout


def test_the_command_is_installed(fresh):
    command = [shutil.which("stillmark") or "stillmark", "--help"]
    done = subprocess.run(command, cwd=fresh.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage: stillmark" in done.stdout
