"""A project of the chain's other shape, retrained and compared once for all tests."""

import copy
import json
import logging
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from flows.cli import main

MARK = "=" * 30

COMMANDS = f"""
import sys
from flows.cli import main
for command in (["retrain", "--json"], ["compare", "--json"], ["compare"]):
    assert main(command) == 0, command
    for stream in (sys.stdout, sys.stderr):
        print("{MARK}", file=stream, flush=True)
"""


def other_shape(tree):
    """Three teachers, one of them scikit-learn's; no pretraining, no pruning; few steps."""
    tree = copy.deepcopy(tree)
    network = {"name": "convnet", "widths": [8, 8]}
    fit = {"steps": 12, "learning_rate": 2.0e-3}
    tree["pretrain"] = tree["prune"] = None
    tree["teach"][0] |= {
        "network": network,
        "method": {"name": "mixmatch", "labelled_batch": 8, "pool_batch": 16},
        "fit": fit,
        "members": 2,
    }
    tree["consult"] = [{"estimator": {"name": "logistic_regression"}}]
    tree["distill"] |= {"network": network, "fit": fit}
    tree["supervise"] |= {"network": network, "fit": fit, "batch_size": 32}
    tree["compare"] = {"draws": [0], "baselines": [{"name": "logistic_regression"}]}
    return tree


@dataclass(frozen=True)
class Compared:
    """A project that was retrained, compared and compared again.

    Attributes:
        retrained: What `retrain --json` said.
        compared: What `compare --json` said.
        shown: What `compare` said to people.
        progress: What each of the three said on stderr.
    """

    project: object
    retrained: dict
    compared: dict
    shown: str
    progress: list[str]


@pytest.fixture(scope="session")
def compared(fresh, plain_params, tmp_path_factory):
    """Read only, as it is shared."""
    root = tmp_path_factory.mktemp("compared") / "project"
    shutil.copytree(fresh.root, root, symlinks=True)
    (root / "params.yaml").write_text(yaml.safe_dump(other_shape(plain_params), sort_keys=False))
    project = type(fresh)(Path(root))
    environment = project.environment | {"COLUMNS": "100"}
    done = project.command(sys.executable, "-c", COMMANDS, env=environment)
    assert done.returncode == 0, done.stderr
    retrained, compared, shown, _ = done.stdout.split(MARK)
    return Compared(
        project, json.loads(retrained), json.loads(compared), shown, done.stderr.split(MARK)
    )


@pytest.fixture
def changed(finished, tmp_path, inside):
    """A copy of the project's folder on a copy of the store's database, for what comes next."""
    root = tmp_path / "changed"
    caches = shutil.ignore_patterns(".stillmark", "mlflow.db-*")
    shutil.copytree(finished.project.root, root, ignore=caches, symlinks=True)
    inside(root)
    return type(finished.project)(root)


@pytest.fixture
def as_before(monkeypatch):
    """What a retraining sets for the rest of its process does not outlive a test."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


@pytest.fixture
def refused(capsys):
    """Runs a command that has to fail with one line; gives that line."""

    def run(*arguments):
        assert main([str(word) for word in arguments]) == 2
        caught = capsys.readouterr()
        assert caught.out == ""
        (line,) = caught.err.splitlines()
        assert line.startswith("stillmark: ")
        return line.removeprefix("stillmark: ")

    return run
