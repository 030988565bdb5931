import errno
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tasks.errors import ArtifactError, DataError, ParamsError, SetupError, TrainingError
from tasks.lineage.digests import digest_of_file, digest_of_files, digests_of_folder
from tasks.refs import DataRef
from tasks.replay import Replay, replay
from tasks.settings import Settings
from tasks.tracking import Tracking
from tasks.versioning import Cache
from tests.dvc_store import keep_all

REPOSITORY = Path(__file__).parents[2]
EDGE = "digits.edge"
RAW = {"0/a.png": b"zero", "1/b.png": b"one"}

ECHO = """
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.stage import Work, stage


class EchoParams(Section):
    times: int


@stage("edge")
def echo(work: Work, params: EchoParams, *, teacher: ModelRef) -> dict[str, float]:
    said = (work.files(teacher) / "answers.safetensors").read_bytes()
    (work.folder / "said.bin").write_bytes(said * params.times)
    (work.folder / "seed.txt").write_text(str(work.compute.seed))
    return {}
"""
RECORD = """
import flows
from dataclasses import replace
from pathlib import Path
from tasks.consult import ConsultParams, consult
from tasks.echo import EchoParams, echo
from tasks.estimators.logistic_regression import LogisticRegression
from tasks.params import load
from tasks.refs import DataRef
from tasks.rows import Rows
from tasks.settings import Settings
from tasks.stage import Run
from tasks.tracking import Tracking

params = load(Path.cwd())
compute = params.compute.model_copy(update={{"seed": 5}})
run = Run(params.project, compute, DataRef.model_validate_json({data!r}))
settings = Settings()
tracking = Tracking(settings.tracking_uri, settings.home)
section = ConsultParams(estimator=LogisticRegression())
teacher = consult._run(run, section)
tracking.register("digits.edge", echo._run(run, EchoParams(times=2), teacher=teacher), {{}})
redraw = Rows(Path("prepared")).budget.redraw(draw=1)
tracking.register("digits.teacher", consult._run(replace(run, redraw=redraw), section), {{}})
"""


def git(root, *words):
    who = ["-c", "user.name=Tests", "-c", "user.email=tests@localhost"]
    done = subprocess.run(
        ["git", *who, *words], cwd=root, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class Recorded:
    """A project with an edge model of a short chain (consult → echo), and the data in DVC's cache
    alone; the working tree has moved on since."""

    root: Path
    data: DataRef

    @property
    def settings(self):
        return Settings(project=self.root)

    def version(self, name=EDGE):
        return Tracking(self.settings.tracking_uri, self.settings.home).version(name, 1)

    def replay(self, scratch, name=EDGE, **more) -> Replay:
        return replay(self.settings, self.version(name), scratch=scratch, **more)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory, bench_template):
    root = tmp_path_factory.mktemp("replay") / "project"
    unwanted = shutil.ignore_patterns("__pycache__", "data", "data.dvc")
    shutil.copytree(bench_template, root, ignore=unwanted)
    for name in ("flows", "tasks"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=unwanted)
    shutil.copy(REPOSITORY / "tasks" / "data.py", root / "tasks")
    (root / "tasks" / "echo.py").write_text(ECHO)
    shutil.copy(REPOSITORY / ".gitignore", root)
    prepared = root / "prepared"
    contents = {path.name: path.read_bytes() for path in prepared.iterdir()}
    cache = root / ".dvc" / "cache"
    data = DataRef(
        raw=keep_all(cache, RAW),
        prepared=keep_all(cache, contents),
        manifest=digest_of_file(prepared / "manifest.parquet").sha256,
        content=digest_of_files(digests_of_folder(prepared)),
    )
    for words in (["init", "-q"], ["add", "flows", "tasks", "params.yaml", ".gitignore"]):
        git(root, *words)
    git(root, "commit", "-qm", "then")
    script = RECORD.format(data=data.model_dump_json())
    environment = os.environ | {"PYTHONPATH": str(root), "STILLMARK_PROJECT": str(root)}
    subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, check=True)
    # Since then: other parameters, other rows, other code, one more commit.
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree["compute"]["seed"] = 77
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    (root / "tasks" / "echo.py").write_text("1 / 0\n")
    git(root, "commit", "-qam", "now")
    shutil.rmtree(prepared)
    return Recorded(root, data)


@pytest.mark.slow  # the command line replays a stage in tests/flows/test_lineage_commands.py
def test_made_again_in_other_processes_it_is_equal_bit_for_bit(recorded, tmp_path):
    before = digests_of_folder(recorded.root / "tasks"), git(recorded.root, "status", "--porcelain")
    found = recorded.replay(tmp_path / "scratch")
    assert found.passed
    assert [(one.stage, one.status, one.reasons) for one in found.remade] == [
        ("consult", "equal", ()),
        ("echo", "equal", ()),
    ]
    model = recorded.version().model
    assert (found.remade[1].record, found.remade[1].found) == (model.record, model.content)
    after = digests_of_folder(recorded.root / "tasks"), git(recorded.root, "status", "--porcelain")
    assert after == before
    assert not (recorded.root / "prepared").exists()
    again = tmp_path / "scratch" / "0" / "data"
    assert {name: (again / name).read_bytes() for name in RAW} == RAW


@pytest.mark.slow
def test_one_stage_is_made_from_its_recorded_parents(recorded, tmp_path):
    found = recorded.replay(tmp_path / "scratch", stage="echo")
    assert [(one.stage, one.status) for one in found.remade] == [("echo", "equal")]


def of_finished(finished, name, scratch, **more):
    """Version 1 of a model that the command line made."""
    settings = Settings(project=finished.project.root)
    tracking = Tracking(settings.tracking_uri, settings.home)
    return replay(settings, tracking.version(name, 1), scratch=scratch, **more)


@pytest.mark.slow
def test_on_another_instruction_set_weights_are_compared(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    found = of_finished(finished, "digits.control", tmp_path / "scratch", tolerance=0.1)
    (remade,) = found.remade
    assert remade.reasons[0].startswith("instruction set: DEFAULT, recorded ")
    assert remade.status == "within tolerance"
    assert 0 < max(file.difference for file in remade.files) <= 0.1


@pytest.mark.slow
def test_the_whole_chain_comes_out_equal(finished, tmp_path):
    found = of_finished(finished, EDGE, tmp_path / "scratch")
    assert [(one.stage, one.status) for one in found.remade] == [
        ("pretrain", "equal"),
        ("teach", "equal"),
        ("distill", "equal"),
        ("prune", "equal"),
        ("quantize", "equal"),
    ]


def test_what_no_record_holds_is_declared(recorded, tmp_path):
    found = recorded.replay(tmp_path / "scratch", "digits.teacher")
    (remade,) = found.remade
    assert (remade.status, remade.found) == ("declared", None)
    assert "other labels" in remade.reasons[0]


def test_code_that_git_lost_is_declared(recorded, tmp_path):
    copy = Recorded(tmp_path / "project", recorded.data)
    shutil.copytree(recorded.root, copy.root)
    shutil.rmtree(copy.root / ".git")
    found = copy.replay(tmp_path / "scratch")
    assert {one.status for one in found.remade} == {"declared"}
    assert all("git does not have commit" in one.reasons[0] for one in found.remade)
    assert found.passed


def test_a_stage_that_is_not_in_the_lineage_is_named(recorded, tmp_path):
    with pytest.raises(ParamsError, match=r"no stage 'teach' made .*: consult, echo"):
        recorded.replay(tmp_path / "scratch", stage="teach")


def test_a_folder_in_use_is_left_alone(recorded, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SetupError, match="is not empty"):
        recorded.replay(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_data_that_nobody_has_is_one_line(recorded, tmp_path):
    copy = Recorded(tmp_path / "project", recorded.data)
    shutil.copytree(recorded.root, copy.root)
    shutil.rmtree(copy.root / ".dvc" / "cache")
    with pytest.raises(DataError, match="no default remote") as caught:
        copy.replay(tmp_path / "scratch")
    assert len(str(caught.value).splitlines()) == 1
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(recorded, tmp_path, monkeypatch):
    def fill(_self, _directory, target):
        target.mkdir()
        (target / "half.npy").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(Cache, "restore", fill)
    with pytest.raises(SetupError, match="no space is left") as caught:
        recorded.replay(tmp_path / "scratch")
    assert len(str(caught.value).splitlines()) == 1
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("last", "error", "message"),
    [
        ("OSError: [Errno 28] No space left on device", SetupError, "no space is left"),
        ("ValueError: no", TrainingError, "stage consult failed .*ValueError: no"),
    ],
)
def test_a_stage_that_fails_is_one_line(recorded, tmp_path, monkeypatch, last, error, message):
    driver = f"import sys; print({last!r}, file=sys.stderr); sys.exit(1)"
    monkeypatch.setattr("tasks.rerun.DRIVER", driver)
    with pytest.raises(error, match=message) as caught:
        recorded.replay(tmp_path / "scratch")
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_model_is_nothing_to_compare_with(recorded, tmp_path):
    version = recorded.version()
    tracking = Tracking(recorded.settings.tracking_uri, recorded.settings.home)
    (path,) = tracking.stored_at(version.model.model_id).rglob("said.bin")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    try:
        with pytest.raises(ArtifactError, match=r"said\.bin has sha256"):
            recorded.replay(tmp_path / "scratch")
    finally:
        path.write_bytes(content)
