import os
import subprocess
import sys

import pytest

from tasks.errors import SetupError
from tasks.settings import QUIET, Settings, find_project, isolate


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").touch()
    inner = tmp_path / "deep" / "inside"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    for name in (*QUIET, "STILLMARK_PROJECT", "PREFECT_HOME", "DVC_SITE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_project_is_the_nearest_folder_above_with_parameters(project):
    settings = Settings()
    assert settings.root == project
    assert settings.home == project / ".stillmark"
    assert settings.tracking_uri == f"sqlite:///{project / 'mlflow.db'}"
    assert settings.ledger_address == f"sqlite:///{project / 'ledger.db'}"


def test_addresses_with_passwords_are_not_shown(project, monkeypatch):
    monkeypatch.setenv("STILLMARK_LEDGER_URI", "postgresql://ann:open-sesame@db/ledger")
    monkeypatch.setenv("STILLMARK_WEBHOOK", "https://example.org/hook/open-sesame")
    settings = Settings()
    assert "open-sesame" not in repr(settings)
    assert settings.ledger_address == "postgresql://ann:open-sesame@db/ledger"


def test_the_environment_goes_first(project, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    monkeypatch.setenv("STILLMARK_PROJECT", str(other))
    monkeypatch.setenv("STILLMARK_MLFLOW_URI", "http://mlflow.example")
    assert Settings().root == other
    assert Settings().tracking_uri == "http://mlflow.example"


def test_outside_a_project_one_line_says_so(tmp_path):
    with pytest.raises(SetupError, match=f"no params.yaml in {tmp_path} or above it; run this"):
        find_project(tmp_path)


def test_telemetry_is_off(project):
    isolate()
    for name, value in {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }.items():
        assert os.environ[name] == value
    assert os.environ["PREFECT_HOME"] == str(project / ".stillmark" / "prefect")
    assert os.environ["DVC_SITE_CACHE_DIR"] == str(project / ".stillmark" / "dvc")


def test_what_the_user_has_set_stays(project, monkeypatch):
    mine = {"PREFECT_HOME": "/mine", "DO_NOT_TRACK": "0", "MLFLOW_LOGGING_LEVEL": "DEBUG"}
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    isolate()
    assert {name: os.environ[name] for name in mine} == mine


def test_isolate_outside_a_project_leaves_no_trace(project, monkeypatch, tmp_path_factory):
    bare = tmp_path_factory.mktemp("bare")
    monkeypatch.chdir(bare)
    isolate()
    assert "PREFECT_HOME" not in os.environ
    assert list(bare.iterdir()) == []


def test_the_home_is_made_and_left_clean(project):
    home = Settings().writable_home()
    assert home.is_dir()
    assert list(home.iterdir()) == []


def test_a_home_that_is_a_file_is_refused(project):
    (project / ".stillmark").write_text("in the way")
    with pytest.raises(SetupError, match=r"cannot write to .*\.stillmark \(File exists\)"):
        Settings().writable_home()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_without_permission_is_refused(project):
    (project / ".stillmark").mkdir(mode=0o500)
    with pytest.raises(SetupError, match=r"cannot write to .*\(Permission denied\)"):
        Settings().writable_home()


def test_settings_reach_prefect_and_mlflow_before_they_are_imported(project):
    """Both read the environment while they are imported: it has to be set by then."""
    script = (
        "import flows, sys\n"
        "assert not {'prefect', 'mlflow'} & set(sys.modules)\n"
        "from prefect.settings import get_current_settings\n"
        "print(get_current_settings().home, get_current_settings().server.analytics_enabled)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(project / ".stillmark" / "prefect"), "False"]
