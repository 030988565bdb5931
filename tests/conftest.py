"""Small real projects: digits as PNG files in class folders, few steps."""
# ruff: noqa: PLC0415 - heavy imports wait until a test needs them

import compileall
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from filelock import FileLock

from tasks.settings import QUIET

REPOSITORY = Path(__file__).parents[1]
OWN = ("STILLMARK_", "PREFECT_", "MLFLOW_", "DVC_", "DO_NOT_TRACK")

# Importing `flows` makes Prefect's folder in the project it finds; not in this repository, please.
os.environ |= QUIET  # some tests import Prefect or MLflow before `flows` can say so
os.environ["STILLMARK_PROJECT"] = os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="stillmark-")


# Files that take minutes: begun last, they would keep one worker busy while the others wait.
LONG = ("test_soak.py", "test_kill_anywhere.py", "test_compare.py", "test_fit_budget.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_unconfigure():
    shutil.rmtree(os.environ["PREFECT_HOME"], ignore_errors=True)


@dataclass(frozen=True)
class Project:
    """A project folder with a copy of the code, used through processes of its own."""

    root: Path
    patience_seconds: ClassVar[float] = 240

    @property
    def uri(self):
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def params(self):
        return yaml.safe_load((self.root / "params.yaml").read_text())

    def change(self, path, value):
        """Writes one parameter, by its dotted path."""
        tree = place = self.params
        *parents, last = path.split(".")
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value
        (self.root / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))

    @property
    def environment(self):
        plain = {k: v for k, v in os.environ.items() if not k.startswith(OWN)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{plain['PATH']}"
        return plain | {"PATH": path, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}

    def command(self, *command, **options):
        """Runs a command in the project's folder; what it may leave behind is ended with it."""
        words = [str(word) for word in command]
        options = {"cwd": self.root, "env": self.environment, **options}
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            with subprocess.Popen(
                words, stdout=out, stderr=err, start_new_session=True, **options
            ) as process:
                try:
                    code = process.wait(self.patience_seconds)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read())
        return subprocess.CompletedProcess(words, code, *texts)

    def stillmark(self, *arguments, **options):
        return self.command(sys.executable, "-m", "flows.cli", *arguments, **options)


def small(tree):
    """The repository's parameters with few steps."""
    steps = {"pretrain": 10, "distill": 80, "supervise": 80}
    for section, count in steps.items():
        tree[section]["fit"]["steps"] = count
    tree["teach"][0]["fit"]["steps"] = 60
    tree["prune"]["recovery"]["fit"]["steps"] = 40
    tree["evaluate"]["latency_calls"] = 20
    tree["compute"] |= {"seed": 0, "threads": 1, "device": "cpu", "precision": "fp32"}
    tree["prepare"] |= {"labels_per_class": 10, "validation_labels_per_class": 2}
    # So few steps make no edge model that beats its control.
    tree["promote"]["gates"] = [{"name": "slices", "margin": 0.99}]
    return tree


def draw_digits(folder, each=90, labelled=60):
    """Three classes of real digits; those past `labelled` go to unlabelled/."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(3):
        for at, image in enumerate(digits.images[digits.target == label][:each]):
            place = folder / (str(label) if at < labelled else "unlabelled")
            place.mkdir(parents=True, exist_ok=True)
            pixels = (image * 15.9).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{label}-{at:03}.png")


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Raw data: 180 labelled pictures and 90 without a label."""
    folder = tmp_path_factory.mktemp("raw") / "data"
    draw_digits(folder)
    return folder


@pytest.fixture(scope="session")
def plain_params():
    """The parameters of the small project, as plain data."""
    return small(yaml.safe_load((REPOSITORY / "params.yaml").read_text()))


@pytest.fixture(scope="session")
def everyone(tmp_path_factory, worker_id):
    """A folder that all test workers share."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def prefect_database(everyone):
    """Prefect's own database with nothing in it: making one takes longer than most tests."""
    home = everyone / "prefect"
    with FileLock(everyone / "prefect.lock"):
        if not home.exists():
            command = [Path(sys.executable).with_name("prefect"), "server", "database", "upgrade"]
            environment = os.environ | {"PREFECT_HOME": str(home)}
            subprocess.run([*command, "-y"], env=environment, check=True, capture_output=True)
    shutil.copy(home / "prefect.db", os.environ["PREFECT_HOME"])
    return home / "prefect.db"


def free_port():
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settle(project):
    """Puts a project's folder into git and DVC."""
    who = ["-c", "user.name=Tests", "-c", "user.email=tests@localhost"]
    dvc = [sys.executable, "-m", "dvc"]
    cache = {
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(project.root / ".stillmark" / "dvc"),
    }
    for command in (
        ["git", "init", "-q"],
        [*dvc, "init", "-q"],
        [*dvc, "add", "-q", "data"],
        ["git", "add", "--all"],
        ["git", *who, "commit", "-qm", "A project"],
    ):
        done = project.command(*command, env=project.environment | cache)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def fresh(tmp_path_factory, raw, plain_params, prefect_database):
    """A project as a user has it before the first run: in git and DVC, nothing trained."""
    root = tmp_path_factory.mktemp("fresh") / "project"
    for name in ("flows", "tasks"):
        shutil.copytree(REPOSITORY / name, root / name)
        compileall.compile_dir(root / name, quiet=1)  # once, and not in every copy
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, root)
    (root / "params.yaml").write_text(yaml.safe_dump(plain_params, sort_keys=False))
    shutil.copytree(raw, root / "data")
    project = Project(root)
    settle(project)
    (root / ".stillmark" / "prefect").mkdir(parents=True, exist_ok=True)
    shutil.copy(prefect_database, root / ".stillmark" / "prefect")
    return project


@pytest.fixture
def untrained(fresh, tmp_path):
    """A copy of the fresh project, to be changed at will."""
    shutil.copytree(fresh.root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


@dataclass(frozen=True)
class Finished:
    """A project that was retrained once, by the command line, with what the command said."""

    project: Project
    outcome: dict
    progress: str


@pytest.fixture(scope="session")
def finished(fresh, everyone):
    """Read only, as it is shared, by all workers: tests that change anything take their own."""
    project = Project(everyone / "finished" / "project")
    said = everyone / "finished.json"
    with FileLock(everyone / "finished.lock"):
        if not said.exists():
            shutil.copytree(fresh.root, project.root, symlinks=True)
            done = project.stillmark("retrain", "--json")
            assert done.returncode == 0, done.stderr
            said.write_text(json.dumps([json.loads(done.stdout), done.stderr]))
    return Finished(project, *json.loads(said.read_text()))


@pytest.fixture
def inside(monkeypatch):
    """Makes a project the current one of this process, for calls without a process of their own."""

    def enter(root, uri=None):
        monkeypatch.setenv("STILLMARK_PROJECT", str(root))
        if uri:
            monkeypatch.setenv("STILLMARK_MLFLOW_URI", uri)

    return enter


@pytest.fixture(scope="session")
def bench_template(tmp_path_factory, raw, plain_params):
    """Prepared rows and an empty MLflow store, made once."""
    import flows  # noqa: F401 - sets the environment
    from tasks.prepare import PrepareParams, prepare
    from tasks.sections import parse
    from tasks.tracking import Tracking

    root = tmp_path_factory.mktemp("bench")
    (root / "params.yaml").write_text(yaml.safe_dump(plain_params, sort_keys=False))
    shutil.copytree(raw, root / "data")
    prepare(root, parse(PrepareParams, plain_params["prepare"]))
    (root / "data.dvc").touch()
    tracking = Tracking(f"sqlite:///{root / 'mlflow.db'}", root / ".stillmark")
    tracking.client._tracking_client.store.engine.dispose()
    return root


@dataclass(frozen=True)
class Bench:
    """Prepared rows and a store of their own: stages run here without Prefect and DVC."""

    root: Path
    run: object
    params: object
    tracking: object

    def runs(self, **tags):
        """Every MLflow run, newest first, that has these tags (`stage`, `key` …)."""
        found = self.tracking.last_runs(self.run.project, 100)
        wanted = {f"stillmark.{name}": value for name, value in tags.items()}
        return [run for run in found if wanted.items() <= run.data.tags.items()]

    def files(self, ref):
        """Where a model's files really lie, to damage them."""
        place = self.tracking.client.get_logged_model(ref.model_id).artifact_location
        return Path(place.removeprefix("file://"))


@pytest.fixture
def bench(bench_template, tmp_path, monkeypatch):
    return bench_in(tmp_path / "bench", bench_template, monkeypatch)


def bench_in(root, bench_template, monkeypatch):
    """For fixtures that outlive a test, too."""
    from tasks.lineage.digests import digest_of_file, digest_of_files, digests_of_folder
    from tasks.params import load
    from tasks.refs import DataRef
    from tasks.stage import Run
    from tasks.tracking import Tracking

    shutil.copytree(bench_template, root, ignore=shutil.ignore_patterns("data"))
    monkeypatch.setenv("STILLMARK_PROJECT", str(root))
    params = load(root)
    prepared = root / "prepared"
    data = DataRef(
        raw="raw.dir",
        prepared="prepared.dir",
        manifest=digest_of_file(prepared / "manifest.parquet").sha256,
        content=digest_of_files(digests_of_folder(prepared)),
    )
    tracking = Tracking(f"sqlite:///{root / 'mlflow.db'}", root / ".stillmark")
    return Bench(root, Run(params.project, params.compute, data), params, tracking)


@dataclass(frozen=True)
class Toy:
    """A stage that takes no time: a linear model that is `good`, `fair` and never names the last
    class, or `lazy` and names one alone."""

    stage: object
    section: type
    calls: list

    def make(self, bench, quality="good", salt=0, **inputs):
        """Another salt makes another model with the same answers."""
        return self.stage._run(bench.run, self.section(quality=quality, salt=salt), **inputs)

    def find(self, bench, quality="good", **inputs):
        section = self.section(quality=quality)
        return self.stage.find(bench.tracking, bench.run, section, **inputs)


@pytest.fixture(scope="session")
def linear(bench_template):
    """ONNX files, by quality, of linear models on the prepared rows."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.linear_model import LogisticRegression

    from tasks.rows import Rows

    rows = Rows(bench_template / "prepared").open_oracle()
    flat = rows.inputs.reshape(len(rows), -1) / np.float32(255)
    model = LogisticRegression(max_iter=1000).fit(flat, rows.labels)
    weights = {
        "good": (model.coef_.T, model.intercept_),
        "fair": (model.coef_.T, model.intercept_ - [0.0, 0.0, 1e6]),
        "lazy": (np.zeros_like(model.coef_.T), np.array([1.0, 0.0, 0.0])),
    }
    files = {}
    for quality, (weight, bias) in weights.items():
        graph = helper.make_graph(
            [
                helper.make_node("Flatten", ["inputs"], ["flat"]),
                helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
            ],
            "linear",
            [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", 1, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
            [
                numpy_helper.from_array(weight.astype(np.float32), "weight"),
                numpy_helper.from_array(bias.astype(np.float32), "bias"),
            ],
        )
        opset = [helper.make_opsetid("", 20)]
        model_proto = helper.make_model(graph, opset_imports=opset, ir_version=10)
        files[quality] = model_proto.SerializeToString()
    return files


@pytest.fixture
def toy(linear):
    return toy_of(linear)


def toy_of(linear):
    """For fixtures that outlive a test, too."""
    from typing import Literal

    from tasks.keep import keep_schema
    from tasks.sections import Section
    from tasks.stage import stage

    class ToySection(Section):
        quality: Literal["good", "fair", "lazy"]
        salt: int = 0

    calls = []

    def guess(work, params, **inputs):
        calls.append(params.quality)
        (work.folder / "model.onnx").write_bytes(linear[params.quality])
        (work.folder / "salt.txt").write_text(str(params.salt))
        keep_schema(work.folder, work.rows)
        return {"weight": float(len(linear[params.quality]))}

    return Toy(stage("edge")(guess), ToySection, calls)
